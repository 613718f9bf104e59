//! Guest-physical RAM with checked access; owns every raw guest pointer.
//!
//! RAM is one host mapping, split at [`LOW_END`] so that the device window below 4 GiB stays free. The guest
//! and the devices read and write it concurrently, so nothing here ever makes a reference to guest memory:
//! bytes are copied in and out, or the kernel is told where they lie.
//!
//! Pages that a software CPU has decoded instructions from are *watched*; see [`watch`]. Which pages are written can be
//! recorded; see [`dirty`].

mod access;
pub mod dirty;
mod ram;
mod send;
pub mod watch;

pub use access::OutOfRam;
pub use ram::{GuestRam, RamError, Region};

/// A guest-physical address, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestAddr(pub u64);

impl GuestAddr {
    /// The address `bytes` further on; `None` past the end of the 64-bit space.
    pub fn checked_add(self, bytes: u64) -> Option<GuestAddr> {
        self.0.checked_add(bytes).map(GuestAddr)
    }
}

impl std::fmt::Display for GuestAddr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// Size of a guest page in bytes.
pub const PAGE_BYTES: u64 = 4096;

/// End of the RAM below the device window: 3 GiB. RAM that does not fit below it starts at [`HIGH_START`].
pub const LOW_END: u64 = 0xc000_0000;

/// Start of the RAM above the device window: 4 GiB.
pub const HIGH_START: u64 = 0x1_0000_0000;
