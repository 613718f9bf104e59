//! One request of the driver: a chain of buffers, and copying in and out of it.
//!
//! Chains are checked whole when they leave the ring, so that a device only meets buffers that exist.
//! Spec: virtio 1.2 §2.7.4 to §2.7.5.

use std::os::fd::BorrowedFd;

use hyperkit_mem::{GuestAddr, GuestRam, OutOfRam};

/// Why a descriptor chain or a ring was refused. Every variant is the guest's fault: the device calls
/// [`Interrupt::needs_reset`](crate::Interrupt::needs_reset) (virtio 1.2 §2.1).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each message documents its variant")]
pub enum ChainError {
    #[error("the driver made {available} buffers available at once in a queue of {size}")]
    AvailableIndex { available: u16, size: u16 },
    #[error("descriptor {index} is outside the table of {size}")]
    OutOfRange { index: u16, size: u16 },
    #[error("chain has more descriptors than the table of {size}, so it loops")]
    Loop { size: u16 },
    #[error("descriptor {index} is for the device to read but follows one for it to write")]
    Order { index: u16 },
    #[error(
        "descriptor {index} is indirect, which was not negotiated, is nested, or is not the chain's last"
    )]
    Indirect { index: u16 },
    #[error(
        "indirect table of {bytes} bytes is empty, not a multiple of 16, or has more than {max} descriptors"
    )]
    IndirectLength { bytes: u32, max: u16 },
    #[error("chain is longer than 4 GiB")]
    TooLong,
    #[error("chain has {have} bytes left where {need} are needed")]
    TooShort { have: u64, need: u64 },
    #[error("buffer outside memory")]
    OutOfRam(#[from] OutOfRam),
}

/// A run of guest memory that is part of a chain. Lies wholly in one region of RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// First address.
    pub addr: GuestAddr,
    /// Length in bytes, not zero.
    pub len: u32,
}

/// A descriptor chain: what the device may read, then what it may write.
///
/// Owned, so that a device can keep it while work is under way. Give it back with
/// [`Queue::push_used`](crate::Queue::push_used) exactly once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    head: u16,
    segments: Vec<Segment>,
    n_readable: usize,
    readable_bytes: u64,
    writable_bytes: u64,
}

impl Chain {
    pub(crate) fn new(head: u16) -> Chain {
        Chain { head, segments: Vec::with_capacity(4), n_readable: 0, readable_bytes: 0, writable_bytes: 0 }
    }

    /// Appends the buffer of descriptor `index`, which was checked to lie in RAM.
    pub(crate) fn append(&mut self, index: u16, segment: Segment, writable: bool) -> Result<(), ChainError> {
        let sum = if writable { &mut self.writable_bytes } else { &mut self.readable_bytes };
        *sum += u64::from(segment.len);
        if self.readable_bytes + self.writable_bytes > u64::from(u32::MAX) {
            return Err(ChainError::TooLong);
        }
        if !writable && self.segments.len() > self.n_readable {
            return Err(ChainError::Order { index });
        }
        if segment.len == 0 {
            return Ok(());
        }
        self.segments.push(segment);
        self.n_readable += usize::from(!writable);
        Ok(())
    }

    /// Index of the first descriptor: the chain's name towards the driver.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// The buffers that the device may read.
    pub fn readable(&self) -> &[Segment] {
        &self.segments[..self.n_readable]
    }

    /// The buffers that the device may write.
    pub fn writable(&self) -> &[Segment] {
        &self.segments[self.n_readable..]
    }

    /// How many bytes the device may read in all; less than 4 GiB.
    pub fn readable_bytes(&self) -> u64 {
        self.readable_bytes
    }

    /// How many bytes the device may write in all; less than 4 GiB.
    pub fn writable_bytes(&self) -> u64 {
        self.writable_bytes
    }

    /// Reads the readable buffers from their first byte. `ram` is the memory that the chain's queue lies in.
    pub fn reader<'a>(&'a self, ram: &'a GuestRam) -> Reader<'a> {
        Reader { ram, cursor: Cursor { segments: self.readable(), skip: 0, remaining: self.readable_bytes } }
    }

    /// Writes the writable buffers from their first byte. `ram` is the memory that the chain's queue lies in.
    pub fn writer<'a>(&'a self, ram: &'a GuestRam) -> Writer<'a> {
        let cursor = Cursor { segments: self.writable(), skip: 0, remaining: self.writable_bytes };
        Writer { ram, cursor, written: 0 }
    }
}

/// A position in a list of segments, and an end.
#[derive(Debug, Clone, Copy)]
struct Cursor<'a> {
    segments: &'a [Segment],
    /// Bytes of the first segment already passed.
    skip: u32,
    /// Bytes until the end, which may lie inside the last segment.
    remaining: u64,
}

impl<'a> Cursor<'a> {
    /// What is left of the first segment.
    fn front(&self) -> Option<Segment> {
        let first = self.segments.first()?;
        let len = u64::from(first.len - self.skip).min(self.remaining) as u32;
        let addr = GuestAddr(first.addr.0 + u64::from(self.skip));
        (len > 0).then_some(Segment { addr, len })
    }

    fn advance(&mut self, bytes: u64) {
        let mut left = bytes.min(self.remaining);
        self.remaining -= left;
        while let Some(first) = self.segments.first() {
            let here = u64::from(first.len - self.skip);
            if left < here {
                self.skip += left as u32;
                return;
            }
            left -= here;
            self.skip = 0;
            self.segments = &self.segments[1..];
        }
    }

