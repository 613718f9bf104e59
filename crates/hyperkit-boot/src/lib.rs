//! Turns a kernel, a command line and a machine into RAM contents and registers.
//!
//! [`boot`] loads an ELF kernel (PVH) or a bzImage (Linux boot protocol), the initial RAM disk and the ACPI tables,
//! and says in which state the first vCPU starts. [`layout`] is the address map that all parts of the board share.

#![forbid(unsafe_code)]

pub mod acpi;
mod error;
mod image;
pub mod layout;
mod load;
mod memory_map;
mod sniff;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use error::BootError;
pub use image::Image;
pub use load::{BootConfig, boot};
