//! A link inside the process: for a virtual machine's network device.
//!
//! Frames of the machine stay in its memory until the engine takes them there, on its own thread: nothing is queued in
//! between, and what the engine does not get to waits in the machine's ring. Data of large TCP frames goes from there
//! straight to the sockets (see [`VolatileFrame`](vpnkit_stack::VolatileFrame)).

use std::io::IoSlice;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard};

use vpnkit_stack::Offload;

use super::{Link, Received, Take};
use crate::waker::Waker;

/// A machine in this process. The engine's thread calls it, and none of the calls may block.
pub trait Machine: Send + Sync {
    /// Hands some of the frames that the machine sends to `take`, and returns whether there may be more. When there are
    /// none, [`MemoryLink::ready`] is called as soon as there are. The machine gets the memory of a frame back after `take`
    /// returned.
    fn transmit(&self, take: &mut Take<'_>) -> bool;

    /// Gives the machine the frame that `parts` make together. Returns false when it has no buffers now:
    /// [`MemoryLink::ready`] is called when it has.
    fn receive(&self, offload: Offload, parts: &[IoSlice<'_>]) -> bool;

    /// Whether it takes partial checksums and large segments.
    fn offload(&self) -> bool;
}

/// The link.
#[derive(Default)]
pub struct MemoryLink {
    machine: Mutex<Option<Arc<dyn Machine>>>,
    waker: Mutex<Option<Waker>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl MemoryLink {
    /// A link with no machine yet: frames for it are dropped.
    pub fn new() -> Self {
        Self::default()
    }

    /// The machine's driver is ready.
    pub fn connect(&self, machine: Arc<dyn Machine>) {
        *lock(&self.machine) = Some(machine);
        self.ready();
    }

    /// The machine's driver is gone: frames for it are dropped. The engine may be in a call of the machine still.
    pub fn disconnect(&self) {
        *lock(&self.machine) = None;
        self.ready();
    }

    /// The machine has frames, or buffers, again. From any thread, without blocking.
    pub fn ready(&self) {
        if let Some(waker) = lock(&self.waker).as_ref() {
            waker.wake();
        }
    }

    /// The machine; not locked while it is called, as its driver may go meanwhile.
    fn machine(&self) -> Option<Arc<dyn Machine>> {
        lock(&self.machine).clone()
    }
}

impl Link for MemoryLink {
    fn attach(&self, waker: Waker) {
        *lock(&self.waker) = Some(waker);
        self.ready();
    }

    fn receive(&self, take: &mut Take<'_>) -> Received {
        let more = self.machine().is_some_and(|machine| machine.transmit(take));
        if more { Received::Some } else { Received::All }
    }

    fn send(&self, offload: Offload, parts: &[IoSlice<'_>]) -> bool {
        self.machine().is_none_or(|machine| machine.receive(offload, parts))
    }

    fn flush(&self) {}

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn offload(&self) -> Option<bool> {
        self.machine().map(|machine| machine.offload())
    }
}
