//! Joins hyperkit's device backends to vpnkit and p9p, and gives the session its vsock ports.

pub mod net;
pub mod p9;
pub mod vsock;
