//! What tells one file of a share from another: device and inode, and the qid made of them.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use rustix::fd::AsFd;
use rustix::fs::{AtFlags, Stat, Statx, StatxFlags, major, minor, statx};

use crate::filesystem::Answer;
use crate::qid::{Qid, QidKind};
use crate::stat::qid_kind;

/// Inodes up to here go into a qid's path as they are, below the device's index.
const INODE_BITS: u32 = 48;
/// Devices that get an index; files of others get a hash for a path.
const DEVICES_MAX: usize = 1 << 15;

/// All that stat(2) tells, and the creation time.
pub(super) fn stat(fd: impl AsFd) -> Answer<Statx> {
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    Ok(statx(fd, "", AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW, wanted)?)
}

/// A device, major and minor number.
pub(super) type Device = (u32, u32);

/// Device and inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct FileKey {
    pub device: Device,
    pub inode: u64,
}

impl FileKey {
    /// Of a file that was looked at with [`stat`].
    pub fn of(stat: &Statx) -> Self {
        Self { device: (stat.stx_dev_major, stat.stx_dev_minor), inode: stat.stx_ino }
    }

    /// Of a file that was looked at with stat(2).
    pub fn of_plain(stat: &Stat) -> Self {
        Self { device: (major(stat.st_dev), minor(stat.st_dev)), inode: stat.st_ino }
    }
}

/// The devices seen in a share: several file systems may be mounted below its root, and each counts its own inodes.
pub(super) struct Devices {
    index: Mutex<HashMap<Device, u64>>,
    root: Device,
}

impl Devices {
    /// The root's device has index 0, so that on it paths are inode numbers.
    pub fn new(root: FileKey) -> Self {
        Self { index: Mutex::default(), root: root.device }
    }

    /// The path of a qid: different for different files, always the same for one.
    pub fn path(&self, key: FileKey) -> u64 {
        let index = self.index(key.device);
        match index {
            Some(index) if key.inode >> INODE_BITS == 0 => index << INODE_BITS | key.inode,
            // Overlays put a layer into the top bits of an inode number. A hash keeps such files apart from each
            // other (almost surely) and, by its top bit, from all those above (surely).
            _ => 1 << 63 | mix(key.inode ^ mix(u64::from(key.device.0) << 32 | u64::from(key.device.1))),
        }
    }

    fn index(&self, device: Device) -> Option<u64> {
        if device == self.root {
            return Some(0);
        }
        let mut index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        let next = index.len() + 1;
        if let Some(known) = index.get(&device) {
            return Some(*known);
        }
        if next >= DEVICES_MAX {
            return None;
        }
        index.insert(device, next as u64);
        Some(next as u64)
    }

    /// The qid of a file that was looked at.
    pub fn qid(&self, stat: &Statx) -> Qid {
        let mtime = stat.stx_mtime;
        Qid {
            kind: qid_kind(stat.stx_mode.into()),
            // Only has to change when the content does.
            version: (mtime.tv_sec as u32) ^ mtime.tv_nsec.rotate_left(2),
            path: self.path(FileKey::of(stat)),
        }
    }

    /// The qid of a directory entry, of which no more is known.
    pub fn entry_qid(&self, key: FileKey, kind: QidKind) -> Qid {
        Qid { kind, version: 0, path: self.path(key) }
    }
}

/// Spreads a number over all bits (the finalizer of splitmix64).
fn mix(number: u64) -> u64 {
    let number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ number >> 31
}
