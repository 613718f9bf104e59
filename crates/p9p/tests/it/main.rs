//! The server over real host directories, through the client.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests, which say what they skip")]

mod confinement;
mod dialects;
mod diod;
mod directories;
mod hostile;
mod large;
mod locks;
mod serving;
mod sessions;
mod share;
mod tree;
mod unprivileged;
mod xattrs;
