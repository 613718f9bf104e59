//! A user-space network: the frames of a guest become ordinary sockets of this process, and back.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::sync::Arc;
//! use vpnkit::{Config, Engine, Forward, MemoryLink};
//!
//! let link = Arc::new(MemoryLink::new());
//! let engine = Engine::start(Config::default(), link.clone())?;
//! let at = engine.forward(Forward::tcp("127.0.0.1:8080".parse()?, "192.168.65.3:80".parse()?))?;
//! # let _ = at;
//! # Ok(())
//! # }
//! ```
//!
//! The protocols are in `vpnkit-stack`; this crate has one thread, sockets, and links to guests.
#![deny(unsafe_code)]

mod config;
mod engine;
mod host;
mod intercept;
mod link;
mod upstream;
mod waker;

pub use config::{Config, Forward, ForwardError, Protocol, Resolvers, StartError, Update};
pub use engine::{Engine, Stopper};
pub use intercept::{Detour, Intercept};
pub use link::{HubLink, Link, LinkDrops, Machine, MemoryLink, Received, Take, TapLink};
pub use upstream::{Upstream, Upstreams, UpstreamsError};
pub use vpnkit_stack::{
    Config as Network, ConfigError, Counters, DropReason, Drops, Flows, Frame, GatewayPorts, Gso,
    Ipv6Network, Limits, Match, Offload, PREFIX_BITS, PartialChecksum, Record, TcpSnapshot, UdpSnapshot,
    VIRTIO_HEADER_BYTES, VolatileFrame, Zone,
};
pub use vpnkit_wire::ethernet::MacAddr;
pub use waker::Waker;
