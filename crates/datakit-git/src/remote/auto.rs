//! Pushing branches by themselves whenever they changed.
//!
//! Whoever commits says so with [`AutoPush::changed`] and goes on; a thread collects the names for a while, pushes them
//! together and tries again, ever later, what failed. The other repository is made the same as ours: what it has besides is
//! lost, as with `git push --force`.

use std::collections::BTreeSet;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::push::{Outcome, Update};
use super::transfer::Transfer;
use super::{Remote, connect};

/// When branches are pushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// How long names are collected after the first.
    pub collect: Duration,
    /// The wait after a failure; it doubles with each in a row.
    pub retry_first: Duration,
    /// The longest wait after failures.
    pub retry_max: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            collect: Duration::from_secs(2),
            retry_first: Duration::from_secs(2),
            retry_max: Duration::from_secs(300),
        }
    }
}

/// How pushing goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AutoPushStatus {
    /// Branches that are not pushed yet: those that wait, that are on their way, or that failed.
    pub waiting: Vec<String>,
    /// Branches pushed so far, each time counted.
    pub pushed: u64,
    /// Pushes that failed so far.
    pub failures: u64,
    /// Why the last push failed, if it did.
    pub last_failure: Option<String>,
}

type Log = Box<dyn Fn(&str) + Send>;
type Settle = Box<dyn Fn() -> Result<(), String> + Send>;

#[derive(Default)]
struct State {
    dirty: BTreeSet<String>,
    /// On their way.
    pushing: BTreeSet<String>,
    status: AutoPushStatus,
    stops: bool,
    transfer: Option<Arc<Transfer>>,
}

impl State {
    /// What is to be pushed now.
    fn take(&mut self) -> BTreeSet<String> {
        self.pushing = std::mem::take(&mut self.dirty);
        self.pushing.clone()
    }
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    wake: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `until`, or until everything ends; `false` is the end.
    fn rest(&self, until: Instant) -> bool {
        let mut state = self.lock();
        while !state.stops {
            let now = Instant::now();
            if now >= until {
                return true;
            }
            state = self.wake.wait_timeout(state, until - now).unwrap_or_else(PoisonError::into_inner).0;
        }
        false
    }
}

/// Pushes what changes. Dropped, it tries once to push what waits, unless the last push failed.
pub struct AutoPush {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl AutoPush {
    /// Begins to push to `remote`; `log` gets a line for each push that went through or failed. `settle` is called before
    /// each, and waits until what was said to have changed is where it is looked for, in the repository's files.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn start(
        remote: Remote,
        pace: Pace,
        settle: impl Fn() -> Result<(), String> + Send + 'static,
        log: impl Fn(&str) + Send + 'static,
    ) -> std::io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let pusher = Pusher {
            shared: Arc::clone(&shared),
            remote,
            pace,
            settle: Box::new(settle),
            log: Box::new(log),
        };
        let thread =
            thread::Builder::new().name("datakit-auto-push".to_owned()).spawn(move || pusher.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Says that `branch` changed, came or went. Never waits for the network.
    pub fn changed(&self, branch: &str) {
        let mut state = self.shared.lock();
        if state.dirty.insert(branch.to_owned()) {
            self.shared.wake.notify_all();
        }
    }

    /// How it goes.
    pub fn status(&self) -> AutoPushStatus {
        let state = self.shared.lock();
        let waiting = state.dirty.union(&state.pushing).cloned().collect();
        AutoPushStatus { waiting, ..state.status.clone() }
    }

    /// Ends it: what waits is pushed, unless the last push failed. Says how it went.
    pub fn finish(mut self) -> AutoPushStatus {
        self.end();
        self.status()
    }

    fn end(&mut self) {
        let mut state = self.shared.lock();
        state.stops = true;
        if let Some(transfer) = state.status.last_failure.as_ref().and(state.transfer.as_ref()) {
            transfer.cancel();
        }
        drop(state);
        self.shared.wake.notify_all();
        if let Some(thread) = self.thread.take() {
            // It panicked, and said so itself.
            let _ = thread.join();
        }
    }
}

impl Drop for AutoPush {
    fn drop(&mut self) {
        self.end();
    }
}

impl std::fmt::Debug for AutoPush {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AutoPush").field("status", &self.status()).finish_non_exhaustive()
    }
}

struct Pusher {
    shared: Arc<Shared>,
    remote: Remote,
    pace: Pace,
    settle: Settle,
    log: Log,
}

impl Pusher {
    fn run(self) {
        let mut wait = self.pace.retry_first;
        while self.wait_for_work() {
            let is_last = !self.shared.rest(Instant::now() + self.pace.collect);
            let branches = self.shared.lock().take();
            match self.push(&branches) {
                Ok(pushed) => {
                    wait = self.pace.retry_first;
                    let mut state = self.shared.lock();
                    state.pushing.clear();
                    state.status.pushed += pushed;
                    state.status.last_failure = None;
                    drop(state);
                    (self.log)(&format!("auto-push: pushed {pushed} branches to {}", self.remote.url()));
                }
                Err(reason) => {
                    let mut state = self.shared.lock();
                    state.pushing.clear();
                    state.dirty.extend(branches);
                    state.status.failures += 1;
                    state.status.last_failure = Some(reason.clone());
                    drop(state);
                    (self.log)(&format!("auto-push: {reason}; trying again in {} s", wait.as_secs_f32()));
                    if is_last || !self.shared.rest(Instant::now() + wait) {
                        return;
                    }
                    wait = (wait * 2).min(self.pace.retry_max);
                }
            }
        }
    }

    /// Waits for a branch that changed; `false` when there is none and will be none.
    fn wait_for_work(&self) -> bool {
        let mut state = self.shared.lock();
        while state.dirty.is_empty() {
            if state.stops {
                return false;
            }
            state = self.shared.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        true
    }

    fn push(&self, branches: &BTreeSet<String>) -> Result<u64, String> {
        (self.settle)()?;
        let repo = connect::open(&self.remote.git_dir).map_err(|error| super::error::chain(&error))?;
        let mut updates = Vec::new();
        for branch in branches {
            let reference = format!("refs/heads/{branch}");
            let found =
                repo.try_find_reference(reference.as_str()).map_err(|error| super::error::chain(&error))?;
            let new = found.and_then(|found| found.try_id().map(gix::Id::detach));
            updates.push(Update { reference, new, force: true });
        }
        let transfer = Transfer::new();
        self.shared.lock().transfer = Some(Arc::clone(&transfer));
        let pushed = self.remote.push(updates, false, &transfer);
        self.shared.lock().transfer = None;
        let pushed = pushed.map_err(|error| error.to_string())?;
        for (name, outcome) in &pushed.refs {
            if let Outcome::Refused(reason) = outcome {
                return Err(format!("{} refused {name}: {reason}", self.remote.url()));
            }
        }
        Ok(pushed.refs.len() as u64)
    }
}
