//! Replies to the kernel: built in one buffer behind room for their header, and sent with one write(2).

use std::time::Duration;

use p9p::Errno;
use p9p::stat::{Attributes, StatFs};

use crate::abi::OUT_HEADER_BYTES;

/// A reply under construction.
///
/// The buffer keeps its size between replies, so that nothing is zeroed twice.
#[derive(Debug)]
pub struct Reply {
    bytes: Vec<u8>,
    len: usize,
}

impl Default for Reply {
    fn default() -> Self {
        Self { bytes: vec![0; 512], len: OUT_HEADER_BYTES }
    }
}

impl Reply {
    pub fn clear(&mut self) {
        self.len = OUT_HEADER_BYTES;
    }

    /// Bytes of the body.
    pub fn len(&self) -> usize {
        self.len - OUT_HEADER_BYTES
    }

    /// The next `count` bytes, whatever they were.
    fn room(&mut self, count: usize) -> &mut [u8] {
        let end = self.len + count;
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        &mut self.bytes[self.len..end]
    }

    pub fn u32(&mut self, value: u32) {
        self.extend(&value.to_ne_bytes());
    }

    pub fn u64(&mut self, value: u64) {
        self.extend(&value.to_ne_bytes());
    }

    pub fn extend(&mut self, bytes: &[u8]) {
        self.room(bytes.len()).copy_from_slice(bytes);
        self.len += bytes.len();
    }

    /// Pads the body to a multiple of eight bytes, as directory entries are.
    pub fn align(&mut self) {
        let count = self.len.next_multiple_of(8) - self.len;
        self.extend(&[0; 8][..count]);
    }

    /// Has `fill` write up to `room` bytes in place, and keeps as many as it says.
    pub fn fill(
        &mut self,
        room: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<usize, Errno>,
    ) -> Result<(), Errno> {
        self.len += fill(self.room(room))?.min(room);
        Ok(())
    }

    /// `fuse_entry_out`.
    pub fn entry(&mut self, node: u64, attributes: &Attributes, entry_ttl: Duration, attr_ttl: Duration) {
        self.u64(node);
        self.u64(0);
        self.u64(entry_ttl.as_secs());
        self.u64(attr_ttl.as_secs());
        self.u32(entry_ttl.subsec_nanos());
        self.u32(attr_ttl.subsec_nanos());
        self.attributes(attributes);
    }

    /// `fuse_attr_out`.
    pub fn attr_out(&mut self, attributes: &Attributes, ttl: Duration) {
        self.u64(ttl.as_secs());
        self.u32(ttl.subsec_nanos());
        self.u32(0);
        self.attributes(attributes);
    }

    /// `fuse_attr`.
    fn attributes(&mut self, attributes: &Attributes) {
        let nanoseconds = |time: &p9p::stat::Time| u32::try_from(time.nanoseconds).unwrap_or(0);
        self.u64(attributes.qid.path);
        self.u64(attributes.size);
        self.u64(attributes.blocks);
        self.u64(attributes.atime.seconds);
        self.u64(attributes.mtime.seconds);
        self.u64(attributes.ctime.seconds);
        self.u32(nanoseconds(&attributes.atime));
        self.u32(nanoseconds(&attributes.mtime));
        self.u32(nanoseconds(&attributes.ctime));
        self.u32(attributes.mode);
        self.u32(u32::try_from(attributes.nlink).unwrap_or(u32::MAX));
        self.u32(attributes.uid);
        self.u32(attributes.gid);
        self.u32(u32::try_from(attributes.rdev).unwrap_or(0));
        // A power of two, or programs choose odd buffers.
        let block = attributes.block_size.clamp(512, 1 << 20);
        self.u32(u32::try_from(block.next_power_of_two()).unwrap_or(4096));
        self.u32(0);
    }

    /// `fuse_open_out`.
    pub fn open_out(&mut self, handle: u64, flags: u32) {
        self.u64(handle);
        self.u32(flags);
        self.u32(0);
    }

    /// `fuse_statfs_out`.
    pub fn statfs(&mut self, totals: &StatFs) {
        self.u64(totals.blocks);
        self.u64(totals.blocks_free);
        self.u64(totals.blocks_available);
        self.u64(totals.files);
        self.u64(totals.files_free);
        self.u32(totals.block_size);
        self.u32(totals.name_bytes_max);
        self.u32(totals.block_size);
        for _ in 0..7 {
            self.u32(0);
        }
    }

    /// The whole message to `unique`: the body, or with an error none.
    pub fn finish(&mut self, unique: u64, result: Result<(), Errno>) -> &[u8] {
        let error = match result {
            Ok(()) => 0,
            Err(errno) => {
                self.clear();
                // Above 511 the kernel takes no error, and 0 would be success.
                let number = if matches!(errno.0, 1..512) { errno.0 } else { Errno::EIO.0 };
                -i32::try_from(number).unwrap_or(5)
            }
        };
        self.header(unique, error)
    }

    /// The whole message that nobody asked for.
    pub fn finish_notification(&mut self, code: i32) -> &[u8] {
        self.header(0, code)
    }

    fn header(&mut self, unique: u64, error: i32) -> &[u8] {
        let len = u32::try_from(self.len).unwrap_or(u32::MAX);
        self.bytes[..4].copy_from_slice(&len.to_ne_bytes());
        self.bytes[4..8].copy_from_slice(&error.to_ne_bytes());
        self.bytes[8..16].copy_from_slice(&unique.to_ne_bytes());
        &self.bytes[..self.len]
    }
}
