//! Which pages of RAM were written since a point in time. Off until somebody asks.
//!
//! Devices, and software CPUs on their slow path, mark each page that they write. A software CPU whose TLB lets it
//! write to a page without a further look has marked the page before; it looks again when [`Dirty::rounds`] has changed
//! since it last entered its run loop. So pages are to be taken while no CPU runs; what is written afterwards is marked
//! anew. Hardware engines do not mark what the guest writes: they have records of their own.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A record of written pages.
pub struct Dirty {
    on: AtomicBool,
    rounds: AtomicU64,
    /// One bit for each page.
    words: Box<[AtomicU64]>,
}

impl Dirty {
    pub(crate) fn new(pages: u64) -> Dirty {
        let words = (0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Dirty { on: AtomicBool::new(false), rounds: AtomicU64::new(0), words }
    }

    /// Starts recording, with no page marked. To be called while no CPU runs.
    pub fn start(&self) {
        let _old = self.take();
        self.on.store(true, Ordering::SeqCst);
    }

    /// Stops recording.
    pub fn stop(&self) {
        self.on.store(false, Ordering::SeqCst);
    }

    /// Whether writes are recorded.
    #[inline]
    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// Changes whenever marks were taken away: who relies on a mark that it made has to make it again.
    #[inline]
    pub fn rounds(&self) -> u64 {
        self.rounds.load(Ordering::SeqCst)
    }

    /// The pages written since the start or the last call, by number as [`crate::GuestRam::page_index`] gives it, in
    /// ascending order; their marks are taken away. To be called while no CPU runs. What a device writes meanwhile is
    /// in this call's answer or in the next one's.
    pub fn take(&self) -> Vec<usize> {
        self.rounds.fetch_add(1, Ordering::SeqCst);
        let mut pages = Vec::new();
        for (number, word) in self.words.iter().enumerate() {
            let mut bits = word.swap(0, Ordering::SeqCst);
            while bits != 0 {
                pages.push(number * 64 + bits.trailing_zeros() as usize);
                bits &= bits - 1;
            }
        }
        pages
    }

    /// Marks a page, if writes are recorded.
    #[inline]
    pub fn mark(&self, page: usize) {
        if self.is_on()
            && let Some(word) = self.words.get(page / 64)
        {
            word.fetch_or(1 << (page % 64), Ordering::SeqCst);
        }
    }

    /// Whether a write to a page would add nothing to the record.
    #[inline]
    pub fn knows(&self, page: usize) -> bool {
        !self.is_on()
            || self
                .words
                .get(page / 64)
                .is_some_and(|word| word.load(Ordering::SeqCst) >> (page % 64) & 1 != 0)
    }

    pub(crate) fn mark_all(&self, first: u64, last: u64) {
        if self.is_on() {
            (first..=last).for_each(|page| self.mark(page as usize));
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{GuestAddr, GuestRam};

    #[test]
    fn every_way_to_write_is_recorded_once_it_is_asked_for() {
        let ram = GuestRam::new(1 << 20).unwrap();
        ram.write(GuestAddr(0x1000), &[1]).unwrap();
        assert!(ram.dirty().take().is_empty(), "off until somebody asks");
        ram.dirty().start();
        ram.write(GuestAddr(0x2ffe), &[1; 4]).unwrap();
        ram.zero(GuestAddr(0x5000), 0x1001).unwrap();
        ram.store_u16(GuestAddr(0x8000), 7).unwrap();
        ram.mark_written(GuestAddr(0xff000), 1);
        let mut byte = [0];
        ram.read(GuestAddr(0xa000), &mut byte).unwrap();
        assert_eq!(ram.dirty().take(), [2, 3, 5, 6, 8, 0xff]);
        assert!(ram.dirty().take().is_empty());
        ram.write(GuestAddr(0x2000), &[1]).unwrap();
        ram.dirty().stop();
        ram.write(GuestAddr(0x3000), &[1]).unwrap();
        assert_eq!(ram.dirty().take(), [2]);
    }

    #[test]
    fn rounds_tell_that_marks_are_gone() {
        let ram = GuestRam::new(1 << 20).unwrap();
        assert!(ram.dirty().knows(4), "nothing is recorded");
        ram.dirty().start();
        let round = ram.dirty().rounds();
        assert!(!ram.dirty().knows(4));
        ram.dirty().mark(4);
        assert!(ram.dirty().knows(4) && ram.dirty().rounds() == round);
        ram.dirty().take();
        assert!(!ram.dirty().knows(4) && ram.dirty().rounds() != round);
    }
}
