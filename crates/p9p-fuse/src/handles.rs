//! What is open, by the numbers that the kernel uses for it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use p9p::Errno;
use p9p::filesystem::OpenFile;

/// An open file or directory.
pub(crate) struct Handle {
    pub file: Arc<dyn OpenFile>,
    /// Who took a lock through it: the kernel's number of the owner, and the process that asked.
    pub lockers: Mutex<HashMap<u64, u32>>,
}

/// All of them.
#[derive(Default)]
pub(crate) struct Handles {
    open: RwLock<HashMap<u64, Arc<Handle>>>,
    next: AtomicU64,
}

impl Handles {
    pub fn insert(&self, file: Arc<dyn OpenFile>) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let handle = Arc::new(Handle { file, lockers: Mutex::default() });
        self.open.write().unwrap_or_else(PoisonError::into_inner).insert(number, handle);
        number
    }

    pub fn get(&self, number: u64) -> Result<Arc<Handle>, Errno> {
        self.open.read().unwrap_or_else(PoisonError::into_inner).get(&number).cloned().ok_or(Errno::EBADF)
    }

    /// Forgets it; what it holds is closed with its last user.
    pub fn remove(&self, number: u64) -> Option<Arc<Handle>> {
        self.open.write().unwrap_or_else(PoisonError::into_inner).remove(&number)
    }

    /// Closes all that is not in use.
    pub fn clear(&self) {
        let all = std::mem::take(&mut *self.open.write().unwrap_or_else(PoisonError::into_inner));
        drop(all);
    }
}
