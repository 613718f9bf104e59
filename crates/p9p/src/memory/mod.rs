//! A file system in memory, with quotas: for tests, scratch space, and services that want a tree without a disk.
//!
//! The semantics are POSIX's as far as 9P sees them: hard links, files that live on while they are open, sparse files,
//! renames that replace, extended attributes, permissions kept and not checked (whoever attaches may do everything).
//! Locks between clients are kept, as the host directory's are.
//!
//! Bytes of content, names and attributes count against [`Quota::bytes`], files of any kind against [`Quota::nodes`].

mod content;
mod file;
mod inode;
mod node;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::errno::Errno;
use crate::filesystem::{Answer, Attach, Filesystem, Node};
use crate::stat::Time;
use inode::Inode;
use node::MemoryNode;

/// What a file system in memory may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// Content, names and extended attributes, in bytes.
    pub bytes: u64,
    /// Files of all kinds.
    pub nodes: u64,
}

impl Default for Quota {
    /// 1 GiB in a million files.
    fn default() -> Self {
        Self { bytes: 1 << 30, nodes: 1 << 20 }
    }
}

/// A tree in memory. Clones are the same tree.
#[derive(Clone)]
pub struct Memory {
    root: Arc<Inode>,
    volume: Arc<Volume>,
}

/// What all files of a tree have in common.
struct Volume {
    quota: Quota,
    bytes: AtomicU64,
    nodes: AtomicU64,
    next_number: AtomicU64,
    /// Held while names change.
    names: Mutex<()>,
    root: OnceLock<Weak<Inode>>,
}

impl Memory {
    /// An empty tree, whose root belongs to user and group 0.
    pub fn new(quota: Quota) -> Self {
        let volume = Arc::new(Volume {
            quota,
            bytes: AtomicU64::new(0),
            nodes: AtomicU64::new(0),
            next_number: AtomicU64::new(1),
            names: Mutex::new(()),
            root: OnceLock::new(),
        });
        let root = Inode::root(&volume);
        volume.root.get_or_init(|| Arc::downgrade(&root));
        Self { root, volume }
    }

    /// Bytes and files in use.
    pub fn used(&self) -> Quota {
        Quota {
            bytes: self.volume.bytes.load(Ordering::Relaxed),
            nodes: self.volume.nodes.load(Ordering::Relaxed),
        }
    }
}

impl Filesystem for Memory {
    /// `tree` is a path below the root, empty or `/` for the root itself.
    fn attach(&self, attach: &Attach<'_>) -> Answer<Arc<dyn Node>> {
        let mut node: Arc<dyn Node> = Arc::new(MemoryNode {
            inode: Arc::clone(&self.root),
            volume: Arc::clone(&self.volume),
            uid: attach.numeric_user,
            attach: self.volume.next_number.fetch_add(1, Ordering::Relaxed),
        });
        for name in attach.tree.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            node = node.walk(name)?;
        }
        Ok(node)
    }
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Memory").field("used", &self.used()).finish_non_exhaustive()
    }
}

impl Volume {
    /// Takes so many bytes of the quota.
    fn take_bytes(&self, bytes: u64) -> Answer<()> {
        let taken = |now: u64| now.checked_add(bytes).filter(|sum| *sum <= self.quota.bytes);
        let updated = self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken);
        updated.map(|_| ()).map_err(|_| Errno::ENOSPC)
    }

    fn give_bytes(&self, bytes: u64) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn take_node(&self) -> Answer<u64> {
        let taken = |now: u64| (now < self.quota.nodes).then_some(now + 1);
        let updated = self.nodes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken);
        updated.map_err(|_| Errno::ENOSPC)?;
        Ok(self.next_number.fetch_add(1, Ordering::Relaxed))
    }
}

fn now() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time { seconds: since.as_secs(), nanoseconds: since.subsec_nanos().into() }
}
