//! Open files and directories in memory.

use std::sync::Arc;

use super::inode::{Body, Inode, Lock};
use super::{Volume, now};
use crate::errno::Errno;
use crate::filesystem::{Answer, Cancel, Entries, HeldLock, OpenFile, OpenFlags};
use crate::stat::{DirectoryEntry, LockKind, LockRange, LockStatus};

/// An open file: keeps the inode, whatever becomes of its names.
pub(super) struct MemoryFile {
    pub inode: Arc<Inode>,
    pub volume: Arc<Volume>,
    pub flags: OpenFlags,
    pub attach: u64,
    pub opener: u64,
}

impl OpenFile for MemoryFile {
    fn read(&self, offset: u64, buffer: &mut [u8], _cancel: &Cancel) -> Answer<usize> {
        if !self.flags.reads() {
            return Err(Errno::EBADF);
        }
        let mut state = self.inode.lock();
        match &state.body {
            Body::File(content) => {
                let count = content.read(offset, buffer);
                state.atime = now();
                Ok(count)
            }
            Body::Directory(_) => Err(Errno::EISDIR),
            _ => Err(Errno::EINVAL),
        }
    }

    fn write(&self, offset: u64, bytes: &[u8], _cancel: &Cancel) -> Answer<usize> {
        if !self.flags.writes() {
            return Err(Errno::EBADF);
        }
        let mut state = self.inode.lock();
        let Body::File(content) = &mut state.body else { return Err(Errno::EINVAL) };
        let offset = if self.flags.contains(OpenFlags::APPEND) { content.len() } else { offset };
        let count = content.write(offset, bytes, &self.volume)?;
        self.inode.touch(&mut state);
        Ok(count)
    }

    fn read_directory(&self, offset: u64, entries: &mut Entries<'_>) -> Answer<()> {
        let state = self.inode.lock();
        let Body::Directory(directory) = &state.body else { return Err(Errno::ENOTDIR) };
        let parent = directory.parent.upgrade();
        let above = parent.as_ref().unwrap_or(&self.inode);
        let dots = [(1, &b"."[..], &self.inode), (2, b"..", above)];
        let dots = dots.into_iter().filter(|(cookie, ..)| *cookie > offset);
        for (cookie, name, inode) in dots.chain(directory.after(offset.max(2))) {
            let kind = (inode.kind >> 12) as u8;
            if !entries.add(&DirectoryEntry { qid: inode.qid(), offset: cookie, kind, name }) {
                return if entries.count() == 0 { Err(Errno::EINVAL) } else { Ok(()) };
            }
        }
        Ok(())
    }

    fn lock(&self, kind: LockKind, range: &LockRange<'_>) -> Answer<LockStatus> {
        self.inode.set_lock(kind, Lock::new(kind, range, self.attach, self.opener)?)
    }

    fn conflicting_lock(&self, kind: LockKind, range: &LockRange<'_>) -> Answer<Option<HeldLock>> {
        Ok(self.inode.find_lock(&Lock::new(kind, range, self.attach, self.opener)?))
    }
}

impl Drop for MemoryFile {
    fn drop(&mut self) {
        self.inode.lock().locks.retain(|lock| lock.opener != self.opener);
    }
}
