//! What is to be done when time has passed: more workers where all are blocked, the end of connections whose client
//! stopped sending, listeners that go on.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::connection::{Connection, GRACE};
use super::server::Shared;

/// How long nothing may move, with all workers busy, before there are more.
const STALL: Duration = Duration::from_millis(2);
/// How long a listener waits when there are no descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// What is due, and when.
#[derive(Default)]
pub(super) struct Watch {
    due: Mutex<Due>,
    changed: Condvar,
}

#[derive(Default)]
struct Due {
    busy: bool,
    ending: Vec<(Instant, Weak<Connection>)>,
    paused: Vec<(Instant, u64)>,
    stopped: bool,
}

impl Watch {
    fn change(&self, change: impl FnOnce(&mut Due) -> bool) {
        let news = change(&mut self.due.lock().unwrap_or_else(PoisonError::into_inner));
        if news {
            self.changed.notify_all();
        }
    }

    /// No worker waits for events now, or requests wait although one does.
    pub fn note_busy(&self) {
        self.change(|due| !std::mem::replace(&mut due.busy, true));
    }

    /// The client of a connection stopped sending.
    pub fn expect_end(&self, connection: &Arc<Connection>) {
        self.change(|due| {
            due.ending.push((Instant::now() + GRACE, Arc::downgrade(connection)));
            true
        });
    }

    /// A listener could not accept.
    pub fn pause(&self, listener: u64) {
        self.change(|due| {
            due.paused.push((Instant::now() + PAUSE, listener));
            true
        });
    }

    /// Ends [`Watch::run`].
    pub fn stop(&self) {
        self.change(|due| {
            due.stopped = true;
            true
        });
    }

    /// Does what is due until stopped.
    pub fn run(&self, shared: &Arc<Shared>) {
        let mut progress = shared.progress.load(Ordering::Relaxed);
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        while !due.stopped {
            let wait = due.wait(Instant::now());
            due = match wait {
                Some(wait) => self.changed.wait_timeout(due, wait).unwrap_or_else(PoisonError::into_inner).0,
                None => self.changed.wait(due).unwrap_or_else(PoisonError::into_inner),
            };
            let now = Instant::now();
            let ended: Vec<_> = due.ending.extract_if(.., |(time, _)| *time <= now).collect();
            let resumed: Vec<_> = due.paused.extract_if(.., |(time, _)| *time <= now).collect();
            let is_busy = due.busy;
            if is_busy && !shared.is_starved() && !shared.has_queued() {
                due.busy = false;
            }
            drop(due);
            for connection in ended.iter().filter_map(|(_, connection)| connection.upgrade()) {
                connection.end(shared);
            }
            resumed.iter().for_each(|(_, listener)| shared.listen_again(*listener));
            let moved = shared.progress.load(Ordering::Relaxed);
            if is_busy && moved == progress && !shared.is_stopping() {
                if shared.is_starved() {
                    shared.grow();
                } else if shared.has_queued() {
                    shared.share_out();
                }
            }
            progress = moved;
            due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Due {
    /// How long until something is due; `None` when nothing is.
    fn wait(&self, now: Instant) -> Option<Duration> {
        let times =
            self.ending.iter().map(|(time, _)| *time).chain(self.paused.iter().map(|(time, _)| *time));
        let first = times.min().map(|time| time.saturating_duration_since(now));
        let stall = self.busy.then_some(STALL);
        first.into_iter().chain(stall).min()
    }
}
