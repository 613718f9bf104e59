//! Wakes the engine's thread from any other, with a system call only when it sleeps.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{EventfdFlags, eventfd};

#[derive(Debug)]
struct Shared {
    fd: OwnedFd,
    /// Something happened that the engine has not looked at.
    pending: AtomicBool,
    /// The engine waits, or is about to.
    sleeping: AtomicBool,
}

/// A handle to wake the engine with.
#[derive(Debug, Clone)]
pub struct Waker(Arc<Shared>);

impl Waker {
    pub(crate) fn new() -> io::Result<Self> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let (pending, sleeping) = (AtomicBool::new(false), AtomicBool::new(false));
        Ok(Self(Arc::new(Shared { fd, pending, sleeping })))
    }

    /// Makes the engine look at everything once more. Never blocks.
    pub fn wake(&self) {
        self.0.pending.store(true, Ordering::SeqCst);
        if self.0.sleeping.swap(false, Ordering::SeqCst) {
            // The counter cannot overflow: it is written once for each sleep. A failure would mean a closed
            // descriptor, and it is open as long as `self`.
            let _ = rustix::io::write(&self.0.fd, &1u64.to_ne_bytes());
        }
    }

    /// The engine is about to wait: returns whether it may, because nothing happened since it last looked.
    pub(crate) fn may_sleep(&self) -> bool {
        self.0.sleeping.store(true, Ordering::SeqCst);
        !self.0.pending.swap(false, Ordering::SeqCst)
    }

    /// Whether something happened that the engine, which is awake, has not looked at; it looks now.
    pub(crate) fn take_pending(&self) -> bool {
        self.0.pending.swap(false, Ordering::SeqCst)
    }

    /// The engine is awake and will look at everything.
    pub(crate) fn awake(&self) {
        self.0.sleeping.store(false, Ordering::SeqCst);
        self.0.pending.store(false, Ordering::SeqCst);
    }

    /// Empties the event counter after it woke the engine.
    pub(crate) fn clear(&self) {
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.0.fd, &mut count);
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }
}
