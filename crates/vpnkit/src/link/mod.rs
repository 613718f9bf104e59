//! How frames come from a guest and go to it.

mod memory;
mod tap;

use std::io::IoSlice;
use std::os::fd::BorrowedFd;

use vpnkit_stack::Offload;

use crate::waker::Waker;

pub use memory::MemoryLink;
pub use tap::TapLink;

/// A link to one guest. The engine's thread calls it; none of the calls may block.
pub trait Link: Send + Sync {
    /// The engine is there: wake it when frames or room appear, unless [`Link::fd`] tells.
    fn attach(&self, waker: Waker);

    /// Hands some of the frames that wait to `take`; returns whether there may be more.
    fn receive(&self, take: &mut dyn FnMut(Offload, &[u8])) -> bool;

    /// Sends the frame that `parts` make together; returns false when there is no room for it now. The link then
    /// wakes the engine, or its [`Link::fd`] becomes writable, when there may be room.
    fn send(&self, offload: Offload, parts: &[IoSlice<'_>]) -> bool;

    /// A descriptor that becomes readable when there are frames.
    fn fd(&self) -> Option<BorrowedFd<'_>>;

    /// Whether frames sent may leave checksums and segmentation to the guest now; `None` leaves the configuration.
    fn offload(&self) -> Option<bool>;
}
