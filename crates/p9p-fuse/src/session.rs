//! The threads that take requests from the kernel and answer them.
//!
//! There is always a worker that waits for the next request: one more is started when the last one gets busy. A read
//! that must wait (a stream) is parked: it holds no thread, only an entry here, until its file wakes it or FUSE_INTERRUPT
//! gives it up.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Poll, Wake, Waker};
use std::thread;

use p9p::Errno;
use p9p::filesystem::Cancel;
use rustix::io::Errno as OsErrno;

use crate::abi::{Body, Header, op, parse};
use crate::caching::Policy;
use crate::handles::{Handle, Handles};
use crate::inodes::Inodes;
use crate::invalidate::Invalidator;
use crate::locks::LockWaiters;
use crate::ops;
use crate::reply::Reply;

/// Largest read or write, in bytes: what the kernel allows by default (`fs.fuse.max_pages_limit`).
pub(crate) const IO_BYTES_MAX: usize = 1 << 20;
/// A request: a write and its headers.
const REQUEST_BYTES_MAX: usize = IO_BYTES_MAX + 4096;
/// Most workers. Only calls of the service that block need more than a few: those of another machine's files, reads that
/// wait there among them.
const WORKERS_MAX: usize = 512;
/// Workers that wait for a request: what a burst leaves beyond these ends, and its buffers with it.
const IDLE_MAX: usize = 16;
/// Most reads that wait at one time.
const PARKED_MAX: usize = 1 << 17;

/// One mount's state.
pub(crate) struct Session {
    pub device: Arc<OwnedFd>,
    pub inodes: Arc<Inodes>,
    pub handles: Handles,
    pub policy: Policy,
    pub features: Features,
    pub invalidator: Invalidator,
    pub lock_waiters: LockWaiters,
    in_flight: Mutex<HashMap<u64, Arc<Cancel>>>,
    parked: Mutex<Parked>,
    woken: Condvar,
    idle: AtomicUsize,
    workers: AtomicUsize,
    pub ended: Ended,
    stopping: AtomicBool,
}

/// What was agreed on for the whole mount.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Features {
    pub writeback: bool,
    pub server_locks: bool,
    pub xattrs: bool,
}

/// Tells when the kernel let go of the mount.
#[derive(Default)]
pub(crate) struct Ended {
    ended: Mutex<bool>,
    changed: Condvar,
}

impl Ended {
    fn set(&self) {
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    /// Waits until then, at most for `timeout`; says whether it is so.
    pub fn wait(&self, timeout: Option<std::time::Duration>) -> bool {
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        match timeout {
            None => *self.changed.wait_while(ended, |ended| !*ended).unwrap_or_else(PoisonError::into_inner),
            Some(timeout) => {
                *self
                    .changed
                    .wait_timeout_while(ended, timeout, |ended| !*ended)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0
            }
        }
    }
}

#[derive(Default)]
struct Parked {
    reads: HashMap<u64, Arc<ParkedRead>>,
    woken: Vec<u64>,
}

/// A read that waits for its file.
pub(crate) struct ParkedRead {
    pub handle: Arc<Handle>,
    pub offset: u64,
    pub size: usize,
    cancel: Arc<Cancel>,
    waker: Waker,
}

/// What wakes a parked read.
struct ReadWaker {
    session: Weak<Session>,
    unique: u64,
}

impl Wake for ReadWaker {
    fn wake(self: Arc<Self>) {
        if let Some(session) = self.session.upgrade() {
            session.wake_read(self.unique);
        }
    }
}

/// What an operation says about its reply.
pub(crate) enum Outcome {
    /// The body is in the reply, or there is an error.
    Reply(Result<(), Errno>),
    /// Answered later.
    Later,
}

impl From<Result<(), Errno>> for Outcome {
    fn from(result: Result<(), Errno>) -> Self {
        Self::Reply(result)
    }
}

/// One request, its header parsed.
pub(crate) struct Request<'a> {
    pub header: Header,
    pub body: Body<'a>,
    pub cancel: Arc<Cancel>,
}

impl Session {
    pub fn new(
        device: Arc<OwnedFd>,
        inodes: Arc<Inodes>,
        policy: Policy,
        features: Features,
        invalidator: Invalidator,
    ) -> Self {
        Self {
            device,
            inodes,
            handles: Handles::default(),
            policy,
            features,
            invalidator,
            lock_waiters: LockWaiters::default(),
            in_flight: Mutex::default(),
            parked: Mutex::default(),
            woken: Condvar::new(),
            idle: AtomicUsize::new(0),
            workers: AtomicUsize::new(0),
            ended: Ended::default(),
            stopping: AtomicBool::new(false),
        }
    }

    /// Starts the first workers and the thread that goes on with parked reads.
    pub fn start(self: &Arc<Self>) -> std::io::Result<()> {
        let session = Arc::clone(self);
        thread::Builder::new().name("fuse-woken".into()).spawn(move || session.resume_reads())?;
        let session = Arc::clone(self);
        thread::Builder::new().name("fuse-locks".into()).spawn(move || session.retry_locks())?;
        self.spawn_worker()?;
        self.spawn_worker()
    }

    fn spawn_worker(self: &Arc<Self>) -> std::io::Result<()> {
        let session = Arc::clone(self);
        self.workers.fetch_add(1, Ordering::Relaxed);
        let spawned = thread::Builder::new().name("fuse-worker".into()).spawn(move || session.work());
        if spawned.is_err() {
            self.workers.fetch_sub(1, Ordering::Relaxed);
        }
        spawned.map(drop)
    }

