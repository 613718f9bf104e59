//! The 9P protocol: codec, server, client and a host directory as a service.
//!
//! - [`wire`], [`message`], [`qid`], [`stat`], [`errno`]: the bytes, for 9P2000, 9P2000.u and 9P2000.L; no I/O.
//! - [`filesystem`]: the trait that a service implements; [`server`]: fids, tags, flush, dispatch (9P2000.L).
//! - `hostdir`: a service over a host directory, on Linux.
//! - [`transport`]: messages over byte streams; [`client`]: a small synchronous client.
//!
//! Knows nothing of virtual machines or of what it is used for.

#![forbid(unsafe_code)]

pub mod auth;
pub mod client;
#[cfg(target_os = "linux")]
pub mod connection;
pub mod errno;
mod fid;
pub mod filesystem;
#[cfg(target_os = "linux")]
pub mod hostdir;
pub mod memory;
pub mod message;
#[cfg(target_os = "linux")]
pub mod net;
pub mod qid;
#[cfg(target_os = "linux")]
pub mod remote;
pub mod server;
pub mod stat;
pub mod transport;
pub mod wire;

pub use errno::Errno;
pub use fid::FIDS_MAX;
pub use filesystem::Filesystem;
#[cfg(target_os = "linux")]
pub use hostdir::{HostDir, HostDirError, Ownership};
pub use memory::Memory;
pub use server::{Session, SessionOptions, Ticket};
