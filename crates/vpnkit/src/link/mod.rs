//! How frames come from a guest and go to it.

mod hub;
mod memory;
mod tap;

use std::io::IoSlice;
use std::os::fd::BorrowedFd;

use vpnkit_stack::{DropReason, Frame, Offload};
use vpnkit_wire::ethernet::MacAddr;

use crate::waker::Waker;

pub use hub::HubLink;
pub use memory::{Machine, MemoryLink};
pub use tap::TapLink;

/// What [`Link::receive`] left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// All frames, or as many as were looked for: [`Link::fd`] tells of others.
    All,
    /// A whole burst: there may be more.
    Some,
    /// The link is gone for good: the engine stops.
    Closed,
}

/// Takes a frame; returns why it was dropped, if it was.
pub type Take<'t> = dyn FnMut(Offload, Frame<'_>) -> Option<DropReason> + 't;

/// Frames that a link dropped, in frames.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkDrops {
    /// From an address that their sender cannot have.
    pub forged: u64,
    /// For machines that take nothing.
    pub full: u64,
}

/// A link to one guest. The engine's thread calls it; none of the calls may block.
pub trait Link: Send + Sync {
    /// The engine is there: wake it when frames or room appear, unless [`Link::fd`] tells.
    fn attach(&self, waker: Waker);

    /// Hands some of the frames that wait to `take`.
    fn receive(&self, take: &mut Take<'_>) -> Received;

    /// Sends the frame that `parts` make together; returns false when there is no room for it now. The link then
    /// wakes the engine, or its [`Link::fd`] becomes writable, when there may be room.
    fn send(&self, offload: Offload, parts: &[IoSlice<'_>]) -> bool;

    /// Everything for now is sent: what was gathered goes out.
    fn flush(&self);

    /// A descriptor that is readable as long as there are frames.
    fn fd(&self) -> Option<BorrowedFd<'_>>;

    /// The hardware addresses of machines that left since this was asked last, where a link has several.
    fn departed(&self) -> Vec<MacAddr> {
        Vec::new()
    }

    /// What the link itself dropped since it was made.
    fn drops(&self) -> LinkDrops {
        LinkDrops::default()
    }

    /// Whether frames sent may leave checksums and segmentation to the guest now; `None` leaves the configuration.
    fn offload(&self) -> Option<bool>;
}
