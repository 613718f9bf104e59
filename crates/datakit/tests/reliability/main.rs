//! Whether what was acknowledged is there, whoever is killed, and whoever else is at work.
//!
//! A few rounds each; `CORACLE_SOAK=1` has thousands.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests, which say what they skip and measure")]

mod disk;
mod fsync;
mod git;
mod history;
mod kill;
mod large;
mod linear;
mod watchers;
#[path = "../world/mod.rs"]
mod world;
