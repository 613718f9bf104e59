//! Carries Ethernet frames: TAP devices in the network namespaces of others, sockets of machines, and the switch
//! between them.
//!
//! Everything here is about getting at frames; what they say is for others to know.
#![deny(unsafe_code)]

mod framing;
mod greeting;
mod guard;
mod hub;
mod identity;
pub mod inside;
mod interval;
mod namespace;
mod netlink;
pub mod pass;
mod port;
pub mod segment;
mod switch;
mod sys;
mod tap;
pub mod vhost;
mod vnet;

pub use framing::{FRAME_BYTES_MAX, Framing, TooLong, Unframer};
pub use greeting::{Greeting, Progress, Terms};
pub use guard::{Addresses, Guard};
pub use hub::{Address, Aside, Hub, Protocol};
pub use identity::Identities;
pub use namespace::{Namespace, NamespaceError};
pub use netlink::{Addressing, Netlink};
pub use switch::{Mac, PortId, Switch, Verdict};
pub use sys::linux::take_fd;
pub use tap::{QUEUE_FRAMES, Tap, TapError, TapOptions};
pub use vnet::{Large, VNET_HEADER_BYTES, Vnet};
