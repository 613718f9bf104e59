//! A sans-I/O user-space network: frames of guests in, effects on host sockets out, and back.
//!
//! [`Stack`] ends the guests' TCP, UDP, ICMP, ARP, DHCP and DNS. It reads no clock, file, socket or source of
//! randomness: time, frames and what host sockets say are arguments, what is to be done are [`Effect`]s, frames go to
//! a [`FrameSink`]. The same code thus runs under epoll, in a simulator and in a fuzz target.
//!
//! Not yet: IPv6, more than one link (the switch).
#![forbid(unsafe_code)]

mod config;
mod event;
mod fragments;
mod neighbours;
mod offload;
mod stack;
mod table;
mod tcp;
mod time;
pub mod wire;

pub use config::{Config, ConfigError, Limits, MTU_MAX};
pub use event::{
    ConnectError, Counters, DatagramError, DnsId, Effect, Flows, ForwardId, Key, PingId, TcpId, TcpSnapshot,
    UdpId, UdpSnapshot,
};
pub use offload::{Gso, Offload, PartialChecksum, VIRTIO_HEADER_BYTES};
pub use stack::{FrameSink, Hosts, Sockets, Stack};
pub use time::Instant;
