//! `rw`: a transaction's working tree.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use datakit_store::{FileName, NodeId, NodeKind, ReadError, Transaction, TransactionError};
use p9p::Errno;
use p9p::filesystem::{Answer, Cancel, OpenFile, OpenFlags};
use p9p::stat::{SetAttributes, setattr};
use p9p_fuse::{Caching, Content};

use super::attached::read_failed;
use super::item::{self, Change, Found, Item, ItemStat, Kind};
use super::listing::{Names, OpenDirectory};
use super::transaction::OpenTransaction;

/// Directories of more entries list numbers that are not their files': finding those would load every entry.
const NUMBERED_MAX: usize = 20_000;

/// What the kernel keeps of a tree that only it changes.
const PRIVATE: Caching = Caching {
    entry_ttl: Duration::from_secs(60),
    negative_ttl: Duration::from_secs(60),
    attr_ttl: Duration::from_secs(60),
    content: Content::Keep,
};

/// A file or directory in a working tree. Keeps its node alive, whatever becomes of its name.
pub(crate) struct WorkItem {
    open: Arc<OpenTransaction>,
    node: NodeId,
}

/// What a failed operation is to a client.
pub(crate) fn transaction_failed(error: &TransactionError) -> Errno {
    let errno = match error {
        TransactionError::Closed | TransactionError::NotFound { .. } | TransactionError::NoNode(_) => {
            return Errno::ENOENT.with_text("No such file or directory");
        }
        TransactionError::Exists { .. } => return Errno::EEXIST.with_text("Already exists"),
        TransactionError::NotDirectory { .. } => return Errno::ENOTDIR.with_text("Is not a directory"),
        TransactionError::IsDirectory { .. } => return Errno::EISDIR.with_text("Is a directory"),
        TransactionError::NotEmpty { .. } => Errno::ENOTEMPTY,
        TransactionError::NotLink { .. } | TransactionError::IntoItself => Errno::EINVAL,
        TransactionError::Submodule => Errno::EPERM,
        TransactionError::TooMany { .. } => Errno::EMFILE,
        TransactionError::TooLarge { .. } => Errno::ENOSPC,
        TransactionError::TooDeep => Errno::ENAMETOOLONG,
        TransactionError::Read(error) => return read_failed(error),
        TransactionError::Io { source, .. } => {
            source.raw_os_error().map_or(Errno::EIO, |number| Errno(number.unsigned_abs()))
        }
    };
    errno.with_text(error.to_string())
}

fn check<T>(result: Result<T, TransactionError>) -> Answer<T> {
    result.map_err(|error| match &error {
        // What the transaction began with names it, so it is not the file that is missing.
        TransactionError::Read(ReadError::Missing { .. }) => Errno::EIO.with_text(error.to_string()),
        error => transaction_failed(error),
    })
}

/// A name that git can have. `.git` and what file systems take for it cannot be committed, so it cannot be made.
fn file_name(name: &[u8]) -> Answer<FileName> {
    FileName::new(name).map_err(|error| Errno::EPERM.with_text(error.to_string()))
}

pub(crate) fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

impl WorkItem {
    pub fn new(open: &Arc<OpenTransaction>, node: NodeId) -> Self {
        open.transaction.retain(node);
        Self { open: Arc::clone(open), node }
    }

    fn transaction(&self) -> &Transaction {
        &self.open.transaction
    }

    fn kind(&self) -> Answer<NodeKind> {
        Ok(check(self.transaction().stat(self.node))?.kind)
    }

    /// How many subdirectories, and entries, a directory has; known until the next change of any.
    fn count(&self) -> Answer<(u64, u64)> {
        let changes = self.open.changes.load(Ordering::Acquire);
        if let Some((at, count)) = self.open.counts().get(&self.node)
            && *at == changes
        {
            return Ok(*count);
        }
        let list = check(self.transaction().list(self.node))?;
        let directories = list.iter().filter(|(_, kind)| kind_of(*kind) == Kind::Directory).count();
        let count = (directories as u64, list.len() as u64);
        self.open.counts().insert(self.node, (changes, count));
        Ok(count)
    }

