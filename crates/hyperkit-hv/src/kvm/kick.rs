//! Getting a thread out of KVM_RUN: the immediate-exit flag, and a signal for the thread that is inside.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, Once, PoisonError};

use crate::Kick;

/// The signal that interrupts KVM_RUN. Its handler does nothing.
fn signal() -> libc::c_int {
    libc::SIGRTMIN() + 3
}

extern "C" fn nothing(_: libc::c_int) {}

/// Installs the empty handler, once per process.
pub fn install_signal() -> io::Result<()> {
    static ONCE: Once = Once::new();
    let mut done = Ok(());
    ONCE.call_once(|| {
        // SAFETY: all-zero is a valid `sigaction`: no flags, an empty mask.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = nothing as *const () as usize;
        // SAFETY: the handler touches nothing, so it may run anywhere; without SA_RESTART it ends KVM_RUN.
        if unsafe { libc::sigaction(signal(), &action, std::ptr::null_mut()) } != 0 {
            done = Err(io::Error::last_os_error());
        }
    });
    done
}

/// Kicks one vCPU.
#[derive(Debug, Default)]
pub struct Kicker {
    wanted: AtomicBool,
    /// The thread inside `run`. Held while signalling, so that the thread cannot end meanwhile.
    thread: Mutex<Option<libc::pthread_t>>,
}

impl Kicker {
    /// The current thread enters `run`.
    pub fn enter(&self) {
        // SAFETY: `pthread_self` cannot fail.
        let me = unsafe { libc::pthread_self() };
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(me);
    }

    /// The current thread leaves `run`.
    pub fn leave(&self) {
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Whether a kick is due; takes it.
    pub fn take(&self) -> bool {
        self.wanted.swap(false, Ordering::SeqCst)
    }

    /// Whether a kick is due.
    pub fn due(&self) -> bool {
        self.wanted.load(Ordering::SeqCst)
    }
}

impl Kick for Kicker {
    fn kick(&self) {
        self.wanted.store(true, Ordering::SeqCst);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = *thread {
            // SAFETY: the thread cannot pass `leave` while the lock is held, so it exists.
            unsafe { libc::pthread_kill(thread, signal()) };
        }
    }
}
