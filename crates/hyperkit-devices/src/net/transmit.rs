//! Transmitting: frames of the driver, taken where they lie.

use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, MutexGuard};

use hyperkit_virtio::{Chain, Reader};

use super::header::{HEADER_BYTES, VnetHeader};
use crate::queue::{self, DeviceQueue};

/// Frames handed over in one go: what they are answered with has its turn then.
const BURST: usize = 64;
/// Bytes handed over in one go, but for the last frame.
const BURST_BYTES: usize = 256 * 1024;

/// A frame in the guest's memory. Its buffers are the guest's again when the call that it was given to returns; until
/// then the guest may write them, though it should not.
#[derive(Debug)]
pub struct SentFrame<'a>(Reader<'a>);

impl SentFrame<'_> {
    /// Its length: 14 to [`FRAME_BYTES_MAX`](super::FRAME_BYTES_MAX) bytes, no FCS.
    pub fn bytes(&self) -> usize {
        self.0.remaining() as usize // a chain is shorter than 4 GiB
    }

    /// Copies what is at `start` and after it to `to`; stops at the frame's end.
    pub fn copy(&self, start: usize, to: &mut [u8]) {
        let mut reader = self.0.clone();
        reader.skip(start as u64);
        reader.read(to);
    }

    /// Sends a part of it to a socket by one sendmsg(2), without copying it first; returns how much the socket took.
    ///
    /// # Errors
    /// What sendmsg(2) says; also when the part has more than 1024 buffers.
    pub fn send(&self, part: Range<usize>, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let mut reader = self.0.clone();
        reader.skip(part.start as u64);
        // A part that is no part of it ends where the frame does.
        let bytes = (part.len() as u64).min(reader.remaining());
        let _ = reader.split_off(bytes);
        reader.send(socket)
    }
}

/// The transmitting half of an active device.
pub(super) struct Transmit {
    features: u64,
    /// `None` once the driver is gone. Held while frames are handed over: the driver is not gone before.
    queue: Mutex<Option<DeviceQueue>>,
}

impl Transmit {
    pub(super) fn new(features: u64, queue: Option<DeviceQueue>) -> Transmit {
        Transmit { features, queue: Mutex::new(queue) }
    }

    /// The driver is gone; waits for the frames that are being handed over.
    pub(super) fn close(&self) {
        *self.lock() = None;
    }

    pub(super) fn positions(&self) -> (u16, u16) {
        queue::positions(self.lock().as_ref())
    }

    fn lock(&self) -> MutexGuard<'_, Option<DeviceQueue>> {
        self.queue.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Hands a burst of frames to `take`; returns whether there may be more.
    pub(super) fn take(&self, take: &mut dyn FnMut(&VnetHeader, &SentFrame<'_>)) -> bool {
        let mut queue = self.lock();
        let Some(queue) = queue.as_mut() else { return false };
        let (mut frames, mut bytes) = (0, 0);
        while frames < BURST && bytes < BURST_BYTES {
            let Some(chain) = queue.pop() else {
                queue.interrupt();
                return false;
            };
            let Some(count) = self.hand_over(queue, &chain, take) else {
                queue.refuse();
                return false;
            };
            (frames, bytes) = (frames + 1, bytes + count);
            queue.push(chain, 0);
        }
        queue.interrupt();
        true
    }

    /// Hands the frame of a chain over, if it is one; returns its length, and `None` when there is not even a header.
    fn hand_over(
        &self,
        queue: &DeviceQueue,
        chain: &Chain,
        take: &mut dyn FnMut(&VnetHeader, &SentFrame<'_>),
    ) -> Option<usize> {
        let mut reader = queue.reader(chain);
        let header = VnetHeader::parse(&reader.read_array::<HEADER_BYTES>().ok()?);
        let bytes = usize::try_from(reader.remaining()).unwrap_or(usize::MAX);
        if let Some(header) = header.checked_from_driver(bytes, self.features) {
            take(&header, &SentFrame(reader));
        }
        Some(bytes)
    }
}
