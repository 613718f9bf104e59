//! The store as its users see it; real git is the oracle.

#![allow(clippy::unwrap_used)]

mod transaction;
