//! Configuration space and features of the block device. Spec: virtio 1.2 §5.2.3, §5.2.4.

use crate::state;

/// Feature bits that are offered.
pub mod feature {
    /// The largest number of segments in a request is given.
    pub const SEG_MAX: u64 = 1 << 2;
    /// Writing is refused.
    pub const RO: u64 = 1 << 5;
    /// The block size is given.
    pub const BLK_SIZE: u64 = 1 << 6;
    /// There is a flush request.
    pub const FLUSH: u64 = 1 << 9;
    /// The driver may switch between write-back and write-through.
    pub const CONFIG_WCE: u64 = 1 << 11;
    /// There is a discard request.
    pub const DISCARD: u64 = 1 << 13;
    /// There is a request to write zeros.
    pub const WRITE_ZEROES: u64 = 1 << 14;
}

/// Size of a sector in bytes; positions and sizes count in it whatever the block size.
pub const SECTOR_BYTES: u64 = 512;

/// Entries of the queue.
pub(super) const QUEUE_SIZE: u16 = 256;

/// Data segments of a request: what a chain in the ring has room for beside header and status.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;

/// Segments in one discard or write-zeroes request.
pub(super) const RANGES_MAX: usize = 16;

/// Most sectors of one discarded range: 1 GiB.
pub(super) const DISCARD_SECTORS_MAX: u32 = 1 << 21;

/// Most sectors of one zeroed range: 32 MiB, which a file system without holes writes in a moment.
pub(super) const ZEROES_SECTORS_MAX: u32 = 1 << 16;

/// Offset of the `writeback` byte.
pub(super) const WRITEBACK_OFFSET: u64 = 32;

const SPACE_BYTES: usize = 60;

/// Reads the configuration of a disk of `sectors` sectors.
pub(super) fn read(sectors: u64, writeback: bool, offset: u64, data: &mut [u8]) {
    let mut space = [0; SPACE_BYTES];
    let mut put = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &sectors.to_le_bytes());
    put(12, &SEG_MAX.to_le_bytes());
    put(20, &(SECTOR_BYTES as u32).to_le_bytes());
    put(WRITEBACK_OFFSET as usize, &[u8::from(writeback)]);
    put(34, &1u16.to_le_bytes());
    put(36, &DISCARD_SECTORS_MAX.to_le_bytes());
    put(40, &(RANGES_MAX as u32).to_le_bytes());
    put(44, &8u32.to_le_bytes()); // discard_sector_alignment: a page of the host's cache
    put(48, &ZEROES_SECTORS_MAX.to_le_bytes());
    put(52, &(RANGES_MAX as u32).to_le_bytes());
    put(56, &[1]); // write_zeroes_may_unmap
    state::read_config(&space, offset, data);
}
