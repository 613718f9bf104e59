//! Joins hyperkit's device backends to vpnkit and p9p, and gives the session its vsock ports.

pub mod vsock;
