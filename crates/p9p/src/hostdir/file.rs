//! Open files and directories of the host.

use std::sync::{Arc, Mutex, PoisonError};

use rustix::fd::OwnedFd;
use rustix::fs::{FileType, RawDir, SeekFrom, fdatasync, fsync, seek};
use rustix::io::{Errno as OsErrno, pread, pwrite};

use super::Share;
use super::identity::FileKey;
use super::locks::Locker;
use crate::errno::Errno;
use crate::filesystem::{Answer, Cancel, Entries, HeldLock, OpenFile};
use crate::qid::QidKind;
use crate::stat::{DirectoryEntry, LockKind, LockRange, LockStatus};

/// Largest buffer for one getdents64, in bytes.
const GETDENTS_BYTES_MAX: usize = 1 << 18;

/// An open regular file.
pub(super) struct HostFile {
    pub fd: Arc<OwnedFd>,
    pub writes: bool,
    pub locker: Locker,
    /// The node's, which is not closed as long as the file is open: it may lose its name meanwhile.
    #[expect(dead_code, reason = "only held")]
    pub node: Arc<OwnedFd>,
}

fn retry<T>(mut call: impl FnMut() -> Result<T, OsErrno>) -> Answer<T> {
    loop {
        match call() {
            Err(OsErrno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

impl OpenFile for HostFile {
    fn read(&self, offset: u64, buffer: &mut [u8], _cancel: &Cancel) -> Answer<usize> {
        retry(|| pread(&self.fd, &mut *buffer, offset))
    }

    fn write(&self, offset: u64, bytes: &[u8], _cancel: &Cancel) -> Answer<usize> {
        retry(|| pwrite(&self.fd, bytes, offset))
    }

    fn sync(&self, data_only: bool) -> Answer<()> {
        retry(|| if data_only { fdatasync(&self.fd) } else { fsync(&self.fd) })
    }

    fn lock(&self, kind: LockKind, range: &LockRange<'_>) -> Answer<LockStatus> {
        self.locker.set(kind, range)
    }

    fn conflicting_lock(&self, kind: LockKind, range: &LockRange<'_>) -> Answer<Option<HeldLock>> {
        self.locker.find_conflict(kind, range)
    }
}

/// An open directory.
pub(super) struct HostDirectory {
    pub fd: OwnedFd,
    pub share: Arc<Share>,
    pub key: FileKey,
    pub locker: Locker,
    /// The cookie at which the kernel stands. Going on from there needs no seek, which some file systems answer with
    /// other entries once files were removed.
    pub position: Mutex<Option<u64>>,
    /// As [`HostFile::node`].
    #[expect(dead_code, reason = "only held")]
    pub node: Arc<OwnedFd>,
}

impl HostDirectory {
    fn entry_key(&self, name: &[u8], inode: u64) -> FileKey {
        // Above the root is nothing that a client may know of.
        if name == b".." && self.key == self.share.root_key {
            self.key
        } else {
            FileKey { device: self.key.device, inode }
        }
    }
}

impl OpenFile for HostDirectory {
    fn read_directory(&self, offset: u64, entries: &mut Entries<'_>) -> Answer<()> {
        let mut position = self.position.lock().unwrap_or_else(PoisonError::into_inner);
        if *position != Some(offset) {
            seek(&self.fd, SeekFrom::Start(offset))?;
        }
        // An entry is at most a sixth larger here than in getdents64 (28 bytes for a name of 4, which there take 24),
        // so that everything that this buffer takes fits into the reply.
        let mut buffer: Vec<u8> = Vec::with_capacity((entries.room() / 7 * 6).clamp(32, GETDENTS_BYTES_MAX));
        let mut directory = RawDir::new(&self.fd, buffer.spare_capacity_mut());
        let mut reached = Some(offset);
        *position = None;
        while let Some(entry) = directory.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            let (kind, qid_kind) = kind_of(entry.file_type());
            let qid = self.share.devices.entry_qid(self.entry_key(name, entry.ino()), qid_kind);
            let next = entry.next_entry_cookie();
            if !entries.add(&DirectoryEntry { qid, offset: next, kind, name }) {
                // The kernel is further than the client.
                reached = None;
                break;
            }
            reached = Some(next);
            if directory.is_buffer_empty() {
                break;
            }
        }
        *position = reached;
        if entries.count() == 0 && reached.is_none() { Err(Errno::EINVAL) } else { Ok(()) }
    }

    fn sync(&self, data_only: bool) -> Answer<()> {
        retry(|| if data_only { fdatasync(&self.fd) } else { fsync(&self.fd) })
    }

    fn lock(&self, kind: LockKind, range: &LockRange<'_>) -> Answer<LockStatus> {
        self.locker.set(kind, range)
    }

    fn conflicting_lock(&self, kind: LockKind, range: &LockRange<'_>) -> Answer<Option<HeldLock>> {
        self.locker.find_conflict(kind, range)
    }
}

/// The `d_type` and the qid type of an entry.
fn kind_of(kind: FileType) -> (u8, QidKind) {
    match kind {
        FileType::Fifo => (1, QidKind::FILE),
        FileType::CharacterDevice => (2, QidKind::FILE),
        FileType::Directory => (4, QidKind::DIRECTORY),
        FileType::BlockDevice => (6, QidKind::FILE),
        FileType::RegularFile => (8, QidKind::FILE),
        FileType::Symlink => (10, QidKind::SYMLINK),
        FileType::Socket => (12, QidKind::FILE),
        FileType::Unknown => (0, QidKind::FILE),
    }
}
