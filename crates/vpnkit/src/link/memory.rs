//! A link inside the process: for a virtual machine's network device.
//!
//! The machine's threads push frames with [`MemoryLink::push`], which never blocks. Frames for the guest go to the
//! receiver that [`MemoryLink::connect`] sets; one that has no buffers returns false and calls
//! [`MemoryLink::receive_ready`] later.
//!
//! A large frame is not copied here: its buffer changes hands. A small one is, so that it does not hold a buffer of the
//! largest size while it waits.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard};

use vpnkit_stack::Offload;

use super::{Link, Received, Take};
use crate::waker::Waker;

/// Bytes of buffers with frames that may wait for the engine; more than all windows of a busy guest.
const QUEUED_BYTES_MAX: usize = 32 << 20;
/// Bytes of a frame that is copied, and of the buffers for such: the usual MTU fits.
const SMALL_BYTES: usize = 2048;
/// Buffers of each kind kept for reuse.
const SPARE_MAX: usize = 128;
/// Frames handed over in one go.
const BURST: usize = 256;

/// Takes frames for the guest, each in parts; returns false when the guest has no buffers now.
pub type Receiver = Arc<dyn Fn(Offload, &[IoSlice<'_>]) -> bool + Send + Sync>;

#[derive(Default)]
struct Queue {
    frames: VecDeque<(Offload, Vec<u8>)>,
    /// Of the buffers of `frames`, whatever is in them.
    bytes: usize,
    dropped: u64,
    small: Vec<Vec<u8>>,
    large: Vec<Vec<u8>>,
}

/// The link.
#[derive(Default)]
pub struct MemoryLink {
    queue: Mutex<Queue>,
    receiver: Mutex<(Option<Receiver>, Option<bool>)>,
    waker: Mutex<Option<Waker>>,
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

    /// Takes a frame of the guest, from any thread, without blocking. The buffer may be kept, and another one left in
    /// its place, with whatever is in it. Returns false, and counts, when the frame had to be dropped because the engine
    /// is far behind.
    pub fn push(&self, offload: Offload, frame: &mut Vec<u8>) -> bool {
        let mut queue = lock(&self.queue);
        let is_small = frame.len() <= SMALL_BYTES;
        let bytes = if is_small { SMALL_BYTES } else { frame.capacity() };
        if queue.bytes + bytes > QUEUED_BYTES_MAX {
            queue.dropped += 1;
            return false;
        }
        let taken = if is_small {
            let mut copy = queue.small.pop().unwrap_or_else(|| Vec::with_capacity(SMALL_BYTES));
            copy.clear();
            copy.extend_from_slice(frame);
            copy
        } else {
            let spare = queue.large.pop().unwrap_or_default();
            std::mem::replace(frame, spare)
        };
        queue.bytes += taken.capacity();
        let first = queue.frames.is_empty();
        queue.frames.push_back((offload, taken));
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
        queue.bytes -= burst.iter().map(|(_, frame)| frame.capacity()).sum::<usize>();
        let more = !queue.frames.is_empty();
        drop(queue);
        for (offload, frame) in &burst {
            take(*offload, frame);
        }
        let mut queue = lock(&self.queue);
        for (_, frame) in burst {
            let Queue { small, large, .. } = &mut *queue;
            let spare = if frame.capacity() <= SMALL_BYTES { small } else { large };
            if spare.len() < SPARE_MAX {
                spare.push(frame);
            }
        }
        if more { Received::Some } else { Received::All }
    }

    fn send(&self, offload: Offload, parts: &[IoSlice<'_>]) -> bool {
        let receiver = lock(&self.receiver).0.clone();
        receiver.is_none_or(|receiver| receiver(offload, parts))
    }

    fn flush(&self) {}

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn offload(&self) -> Option<bool> {
        lock(&self.receiver).1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(link: &MemoryLink) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        while link.receive(&mut |_, frame| {
            frames.push(frame.to_vec());
            None
        }) != Received::All
        {}
        frames
    }

    #[test]
    fn frames_arrive_as_they_were_pushed_whatever_becomes_of_the_buffer() {
        let link = MemoryLink::new();
        let mut buffer = Vec::new();
        for round in 0..3u8 {
            let lengths = [60, SMALL_BYTES, SMALL_BYTES + 1, 65_550, 60, 9_000];
            for (at, length) in lengths.into_iter().enumerate() {
                buffer.resize(length, 0);
                buffer.fill(round * 16 + at as u8);
                assert!(link.push(Offload::NONE, &mut buffer));
                buffer.fill(0xff);
            }
            let expected: Vec<_> = lengths
                .into_iter()
                .enumerate()
                .map(|(at, length)| vec![round * 16 + at as u8; length])
                .collect();
            assert!(received(&link) == expected);
        }
        assert_eq!(link.dropped(), 0);
    }

    #[test]
    fn small_frames_in_large_buffers_hold_no_more_memory_than_may_wait() {
        let link = MemoryLink::new();
        let mut buffer = Vec::with_capacity(65_550);
        for length in [60, 3_000] {
            let mut held = 0;
            loop {
                buffer.resize(length, 0);
                buffer.reserve_exact(65_550 - length);
                if !link.push(Offload::NONE, &mut buffer) {
                    break;
                }
                held += 1;
            }
            let queue = lock(&link.queue);
            assert_eq!(queue.frames.len(), held);
            let bytes: usize = queue.frames.iter().map(|(_, frame)| frame.capacity()).sum();
            assert!(bytes <= QUEUED_BYTES_MAX, "{bytes} bytes wait");
            assert!(bytes > QUEUED_BYTES_MAX / 2, "there was room: {bytes} bytes wait");
            drop(queue);
            assert_eq!(received(&link).len(), held);
            assert_eq!(lock(&link.queue).bytes, 0);
        }
        let queue = lock(&link.queue);
        assert!(queue.small.len() <= SPARE_MAX && queue.large.len() <= SPARE_MAX);
    }
}
