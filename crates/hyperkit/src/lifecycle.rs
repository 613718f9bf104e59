//! How a machine ends, and who is told: one outcome, set once, from any thread.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hyperkit_hv::{Kick, VcpuError, X86State};

/// Why a machine ended.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// The guest switched itself off.
    PoweredOff,
    /// The guest asked for a reset. The machine does not start again by itself.
    Reset,
    /// A vCPU met a triple fault: the guest is dead.
    TripleFault {
        /// The vCPU.
        vcpu: u32,
        /// Its state then, if it could be had.
        state: Option<Box<X86State>>,
    },
    /// [`Machine::stop`](crate::Machine::stop) was called.
    Stopped,
    /// The engine or the host failed.
    Failed {
        /// The vCPU that met it.
        vcpu: u32,
        /// What happened.
        error: Arc<VcpuError>,
    },
    /// A vCPU's thread panicked: a bug of ours.
    Panicked {
        /// The vCPU.
        vcpu: u32,
    },
}

/// How often vCPUs that do not come back are kicked again.
const KICK_AGAIN: Duration = Duration::from_millis(20);

/// The end of one machine.
pub(crate) struct Lifecycle {
    state: Mutex<State>,
    changed: Condvar,
    kicks: Vec<Arc<dyn Kick>>,
}

#[derive(Default)]
struct State {
    outcome: Option<Outcome>,
    /// Threads that run a vCPU.
    n_running: usize,
    /// States in which the vCPUs were left, once their threads are gone.
    last: Vec<Option<X86State>>,
}

impl Lifecycle {
    /// The life of a machine whose vCPUs are kicked by `kicks`.
    pub(crate) fn new(kicks: Vec<Arc<dyn Kick>>) -> Lifecycle {
        let n_vcpus = kicks.len();
        let state = State { last: vec![None; n_vcpus], ..State::default() };
        Lifecycle { state: Mutex::new(state), changed: Condvar::new(), kicks }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the machine. Only the first outcome counts.
    pub(crate) fn end(&self, outcome: Outcome) {
        self.lock().outcome.get_or_insert(outcome);
        self.changed.notify_all();
        self.kick_all();
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.lock().outcome.is_some()
    }

    pub(crate) fn on_vcpu_started(&self) {
        self.lock().n_running += 1;
    }

    pub(crate) fn on_vcpu_gone(&self) {
        self.lock().n_running -= 1;
        self.changed.notify_all();
    }

    pub(crate) fn set_last(&self, vcpu: u32, state: Option<X86State>) {
        self.lock().last[vcpu as usize] = state;
    }

    pub(crate) fn last(&self, vcpu: u32) -> Option<X86State> {
        self.lock().last.get(vcpu as usize).cloned().flatten()
    }

    /// Waits until the machine has ended and none of its vCPUs runs; `None` when `deadline` comes first.
    pub(crate) fn wait(&self, deadline: Option<Instant>) -> Option<Outcome> {
        let mut state = self.lock();
        loop {
            if let Some(outcome) = &state.outcome {
                if state.n_running == 0 {
                    return Some(outcome.clone());
                }
                self.kick_all();
            }
            let mut patience = if state.outcome.is_some() { KICK_AGAIN } else { Duration::MAX };
            if let Some(deadline) = deadline {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return None;
                }
                patience = patience.min(left);
            }
            state = self.changed.wait_timeout(state, patience).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn kick_all(&self) {
        for kick in &self.kicks {
            kick.kick();
        }
    }
}

/// Stops a machine from any thread, even after it is gone.
#[derive(Clone)]
pub struct Stopper(pub(crate) Arc<Lifecycle>);

impl Stopper {
    /// Ends the machine, unless it has ended already. Returns at once.
    pub fn stop(&self) {
        self.0.end(Outcome::Stopped);
    }
}

impl std::fmt::Debug for Stopper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Stopper")
    }
}
