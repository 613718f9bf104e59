//! What makes a running vCPU look up: kicks, interrupts, writes to pages that it decoded.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Bits of [`Attention`].
pub mod want {
    /// `run` shall return.
    pub const KICK: u32 = 1;
    /// The local APIC may have an interrupt to deliver, or INIT, SIPI or NMI came.
    pub const INTERRUPT: u32 = 2;
    /// Another vCPU is about to decode a page: write permissions are to be dropped.
    pub const CODE: u32 = 4;
}

/// Shared between a vCPU's thread and everybody who may disturb it.
///
/// The vCPU reads it once per block and sleeps on it in HLT.
#[derive(Debug, Default)]
pub struct Attention {
    wanted: AtomicU32,
    asleep: Mutex<bool>,
    wake: Condvar,
    /// Instructions retired as of the vCPU's last access to the board.
    retired: AtomicU64,
}

impl Attention {
    /// Tells others how many instructions the vCPU has retired. Its own thread calls it.
    #[inline]
    pub fn publish_retired(&self, instructions: u64) {
        self.retired.store(instructions, Ordering::Relaxed);
    }

    /// What the vCPU told last.
    pub fn retired(&self) -> u64 {
        self.retired.load(Ordering::Relaxed)
    }

    /// Asks for attention and wakes the vCPU if it sleeps.
    pub fn ask(&self, bits: u32) {
        self.wanted.fetch_or(bits, Ordering::SeqCst);
        let asleep = self.asleep.lock().unwrap_or_else(PoisonError::into_inner);
        if *asleep {
            self.wake.notify_all();
        }
    }

    /// The same from the vCPU's own thread, which does not sleep.
    #[inline]
    pub fn note(&self, bits: u32) {
        self.wanted.fetch_or(bits, Ordering::Relaxed);
    }

    /// The bits asked for and not yet taken. One relaxed load.
    #[inline]
    pub fn wanted(&self) -> u32 {
        self.wanted.load(Ordering::Relaxed)
    }

    /// Takes bits off; returns which of them were set.
    pub fn take(&self, bits: u32) -> u32 {
        self.wanted.fetch_and(!bits, Ordering::SeqCst) & bits
    }

    /// Sleeps until any bit is set or `timeout` has passed. Returns at once when one is set already.
    pub fn sleep(&self, timeout: Option<Duration>) {
        let mut asleep = self.asleep.lock().unwrap_or_else(PoisonError::into_inner);
        *asleep = true;
        let idle = |_: &mut bool| self.wanted.load(Ordering::SeqCst) == 0;
        asleep = match timeout {
            Some(limit) => {
                self.wake.wait_timeout_while(asleep, limit, idle).unwrap_or_else(PoisonError::into_inner).0
            }
            None => self.wake.wait_while(asleep, idle).unwrap_or_else(PoisonError::into_inner),
        };
        *asleep = false;
    }
}
