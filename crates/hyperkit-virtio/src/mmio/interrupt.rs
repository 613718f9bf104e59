//! Interrupt status of one device, shared between its transport and its workers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use hyperkit_bus::InterruptLine;

use super::status;
use crate::Interrupt;

/// Bits of the interrupt status register (virtio 1.2 §4.2.2).
const USED_BUFFER: u32 = 1;
const CONFIG_CHANGE: u32 = 2;

/// Status bits that are set from any thread, and the line that tells of them.
pub(super) struct MmioInterrupt {
    line: Arc<dyn InterruptLine>,
    status: AtomicU32,
    generation: AtomicU32,
    needs_reset: AtomicBool,
}

impl MmioInterrupt {
    pub(super) fn new(line: Arc<dyn InterruptLine>) -> MmioInterrupt {
        MmioInterrupt {
            line,
            status: AtomicU32::new(0),
            generation: AtomicU32::new(0),
            needs_reset: AtomicBool::new(false),
        }
    }

    pub(super) fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    pub(super) fn generation(&self) -> u32 {
        self.generation.load(Ordering::SeqCst)
    }

    pub(super) fn needs_reset_bit(&self) -> u32 {
        if self.needs_reset.load(Ordering::SeqCst) { status::NEEDS_RESET } else { 0 }
    }

    pub(super) fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::SeqCst);
    }

    /// Forgets what happened. The generation goes on: a driver may compare it across a reset.
    pub(super) fn reset(&self) {
        self.status.store(0, Ordering::SeqCst);
        self.needs_reset.store(false, Ordering::SeqCst);
    }

    /// Takes over a saved state and repeats the interrupt that may have been lost with the old line.
    pub(super) fn restore(&self, bits: u32, generation: u32, needs_reset: bool) {
        self.generation.store(generation, Ordering::SeqCst);
        self.needs_reset.store(needs_reset, Ordering::SeqCst);
        self.status.store(bits & (USED_BUFFER | CONFIG_CHANGE), Ordering::SeqCst);
        if self.status() != 0 {
            self.line.pulse();
        }
    }

    /// Pulses even if the bit is set already: a driver that lost an edge recovers with the next.
    fn raise(&self, bit: u32) {
        self.status.fetch_or(bit, Ordering::SeqCst);
        self.line.pulse();
    }
}

impl Interrupt for MmioInterrupt {
    fn used(&self) {
        self.raise(USED_BUFFER);
    }

    fn config_changed(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.raise(CONFIG_CHANGE);
    }

    fn needs_reset(&self) {
        if !self.needs_reset.swap(true, Ordering::SeqCst) {
            self.raise(CONFIG_CHANGE);
        }
    }
}
