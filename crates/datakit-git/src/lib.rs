//! Reads and writes git repositories: objects, refs, packs.

#![forbid(unsafe_code)]

pub mod remote;
