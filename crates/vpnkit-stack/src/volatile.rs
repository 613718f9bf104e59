//! Frames in memory that a guest may write at the same time, and their data on its way to a socket.

use std::cell::Cell;
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;

/// A frame in memory that others may write while it is looked at, as a machine's guest may: no slice of it can be had.
///
/// Its memory is its own until the call that it was given to returns: what is to last is copied, or sent, before. What
/// is copied twice may differ.
pub trait VolatileFrame {
    /// Its length in bytes; at most 65535 and what an Ethernet header with tags takes.
    fn bytes(&self) -> usize;

    /// Copies what is at `start` and after it to `to`; all of it is inside the frame.
    fn copy(&self, start: usize, to: &mut [u8]);

    /// Sends a part of it to a socket straight from where it lies, by one sendmsg(2) with `MSG_NOSIGNAL`; returns how
    /// many bytes the socket took, which are fewer only when it has no room for more.
    ///
    /// # Errors
    /// What sendmsg(2) says.
    fn send(&self, part: Range<usize>, socket: BorrowedFd<'_>) -> io::Result<usize>;
}

/// A frame of a guest.
#[derive(Clone, Copy)]
pub enum Frame<'a> {
    /// In memory of this process alone.
    Whole(&'a [u8]),
    /// In memory of the guest.
    Volatile(&'a dyn VolatileFrame),
}

impl Frame<'_> {
    /// Appends all of it to `out`.
    pub fn append_to(&self, out: &mut Vec<u8>) {
        match self {
            Self::Whole(bytes) => out.extend_from_slice(bytes),
            Self::Volatile(frame) => {
                let start = out.len();
                out.resize(start + frame.bytes(), 0);
                frame.copy(0, &mut out[start..]);
            }
        }
    }
}

impl<'a, T: AsRef<[u8]> + ?Sized> From<&'a T> for Frame<'a> {
    fn from(bytes: &'a T) -> Self {
        Self::Whole(bytes.as_ref())
    }
}

impl std::fmt::Debug for Frame<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (kind, bytes) = match self {
            Self::Whole(bytes) => ("Whole", bytes.len()),
            Self::Volatile(frame) => ("Volatile", frame.bytes()),
        };
        write!(f, "{kind}({bytes} bytes)")
    }
}

/// Data of a guest's segment, wherever it lies.
#[derive(Clone, Copy)]
pub enum Data<'a> {
    /// In memory of this process alone.
    Here(&'a [u8]),
    /// In the frame that is being taken: `bytes` from `start` on.
    Volatile {
        /// The frame.
        frame: &'a dyn VolatileFrame,
        /// Where the data begins in it.
        start: usize,
        /// Length of the data.
        bytes: usize,
    },
}

impl<'a> Data<'a> {
    /// Length in bytes.
    pub fn len(&self) -> usize {
        match self {
            Self::Here(bytes) => bytes.len(),
            Self::Volatile { bytes, .. } => *bytes,
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The first `count` bytes, or all if there are fewer.
    pub fn first(self, count: usize) -> Data<'a> {
        match self {
            Self::Here(all) => Self::Here(&all[..count.min(all.len())]),
            Self::Volatile { frame, start, bytes } => {
                Self::Volatile { frame, start, bytes: bytes.min(count) }
            }
        }
    }

    /// What comes after the first `count` bytes.
    pub fn after(self, count: usize) -> Data<'a> {
        match self {
            Self::Here(all) => Self::Here(&all[count.min(all.len())..]),
            Self::Volatile { frame, start, bytes } => {
                let count = count.min(bytes);
                Self::Volatile { frame, start: start + count, bytes: bytes - count }
            }
        }
    }

    /// Copies its first bytes to `to`, which has room for all of it or less.
    pub fn copy(&self, to: &mut [u8]) {
        match self {
            Self::Here(bytes) => to.copy_from_slice(&bytes[..to.len()]),
            Self::Volatile { frame, start, .. } => frame.copy(*start, to),
        }
    }
}

impl<'a, T: AsRef<[u8]> + ?Sized> From<&'a T> for Data<'a> {
    fn from(bytes: &'a T) -> Self {
        Self::Here(bytes.as_ref())
    }
}

impl std::fmt::Debug for Data<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Data({} bytes)", self.len())
    }
}

/// A frame that knows how much of it was copied.
pub(crate) struct Counted<'a> {
    frame: &'a dyn VolatileFrame,
    copied: Cell<u64>,
}

impl<'a> Counted<'a> {
    pub fn new(frame: &'a dyn VolatileFrame) -> Self {
        Self { frame, copied: Cell::new(0) }
    }

    /// Bytes copied so far.
    pub fn copied(&self) -> u64 {
        self.copied.get()
    }
}

impl VolatileFrame for Counted<'_> {
    fn bytes(&self) -> usize {
        self.frame.bytes()
    }

    fn copy(&self, start: usize, to: &mut [u8]) {
        self.copied.set(self.copied.get() + to.len() as u64);
        self.frame.copy(start, to);
    }

    fn send(&self, part: Range<usize>, socket: BorrowedFd<'_>) -> io::Result<usize> {
        self.frame.send(part, socket)
    }
}
