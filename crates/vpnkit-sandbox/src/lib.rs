//! The sandbox of a network's process.
//!
//! - [`confine()`]: what the process gives up before the first frame: privileges, the file system, and all system calls but
//!   those of a network ([`filter`]);
//! - [`warden`]: a small process outside, started before, that follows files, makes and removes Unix sockets, and says
//!   when a namespace is gone. It knows beforehand which, so that it can be asked for nothing else;
//! - [`Code`] and [`return_large_buffers`]: give memory back that only the start, or only a busy minute, needed.
//!
//! Linux alone: docs/adr/0026-sandbox.md says what is given up and why.
#![deny(unsafe_code)]

mod code;
pub mod confine;
pub mod filter;
mod heap;
mod sys;
pub mod warden;
mod watch;

pub use code::Code;
pub use confine::{ConfineError, Report, confine};
pub use heap::return_large_buffers;
#[doc(hidden)]
pub use sys::{signal_by_pipe, trace, unshare};
pub use warden::{Charge, Event, Events, Warden};
