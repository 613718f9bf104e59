//! System calls that no safe crate has, by operating system.

pub mod linux;
