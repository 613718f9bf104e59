//! Trees of git as read-only directories: one that never changes, or the one at a branch's head.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use datakit_store::{BlobReader, Latest, Mode, ObjectId, ObjectKind, PathValue, Tree};
use p9p::Errno;
use p9p::filesystem::{Answer, Cancel, OpenFile, OpenFlags};
use p9p::stat::SetAttributes;
use p9p_fuse::{Caching, Content};

use super::attached::{Attached, damaged};
use super::item::{self, Change, Found, Item, ItemStat, Kind};
use super::listing::{Listed, Listing, OpenDirectory};

/// What the kernel keeps of a live tree's nodes: changes are pushed to it.
const PUSHED: Caching = Caching {
    entry_ttl: Duration::from_secs(60),
    negative_ttl: Duration::from_secs(60),
    attr_ttl: Duration::from_secs(60),
    content: Content::Keep,
};

/// Where a tree comes from.
pub(crate) enum Root {
    /// This one, of a commit made at this time.
    Fixed { value: PathValue, seconds: u64 },
    /// The one at the head of a branch.
    Head(Latest<Option<ObjectId>>),
}

impl Root {
    /// The tree as of now, and the time of its commit. A branch without commits has the empty tree.
    fn now(&self, attached: &Attached) -> Answer<(PathValue, u64)> {
        match self {
            Self::Fixed { value, seconds } => Ok((*value, *seconds)),
            Self::Head(head) => match head.current() {
                None => {
                    let id = ObjectId::empty_tree(attached.store.hash());
                    Ok((PathValue { mode: Mode::Tree, id }, 0))
                }
                Some(commit) => {
                    let commit =
                        attached.store.commit_of(commit).map_err(|error| damaged(&attached.store, &error))?;
                    let seconds = u64::try_from(commit.committer.seconds).unwrap_or(0);
                    Ok((PathValue { mode: Mode::Tree, id: commit.tree }, seconds))
                }
            },
        }
    }
}

/// A file or directory of a tree.
pub(crate) struct TreeItem {
    attached: Arc<Attached>,
    root: Arc<Root>,
    /// Names from the root; kept only where the root moves.
    path: Vec<Vec<u8>>,
    seen: Mutex<Seen>,
}

/// What it was when it was last looked at.
#[derive(Clone, Copy)]
struct Seen {
    root: ObjectId,
    value: PathValue,
    seconds: u64,
    size: Option<u64>,
}

impl TreeItem {
    /// The root.
    pub fn root(attached: &Arc<Attached>, root: Root) -> Answer<Self> {
        let (value, seconds) = root.now(attached)?;
        let seen = Mutex::new(Seen { root: value.id, value, seconds, size: None });
        Ok(Self { attached: Arc::clone(attached), root: Arc::new(root), path: Vec::new(), seen })
    }

    /// What it is now. ENOENT when it is gone, or became something else.
    fn now(&self) -> Answer<Seen> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*self.root, Root::Fixed { .. }) {
            return Ok(*seen);
        }
        let (root, seconds) = self.root.now(&self.attached)?;
        if root.id != seen.root {
            let mut value = root;
            for name in &self.path {
                value = self.entry_of(value, name)?;
            }
            if (value.mode == Mode::Tree) != (seen.value.mode == Mode::Tree) {
                return item::no_entry();
            }
            seen.root = root.id;
            if value != seen.value {
                (seen.value, seen.seconds, seen.size) = (value, seconds, None);
            }
        }
        Ok(*seen)
    }

    fn entry_of(&self, directory: PathValue, name: &[u8]) -> Answer<PathValue> {
        let tree = self.tree(directory)?;
        match tree.try_find(name) {
            Some(entry) => Ok(PathValue { mode: entry.mode, id: entry.id }),
            None => item::no_entry(),
        }
    }

    /// A commit of another repository is an empty directory, as in a work tree of git.
    fn tree(&self, directory: PathValue) -> Answer<Arc<Tree>> {
        match directory.mode {
            Mode::Tree => {
                let store = &self.attached.store;
                store.tree(directory.id).map_err(|error| damaged(store, &error))
            }
            Mode::Submodule => Ok(Arc::default()),
            _ => item::not_a_directory(),
        }
    }

    fn size(&self, seen: Seen) -> Answer<u64> {
        if let Some(size) = seen.size {
            return Ok(size);
        }
        let store = &self.attached.store;
        let (kind, size) = store.object_header(seen.value.id).map_err(|error| damaged(store, &error))?;
        if kind != ObjectKind::Blob {
            return Err(Errno::EIO.with_text(format!("object {} is a {kind}, not a blob", seen.value.id)));
        }
        let mut kept = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.value == seen.value {
            kept.size = Some(size);
        }
        Ok(size)
    }
}

