//! A sans-I/O user-space network: frames of guests in, effects on host sockets out, and back.
//!
//! [`Stack`] ends the guests' TCP, UDP, ICMP, ARP, neighbour discovery, DHCP and DNS, over IPv4 and IPv6. It reads no clock, file, socket or source of
//! randomness: time, frames and what host sockets say are arguments, what is to be done are [`Effect`]s, frames go to
//! a [`FrameSink`]. The same code thus runs under epoll, in a simulator and in a fuzz target.
//!
//! Not here: more than one link; a switch is before it.
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate self as vpnkit_stack;

mod config;
mod drops;
mod event;
mod fragments;
mod neighbours;
mod offload;
mod stack;
mod table;
mod tcp;
mod time;
mod volatile;

pub use config::{Config, ConfigError, Ipv6Network, Limits, MTU_MAX, PREFIX_BITS, link_local};
pub use drops::{DropReason, Drops};
pub use event::{
    ConnectError, Counters, DatagramError, DnsId, Effect, Flows, ForwardId, Hops, Key, PingId, TcpId,
    TcpSnapshot, UdpId, UdpSnapshot,
};
pub use offload::{Gso, Offload, PartialChecksum, VIRTIO_HEADER_BYTES};
pub use stack::{FrameSink, GatewayPorts, Hosts, Match, Record, Sockets, Stack, Zone};
pub use time::Instant;
pub use volatile::{Data, Frame, VolatileFrame};
