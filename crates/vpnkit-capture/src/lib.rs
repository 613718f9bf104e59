//! Captures Ethernet frames: who passes them on gives each to a [`Recorder`]; who wants to see them subscribes with a
//! [`Filter`], or asks for what the ring of the last megabytes still has.
//!
//! - [`filter`]: the expressions of pcap-filter(7) that people use, over bytes that anybody may have sent;
//! - [`pcapng`]: the file format that Wireshark reads, with comments for what was dropped and why;
//! - [`pcap`]: the older format, which has neither;
//! - [`ring`]: the last frames, in bounded memory; [`recorder`]: all of it behind one call per frame.
//!
//! Reads no clock and does no I/O: times are arguments, and a subscriber takes bytes when it likes.

#![forbid(unsafe_code)]

pub mod filter;
pub mod frame;
pub mod pcap;
pub mod pcapng;
pub mod recorder;
pub mod ring;

pub use filter::{Filter, FilterError};
pub use frame::{Captured, Direction};
pub use recorder::{Format, Recorder, Subscription};
