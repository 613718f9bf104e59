//! Getting a thread out of KVM_RUN: the flag of the shared page that ends it at once, and a signal whose handler
//! raises that flag.
//!
//! The handler is what makes a kick safe at any moment. A signal that comes while the thread is between its last
//! look at `wanted` and KVM_RUN would otherwise be gone before the kernel could see it; as the handler leaves the flag
//! behind, KVM_RUN finds that instead. Spec: Linux `Documentation/virt/kvm/api.rst`, "immediate_exit".

use std::io;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, Ordering};
use std::sync::{Mutex, Once, PoisonError};

use crate::Kick;

thread_local! {
    /// The `immediate_exit` of the vCPU that this thread runs; null outside `run`. Made without code and dropped
    /// without code, so that a signal handler may look at it.
    static IMMEDIATE_EXIT: AtomicPtr<u8> = const { AtomicPtr::new(ptr::null_mut()) };
}

/// The signal that interrupts KVM_RUN.
fn signal() -> libc::c_int {
    libc::SIGRTMIN() + 3
}

/// Raises the flag of the vCPU that the interrupted thread runs.
extern "C" fn raise_immediate_exit(_: libc::c_int) {
    IMMEDIATE_EXIT.with(|pointer| {
        let flag = pointer.load(Ordering::SeqCst);
        if !flag.is_null() {
            // SAFETY: `Entered` put the pointer there on this thread and takes it away before the page goes.
            unsafe { AtomicU8::from_ptr(flag) }.store(1, Ordering::SeqCst);
        }
    });
}

/// Installs the handler, once per process.
pub fn install_signal() -> io::Result<()> {
    static ONCE: Once = Once::new();
    let mut done = Ok(());
    ONCE.call_once(|| {
        // SAFETY: all-zero is a valid `sigaction`: no flags, an empty mask.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = raise_immediate_exit as *const () as usize;
        // SAFETY: the handler stores one byte through an atomic: it may run anywhere.
        if unsafe { libc::sigaction(signal(), &action, ptr::null_mut()) } != 0 {
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

/// A thread inside `run`: kicks signal it as long as this lives, also when a device panics.
pub struct Entered<'a> {
    kicker: &'a Kicker,
    immediate_exit: &'a AtomicU8,
}

impl Entered<'_> {
    /// Makes the next KVM_RUN end at once if a kick is due, and only then. From here on a kick's signal does it.
    pub fn arm(&self) {
        self.immediate_exit.store(0, Ordering::SeqCst);
        // `kick` stores `wanted` before it signals: a signal whose flag was cleared just now is seen here.
        if self.kicker.wanted.load(Ordering::SeqCst) {
            self.immediate_exit.store(1, Ordering::SeqCst);
        }
    }

    /// Whether a kick is due; takes it.
    pub fn take(&self) -> bool {
        self.kicker.wanted.swap(false, Ordering::SeqCst)
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        *self.kicker.thread.lock().unwrap_or_else(PoisonError::into_inner) = None;
        IMMEDIATE_EXIT.with(|pointer| pointer.store(ptr::null_mut(), Ordering::SeqCst));
    }
}

impl Kicker {
    /// The current thread enters `run` of the vCPU whose shared page has this `immediate_exit`.
    pub fn enter<'a>(&'a self, immediate_exit: &'a AtomicU8) -> Entered<'a> {
        IMMEDIATE_EXIT.with(|pointer| pointer.store(immediate_exit.as_ptr(), Ordering::SeqCst));
        // SAFETY: `pthread_self` cannot fail.
        let me = unsafe { libc::pthread_self() };
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(me);
        Entered { kicker: self, immediate_exit }
    }
}

impl Kick for Kicker {
    fn kick(&self) {
        self.wanted.store(true, Ordering::SeqCst);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = *thread {
            // SAFETY: the thread cannot drop its `Entered` while the lock is held, so it exists.
            unsafe { libc::pthread_kill(thread, signal()) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kick_between_the_last_look_and_kvm_run_leaves_the_flag_raised() {
        install_signal().unwrap();
        let (kicker, flag) = (Kicker::default(), AtomicU8::new(0));
        let entered = kicker.enter(&flag);
        entered.arm();
        assert_eq!(flag.load(Ordering::SeqCst), 0);
        kicker.kick(); // a signal to the own thread is handled before `kick` returns
        assert_eq!(flag.load(Ordering::SeqCst), 1);
        assert!(entered.take());
    }

    #[test]
    fn a_kick_between_two_runs_ends_the_next_one() {
        install_signal().unwrap();
        let (kicker, flag) = (Kicker::default(), AtomicU8::new(0));
        drop(kicker.enter(&flag));
        kicker.kick();
        assert_eq!(flag.load(Ordering::SeqCst), 0);
        let entered = kicker.enter(&flag);
        entered.arm();
        assert_eq!(flag.load(Ordering::SeqCst), 1);
    }
}
