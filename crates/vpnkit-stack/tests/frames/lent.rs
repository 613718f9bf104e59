//! A frame that stands for one in a guest's memory.

use std::cell::Cell;
use std::ops::Range;
use std::os::fd::BorrowedFd;

use vpnkit_stack::VolatileFrame;

/// The frame, and how many of its bytes were copied.
pub struct Lent<'a> {
    bytes: &'a [u8],
    copied: Cell<usize>,
}

impl<'a> Lent<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, copied: Cell::new(0) }
    }

    #[allow(dead_code, reason = "each test uses a part")]
    pub fn copied(&self) -> usize {
        self.copied.get()
    }
}

impl VolatileFrame for Lent<'_> {
    fn bytes(&self) -> usize {
        self.bytes.len()
    }

    fn copy(&self, start: usize, to: &mut [u8]) {
        self.copied.set(self.copied.get() + to.len());
        to.copy_from_slice(&self.bytes[start..start + to.len()]);
    }

    fn send(&self, _part: Range<usize>, _socket: BorrowedFd<'_>) -> std::io::Result<usize> {
        panic!("the stack has no socket");
    }
}
