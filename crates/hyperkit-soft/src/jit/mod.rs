//! Translation of hot blocks to code of the host.

pub mod buffer;
