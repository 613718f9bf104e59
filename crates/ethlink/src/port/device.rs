//! A machine, or a namespace, behind a TAP device, which takes checksums and segmentation off us.

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;

use super::Left;
use crate::segment::PARTS_MAX;
use crate::tap::Tap;
use crate::vnet::{VNET_HEADER_BYTES, Vnet};

/// Frames read before it is the others' turn.
const BURST: usize = 64;
/// Bytes read before it is the others' turn, but for the last frame.
const BURST_BYTES: usize = 192 * 1024;

/// The device.
#[derive(Debug)]
pub struct Device(Tap);

impl Device {
    pub fn new(tap: Tap) -> Self {
        Self(tap)
    }

    pub fn receive(&mut self, scratch: &mut [u8], take: &mut dyn FnMut(&Vnet, &[u8])) -> Left {
        let (mut frames, mut bytes) = (0, 0);
        while frames < BURST && bytes <= BURST_BYTES {
            let count = match rustix::io::read(&self.0, &mut *scratch) {
                Ok(count) => count,
                Err(Errno::AGAIN | Errno::INTR) => return Left::Open,
                // The device, or its namespace, is gone.
                Err(_) => return Left::Closed,
            };
            (frames, bytes) = (frames + 1, bytes + count);
            if let Some((header, frame)) = scratch[..count].split_first_chunk::<VNET_HEADER_BYTES>() {
                take(&Vnet(*header).trusted(), frame);
            }
        }
        Left::More
    }

    pub fn send(&mut self, vnet: &Vnet, parts: &[&[u8]]) -> bool {
        let mut all = [IoSlice::new(&[]); PARTS_MAX + 1];
        all[0] = IoSlice::new(&vnet.0);
        let count = parts.len().min(PARTS_MAX);
        for (slice, part) in all[1..].iter_mut().zip(parts) {
            *slice = IoSlice::new(part);
        }
        rustix::io::writev(&self.0, &all[..=count]).is_ok()
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
