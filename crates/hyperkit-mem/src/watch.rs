//! Pages that a software CPU keeps decoded instructions of.
//!
//! A write to a watched page by anything but the CPU that watches it (a device, another vCPU) is noted here, and
//! the CPU drops what it decoded before it runs its next block. The note is made before the device publishes
//! its completion, so a guest that waits for the completion never runs stale instructions.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

/// Which pages of RAM are watched, and which of them were written since somebody last looked.
pub struct Watch {
    watched: Box<[AtomicU8]>,
    written: Mutex<Vec<usize>>,
    pending: AtomicBool,
}

impl Watch {
    pub(crate) fn new(pages: u64) -> Watch {
        let watched = (0..pages).map(|_| AtomicU8::new(0)).collect();
        Watch { watched, written: Mutex::new(Vec::new()), pending: AtomicBool::new(false) }
    }

    /// Starts watching a page, by its number as [`crate::GuestRam::page_index`] gives it.
    pub fn add(&self, page: usize) {
        if let Some(flag) = self.watched.get(page) {
            flag.store(1, Ordering::SeqCst);
        }
    }

    /// Stops watching a page.
    pub fn remove(&self, page: usize) {
        if let Some(flag) = self.watched.get(page) {
            flag.store(0, Ordering::SeqCst);
        }
    }

    /// Whether a page is watched.
    #[inline]
    pub fn contains(&self, page: usize) -> bool {
        self.watched.get(page).is_some_and(|flag| flag.load(Ordering::Relaxed) != 0)
    }

    /// Whether a watched page was written since [`Watch::take`]. Cheap: one load.
    #[inline]
    pub fn pending(&self) -> bool {
        self.pending.load(Ordering::Acquire)
    }

    /// The watched pages written since the last call, each once, and clears the list.
    pub fn take(&self) -> Vec<usize> {
        let mut written = self.written.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        self.pending.store(false, Ordering::Release);
        std::mem::take(&mut *written)
    }

    pub(crate) fn written(&self, first: u64, last: u64) {
        for page in first as usize..=last as usize {
            if self.contains(page) {
                self.note(page);
            }
        }
    }

    #[cold]
    fn note(&self, page: usize) {
        let mut written = self.written.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if !written.contains(&page) {
            written.push(page);
        }
        self.pending.store(true, Ordering::Release);
    }
}
