//! A user-space network: the frames of a guest become ordinary sockets of this process, and back.
//!
//! A machine of the embedder gives frames and takes them; this one asks who has the gateway's address:
//!
//! ```
//! use std::io::IoSlice;
//! use std::sync::{Arc, Mutex, mpsc};
//! use std::time::Duration;
//! use vpnkit::{Config, Engine, Forward, Frame, Machine, MemoryLink, Offload, Take};
//!
//! struct Device {
//!     sends: Mutex<Vec<Vec<u8>>>,
//!     gets: mpsc::SyncSender<Vec<u8>>,
//! }
//!
//! impl Machine for Device {
//!     fn transmit(&self, take: &mut Take<'_>) -> bool {
//!         for frame in self.sends.lock().unwrap().drain(..) {
//!             take(Offload::NONE, Frame::Whole(&frame));
//!         }
//!         false
//!     }
//!
//!     fn receive(&self, _: Offload, parts: &[IoSlice<'_>]) -> bool {
//!         self.gets.try_send(parts.iter().flat_map(|part| part.to_vec()).collect()).is_ok()
//!     }
//!
//!     fn offload(&self) -> bool {
//!         false
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mac = [2, 0, 0, 0, 0, 1];
//! let question = [&[0xff; 6][..], &mac, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &mac, &[192, 168, 65, 3], &[0; 6], &[192, 168, 65, 1]];
//! let (gets, frames) = mpsc::sync_channel(64);
//! let device = Device { sends: Mutex::new(vec![question.concat()]), gets };
//!
//! let link = Arc::new(MemoryLink::new());
//! let engine = Engine::start(Config::default(), link.clone())?;
//! link.connect(Arc::new(device));
//! let answer = loop {
//!     let frame = frames.recv_timeout(Duration::from_secs(10))?;
//!     if frame[12..14] == [8, 6] && frame[20..22] == [0, 2] {
//!         break frame;
//!     }
//! };
//! assert_eq!(answer[28..32], [192, 168, 65, 1]);
//!
//! // A port of the host, any that is free, leads to the machine; the network goes with the engine.
//! let at = engine.forward(Forward::tcp("127.0.0.1:0".parse()?, "192.168.65.3:80".parse()?))?;
//! assert_ne!(at.port(), 0);
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
