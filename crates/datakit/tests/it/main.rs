//! One suite, on all doors: 9P2000.L, 9P2000.u and 9P2000 over a socket, and FUSE by system calls.
#![expect(clippy::unwrap_used, reason = "these are tests")]

mod branches;
mod doors;
mod peers;
mod remotes;
mod streams;
mod sync;
mod transactions;
