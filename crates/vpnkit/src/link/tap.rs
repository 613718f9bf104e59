//! A link over a Linux TAP device with `virtio_net_hdr`: checksums and segmentation are left to the kernel.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Mutex;

use vpnkit_stack::{Gso, Offload, VIRTIO_HEADER_BYTES};

use super::Link;
use crate::host::sys;
use crate::waker::Waker;

/// Bytes of the largest super-frame with its header.
const FRAME_BYTES_MAX: usize = 65535 + 14 + VIRTIO_HEADER_BYTES;
/// Frames handed over in one go.
const BURST: usize = 64;

/// The link.
#[derive(Debug)]
pub struct TapLink {
    fd: OwnedFd,
    buffer: Mutex<Vec<u8>>,
}

impl TapLink {
    /// Opens, or makes, the TAP device `name` in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When `/dev/net/tun` is missing, the name is longer than 15 bytes, or `CAP_NET_ADMIN` is.
    pub fn open(name: &str) -> io::Result<Self> {
        let fd = sys::open_tap(name)?;
        Ok(Self { fd, buffer: Mutex::new(vec![0; FRAME_BYTES_MAX]) })
    }
}

impl Link for TapLink {
    fn attach(&self, _waker: Waker) {}

    fn receive(&self, take: &mut dyn FnMut(Offload, &[u8])) -> bool {
        let mut buffer = self.buffer.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        for _ in 0..BURST {
            let Ok(count) = rustix::io::read(&self.fd, &mut buffer[..]) else { return false };
            if count < VIRTIO_HEADER_BYTES {
                return false;
            }
            let mut header = [0; 10];
            header.copy_from_slice(&buffer[..10]);
            take(Offload::from_virtio(&header), &buffer[VIRTIO_HEADER_BYTES..count]);
        }
        true
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
        !matches!(rustix::io::writev(&self.fd, &all[..=count]), Err(rustix::io::Errno::AGAIN))
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.fd.as_fd())
    }

    fn offload(&self) -> Option<bool> {
        Some(true)
    }
}
