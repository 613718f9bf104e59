//! Pages that software CPUs keep decoded instructions of.
//!
//! A write to a watched page by anything but the CPU that watches it (a device, another vCPU) is noted here, and
//! the CPU drops what it decoded before it runs its next block. The note is made before the device publishes
//! its completion, so a guest that waits for the completion never runs stale instructions.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};

/// Most CPUs that can watch, numbered from 0.
pub const WATCHERS_MAX: u32 = 8;

/// Which pages of RAM are watched and by whom, and which of them were written since each watcher last looked.
pub struct Watch {
    /// By page: one bit for each watcher.
    watched: Box<[AtomicU8]>,
    /// By page: one bit for each CPU that may write to it without a further look.
    writers: Box<[AtomicU8]>,
    notes: [Notes; WATCHERS_MAX as usize],
}

/// The written pages that one watcher has not yet taken.
#[derive(Default)]
struct Notes {
    pending: AtomicBool,
    written: Mutex<Vec<usize>>,
}

impl Watch {
    pub(crate) fn new(pages: u64) -> Watch {
        let flags = || (0..pages).map(|_| AtomicU8::new(0)).collect();
        Watch { watched: flags(), writers: flags(), notes: Default::default() }
    }

    /// `watcher` starts watching a page, by its number as [`crate::GuestRam::page_index`] gives it. Watchers from
    /// [`WATCHERS_MAX`] on are ignored.
    pub fn add(&self, page: usize, watcher: u32) {
        if let Some(flags) = self.watched.get(page) {
            flags.fetch_or(bit(watcher), Ordering::SeqCst);
        }
    }

    /// `watcher` stops watching a page.
    pub fn remove(&self, page: usize, watcher: u32) {
        if let Some(flags) = self.watched.get(page) {
            flags.fetch_and(!bit(watcher), Ordering::SeqCst);
        }
    }

    /// Whether anybody watches a page.
    #[inline]
    pub fn contains(&self, page: usize) -> bool {
        self.watched.get(page).is_some_and(|flags| flags.load(Ordering::SeqCst) != 0)
    }

    /// Asks whether CPU `writer` may write to a page without a further look: not while anybody watches it. If so, whoever
    /// starts watching the page later finds `writer` among its [`Watch::writers`].
    #[inline]
    pub fn may_write(&self, page: usize, writer: u32) -> bool {
        let Some(flags) = self.writers.get(page) else { return false };
        if flags.load(Ordering::Relaxed) & bit(writer) == 0 {
            // Before the page's watchers are looked at, as `add` comes before its writers are: one of the two sees the other.
            flags.fetch_or(bit(writer), Ordering::SeqCst);
        }
        !self.contains(page)
    }

    /// The CPUs that may be writing to a page without a further look, one bit each.
    #[inline]
    pub fn writers(&self, page: usize) -> u8 {
        self.writers.get(page).map_or(0, |flags| flags.load(Ordering::SeqCst))
    }

    /// CPU `writer` looks again before it writes to a page.
    pub fn stops_writing(&self, page: usize, writer: u32) {
        if let Some(flags) = self.writers.get(page) {
            flags.fetch_and(!bit(writer), Ordering::SeqCst);
        }
    }

    /// Whether a page that `watcher` watches was written since it called [`Watch::take`]. Cheap: one load.
    #[inline]
    pub fn pending(&self, watcher: u32) -> bool {
        self.notes.get(watcher as usize).is_some_and(|notes| notes.pending.load(Ordering::Acquire))
    }

    /// The pages of `watcher` written since its last call, each once, and clears its list.
    pub fn take(&self, watcher: u32) -> Vec<usize> {
        let Some(notes) = self.notes.get(watcher as usize) else { return Vec::new() };
        let mut written = notes.written.lock().unwrap_or_else(PoisonError::into_inner);
        notes.pending.store(false, Ordering::Release);
        std::mem::take(&mut *written)
    }

    /// Notes that a page was written, for all its watchers but `except`.
    pub fn written_by(&self, page: usize, except: u32) {
        let Some(flags) = self.watched.get(page) else { return };
        let watchers = flags.load(Ordering::SeqCst) & !bit(except);
        if watchers != 0 {
            self.note(page, watchers);
        }
    }

    pub(crate) fn written(&self, first: u64, last: u64) {
        for page in first as usize..=last as usize {
            self.written_by(page, WATCHERS_MAX);
        }
    }

    #[cold]
    fn note(&self, page: usize, watchers: u8) {
        for (number, notes) in self.notes.iter().enumerate() {
            if watchers >> number & 1 != 0 {
                let mut written = notes.written.lock().unwrap_or_else(PoisonError::into_inner);
                if !written.contains(&page) {
                    written.push(page);
                }
                notes.pending.store(true, Ordering::Release);
            }
        }
    }
}

fn bit(watcher: u32) -> u8 {
    if watcher < WATCHERS_MAX { 1 << watcher } else { 0 }
}