    /// Marks a directory, or a file's content, as changed.
    fn changed(&self, node: NodeId) {
        self.open.mtimes().insert(node, now_ns());
    }

    fn entries_changed(&self, also: Option<NodeId>) {
        self.open.changes.fetch_add(1, Ordering::AcqRel);
        self.changed(self.node);
        if let Some(other) = also {
            self.changed(other);
        }
    }

    fn remove(&self, name: &[u8], is_directory: Option<bool>) -> Answer<()> {
        let name = FileName::new(name).or_else(|_| item::no_entry())?;
        let Some(wants_directory) = is_directory else {
            // Tremove of a directory takes all that is in it, as it always did here.
            check(self.transaction().remove_all(self.node, &name))?;
            return Ok(());
        };
        let node = check(self.transaction().look_up(self.node, &name))?;
        let is_directory = kind_of(check(self.transaction().stat(node))?.kind) == Kind::Directory;
        match (wants_directory, is_directory) {
            (true, false) => item::not_a_directory(),
            (false, true) => Err(Errno::EISDIR.with_text("Is a directory")),
            _ => check(self.transaction().remove(self.node, &name)),
        }
    }

    fn rename(&self, name: &[u8], directory: &dyn Item, new_name: &[u8], replaces: bool) -> Answer<()> {
        let directory = (directory as &dyn std::any::Any).downcast_ref::<Self>().ok_or(Errno::EXDEV)?;
        if !Arc::ptr_eq(&directory.open, &self.open) {
            return Err(Errno::EXDEV);
        }
        let old = FileName::new(name).or_else(|_| item::no_entry())?;
        let new = file_name(new_name)?;
        let (from, to) = ((self.node, &old), (directory.node, &new));
        check(if replaces {
            self.transaction().rename(from, to)
        } else {
            self.transaction().rename_to_new(from, to)
        })?;
        self.entries_changed(Some(directory.node));
        Ok(())
    }
}

impl Drop for WorkItem {
    fn drop(&mut self) {
        self.open.transaction.release(self.node);
    }
}

fn kind_of(kind: NodeKind) -> Kind {
    match kind {
        NodeKind::Directory | NodeKind::Submodule => Kind::Directory,
        NodeKind::File { executable: false } => Kind::File,
        NodeKind::File { executable: true } => Kind::Executable,
        NodeKind::Link => Kind::Symlink,
    }
}

impl Item for WorkItem {
    fn stat(&self) -> Answer<ItemStat> {
        let stat = check(self.transaction().stat(self.node))?;
        let kind = kind_of(stat.kind);
        let mtime_ns = self.open.mtimes().get(&self.node).copied().unwrap_or(self.open.began_ns);
        let (size, nlink) = match stat.kind {
            NodeKind::Directory => {
                let (directories, entries) = self.count()?;
                (entries, 2 + directories)
            }
            NodeKind::Submodule => (0, 2),
            _ => (stat.size, 1),
        };
        // The low bits of a time in nanoseconds are as good as a count.
        let version = u32::try_from(mtime_ns & u64::from(u32::MAX)).unwrap_or(0);
        Ok(ItemStat { kind, size, nlink, mtime_ns, version })
    }

    fn caching(&self) -> Caching {
        if self.open.is_shared { Caching::SHARED } else { PRIVATE }
    }

    fn find(&self, name: &[u8]) -> Answer<Found> {
        if self.kind()? == NodeKind::Submodule {
            return item::no_entry();
        }
        let name = FileName::new(name).or_else(|_| item::no_entry())?;
        let node = check(self.transaction().look_up(self.node, &name))?;
        Ok(Found { item: Arc::new(Self::new(&self.open, node)), number: Some(self.open.number(node)) })
    }

