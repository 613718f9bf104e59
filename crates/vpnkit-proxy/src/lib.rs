//! An HTTP proxy for the guests of a network: explicit, and transparent by Host header or by the name in a TLS hello.
//!
//! - [`config`]: VPNKit's JSON; [`rules`]: which hosts are excluded or allowed; [`hello`]: the name in a TLS hello, sans-I/O;
//! - [`route`]: where a request goes, a pure decision; [`server`]: the sockets, on one thread.
//!
//! The proxy listens on loopback ports of the host; who has a guest's connection says with [`server::Proxy::adopt`] where it
//! was going. Nothing is decrypted: TLS is passed on as it is.

#![forbid(unsafe_code)]

pub mod config;
mod dial;
pub mod hello;
mod page;
mod relay;
pub mod route;
pub mod rules;
pub mod server;

pub use config::{ConfigError, ProxyConfig, Resolve, Resolver, Upstream};
pub use server::{Kind, Proxy, StartError};
