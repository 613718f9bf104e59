//! The nodes that the kernel knows, by its numbers for them, and how often it was told of each.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use p9p::Errno;
use p9p::filesystem::Node;
use p9p::qid::Qid;

use crate::abi::ROOT;

/// What tells files apart: the kind as well, since the kernel never forgives an inode that changes it.
type Key = (u8, u64);

fn key(qid: Qid) -> Key {
    (qid.kind.0, qid.path)
}

struct Inode {
    node: Arc<dyn Node>,
    key: Key,
    /// How often the kernel was told of it; it forgets as often.
    lookups: u64,
    /// Where it was last found, for making the kernel forget it.
    parent: u64,
    name: Box<[u8]>,
}

/// All nodes that the kernel knows.
///
/// Numbers are never used twice, so that generations are not needed.
pub(crate) struct Inodes {
    table: Mutex<Table>,
    limit: usize,
}

struct Table {
    by_id: HashMap<u64, Inode>,
    by_key: HashMap<Key, u64>,
    next: u64,
    /// Where the search for something to forget goes on.
    hand: u64,
}

impl Inodes {
    /// With the root, which is never forgotten; beyond `limit` nodes, the kernel is asked to forget some.
    pub fn new(root: Arc<dyn Node>, limit: usize) -> Self {
        let key = key(root.qid());
        let root = Inode { node: root, key, lookups: 1, parent: ROOT, name: Box::default() };
        let table = Table {
            by_id: HashMap::from([(ROOT, root)]),
            by_key: HashMap::from([(key, ROOT)]),
            next: ROOT + 1,
            hand: ROOT + 1,
        };
        Self { table: Mutex::new(table), limit }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The node with this number; ESTALE when it is not known.
    pub fn node(&self, id: u64) -> Result<Arc<dyn Node>, Errno> {
        self.lock().by_id.get(&id).map(|inode| Arc::clone(&inode.node)).ok_or(Errno::ESTALE)
    }

    /// Counts that the kernel is told of `node` as `name` of `parent`, and returns its number.
    ///
    /// A file found under another name than before has this node from now on: a service that finds files by name may
    /// not find the former one's any more.
    pub fn remember(&self, node: Arc<dyn Node>, parent: u64, name: &[u8]) -> u64 {
        let key = key(node.qid());
        // Forgetting a node may close a file: not under the lock.
        let _former;
        let mut table = self.lock();
        if let Some(id) = table.by_key.get(&key).copied()
            && let Some(inode) = table.by_id.get_mut(&id)
        {
            inode.lookups += 1;
            if inode.parent != parent || *inode.name != *name {
                inode.parent = parent;
                inode.name = name.into();
                _former = std::mem::replace(&mut inode.node, node);
            }
            return id;
        }
        let id = table.next;
        table.next += 1;
        table.by_key.insert(key, id);
        table.by_id.insert(id, Inode { node, key, lookups: 1, parent, name: name.into() });
        id
    }

    /// The kernel forgot `count` of the times that it was told of `id`.
    pub fn forget(&self, id: u64, count: u64) {
        if id == ROOT {
            return;
        }
        let mut table = self.lock();
        let Some(inode) = table.by_id.get_mut(&id) else { return };
        inode.lookups = inode.lookups.saturating_sub(count);
        if inode.lookups == 0
            && let Some(inode) = table.by_id.remove(&id)
        {
            table.by_key.remove(&inode.key);
            drop(table);
            // Forgetting a node may close a file: not under the lock.
            drop(inode);
        }
    }

    /// The number of the node with this qid, if the kernel knows it.
    pub fn find(&self, qid: Qid) -> Option<u64> {
        self.lock().by_key.get(&key(qid)).copied()
    }

    /// Up to 1024 entries, as parent and name, that the kernel is to forget because there are too many.
    ///
    /// Goes round through the numbers, oldest first.
    pub fn surplus(&self) -> Vec<(u64, Box<[u8]>)> {
        const AT_ONCE: usize = 1024;
        let mut table = self.lock();
        if table.by_id.len() <= self.limit {
            return Vec::new();
        }
        let mut found = Vec::new();
        let (start, end) = (table.hand, table.next);
        let mut id = start;
        while found.len() < AT_ONCE {
            if let Some(inode) = table.by_id.get(&id) {
                found.push((inode.parent, inode.name.clone()));
            }
            id = if id + 1 >= end { ROOT + 1 } else { id + 1 };
            if id == start {
                break;
            }
        }
        table.hand = id;
        found
    }

    /// Whether there are more than there should be.
    pub fn is_crowded(&self) -> bool {
        self.lock().by_id.len() > self.limit
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.lock().by_id.len()
    }
}
