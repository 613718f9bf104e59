//! Publishes a store as a tree of files over 9P and FUSE.

#![forbid(unsafe_code)]
