//! Configuration space and features of the console. Spec: virtio 1.2 §5.3.3, §5.3.4.

use super::WindowSize;
use crate::state;

/// `VIRTIO_CONSOLE_F_SIZE`: the window's size is given.
pub(super) const SIZE: u64 = 1 << 0;
/// `VIRTIO_CONSOLE_F_EMERG_WRITE`: a character can be printed by a write to configuration space.
pub(super) const EMERG_WRITE: u64 = 1 << 2;

/// Offset of `emerg_wr`.
pub(super) const EMERG_WRITE_OFFSET: u64 = 8;

pub(super) fn read(size: WindowSize, offset: u64, data: &mut [u8]) {
    let mut space = [0; 12];
    space[..2].copy_from_slice(&size.columns.to_le_bytes());
    space[2..4].copy_from_slice(&size.rows.to_le_bytes());
    space[4..8].copy_from_slice(&1u32.to_le_bytes()); // max_nr_ports
    state::read_config(&space, offset, data);
}
