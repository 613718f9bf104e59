//! The server over real host directories, through the client.
#![allow(clippy::unwrap_used, reason = "tests")]

mod confinement;
mod directories;
mod locks;
mod sessions;
mod share;
mod tree;
mod xattrs;
