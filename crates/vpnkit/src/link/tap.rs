//! A link over a Linux TAP device with `virtio_net_hdr`: checksums and segmentation are left to the kernel.

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Mutex;

use ethlink::{Tap, TapError};
use rustix::io::Errno;
use vpnkit_stack::{Gso, Offload, VIRTIO_HEADER_BYTES};

use super::{Link, Received, Take};
use crate::waker::Waker;

/// Bytes of the largest super-frame with its header.
const FRAME_BYTES_MAX: usize = 65535 + 14 + VIRTIO_HEADER_BYTES;
/// Frames handed over in one go.
const BURST: usize = 64;
/// Bytes handed over in one go, but for the last frame: streams are acknowledged once for several frames, and what else
/// the engine does waits for a quarter of a millisecond.
const BURST_BYTES: usize = 512 * 1024;
/// Bursts taken to be of one frame when two were: a second read that finds nothing costs as much as one that does.
const SINGLES: u8 = 8;

/// The link.
#[derive(Debug)]
pub struct TapLink {
    tap: Tap,
    input: Mutex<Input>,
}

#[derive(Debug)]
struct Input {
    buffer: Vec<u8>,
    /// Whether the last burst that was read to its end was of one frame.
    single: bool,
    /// Bursts that are taken to be of one frame before one is read to its end again.
    singles: u8,
}

impl Input {
    /// Notes that a burst was read to its end, and how many frames it had.
    fn ended(&mut self, frames: usize) {
        if frames > 0 {
            self.singles = if self.single && frames == 1 { SINGLES } else { 0 };
            self.single = frames == 1;
        }
    }
}

impl TapLink {
    /// A link over a device that was opened with [`Tap::open`] or [`Tap::create`].
    pub fn new(tap: Tap) -> Self {
        let input = Input { buffer: vec![0; FRAME_BYTES_MAX], single: false, singles: 0 };
        Self { tap, input: Mutex::new(input) }
    }

    /// Opens, or makes, the TAP device `name` in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When `/dev/net/tun` is missing, the name is impossible, or `CAP_NET_ADMIN` is missing.
    pub fn open(name: &str) -> Result<Self, TapError> {
        Ok(Self::new(Tap::open(name)?))
    }
}

impl Link for TapLink {
    fn attach(&self, _waker: Waker) {}

    fn receive(&self, take: &mut Take<'_>) -> Received {
        let mut input = self.input.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let (mut frames, mut bytes) = (0, 0);
        while frames < BURST && bytes <= BURST_BYTES {
            let count = match rustix::io::read(&self.tap, &mut input.buffer[..]) {
                Ok(count) => count,
                Err(Errno::AGAIN) => {
                    input.ended(frames);
                    return Received::All;
                }
                Err(Errno::INTR) => return Received::All,
                // The device, or its namespace, is gone.
                Err(_) => return Received::Closed,
            };
            (frames, bytes) = (frames + 1, bytes + count);
            if let Some((header, frame)) = input.buffer[..count].split_at_checked(VIRTIO_HEADER_BYTES) {
                let mut fields = [0; 10];
                fields.copy_from_slice(&header[..10]);
                take(Offload { verified: true, ..Offload::from_virtio(&fields) }, frame.into());
            }
            if let Some(left) = input.singles.checked_sub(1) {
                input.singles = left;
                return Received::All;
            }
        }
        Received::Some
    }

    fn send(&self, offload: Offload, parts: &[IoSlice<'_>]) -> bool {
        // Only super-frames have parts beside their headers: the first part is all headers.
        let header_bytes =
            if offload.gso == Gso::None { 0 } else { parts.first().map_or(0, |part| part.len()) };
        let header = offload.to_virtio(header_bytes as u16);
        let empty = IoSlice::new(&[]);
        let mut all = [IoSlice::new(&header), empty, empty, empty];
        let count = parts.len().min(3);
        all[1..=count].copy_from_slice(&parts[..count]);
        // An error other than "no room" means that the kernel refuses the frame: it is lost, as on a wire.
        !matches!(rustix::io::writev(&self.tap, &all[..=count]), Err(Errno::AGAIN))
    }

    fn flush(&self) {}

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.tap.as_fd())
    }

    fn offload(&self) -> Option<bool> {
        Some(true)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    /// A link, and what stands for its device: each datagram is what one read of a device gives.
    fn link() -> (TapLink, UnixDatagram) {
        let (ours, device) = UnixDatagram::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (TapLink::new(Tap::from_fd(ours.into())), device)
    }

    fn give(device: &UnixDatagram, frames: std::ops::Range<u8>) {
        for number in frames {
            device.send(&[&[0; VIRTIO_HEADER_BYTES][..], &[number]].concat()).unwrap();
        }
    }

    fn take(link: &TapLink) -> (Vec<u8>, Received) {
        let mut frames = Vec::new();
        let received = link.receive(&mut |_, frame| {
            frame.append_to(&mut frames);
            None
        });
        (frames, received)
    }

    #[test]
    fn after_single_frames_one_is_read_and_the_rest_left_to_the_next_event() {
        let (link, device) = link();
        for number in 0..2 {
            give(&device, number..number + 1);
            assert_eq!(take(&link), (vec![number], Received::All));
        }
        // The kernel keeps ten datagrams.
        let last = 2 + SINGLES + 2;
        give(&device, 2..last);
        for number in 2..2 + SINGLES {
            assert_eq!(take(&link), (vec![number], Received::All));
        }
        assert_eq!(
            take(&link),
            ((2 + SINGLES..last).collect(), Received::All),
            "the burst is looked at again"
        );
        give(&device, 0..3);
        assert_eq!(take(&link), (vec![0, 1, 2], Received::All), "bursts are no single frames any more");
    }
}