    /// Keeps the first `bytes` bytes and returns the rest.
    fn split_off(&mut self, bytes: u64) -> Result<Cursor<'a>, ChainError> {
        self.need(bytes)?;
        let mut rest = *self;
        rest.advance(bytes);
        self.remaining = bytes;
        Ok(rest)
    }

    fn need(&self, bytes: u64) -> Result<(), ChainError> {
        if self.remaining < bytes {
            return Err(ChainError::TooShort { have: self.remaining, need: bytes });
        }
        Ok(())
    }

    fn segments(mut self) -> impl Iterator<Item = Segment> + 'a {
        std::iter::from_fn(move || {
            let front = self.front()?;
            self.advance(u64::from(front.len));
            Some(front)
        })
    }
}

/// Says why copying cannot fail.
const CHECKED: &str = "the queue checked that the chain's buffers lie in its memory";

/// Reads a chain's readable buffers as if they were one.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    ram: &'a GuestRam,
    cursor: Cursor<'a>,
}

impl<'a> Reader<'a> {
    /// Bytes not yet read.
    pub fn remaining(&self) -> u64 {
        self.cursor.remaining
    }

    /// Copies as much as there is, at most `bytes.len()`, and returns how much.
    pub fn read(&mut self, bytes: &mut [u8]) -> usize {
        let mut done = 0;
        while done < bytes.len()
            && let Some(front) = self.cursor.front()
        {
            let len = (front.len as usize).min(bytes.len() - done);
            self.ram.read(front.addr, &mut bytes[done..done + len]).expect(CHECKED);
            self.cursor.advance(len as u64);
            done += len;
        }
        done
    }

    /// Fills `bytes`.
    ///
    /// # Errors
    /// [`ChainError::TooShort`] when less is left; then nothing was read.
    pub fn read_exact(&mut self, bytes: &mut [u8]) -> Result<(), ChainError> {
        self.cursor.need(bytes.len() as u64)?;
        self.read(bytes);
        Ok(())
    }

    /// Reads the next `N` bytes.
    ///
    /// # Errors
    /// [`ChainError::TooShort`] when less is left; then nothing was read.
    pub fn read_array<const N: usize>(&mut self) -> Result<[u8; N], ChainError> {
        let mut bytes = [0; N];
        self.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Passes over `bytes` bytes, or to the end.
    pub fn skip(&mut self, bytes: u64) {
        self.cursor.advance(bytes);
    }

    /// Keeps the next `bytes` bytes in this reader and returns a reader of those after them.
    ///
    /// # Errors
    /// [`ChainError::TooShort`] when less is left.
    pub fn split_off(&mut self, bytes: u64) -> Result<Reader<'a>, ChainError> {
        Ok(Reader { ram: self.ram, cursor: self.cursor.split_off(bytes)? })
    }

    /// The buffers not yet read, for scatter-gather I/O through [`GuestRam::span`].
    pub fn segments(&self) -> impl Iterator<Item = Segment> + 'a {
        self.cursor.segments()
    }

    /// Sends what was not yet read to a socket, without copying it first; see [`GuestRam::send`]. Returns how much of it
    /// the socket took; the reader stays where it is.
    ///
    /// # Errors
    /// What sendmsg(2) says; also when there are more than 1024 buffers.
    pub fn send(&self, socket: BorrowedFd<'_>) -> std::io::Result<usize> {
        let runs = self.segments().map(|segment| (segment.addr, u64::from(segment.len)));
        self.ram.send(runs, socket)
    }
}

impl std::io::Read for Reader<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        Ok(Reader::read(self, bytes))
    }
}

/// Writes a chain's writable buffers as if they were one.
#[derive(Debug)]
pub struct Writer<'a> {
    ram: &'a GuestRam,
    cursor: Cursor<'a>,
    written: u64,
}

impl<'a> Writer<'a> {
    /// Bytes that still fit.
    pub fn remaining(&self) -> u64 {
        self.cursor.remaining
    }

    /// Bytes written so far through this writer: what [`Queue::push_used`](crate::Queue::push_used) wants to know.
    pub fn written(&self) -> u32 {
        self.written as u32 // chains are shorter than 4 GiB
    }

    /// Copies as much of `bytes` as fits and returns how much.
    pub fn write(&mut self, bytes: &[u8]) -> usize {
        let mut done = 0;
        while done < bytes.len()
            && let Some(front) = self.cursor.front()
        {
            let len = (front.len as usize).min(bytes.len() - done);
            self.ram.write(front.addr, &bytes[done..done + len]).expect(CHECKED);
            self.advance(len as u64);
            done += len;
        }
        done
    }

    /// Copies all of `bytes`.
    ///
    /// # Errors
    /// [`ChainError::TooShort`] when it does not fit; then nothing was written.
    pub fn write_all(&mut self, bytes: &[u8]) -> Result<(), ChainError> {
        self.cursor.need(bytes.len() as u64)?;
        self.write(bytes);
        Ok(())
    }

    /// Counts `bytes` bytes (or as many as remain) as written. For those written through [`Writer::segments`].
    pub fn advance(&mut self, bytes: u64) {
        let bytes = bytes.min(self.cursor.remaining);
        self.cursor.advance(bytes);
        self.written += bytes;
    }

    /// Keeps the next `bytes` bytes in this writer and returns a writer of those after them, which counts anew.
    ///
    /// # Errors
    /// [`ChainError::TooShort`] when less is left.
    pub fn split_off(&mut self, bytes: u64) -> Result<Writer<'a>, ChainError> {
        Ok(Writer { ram: self.ram, cursor: self.cursor.split_off(bytes)?, written: 0 })
    }

    /// The buffers not yet written, for scatter-gather I/O through [`GuestRam::span`], which asks for
    /// [`GuestRam::mark_written`] after; then [`Writer::advance`].
    pub fn segments(&self) -> impl Iterator<Item = Segment> + 'a {
        self.cursor.segments()
    }
}

impl std::io::Write for Writer<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        Ok(Writer::write(self, bytes))
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
