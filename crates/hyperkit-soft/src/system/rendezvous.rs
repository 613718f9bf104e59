//! How a processor has the others drop their write permissions before it decodes a page.
//!
//! A TLB lets its processor write to a page without a further look. When another one wants to keep decoded
//! instructions of that page, it marks the page as watched and calls a meeting. It does not wait: until every processor
//! that may write to the page, and runs, has dropped its permission, it decodes each block of the page anew when it
//! comes to it. From then on each write to the page is noted (`hyperkit_mem::watch`) and blocks are kept.
//! The same way, but waiting, a processor has all others stand still for a moment, for locked operations that the host's own atomic
//! instructions do not cover.
//!
//! Processors that sleep, or that are outside `run`, are not waited for: they drop theirs before they go on.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, TryLockError};

use crate::attention::want;
use crate::cpu::Cpu;

/// In [`Rendezvous::met`]: not running.
const ASIDE: u64 = u64::MAX;

/// Meetings whose page is remembered; who has missed more drops all permissions.
const REMEMBERED: usize = 64;

/// The page of a meeting that is about none.
const NO_PAGE: usize = usize::MAX;

/// Meetings called, and who has been to which.
#[derive(Debug)]
pub struct Rendezvous {
    calls: Mutex<Calls>,
    /// The last meeting that each processor has been to; [`ASIDE`] while it does not run.
    met: Vec<AtomicU64>,
    /// Held by a processor while all others stand still.
    stopped: Mutex<()>,
}

#[derive(Debug, Default)]
struct Calls {
    /// How many so far.
    count: u64,
    /// The pages that the last ones are about, the newest at the end.
    pages: VecDeque<usize>,
}

impl Rendezvous {
    /// For this many processors, none of which runs.
    pub fn new(processors: usize) -> Rendezvous {
        let met = (0..processors).map(|_| AtomicU64::new(ASIDE)).collect();
        Rendezvous { calls: Mutex::default(), met, stopped: Mutex::default() }
    }

    fn alone(&self) -> bool {
        self.met.len() == 1
    }

    /// Calls a meeting about a page; its number.
    fn call(&self, page: usize) -> u64 {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        calls.count += 1;
        calls.pages.push_back(page);
        if calls.pages.len() > REMEMBERED {
            calls.pages.pop_front();
        }
        calls.count
    }

    /// The number of the last meeting, and the pages of those after `attended`; `None` if not all are remembered.
    fn missed(&self, attended: u64) -> (u64, Option<Vec<usize>>) {
        let calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        let missed = (calls.count - attended) as usize;
        let pages =
            calls.pages.len().checked_sub(missed).map(|first| calls.pages.range(first..).copied().collect());
        (calls.count, pages)
    }
}

impl Cpu {
    /// Asks the running processors in the set `writers` to drop their permission to write to a page, if they were not
    /// asked yet; whether they have.
    pub(crate) fn others_protect(&mut self, page: usize, writers: u8) -> bool {
        if self.interrupts.shared().rendezvous.alone() {
            return true;
        }
        let (meeting, asked) = match self.interrupts.awaited.get(&page) {
            Some(awaited) => *awaited,
            None => (self.call(page, writers), writers),
        };
        let all_met = self.others(asked).all(|id| !self.is_behind(id, meeting));
        if all_met {
            self.interrupts.awaited.remove(&page);
        } else {
            self.interrupts.awaited.insert(page, (meeting, asked));
        }
        all_met
    }

    /// A page is no longer watched: whoever met about it may write to it again.
    pub(crate) fn unwatch(&mut self, page: usize) {
        self.ram.watch().remove(page, self.interrupts.id);
        self.interrupts.awaited.remove(&page);
    }

    /// The other processors of a set.
    fn others(&self, set: u8) -> impl Iterator<Item = usize> + Clone + use<> {
        let me = self.interrupts.id as usize;
        (0..self.interrupts.shared().attention.len()).filter(move |id| *id != me && set >> id & 1 != 0)
    }

    /// Calls the processors of a set to a meeting about a page; its number.
    fn call(&self, page: usize, set: u8) -> u64 {
        let meeting = self.interrupts.shared().rendezvous.call(page);
        for id in self.others(set).filter(|id| self.is_behind(*id, meeting)) {
            self.interrupts.shared().attention[id].ask(want::CODE);
        }
        meeting
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

    /// Goes to all meetings called so far, and stands still while another processor wants all others to.
    pub(crate) fn meet(&mut self) {
        self.attend();
        while !self.interrupts.stops_others && self.is_stopped() {
            // Whoever has stopped us may do so again before we notice that we were let go.
            if self.attention.take(want::CODE) != 0 {
                self.attend();
            }
            std::thread::yield_now();
        }
    }

    fn attend(&mut self) {
        let (called, pages) = self.interrupts.shared().rendezvous.missed(self.interrupts.attended);
        match pages {
            Some(pages) => pages.into_iter().for_each(|page| self.protect_if_written(page)),
            None => self.protect_all(),
        }
        self.interrupts.attended = called;
        self.interrupts.shared().rendezvous.met[self.interrupts.id as usize].store(called, Ordering::SeqCst);
    }

    fn is_stopped(&self) -> bool {
        matches!(self.interrupts.shared().rendezvous.stopped.try_lock(), Err(TryLockError::WouldBlock))
    }

    /// Does something while no other processor of the machine executes anything.
    pub(crate) fn stop_others<R>(&mut self, action: impl FnOnce(&mut Cpu) -> R) -> R {
        if self.interrupts.shared().rendezvous.alone() {
            return action(self);
        }
        let processors = self.interrupts.shared_handle();
        let _stopped = loop {
            match processors.rendezvous.stopped.try_lock() {
                Ok(guard) => break guard,
                Err(TryLockError::Poisoned(poisoned)) => break poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => {}
            }
            if self.attention.take(want::CODE) != 0 {
                self.meet();
            }
            std::thread::yield_now();
        };
        self.interrupts.stops_others = true;
        let meeting = self.call(NO_PAGE, u8::MAX);
        for id in self.others(u8::MAX) {
            self.wait_for(id, meeting);
        }
        let result = action(self);
        self.interrupts.stops_others = false;
        result
    }

    fn protect_if_written(&mut self, page: usize) {
        if self.ram.watch().writers(page) >> self.interrupts.id & 1 != 0 {
            self.protect_page(page);
        }
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
