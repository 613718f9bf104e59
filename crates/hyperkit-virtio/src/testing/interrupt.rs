//! An [`Interrupt`] that counts.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::Interrupt;

/// Counts what a device tells its driver.
#[derive(Debug, Default)]
pub struct RecordingInterrupt {
    used: AtomicU32,
    config_changed: AtomicU32,
    needs_reset: AtomicU32,
}

impl RecordingInterrupt {
    /// Used buffer notifications so far.
    pub fn n_used(&self) -> u32 {
        self.used.load(Ordering::SeqCst)
    }

    /// Configuration change notifications so far.
    pub fn n_config_changed(&self) -> u32 {
        self.config_changed.load(Ordering::SeqCst)
    }

    /// How often the device asked for a reset.
    pub fn n_needs_reset(&self) -> u32 {
        self.needs_reset.load(Ordering::SeqCst)
    }
}

impl Interrupt for RecordingInterrupt {
    fn used(&self) {
        self.used.fetch_add(1, Ordering::SeqCst);
    }

    fn config_changed(&self) {
        self.config_changed.fetch_add(1, Ordering::SeqCst);
    }

    fn needs_reset(&self) {
        self.needs_reset.fetch_add(1, Ordering::SeqCst);
    }
}
