//! What is asked of the operating system, one file per system.

#[cfg(target_os = "linux")]
mod linux;

#[cfg(target_os = "linux")]
pub use linux::{memory_bytes, raise_open_files};