    fn open(&self, flags: OpenFlags, number: u64) -> Answer<Arc<dyn OpenFile>> {
        match self.kind()? {
            NodeKind::Submodule => Ok(OpenDirectory::open(Names(Vec::new()), number)),
            NodeKind::Directory => {
                let list = check(self.transaction().list(self.node))?;
                let is_numbered = list.len() <= NUMBERED_MAX;
                let names = list.into_iter().map(|(name, kind)| {
                    let node =
                        is_numbered.then(|| self.transaction().look_up(self.node, &name).ok()).flatten();
                    let number = node.map_or_else(
                        || self.open.attached.entry_number(number, name.as_bstr()),
                        |node| self.open.number(node),
                    );
                    (name.as_bstr().to_vec(), kind_of(kind), number)
                });
                Ok(OpenDirectory::open(Names(names.collect()), number))
            }
            _ => {
                if flags.contains(OpenFlags::TRUNC) {
                    check(self.transaction().truncate(self.node, 0))?;
                    self.changed(self.node);
                }
                let item = Self::new(&self.open, self.node);
                let appends = flags.contains(OpenFlags::APPEND);
                Ok(Arc::new(OpenWork { item, writes: flags.writes(), appends }))
            }
        }
    }

    fn change(&self, change: &Change<'_>) -> Answer<()> {
        let transaction = self.transaction();
        match change {
            Change::MakeDirectory { name } => {
                check(transaction.make_directory(self.node, &file_name(name)?))?;
            }
            Change::MakeFile { name, executable, exclusive } => {
                match transaction.create(self.node, &file_name(name)?, *executable) {
                    Err(TransactionError::Exists { .. }) if !exclusive => return Ok(()),
                    result => {
                        let node = check(result)?;
                        self.changed(node);
                    }
                }
            }
            Change::MakeSymlink { name, target } => {
                let node = check(transaction.make_link(self.node, &file_name(name)?, target))?;
                self.changed(node);
            }
            Change::Link => return Err(Errno::EPERM.with_text("git has no hard links")),
            Change::Remove { name, is_directory } => self.remove(name, *is_directory)?,
            Change::Rename { name, directory, new_name, replaces } => {
                return self.rename(name, *directory, new_name, *replaces);
            }
        }
        self.entries_changed(None);
        Ok(())
    }

    /// Of a mode git keeps whether the owner may execute.
    fn set(&self, change: &SetAttributes) -> Answer<()> {
        if change.valid & setattr::SIZE != 0 {
            check(self.transaction().truncate(self.node, change.size))?;
            self.changed(self.node);
        }
        if change.valid & setattr::MODE != 0 && matches!(self.kind()?, NodeKind::File { .. }) {
            check(self.transaction().set_executable(self.node, change.mode & 0o100 != 0))?;
        }
        Ok(())
    }

    fn touch(&self, mtime_ns: Option<u64>) {
        self.open.mtimes().insert(self.node, mtime_ns.unwrap_or_else(now_ns));
    }

    fn is_published(&self) -> bool {
        false
    }

    fn target(&self) -> Answer<Vec<u8>> {
        Ok(check(self.transaction().link_target(self.node))?.to_vec())
    }
}

struct OpenWork {
    item: WorkItem,
    writes: bool,
    appends: bool,
}

impl OpenFile for OpenWork {
    fn read(&self, offset: u64, buffer: &mut [u8], _cancel: &Cancel) -> Answer<usize> {
        check(self.item.transaction().read(self.item.node, offset, buffer))
    }

    fn write(&self, offset: u64, bytes: &[u8], _cancel: &Cancel) -> Answer<usize> {
        if !self.writes {
            return Err(Errno::EBADF);
        }
        let transaction = self.item.transaction();
        let offset = if self.appends { check(transaction.stat(self.item.node))?.size } else { offset };
        check(transaction.write(self.item.node, offset, bytes))?;
        self.item.changed(self.item.node);
        Ok(bytes.len())
    }
}
