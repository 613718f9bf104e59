//! Ports of the host as VPNKit's clients know them.
//!
//! - [`files`]: the tree that `vpnkit --port` serves over 9P: a directory made is a port exposed, a file closed hides it;
//! - [`address`]: where such a tree is served, in VPNKit's words;
//! - [`mux`]: the protocol of the connection to the forwarder in the machine, sans I/O;
//! - [`tunnel`]: a [`Network`](vpnkit_control::Network) whose forwards go through that connection.
//!
//! `vpnkit-expose-port`, a program of its own, stands in for Docker's proxy.

#![forbid(unsafe_code)]

pub mod address;
pub mod files;
pub mod mux;
pub mod tunnel;

pub use files::PortFiles;
pub use tunnel::Tunnel;
