//! One value that is replaced, and those who wait for it.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Called when there may be something new.
pub type Waker = Arc<dyn Fn() + Send + Sync>;

/// What a wait ended with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next<T> {
    /// Something new.
    Value(T),
    /// Nothing, in the time given.
    TimedOut,
    /// The watch was cancelled.
    Cancelled,
}

/// Ends the waits of a watch from another thread.
#[derive(Clone)]
pub struct Canceller(Arc<dyn Fn() + Send + Sync>);

impl Canceller {
    pub(super) fn new(cancel: impl Fn() + Send + Sync + 'static) -> Canceller {
        Canceller(Arc::new(cancel))
    }

    /// Ends the present wait and all later ones.
    pub fn cancel(&self) {
        (self.0)();
    }
}

impl fmt::Debug for Canceller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Canceller")
    }
}

/// Wakes threads that wait and a callback.
#[derive(Default)]
pub(super) struct Wakers {
    state: Mutex<WakersState>,
    changed: Condvar,
}

#[derive(Default)]
struct WakersState {
    woken: u64,
    is_cancelled: bool,
    waker: Option<Waker>,
}

impl Wakers {
    fn state(&self) -> MutexGuard<'_, WakersState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn wake(&self) {
        let mut state = self.state();
        state.woken += 1;
        let waker = state.waker.clone();
        drop(state);
        self.changed.notify_all();
        if let Some(waker) = waker {
            waker();
        }
    }

    pub fn cancel(&self) {
        self.state().is_cancelled = true;
        self.wake();
    }

    pub fn set(&self, waker: Waker) {
        self.state().waker = Some(waker);
    }

    /// What [`Wakers::wait`] compares with: taken before looking for something new.
    pub fn ticket(&self) -> u64 {
        self.state().woken
    }

    /// Waits until woken after the ticket was taken.
    pub fn wait(&self, ticket: u64, deadline: Option<Instant>) -> Next<()> {
        let mut state = self.state();
        loop {
            if state.is_cancelled {
                return Next::Cancelled;
            }
            if state.woken != ticket {
                return Next::Value(());
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            state = match left {
                Some(Duration::ZERO) => return Next::TimedOut,
                Some(left) => {
                    self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}

/// A value, and whether it was replaced since it was last taken.
pub(crate) struct Slot<T> {
    value: Mutex<(T, bool)>,
    wakers: Wakers,
}

impl<T: Clone + PartialEq> Slot<T> {
    pub fn new(value: T) -> Slot<T> {
        Slot { value: Mutex::new((value, true)), wakers: Wakers::default() }
    }

    fn value(&self) -> MutexGuard<'_, (T, bool)> {
        self.value.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the value; an equal one wakes nobody.
    pub fn set(&self, value: T) {
        {
            let mut held = self.value();
            if held.0 == value {
                return;
            }
            *held = (value, true);
        }
        self.wakers.wake();
    }
}

/// The newest value of something: values that nobody took in time are skipped.
pub struct Latest<T> {
    slot: Arc<Slot<T>>,
    last: Option<T>,
}

impl<T: fmt::Debug> fmt::Debug for Latest<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Latest").field("last", &self.last).finish_non_exhaustive()
    }
}

impl<T: Clone + PartialEq + Send + 'static> Latest<T> {
    pub(super) fn new(slot: Arc<Slot<T>>) -> Latest<T> {
        Latest { slot, last: None }
    }

    /// The present value, whether it was taken or not.
    pub fn current(&self) -> T {
        self.slot.value().0.clone()
    }

    /// The present value, if it differs from the one taken last.
    pub fn try_next(&mut self) -> Option<T> {
        let mut held = self.slot.value();
        if !std::mem::replace(&mut held.1, false) || self.last.as_ref() == Some(&held.0) {
            return None;
        }
        self.last = Some(held.0.clone());
        self.last.clone()
    }

    /// Waits for a value that differs from the one taken last, at most `timeout`; for ever without.
    pub fn next(&mut self, timeout: Option<Duration>) -> Next<T> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            let ticket = self.slot.wakers.ticket();
            if let Some(value) = self.try_next() {
                return Next::Value(value);
            }
            match self.slot.wakers.wait(ticket, deadline) {
                Next::Value(()) => {}
                Next::TimedOut => return Next::TimedOut,
                Next::Cancelled => return Next::Cancelled,
            }
        }
    }

    /// Ends a wait of [`Latest::next`] from another thread, now and later.
    pub fn canceller(&self) -> Canceller
    where
        T: Send + Sync,
    {
        let slot = self.slot.clone();
        Canceller::new(move || slot.wakers.cancel())
    }

    /// Calls this whenever there may be a new value; from any thread, must return soon.
    pub fn on_wake(&self, waker: Waker) {
        self.slot.wakers.set(waker);
    }
}
