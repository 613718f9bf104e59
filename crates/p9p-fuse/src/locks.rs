//! Locks of fcntl(2) and flock(2), passed on to the service, and those that wait for one.
//!
//! A service never waits for a lock: who is willing to wait asks again. That is done here, by one thread.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use p9p::Errno;
use p9p::filesystem::Cancel;
use p9p::stat::{LockKind, LockRange, LockStatus};

use crate::abi::{Body, LK_FLOCK};
use crate::handles::Handle;
use crate::reply::Reply;
use crate::session::{Outcome, Request, Session};

/// How often a lock that is held is asked for again.
const RETRY_EVERY: Duration = Duration::from_millis(10);
/// Most that wait at one time.
const WAITING_MAX: usize = 4096;

const F_RDLCK: u32 = 0;
const F_WRLCK: u32 = 1;
const F_UNLCK: u32 = 2;

struct LockWaiter {
    unique: u64,
    handle: Arc<Handle>,
    lock: Lock,
    cancel: Arc<Cancel>,
}

/// A lock as the kernel asks for it (`fuse_lk_in`).
#[derive(Debug, Clone, Copy)]
struct Lock {
    owner: u64,
    start: u64,
    /// Inclusive.
    end: u64,
    kind: LockKind,
    process: u32,
    is_flock: bool,
}

impl Lock {
    fn parse(body: &mut Body<'_>) -> Result<(u64, Self), Errno> {
        let handle = body.u64()?;
        let owner = body.u64()?;
        let (start, end) = (body.u64()?, body.u64()?);
        let kind = match body.u32()? {
            F_RDLCK => LockKind::READ,
            F_WRLCK => LockKind::WRITE,
            F_UNLCK => LockKind::UNLOCK,
            _ => return Err(Errno::EINVAL),
        };
        let process = body.u32()?;
        let is_flock = body.u32()? & LK_FLOCK != 0;
        Ok((handle, Self { owner, start, end, kind, process, is_flock }))
    }

    /// Calls `with` with the range and its owner in the service's terms.
    fn as_range<T>(&self, handle: &Handle, with: impl FnOnce(&LockRange<'_>) -> T) -> T {
        // One owner has one name, from whichever of its threads or children it asks: the first asker's process id.
        let mut lockers = handle.lockers.lock().unwrap_or_else(PoisonError::into_inner);
        let process = *lockers.entry(self.owner).or_insert(self.process);
        drop(lockers);
        let kind = if self.is_flock { "flock" } else { "fcntl" };
        let client = format!("fuse-{kind}-{:x}", self.owner);
        // To the end is 0, and so is what does not fit.
        let whole = self.end >= i64::MAX.cast_unsigned();
        let length = if whole { 0 } else { (self.end - self.start.min(self.end)).saturating_add(1) };
        with(&LockRange { start: self.start, length, process, client: client.as_bytes() })
    }

    fn set(&self, handle: &Handle) -> Result<LockStatus, Errno> {
        self.as_range(handle, |range| handle.file.lock(self.kind, range))
    }
}

pub(crate) fn getlk(session: &Session, mut request: Request<'_>, reply: &mut Reply) -> Result<(), Errno> {
    let (handle, lock) = Lock::parse(&mut request.body)?;
    let handle = session.handles.get(handle)?;
    let held = lock.as_range(&handle, |range| handle.file.conflicting_lock(lock.kind, range))?;
    let (start, end, kind, process) = match held {
        None => (lock.start, lock.end, F_UNLCK, 0),
        Some(held) => {
            let kind = if held.kind == LockKind::READ { F_RDLCK } else { F_WRLCK };
            let last = i64::MAX.cast_unsigned();
            let end =
                if held.length == 0 { last } else { held.start.saturating_add(held.length - 1).min(last) };
            (held.start, end, kind, held.process)
        }
    };
    reply.u64(start);
    reply.u64(end);
    reply.u32(kind);
    reply.u32(process);
    Ok(())
}

pub(crate) fn setlk(session: &Session, mut request: Request<'_>, waits: bool) -> Outcome {
    let parsed =
        Lock::parse(&mut request.body).and_then(|(handle, lock)| Ok((session.handles.get(handle)?, lock)));
    let (handle, lock) = match parsed {
        Ok(parsed) => parsed,
        Err(errno) => return Outcome::Reply(Err(errno)),
    };
    match lock.set(&handle) {
        Ok(LockStatus::Success) => Outcome::Reply(Ok(())),
        Ok(LockStatus::Blocked | LockStatus::Grace) if waits => {
            let waiter = LockWaiter { unique: request.header.unique, handle, lock, cancel: request.cancel };
            session.lock_waiters.push(waiter)
        }
        Ok(LockStatus::Blocked | LockStatus::Grace) => Outcome::Reply(Err(Errno::EAGAIN)),
        Ok(LockStatus::Error) => Outcome::Reply(Err(Errno::ENOLCK)),
        Err(errno) => Outcome::Reply(Err(errno)),
    }
}

/// Gives back all that `owner` took through this handle, as closing does.
pub(crate) fn release(handle: &Handle, owner: u64, is_flock: bool) {
    let known = handle.lockers.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&owner);
    if known {
        let lock = Lock { owner, start: 0, end: u64::MAX, kind: LockKind::UNLOCK, process: 0, is_flock };
        // Nobody hears of a failure here; the service gives locks back with the file in any case.
        let _ = lock.set(handle);
    }
}

/// Requests that wait for a lock.
#[derive(Default)]
pub(crate) struct LockWaiters {
    waiting: Mutex<(Vec<LockWaiter>, bool)>,
    changed: Condvar,
}

impl LockWaiters {
    fn push(&self, waiter: LockWaiter) -> Outcome {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.0.len() >= WAITING_MAX {
            return Outcome::Reply(Err(Errno::ENOLCK));
        }
        waiting.0.push(waiter);
        self.changed.notify_one();
        Outcome::Later
    }

    pub fn close(&self) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).1 = true;
        self.changed.notify_one();
    }
}

impl Session {
    /// Asks again for the locks that are waited for, in the order of their asking.
    pub(crate) fn retry_locks(&self) {
        let mut reply = Reply::default();
        loop {
            let waiters = {
                let waiting = self.lock_waiters.waiting.lock().unwrap_or_else(PoisonError::into_inner);
                let mut waiting = self
                    .lock_waiters
                    .changed
                    .wait_while(waiting, |(waiters, closed)| waiters.is_empty() && !*closed)
                    .unwrap_or_else(PoisonError::into_inner);
                if waiting.1 {
                    return;
                }
                std::mem::take(&mut waiting.0)
            };
            let mut left = Vec::new();
            for waiter in waiters {
                let result = if waiter.cancel.is_cancelled() {
                    Err(Errno::EINTR)
                } else {
                    match waiter.lock.set(&waiter.handle) {
                        Ok(LockStatus::Blocked | LockStatus::Grace) => {
                            left.push(waiter);
                            continue;
                        }
                        Ok(LockStatus::Success) => Ok(()),
                        Ok(LockStatus::Error) => Err(Errno::ENOLCK),
                        Err(errno) => Err(errno),
                    }
                };
                reply.clear();
                self.send(waiter.unique, result, &mut reply);
            }
            if !left.is_empty() {
                let mut waiting = self.lock_waiters.waiting.lock().unwrap_or_else(PoisonError::into_inner);
                left.append(&mut waiting.0);
                waiting.0 = left;
                drop(waiting);
                std::thread::sleep(RETRY_EVERY);
            }
        }
    }
}
