//! Advisory locks on ranges, between the clients of one share.
//!
//! The rules are those of fcntl(2): an owner never conflicts with itself, a new lock replaces what the owner had in its
//! range, read locks go together. Nothing waits here: a client that is willing to wait asks again.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Share;
use super::identity::FileKey;
use crate::errno::Errno;
use crate::filesystem::{Answer, HeldLock};
use crate::stat::{LockKind, LockRange, LockStatus};

/// Most locks of one file, and most files of a share that are locked at one time.
const LOCKS_MAX: usize = 4096;
const FILES_MAX: usize = 4096;
/// Longest name of a client; Linux's has its host name, of up to 64.
const CLIENT_BYTES_MAX: usize = 255;

/// Who holds a lock: a process of a client, by the attach it came through.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Owner {
    attach: u64,
    process: u32,
    client: Arc<[u8]>,
}

#[derive(Debug, Clone)]
struct Held {
    exclusive: bool,
    start: u64,
    /// Inclusive; `u64::MAX` is the end of the file however it grows.
    end: u64,
    owner: Owner,
    /// The open file through which it was taken: closing that gives it back.
    opener: u64,
}

/// All locks of a share.
#[derive(Default)]
pub(super) struct LockTable {
    files: Mutex<HashMap<FileKey, Vec<Held>>>,
}

impl LockTable {
    fn lock(&self) -> MutexGuard<'_, HashMap<FileKey, Vec<Held>>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One open file's view of the locks; gives back what was taken through it when dropped.
pub(super) struct Locker {
    share: Arc<Share>,
    key: FileKey,
    attach: u64,
    opener: u64,
    used: AtomicBool,
}

impl Locker {
    /// For a file opened through `attach`.
    pub fn new(share: &Arc<Share>, key: FileKey, attach: u64) -> Self {
        Self { share: Arc::clone(share), key, attach, opener: share.fresh_id(), used: AtomicBool::new(false) }
    }

    /// Takes or gives back.
    pub fn set(&self, kind: LockKind, range: &LockRange<'_>) -> Answer<LockStatus> {
        let (start, end) = bounds(range)?;
        if range.client.len() > CLIENT_BYTES_MAX {
            return Err(Errno::EINVAL);
        }
        let mut files = self.share.locks.lock();
        let owner = self.owner(range);
        if kind == LockKind::UNLOCK {
            if let Some(held) = files.get_mut(&self.key) {
                subtract(held, &owner, start, end);
                if held.is_empty() {
                    files.remove(&self.key);
                }
            }
            return Ok(LockStatus::Success);
        }
        let exclusive = is_exclusive(kind)?;
        if files.len() >= FILES_MAX && !files.contains_key(&self.key) {
            return Err(Errno::ENOLCK);
        }
        let held = files.entry(self.key).or_default();
        if conflict(held, &owner, exclusive, start, end).is_some() {
            return Ok(LockStatus::Blocked);
        }
        if held.len() >= LOCKS_MAX {
            return Err(Errno::ENOLCK);
        }
        subtract(held, &owner, start, end);
        held.push(Held { exclusive, start, end, owner, opener: self.opener });
        self.used.store(true, Ordering::Relaxed);
        Ok(LockStatus::Success)
    }

    /// The first lock in the way.
    pub fn find_conflict(&self, kind: LockKind, range: &LockRange<'_>) -> Answer<Option<HeldLock>> {
        let (start, end) = bounds(range)?;
        let exclusive = is_exclusive(kind)?;
        let files = self.share.locks.lock();
        let held = files.get(&self.key).map_or(&[][..], Vec::as_slice);
        Ok(conflict(held, &self.owner(range), exclusive, start, end).map(|held| HeldLock {
            kind: if held.exclusive { LockKind::WRITE } else { LockKind::READ },
            start: held.start,
            length: if held.end == u64::MAX { 0 } else { held.end - held.start + 1 },
            process: held.owner.process,
            client: held.owner.client.to_vec(),
        }))
    }

    fn owner(&self, range: &LockRange<'_>) -> Owner {
        Owner { attach: self.attach, process: range.process, client: range.client.into() }
    }
}

impl Drop for Locker {
    fn drop(&mut self) {
        if !*self.used.get_mut() {
            return;
        }
        let mut files = self.share.locks.lock();
        if let Some(held) = files.get_mut(&self.key) {
            held.retain(|held| held.opener != self.opener);
            if held.is_empty() {
                files.remove(&self.key);
            }
        }
    }
}

fn bounds(range: &LockRange<'_>) -> Answer<(u64, u64)> {
    if range.length == 0 {
        return Ok((range.start, u64::MAX));
    }
    let end = range.start.checked_add(range.length - 1).ok_or(Errno::EINVAL)?;
    Ok((range.start, end))
}

fn is_exclusive(kind: LockKind) -> Answer<bool> {
    match kind {
        LockKind::READ => Ok(false),
        LockKind::WRITE => Ok(true),
        _ => Err(Errno::EINVAL),
    }
}

fn conflict<'h>(held: &'h [Held], owner: &Owner, exclusive: bool, start: u64, end: u64) -> Option<&'h Held> {
    held.iter()
        .filter(|held| held.start <= end && start <= held.end)
        .find(|held| held.owner != *owner && (exclusive || held.exclusive))
}

/// Takes the range out of what `owner` holds; a lock around it becomes two.
fn subtract(held: &mut Vec<Held>, owner: &Owner, start: u64, end: u64) {
    let mut pieces = Vec::new();
    held.retain(|held| {
        if held.owner != *owner || held.start > end || start > held.end {
            return true;
        }
        if held.start < start {
            pieces.push(Held { end: start - 1, ..held.clone() });
        }
        if held.end > end {
            pieces.push(Held { start: end + 1, ..held.clone() });
        }
        false
    });
    held.append(&mut pieces);
}