    fn work(self: Arc<Self>) {
        let mut buffer = vec![0; REQUEST_BYTES_MAX];
        let mut reply = Reply::default();
        loop {
            if self.idle.fetch_add(1, Ordering::AcqRel) >= IDLE_MAX {
                self.idle.fetch_sub(1, Ordering::AcqRel);
                break;
            }
            let read = rustix::io::read(&self.device, &mut *buffer);
            let was_last = self.idle.fetch_sub(1, Ordering::AcqRel) == 1;
            match read {
                Ok(count) => {
                    if was_last && self.workers.load(Ordering::Relaxed) < WORKERS_MAX {
                        // Without another one, requests wait for this one to be done: slower, but right.
                        let _ = self.spawn_worker();
                    }
                    if let Some((header, body)) = parse(&buffer[..count]) {
                        self.serve(header, body, &mut reply);
                    }
                }
                // ENOENT is a request that was given up while we read it.
                Err(OsErrno::INTR | OsErrno::NOENT | OsErrno::AGAIN) => {}
                // ENODEV: unmounted. Anything else will not get better.
                Err(_) => break,
            }
        }
        if self.workers.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.stop();
            self.handles.clear();
            self.ended.set();
        }
    }

    /// Gives up all that waits, and ends the helping threads once the kernel is gone.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.cancel_all();
        self.invalidator.close();
        self.lock_waiters.close();
        self.woken.notify_all();
    }

    /// Gives up all that waits.
    pub fn cancel_all(&self) {
        let all: Vec<_> = self.flights().values().cloned().collect();
        all.iter().for_each(|cancel| cancel.cancel());
    }

    fn flights(&self) -> MutexGuard<'_, HashMap<u64, Arc<Cancel>>> {
        self.in_flight.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(self: &Arc<Self>, header: Header, body: Body<'_>, reply: &mut Reply) {
        reply.clear();
        let unique = header.unique;
        match header.opcode {
            op::INTERRUPT => return self.interrupt(unique, body, reply),
            op::FORGET | op::BATCH_FORGET => return ops::forget(self, &header, body),
            _ => {}
        }
        let cancel = Arc::new(Cancel::default());
        self.flights().insert(unique, Arc::clone(&cancel));
        match ops::answer(self, Request { header, body, cancel }, reply) {
            Outcome::Reply(result) => self.send(unique, result, reply),
            Outcome::Later => {}
        }
    }

    /// A request that is not known yet (another worker is about to take it) or any more: EAGAIN has the kernel ask again
    /// exactly if it still waits.
    fn interrupt(&self, unique: u64, mut body: Body<'_>, reply: &mut Reply) {
        let cancel = body.u64().ok().and_then(|target| self.flights().get(&target).cloned());
        match cancel {
            Some(cancel) => cancel.cancel(),
            None => {
                let _ = rustix::io::write(&self.device, reply.finish(unique, Err(Errno::EAGAIN)));
            }
        }
    }

    /// Sends a reply. ENOENT is that nobody waits for it any more.
    pub fn send(&self, unique: u64, result: Result<(), Errno>, reply: &mut Reply) {
        self.flights().remove(&unique);
        let message = reply.finish(unique, result);
        if let Err(OsErrno::INVAL) = rustix::io::write(&self.device, message) {
            // The kernel found it malformed; the caller must not wait for ever.
            let _ = rustix::io::write(&self.device, reply.finish(unique, Err(Errno::EIO)));
        }
    }

    /// Lets a read wait without a thread.
    pub fn park(
        self: &Arc<Self>,
        unique: u64,
        cancel: Arc<Cancel>,
        handle: Arc<Handle>,
        offset: u64,
        size: usize,
    ) -> Outcome {
        let waker = Waker::from(Arc::new(ReadWaker { session: Arc::downgrade(self), unique }));
        let read = Arc::new(ParkedRead { handle, offset, size, cancel, waker });
        let mut parked = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
        if parked.reads.len() >= PARKED_MAX {
            return Outcome::Reply(Err(Errno::EAGAIN));
        }
        parked.reads.insert(unique, Arc::clone(&read));
        // The other thread asks the file with this waker, which it has not seen yet.
        parked.woken.push(unique);
        drop(parked);
        self.woken.notify_one();
        read.cancel.wake_on_cancel(&read.waker);
        Outcome::Later
    }

    fn wake_read(&self, unique: u64) {
        let mut parked = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
        if parked.reads.contains_key(&unique) {
            parked.woken.push(unique);
            drop(parked);
            self.woken.notify_one();
        }
    }

    /// Asks the files of woken reads again.
    fn resume_reads(&self) {
        let mut reply = Reply::default();
        loop {
            let woken = {
                let mut parked = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
                while parked.woken.is_empty() {
                    if self.stopping.load(Ordering::Acquire) {
                        return;
                    }
                    parked = self.woken.wait(parked).unwrap_or_else(PoisonError::into_inner);
                }
                std::mem::take(&mut parked.woken)
            };
            for unique in woken {
                self.resume_read(unique, &mut reply);
            }
        }
    }

    fn resume_read(&self, unique: u64, reply: &mut Reply) {
        let reads = || self.parked.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(read) = reads().reads.get(&unique).cloned() else { return };
        reply.clear();
        let result = if read.cancel.is_cancelled() {
            Err(Errno::EINTR)
        } else {
            let mut pending = false;
            let result = reply.fill(read.size, |room| {
                match read.handle.file.poll_read(read.offset, room, &read.cancel, &read.waker) {
                    Poll::Ready(answer) => answer,
                    Poll::Pending => {
                        pending = true;
                        Ok(0)
                    }
                }
            });
            if pending {
                return;
            }
            result
        };
        reads().reads.remove(&unique);
        self.send(unique, result, reply);
    }
}
