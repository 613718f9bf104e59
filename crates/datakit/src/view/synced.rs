//! fsync of a published file: waits until what was acknowledged is published and on disk.

use std::sync::Arc;
use std::task::{Poll, Waker};

use datakit_store::Store;
use p9p::filesystem::{Answer, Cancel, Entries, HeldLock, OpenFile};
use p9p::stat::{LockKind, LockRange, LockStatus};

use super::attached::write_failed;

/// An open file whose fsync is the store's. Any file will do, as with sync(1): there is one journal for all.
pub(crate) struct Synced {
    file: Arc<dyn OpenFile>,
    store: Store,
}

impl Synced {
    pub fn over(file: Arc<dyn OpenFile>, store: &Store) -> Arc<dyn OpenFile> {
        Arc::new(Self { file, store: store.clone() })
    }
}

impl OpenFile for Synced {
    fn read(&self, offset: u64, buffer: &mut [u8], cancel: &Cancel) -> Answer<usize> {
        self.file.read(offset, buffer, cancel)
    }

    fn poll_read(
        &self,
        offset: u64,
        buffer: &mut [u8],
        cancel: &Cancel,
        waker: &Waker,
    ) -> Poll<Answer<usize>> {
        self.file.poll_read(offset, buffer, cancel, waker)
    }

    fn write(&self, offset: u64, bytes: &[u8], cancel: &Cancel) -> Answer<usize> {
        self.file.write(offset, bytes, cancel)
    }

    fn read_directory(&self, offset: u64, entries: &mut Entries<'_>) -> Answer<()> {
        self.file.read_directory(offset, entries)
    }

    fn sync(&self, _data_only: bool) -> Answer<()> {
        self.store.sync().map_err(|error| write_failed(&error))
    }

    fn lock(&self, kind: LockKind, range: &LockRange<'_>) -> Answer<LockStatus> {
        self.file.lock(kind, range)
    }

    fn conflicting_lock(&self, kind: LockKind, range: &LockRange<'_>) -> Answer<Option<HeldLock>> {
        self.file.conflicting_lock(kind, range)
    }
}
