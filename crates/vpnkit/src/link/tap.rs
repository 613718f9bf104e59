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
/// Bytes handed over in one go, but for the last frame: what fits in a cache moves fastest.
const BURST_BYTES: usize = 192 * 1024;

/// The link.
#[derive(Debug)]
pub struct TapLink {
    tap: Tap,
    buffer: Mutex<Vec<u8>>,
}

impl TapLink {
    /// A link over a device that was opened with [`Tap::open`] or [`Tap::create`].
    pub fn new(tap: Tap) -> Self {
        Self { tap, buffer: Mutex::new(vec![0; FRAME_BYTES_MAX]) }
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
        let mut buffer = self.buffer.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut bytes = 0;
        for _ in 0..BURST {
            if bytes > BURST_BYTES {
                break;
            }
            let count = match rustix::io::read(&self.tap, &mut buffer[..]) {
                Ok(count) => count,
                Err(Errno::AGAIN | Errno::INTR) => return Received::All,
                // The device, or its namespace, is gone.
                Err(_) => return Received::Closed,
            };
            bytes += count;
            if count < VIRTIO_HEADER_BYTES {
                continue;
            }
            let mut header = [0; 10];
            header.copy_from_slice(&buffer[..10]);
            let offload = Offload { verified: true, ..Offload::from_virtio(&header) };
            take(offload, &buffer[VIRTIO_HEADER_BYTES..count]);
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
