//! Routes an access at an address to (device, offset), and carries interrupts back.
//!
//! A device never learns where it sits in an address space: it sees offsets. Two maps exist, for ports and for
//! memory-mapped registers; neither holds RAM. Reads that no device claims give all ones, writes are dropped,
//! as on a real bus.

#![forbid(unsafe_code)]

mod bus;
mod device;
mod map;

pub use bus::Bus;
pub use device::{Device, InterruptLine, RestoreError, Saved};
pub use map::{AddressMap, MapError};
