//! Mounts any 9P service ([`p9p::Filesystem`]) on a directory of this host by FUSE.
//!
//! Speaks the kernel's protocol itself over `/dev/fuse`: no libfuse, and no FUSE crate, as those answer ENOSYS to
//! FUSE_INTERRUPT, after which nobody can end a `cat` that waits for a stream (`docs/adr`).
//!
//! - [`Mount`], [`MountOptions`]: mounting, as root or through `fusermount3`, and unmounting.
//! - [`Caching`]: what the kernel may keep of a node; the service's owner decides for each.
//! - [`Invalidator`]: tells the kernel that what it kept is no longer so.
//!
//! One mount is one attach. Inodes are found by their qid, so that two names of one file are one inode to the kernel.
//!
//! Spec: `include/uapi/linux/fuse.h`, protocol 7.31 to 7.45.

#![forbid(unsafe_code)]

mod abi;
mod caching;
mod handles;
mod inodes;
mod invalidate;
mod locks;
mod mount;
mod ops;
mod reply;
mod session;

pub use caching::{Caching, Content, Policy};
pub use invalidate::Invalidator;
pub use mount::{Mount, MountError, MountOptions};
