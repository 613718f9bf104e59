//! A fetch or push under way: what other threads see of it, and how they stop it.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::error::Cancellable;
use super::progress::Item;

/// How often a waiting call looks whether it was cancelled.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What a transfer is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Connecting, or waiting for the other side's refs.
    Connecting,
    /// Finding out what the other side, or we, lack.
    Negotiating,
    /// Receiving objects.
    Receiving,
    /// Sending objects.
    Sending,
    /// Waiting for the other side to take what it got.
    Waiting,
    /// Finished, well or badly.
    Done,
}

/// Where a transfer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// What it is doing.
    pub phase: Phase,
    /// Objects received or sent.
    pub objects: u64,
    /// How many there will be, once that is known.
    pub objects_total: Option<u64>,
    /// Bytes of objects received or sent.
    pub bytes: u64,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let phase = match self.phase {
            Phase::Connecting => "connecting",
            Phase::Negotiating => "negotiating",
            Phase::Receiving => "receiving",
            Phase::Sending => "sending",
            Phase::Waiting => "waiting",
            Phase::Done => "done",
        };
        write!(f, "{phase} {}", self.objects)?;
        if let Some(total) = self.objects_total {
            write!(f, "/{total}")?;
        }
        write!(f, " objects, {} bytes", self.bytes)
    }
}

#[derive(Default)]
struct Inner {
    phase: Option<Phase>,
    total: Option<u64>,
    items: Vec<Item>,
    stops: Vec<Box<dyn FnOnce() + Send>>,
}

/// A fetch or push, seen from outside. One for each call.
#[derive(Default)]
pub struct Transfer {
    cancelled: AtomicBool,
    objects: AtomicU64,
    bytes: AtomicU64,
    inner: Mutex<Inner>,
}

impl Transfer {
    /// One that has not begun.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Where it is now.
    pub fn status(&self) -> Status {
        let inner = self.lock();
        let mut status = Status {
            phase: inner.phase.unwrap_or(Phase::Connecting),
            objects: self.objects.load(Ordering::Relaxed),
            objects_total: inner.total,
            bytes: self.bytes.load(Ordering::Relaxed),
        };
        for item in &inner.items {
            item.add_to(&mut status);
        }
        status
    }

    /// Stops it: the call returns soon, and has moved nothing unless it was over already.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::SeqCst);
        let stops = std::mem::take(&mut self.lock().stops);
        for stop in stops {
            stop();
        }
    }

    /// Whether it is over, well or badly.
    pub fn is_done(&self) -> bool {
        self.lock().phase == Some(Phase::Done)
    }

    /// Whether it was cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::SeqCst)
    }

    pub(super) fn flag(&self) -> &AtomicBool {
        &self.cancelled
    }

    /// Has `stop` called when the transfer is cancelled, now if it was.
    pub(super) fn on_cancel(&self, stop: impl FnOnce() + Send + 'static) {
        self.lock().stops.push(Box::new(stop));
        if self.is_cancelled() {
            self.cancel();
        }
    }

    pub(super) fn enter(&self, phase: Phase) {
        self.lock().phase = Some(phase);
    }

    pub(super) fn expect(&self, objects: u64) {
        self.lock().total = Some(objects);
    }

    pub(super) fn count_objects(&self, objects: u64) {
        self.objects.store(objects, Ordering::Relaxed);
    }

    pub(super) fn count_bytes(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn watch(&self, item: Item) {
        let mut inner = self.lock();
        if let Some(phase) = item.phase() {
            inner.phase = Some(phase);
        }
        inner.items.push(item);
    }

    /// Runs `work` on a thread of its own and waits for it, but no longer than until it is cancelled.
    ///
    /// A thread that waits for a silent peer is left behind then; it ends with its connection, and changes no ref.
    pub(super) fn supervise<T, E>(
        &self,
        name: &str,
        work: impl FnOnce() -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: Cancellable + Send + 'static,
    {
        let (sender, receiver) = sync_channel(1);
        let run = move || {
            // The receiver is gone when the call was cancelled: nobody wants the result.
            let _ = sender.send(work());
        };
        if let Err(error) = thread::Builder::new().name(name.to_owned()).spawn(run) {
            return Err(E::local(format!("no thread: {error}")));
        }
        let result = loop {
            match receiver.recv_timeout(LOOK_EVERY) {
                Ok(result) => break result,
                Err(RecvTimeoutError::Timeout) if self.is_cancelled() => break Err(E::cancelled()),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    break Err(E::local("the thread of the transfer died".to_owned()));
                }
            }
        };
        self.enter(Phase::Done);
        result
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Transfer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transfer").field("status", &self.status()).finish_non_exhaustive()
    }
}
