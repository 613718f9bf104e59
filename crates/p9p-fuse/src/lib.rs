//! Mounts a 9P service by FUSE.

#![forbid(unsafe_code)]
