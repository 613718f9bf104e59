//! The server over real host directories, through the client.
#![allow(clippy::unwrap_used, reason = "tests")]

mod share;
mod tree;
