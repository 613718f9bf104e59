//! Carries Ethernet frames: TAP devices in the network namespaces of others, and how they are set up.
//!
//! Everything here is about getting at frames; what they say is for others to know.
#![deny(unsafe_code)]

mod namespace;
mod netlink;
pub mod pass;
mod sys;
mod tap;

pub use namespace::{Namespace, NamespaceError};
pub use netlink::{Addressing, Netlink};
pub use tap::{QUEUE_FRAMES, Tap, TapError, TapOptions, VNET_HEADER_BYTES};
