//! How a processor has the others drop their write permissions before it decodes a page.
//!
//! A TLB lets its processor write to a page without a further look. When another one is about to keep decoded
//! instructions of that page, it marks the page as watched, calls a meeting, and waits until every processor that
//! runs has dropped its write permissions; from then on each write to the page is noted (`hyperkit_mem::watch`).
//! Processors that sleep, or that are outside `run`, are not waited for: they drop theirs before they go on.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::attention::want;
use crate::cpu::Cpu;

/// In [`Rendezvous::met`]: not running.
const ASIDE: u64 = u64::MAX;

/// Meetings called, and who has been to which.
#[derive(Debug)]
pub struct Rendezvous {
    called: AtomicU64,
    /// The last meeting that each processor has been to.
    met: Vec<AtomicU64>,
}

impl Rendezvous {
    /// For this many processors, none of which runs.
    pub fn new(processors: usize) -> Rendezvous {
        let met = (0..processors).map(|_| AtomicU64::new(ASIDE)).collect();
        Rendezvous { called: AtomicU64::new(0), met }
    }

    fn alone(&self) -> bool {
        self.met.len() == 1
    }
}

impl Cpu {
    /// Has every running processor drop its write permissions; returns when they have.
    pub(crate) fn call_meeting(&mut self) {
        if self.interrupts.shared().rendezvous.alone() {
            return;
        }
        let mine = self.interrupts.shared().rendezvous.called.fetch_add(1, Ordering::SeqCst) + 1;
        let me = self.interrupts.id as usize;
        let others = (0..self.interrupts.shared().attention.len()).filter(|id| *id != me);
        for id in others.clone().filter(|id| self.is_behind(*id, mine)) {
            self.interrupts.shared().attention[id].ask(want::CODE);
        }
        for id in others {
            self.wait_for(id, mine);
        }
    }

    fn is_behind(&self, id: usize, meeting: u64) -> bool {
        // All ones, for a processor that does not run, is ahead of every meeting.
        self.interrupts.shared().rendezvous.met[id].load(Ordering::SeqCst) < meeting
    }

    /// Waits for one processor, and goes meanwhile to the meetings that others call.
    fn wait_for(&mut self, id: usize, meeting: u64) {
        while self.is_behind(id, meeting) {
            if self.attention.take(want::CODE) != 0 {
                self.meet();
            }
            std::thread::yield_now();
        }
    }

    /// Goes to all meetings called so far.
    pub(crate) fn meet(&mut self) {
        let called = self.interrupts.shared().rendezvous.called.load(Ordering::SeqCst);
        self.protect_all();
        self.interrupts.shared().rendezvous.met[self.interrupts.id as usize].store(called, Ordering::SeqCst);
    }

    /// Says that this processor runs from now on.
    pub(crate) fn join(&mut self) {
        if self.interrupts.shared().rendezvous.alone() {
            return;
        }
        // Runs from here on: whoever calls a meeting after this waits for us.
        let id = self.interrupts.id as usize;
        self.interrupts.shared().rendezvous.met[id].store(0, Ordering::SeqCst);
        self.meet();
    }

    /// Says that this processor does not write until it joins again.
    pub(crate) fn step_aside(&mut self) {
        if !self.interrupts.shared().rendezvous.alone() {
            let id = self.interrupts.id as usize;
            self.interrupts.shared().rendezvous.met[id].store(ASIDE, Ordering::SeqCst);
        }
    }
}
