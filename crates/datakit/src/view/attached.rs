//! What all files of one attach have in common.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use datakit_store::{BranchError, LeaseName, ObjectId, ReadError, Start, Store, Transaction, WriteError};
use p9p::Errno;
use p9p::filesystem::Answer;

use super::transaction::OpenTransaction;
use crate::logs::Logs;
use crate::metrics::Metrics;
use crate::service::Invalidations;

/// How an attach came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// Over 9P, whatever the dialect.
    NineP,
    /// Mounted by FUSE.
    Fuse,
}

/// One attach.
pub(crate) struct Attached {
    pub store: Store,
    pub transport: Transport,
    /// Whom files are shown to belong to.
    pub uid: u32,
    pub gid: u32,
    pub logs: Arc<Logs>,
    pub metrics: Arc<Metrics>,
    /// Leased transactions, which all attaches share.
    pub leased: Arc<Leased>,
    pub invalidations: Arc<Invalidations>,
    /// Makes numbers of paths; its keys are random, so that nobody can choose names that collide.
    pub hasher: RandomState,
}

/// The files that go with leased transactions.
#[derive(Default)]
pub(crate) struct Leased {
    open: Mutex<HashMap<LeaseName, Arc<OpenTransaction>>>,
}

impl Leased {
    /// Those of this one, made by whoever comes first.
    pub fn open(
        &self,
        attached: &Arc<Attached>,
        name: &LeaseName,
        transaction: Transaction,
    ) -> Arc<OpenTransaction> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, open| open.transaction.is_open());
        let made = || OpenTransaction::new(attached, transaction, true);
        Arc::clone(open.entry(name.clone()).or_insert_with(made))
    }

    /// The number of its directory, if somebody used it.
    pub fn number(&self, name: &LeaseName) -> Option<u64> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let open = open.get(name).filter(|open| open.transaction.is_open())?;
        Some(open.directory_number())
    }
}

impl Attached {
    /// The number of the entry `name` of the directory with the number `parent`.
    pub fn entry_number(&self, parent: u64, name: &[u8]) -> u64 {
        // The top bit tells them from numbers that are counted.
        self.hasher.hash_one((parent, name)) | 1 << 63
    }

    /// Reads an object id that a client wrote or named.
    pub fn parse_id(&self, text: &[u8]) -> Answer<ObjectId> {
        self.store.parse_id(text.trim_ascii()).map_err(|error| Errno::EINVAL.with_text(error.to_string()))
    }

    /// Waits until a FUSE mount's kernel knows of what just changed, so that the next look sees it.
    pub fn settle(&self) {
        let Ok(updates) = self.store.updates(None, Start::Now) else { return };
        self.invalidations.flush(updates.position().0, Duration::from_millis(500));
    }
}

/// What an object that cannot be read is to a client.
pub(crate) fn read_failed(error: &ReadError) -> Errno {
    let errno = match error {
        ReadError::Missing { .. } => Errno::ENOENT,
        ReadError::TooLarge { .. } => Errno::EFBIG,
        ReadError::Kind { .. } => Errno::EINVAL,
        _ => Errno::EIO,
    };
    errno.with_text(error.to_string())
}

/// What an object that the repository itself names is to a client when it cannot be read: never that the file is not
/// there.
pub(crate) fn damaged(store: &Store, error: &ReadError) -> Errno {
    store.damage().add(error);
    match read_failed(error) {
        Errno::ENOENT | Errno::EINVAL => Errno::EIO.with_text(error.to_string()),
        errno => errno,
    }
}

/// What a ref that did not move is to a client.
pub(crate) fn branch_failed(error: &BranchError) -> Errno {
    match error {
        BranchError::Missing { .. } => Errno::ENOENT.with_text("No such file or directory"),
        BranchError::Exists { .. } => Errno::EEXIST.with_text("Already exists"),
        BranchError::NotFastForward { .. } => Errno::EBUSY.with_text(error.to_string()),
        BranchError::Read(error) => read_failed(error),
        BranchError::Write(error) => write_failed(error),
        _ => Errno::EIO.with_text(error.to_string()),
    }
}

/// What a failed write of the repository is to a client.
pub(crate) fn write_failed(error: &WriteError) -> Errno {
    let errno = match error {
        WriteError::Moved { .. } | WriteError::Locked { .. } => Errno::EBUSY,
        WriteError::NameClash { .. } => Errno::EEXIST,
        WriteError::Io { source, .. } => {
            source.raw_os_error().map_or(Errno::EIO, |number| Errno(number.unsigned_abs()))
        }
    };
    errno.with_text(error.to_string())
}
