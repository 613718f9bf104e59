//! A link inside the process: for a virtual machine's network device.
//!
//! The machine's threads push frames with [`MemoryLink::push`], which never blocks. Frames for the guest go to the
//! receiver that [`MemoryLink::connect`] sets; one that has no buffers returns false and calls
//! [`MemoryLink::receive_ready`] later.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard};

use vpnkit_stack::Offload;

use super::{Link, Received, Take};
use crate::waker::Waker;

/// Bytes of frames that may wait for the engine; more than all windows of a busy guest.
const QUEUED_BYTES_MAX: usize = 32 << 20;
/// Buffers kept for reuse.
const SPARE_MAX: usize = 256;
/// Frames handed over in one go.
const BURST: usize = 256;

/// Takes frames for the guest; returns false when the guest has no buffers now.
pub type Receiver = Arc<dyn Fn(Offload, &[u8]) -> bool + Send + Sync>;

#[derive(Default)]
struct Queue {
    frames: VecDeque<(Offload, Vec<u8>)>,
    bytes: usize,
    dropped: u64,
    spare: Vec<Vec<u8>>,
}

/// The link.
#[derive(Default)]
pub struct MemoryLink {
    queue: Mutex<Queue>,
    receiver: Mutex<(Option<Receiver>, Option<bool>)>,
    waker: Mutex<Option<Waker>>,
    /// Used by the engine's thread only: the parts of a frame, joined.
    joined: Mutex<Vec<u8>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl MemoryLink {
    /// A link with no guest yet: frames for it are dropped.
    pub fn new() -> Self {
        Self::default()
    }

    /// The guest's driver is ready: frames go to `receiver`. `offload` says whether it takes partial checksums and
    /// large segments.
    pub fn connect(&self, receiver: Receiver, offload: bool) {
        *lock(&self.receiver) = (Some(receiver), Some(offload));
        self.receive_ready();
    }

    /// The guest's driver is gone: frames for it are dropped.
    pub fn disconnect(&self) {
        *lock(&self.receiver) = (None, None);
        self.receive_ready();
    }

    /// Takes a frame of the guest, from any thread, without blocking. Returns false, and counts, when it had to be
    /// dropped because the engine is far behind.
    pub fn push(&self, offload: Offload, frame: &[u8]) -> bool {
        let mut queue = lock(&self.queue);
        if queue.bytes + frame.len() > QUEUED_BYTES_MAX {
            queue.dropped += 1;
            return false;
        }
        let mut bytes = queue.spare.pop().unwrap_or_default();
        bytes.clear();
        bytes.extend_from_slice(frame);
        queue.bytes += bytes.len();
        let first = queue.frames.is_empty();
        queue.frames.push_back((offload, bytes));
        drop(queue);
        if first {
            self.receive_ready();
        }
        true
    }

    /// The guest has buffers again.
    pub fn receive_ready(&self) {
        if let Some(waker) = lock(&self.waker).as_ref() {
            waker.wake();
        }
    }

    /// Frames of the guest that were dropped.
    pub fn dropped(&self) -> u64 {
        lock(&self.queue).dropped
    }
}

impl Link for MemoryLink {
    fn attach(&self, waker: Waker) {
        *lock(&self.waker) = Some(waker);
        self.receive_ready();
    }

    fn receive(&self, take: &mut Take<'_>) -> Received {
        let mut queue = lock(&self.queue);
        let count = queue.frames.len().min(BURST);
        let burst: Vec<_> = queue.frames.drain(..count).collect();
        queue.bytes -= burst.iter().map(|(_, frame)| frame.len()).sum::<usize>();
        let more = !queue.frames.is_empty();
        drop(queue);
        for (offload, frame) in &burst {
            take(*offload, frame);
        }
        let mut queue = lock(&self.queue);
        let room = SPARE_MAX.saturating_sub(queue.spare.len());
        queue.spare.extend(burst.into_iter().map(|(_, frame)| frame).take(room));
        if more { Received::Some } else { Received::All }
    }

    fn send(&self, offload: Offload, parts: &[IoSlice<'_>]) -> bool {
        let Some(receiver) = lock(&self.receiver).0.clone() else { return true };
        if let [whole] = parts {
            return receiver(offload, whole);
        }
        let mut joined = lock(&self.joined);
        joined.clear();
        for part in parts {
            joined.extend_from_slice(part);
        }
        receiver(offload, &joined)
    }

    fn flush(&self) {}

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn offload(&self) -> Option<bool> {
        lock(&self.receiver).1
    }
}