/// The kind of file that an entry of a tree is.
pub(crate) fn kind_of(mode: Mode) -> Kind {
    match mode {
        Mode::Tree | Mode::Submodule => Kind::Directory,
        Mode::File => Kind::File,
        Mode::Executable => Kind::Executable,
        Mode::Link => Kind::Symlink,
    }
}

/// Changes with the object.
fn version(id: ObjectId) -> u32 {
    id.as_slice().first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

impl Item for TreeItem {
    fn stat(&self) -> Answer<ItemStat> {
        let seen = self.now()?;
        let kind = kind_of(seen.value.mode);
        let version = version(seen.value.id);
        let (size, nlink) = if kind == Kind::Directory {
            let tree = self.tree(seen.value)?;
            let subdirectories =
                tree.entries.iter().filter(|entry| kind_of(entry.mode) == Kind::Directory).count();
            (tree.entries.len() as u64, 2 + subdirectories as u64)
        } else {
            (self.size(seen)?, 1)
        };
        // Two contents never have one time: that is how a kernel sees that its copy is old.
        let mtime_ns = seen.seconds.saturating_mul(1_000_000_000).saturating_add(u64::from(version >> 3));
        Ok(ItemStat { kind, size, nlink, mtime_ns, version })
    }

    fn caching(&self) -> Caching {
        match *self.root {
            Root::Fixed { .. } => Caching::IMMUTABLE,
            Root::Head(_) => PUSHED,
        }
    }

    fn find(&self, name: &[u8]) -> Answer<Found> {
        let seen = self.now()?;
        let value = self.entry_of(seen.value, name)?;
        let mut path = Vec::new();
        if matches!(*self.root, Root::Head(_)) {
            path.clone_from(&self.path);
            path.push(name.to_vec());
        }
        Found::new(Self {
            attached: Arc::clone(&self.attached),
            root: Arc::clone(&self.root),
            path,
            seen: Mutex::new(Seen { root: seen.root, value, seconds: seen.seconds, size: None }),
        })
    }

    fn open(&self, flags: OpenFlags, number: u64) -> Answer<Arc<dyn OpenFile>> {
        let seen = self.now()?;
        if flags.mutates() {
            return item::read_only_file();
        }
        if kind_of(seen.value.mode) == Kind::Directory {
            let tree = self.tree(seen.value)?;
            let listing = TreeListing { attached: Arc::clone(&self.attached), tree, number };
            return Ok(OpenDirectory::open(listing, number));
        }
        let store = &self.attached.store;
        let reader = store.open_blob(seen.value.id).map_err(|error| damaged(store, &error))?;
        Ok(Arc::new(OpenBlob(Mutex::new(reader))))
    }

    fn change(&self, change: &Change<'_>) -> Answer<()> {
        let exists = |name: &[u8]| self.now().and_then(|seen| self.entry_of(seen.value, name)).is_ok();
        match change {
            Change::MakeFile { name, exclusive: false, .. } if exists(name) => Ok(()),
            _ => item::read_only_directory(),
        }
    }

    fn set(&self, _change: &SetAttributes) -> Answer<()> {
        item::read_only_file()
    }

    fn target(&self) -> Answer<Vec<u8>> {
        let seen = self.now()?;
        if seen.value.mode != Mode::Link {
            return Err(Errno::EINVAL);
        }
        let store = &self.attached.store;
        let object = store.object(seen.value.id).map_err(|error| damaged(store, &error))?;
        Ok(object.bytes.to_vec())
    }
}

struct TreeListing {
    attached: Arc<Attached>,
    tree: Arc<Tree>,
    number: u64,
}

impl Listing for TreeListing {
    fn entry(&self, index: usize, with: &mut dyn FnMut(Listed<'_>) -> bool) -> Option<bool> {
        let entry = self.tree.entries.get(index)?;
        let name: &[u8] = &entry.name;
        // A hostile tree may have these, and names that no system call takes.
        if matches!(name, b"." | b"..") || name.len() > 255 {
            return Some(true);
        }
        let number = self.attached.entry_number(self.number, name);
        Some(with(Listed { name, kind: kind_of(entry.mode), number }))
    }
}

/// An open blob.
struct OpenBlob(Mutex<BlobReader>);

impl OpenFile for OpenBlob {
    fn read(&self, offset: u64, buffer: &mut [u8], _cancel: &Cancel) -> Answer<usize> {
        let mut reader = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        reader.read_at(offset, buffer).map_err(|error| Errno::EIO.with_text(error.to_string()))
    }
}
