//! Fetching and pushing against real git: its daemon, its web backend, ssh and plain directories.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests, which say what they skip")]

mod auto;
mod cancel;
mod credentials;
mod servers;
mod transfers;
mod world;
