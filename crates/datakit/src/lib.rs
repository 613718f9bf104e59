//! Publishes a store of branches as a tree of files, over 9P in all dialects and by FUSE.
//!
//! - [`Service`]: the tree, to be given to a 9P server or mounted. Each attach has transactions and remotes of its own.
//! - [`Logs`], [`Metrics`]: what happens, for people and for Prometheus.
//!
//! Every path is in `docs/spec/datakit.md`; `view` has one file for each directory that is published.

#![forbid(unsafe_code)]

mod logs;
mod metrics;
mod service;
mod view;

pub use logs::{Level, Logs, Source};
pub use metrics::Metrics;
pub use service::{FuseMount, Service};
