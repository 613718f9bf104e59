//! What a service implements to be served over 9P, in any dialect: a tree of nodes and the files opened from them.
//!
//! The server owns fids, tags and the wire; a service sees only nodes. Every call may come from any thread, several
//! at once, also on one node. A call that can wait for long (a read of a stream) must watch its [`Cancel`]; a read that
//! ten thousand clients may wait in at once is better made an [`OpenFile::poll_read`], which holds no thread.
//!
//! An error may carry a text of the service's own: [`Errno::with_text`].

use std::any::Any;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};

use crate::errno::Errno;
use crate::message::Dialect;
use crate::qid::Qid;
use crate::stat::{Attributes, DirectoryEntry, LockKind, LockRange, LockStatus, SetAttributes, StatFs};
use crate::wire::{Field, Writer};

/// What operations return: a value, or the errno for the client.
pub type Answer<T> = Result<T, Errno>;

/// Flags of Tlopen and Tlcreate: Linux's generic open(2) flags (`P9_DOTL_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenFlags(pub u32);

#[expect(missing_docs, reason = "the names are open(2)'s")]
impl OpenFlags {
    pub const RDONLY: Self = Self(0);
    pub const WRONLY: Self = Self(0o1);
    pub const RDWR: Self = Self(0o2);
    pub const CREAT: Self = Self(0o100);
    pub const EXCL: Self = Self(0o200);
    pub const TRUNC: Self = Self(0o1000);
    pub const APPEND: Self = Self(0o2000);
    pub const NONBLOCK: Self = Self(0o4000);
    pub const DSYNC: Self = Self(0o10000);
    pub const DIRECTORY: Self = Self(0o200_000);
    pub const NOFOLLOW: Self = Self(0o400_000);
    /// `O_SYNC` without `O_DSYNC`, which it includes on Linux.
    pub const SYNC: Self = Self(0o4_000_000);

    /// Whether all bits of `other` are set.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether the file is opened for writing.
    pub fn writes(self) -> bool {
        self.0 & 0o3 != 0
    }

    /// Whether the file is opened for reading. Access mode 3 is neither, as in open(2).
    pub fn reads(self) -> bool {
        matches!(self.0 & 0o3, 0 | 2)
    }

    /// Whether opening changes the file system: a write mode or truncation.
    pub fn mutates(self) -> bool {
        self.writes() || self.contains(Self::TRUNC)
    }
}

impl std::ops::BitOr for OpenFlags {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Who attaches, and to what.
#[derive(Debug, Clone, Copy)]
pub struct Attach<'a> {
    /// The user's name; often empty or meaningless in .L.
    pub user: &'a [u8],
    /// The user's number in the client, `u32::MAX` where only the name counts.
    pub numeric_user: u32,
    /// Which tree of the service (`aname`).
    pub tree: &'a [u8],
}

/// Flags of an extended attribute's setting (`XATTR_CREATE`, `XATTR_REPLACE` of setxattr(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct XattrFlags(pub u32);

impl XattrFlags {
    /// Fails when the attribute is there.
    pub const CREATE: Self = Self(1);
    /// Fails when the attribute is not there.
    pub const REPLACE: Self = Self(2);
}

/// What Tmknod makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeSpec {
    /// Type and permissions, as mknod(2).
    pub mode: u32,
    /// Device major number.
    pub major: u32,
    /// Device minor number.
    pub minor: u32,
    /// Group of the new node.
    pub gid: u32,
}

/// A service: a tree that clients attach to.
pub trait Filesystem: Send + Sync {
    /// Returns the root for this client.
    ///
    /// # Errors
    /// EACCES, EPERM or ENOENT when there is no such tree for this user.
    fn attach(&self, attach: &Attach<'_>) -> Answer<Arc<dyn Node>>;
}

/// A file of any kind, not open. Cheap to keep: a client keeps one for each file it knows.
///
/// Calls that a kind of node cannot do fail as the system call does (ENOTDIR, EINVAL, EOPNOTSUPP); a node that is
/// given another service's node answers EXDEV. What a service does not implement is refused, as on a file system that is
/// mounted read-only and has neither links nor extended attributes.
#[expect(clippy::missing_errors_doc, reason = "all fail with the errno of the system call of their name")]
#[expect(unused_variables, reason = "the names of arguments are for those who implement it")]
pub trait Node: Any + Send + Sync {
    /// Its identity, as of when it was walked to.
    fn qid(&self) -> Qid;

    /// The entry `name` of this directory; `..` is its parent, and the root's is itself.
    fn walk(&self, name: &[u8]) -> Answer<Arc<dyn Node>>;

    /// Attributes; `mask` says which are wanted, see [`getattr`](crate::stat::getattr).
    fn attributes(&self, mask: u64) -> Answer<Attributes>;

    /// Walks to each of these entries of this directory and takes its attributes, for who lists them all. A service that
    /// is far away asks for many at once.
    fn walk_each(&self, names: &[&[u8]], mask: u64) -> Vec<Answer<(Arc<dyn Node>, Attributes)>> {
        let look = |name: &&[u8]| {
            let node = self.walk(name)?;
            let attributes = node.attributes(mask)?;
            Ok((node, attributes))
        };
        names.iter().map(look).collect()
    }

    /// Opens it.
    fn open(&self, flags: OpenFlags) -> Answer<Arc<dyn OpenFile>>;

    /// What changes are answered with that are not implemented.
    fn refusal(&self) -> Errno {
        Errno::EROFS
    }

    /// Changes attributes. `open` is what the client opened through the same fid, if it did.
    fn set_attributes(&self, change: &SetAttributes, open: Option<&dyn OpenFile>) -> Answer<()> {
        Err(self.refusal())
    }

    /// Brings to the disk what was opened from it: content, and unless `data_only` attributes.
    fn sync(&self, open: &dyn OpenFile, data_only: bool) -> Answer<()> {
        open.sync(data_only)
    }

    /// Creates (or, without EXCL, opens) the regular file `name` in this directory.
    fn create(&self, name: &[u8], flags: OpenFlags, mode: u32, gid: u32) -> Answer<Created> {
        Err(self.refusal())
    }

    /// Where this symbolic link points.
    fn read_link(&self) -> Answer<Vec<u8>> {
        Err(Errno::EINVAL)
    }

    /// Makes the directory `name` in this directory.
    fn make_directory(&self, name: &[u8], mode: u32, gid: u32) -> Answer<Qid> {
        Err(self.refusal())
    }

    /// Makes the symbolic link `name` in this directory.
    fn make_symlink(&self, name: &[u8], target: &[u8], gid: u32) -> Answer<Qid> {
        Err(self.refusal())
    }

    /// Makes a file, FIFO, socket or device `name` in this directory.
    fn make_node(&self, name: &[u8], spec: &NodeSpec) -> Answer<Qid> {
        Err(self.refusal())
    }

    /// Makes the entry `name` of this directory another name of `target`.
    fn link(&self, target: &dyn Node, name: &[u8]) -> Answer<()> {
        Err(self.refusal())
    }

    /// Moves the entry `old_name` of this directory to `new_name` of `directory`.
    fn rename_entry(&self, old_name: &[u8], directory: &dyn Node, new_name: &[u8]) -> Answer<()> {
        Err(self.refusal())
    }

    /// As [`Node::rename_entry`], in one step with finding that `new_name` is not there: EEXIST when it is
    /// (RENAME_NOREPLACE of renameat2(2)). EINVAL, also by default, is that this cannot be promised.
    fn rename_to_new_entry(&self, old_name: &[u8], directory: &dyn Node, new_name: &[u8]) -> Answer<()> {
        Err(Errno::EINVAL)
    }

    /// Moves this node to `name` of `directory`.
    fn rename(&self, directory: &dyn Node, name: &[u8]) -> Answer<()> {
        Err(self.refusal())
    }

    /// Removes the entry `name` of this directory: a directory exactly if `is_directory`.
    fn unlink(&self, name: &[u8], is_directory: bool) -> Answer<()> {
        Err(self.refusal())
    }

    /// Removes this node from its directory.
    fn remove(&self) -> Answer<()> {
        Err(self.refusal())
    }

    /// Totals of the file system it is on.
    fn statfs(&self) -> Answer<StatFs> {
        Ok(StatFs { kind: StatFs::V9FS_MAGIC, block_size: 4096, name_bytes_max: 255, ..StatFs::default() })
    }

    /// The value of the extended attribute `name`.
    fn xattr(&self, name: &[u8]) -> Answer<Vec<u8>> {
        Err(Errno::ENODATA)
    }

    /// The names of the extended attributes, each with a NUL after it.
    fn xattr_names(&self) -> Answer<Vec<u8>> {
        Ok(Vec::new())
    }

    /// Sets an extended attribute; no value removes it.
    fn set_xattr(&self, name: &[u8], value: Option<&[u8]>, flags: XattrFlags) -> Answer<()> {
        Err(self.refusal())
    }
}

/// What [`Node::create`] makes.
pub struct Created {
    /// The new file.
    pub node: Arc<dyn Node>,
    /// It, open with the flags asked for.
    pub file: Arc<dyn OpenFile>,
}

/// An open file or directory. Closed when the last reference is dropped.
///
/// What a service does not implement is answered as of a directory that cannot be listed: a file implements `read` or
/// `poll_read`, a directory `read_directory`. There is nothing to sync then, and nobody gets a lock.
#[expect(clippy::missing_errors_doc, reason = "all fail with the errno of the system call of their name")]
#[expect(unused_variables, reason = "the names of arguments are for those who implement it")]
pub trait OpenFile: Any + Send + Sync {
    /// Reads at `offset` into the front of `buffer`, which has as many bytes as the client wants and the reply can
    /// take; 0 is the end. May wait, until `cancel` says that nobody does (then EINTR).
    fn read(&self, offset: u64, buffer: &mut [u8], cancel: &Cancel) -> Answer<usize> {
        Err(Errno::EISDIR)
    }

    /// [`OpenFile::read`] for files that are waited on: does not wait. `Pending` is that there is nothing yet; the file
    /// then keeps a clone of `waker` and wakes it once when asking again is worth it, from any thread, and the server
    /// calls again with the same arguments. Wakers of one file can be several; one that is replaced or dropped without
    /// being woken is a read that was given up. A cancelled read is not asked again, so what is handed out here must be
    /// `Ready` at once, or nothing is lost.
    ///
    /// The server calls this, never `read`. By default it is `read`, which occupies one of the server's threads for as
    /// long as it waits. Who implements this one makes `read` from it with [`wait_for`].
    fn poll_read(
        &self,
        offset: u64,
        buffer: &mut [u8],
        cancel: &Cancel,
        waker: &Waker,
    ) -> Poll<Answer<usize>> {
        Poll::Ready(self.read(offset, buffer, cancel))
    }

    /// Writes at `offset`; fewer bytes than given is no error.
    fn write(&self, offset: u64, bytes: &[u8], cancel: &Cancel) -> Answer<usize> {
        Err(Errno::EBADF)
    }

    /// Lists entries after the one whose cookie is `offset` (0: from the start) until there is no more room.
    /// None is the end.
    fn read_directory(&self, offset: u64, entries: &mut Entries<'_>) -> Answer<()> {
        Err(Errno::ENOTDIR)
    }

    /// Brings content, and unless `data_only` attributes, to the disk.
    fn sync(&self, data_only: bool) -> Answer<()> {
        Ok(())
    }

    /// Takes or gives back a lock. Never waits.
    fn lock(&self, kind: LockKind, range: &LockRange<'_>) -> Answer<LockStatus> {
        Ok(LockStatus::Error)
    }

    /// The first lock in the way of this one, its owner's client name copied out; `None` when there is none.
    fn conflicting_lock(&self, kind: LockKind, range: &LockRange<'_>) -> Answer<Option<HeldLock>> {
        Ok(None)
    }
}

/// A lock that somebody holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldLock {
    /// Shared or exclusive.
    pub kind: LockKind,
    /// First byte.
    pub start: u64,
    /// Bytes; 0 is to the end.
    pub length: u64,
    /// Process within the client.
    pub process: u32,
    /// The client.
    pub client: Vec<u8>,
}

/// Where a directory's entries go: as many as fit into the reply.
#[derive(Debug)]
pub struct Entries<'a> {
    writer: Writer<'a>,
    count: usize,
}

impl<'a> Entries<'a> {
    pub(crate) fn new(writer: Writer<'a>) -> Self {
        Self { writer, count: 0 }
    }

    /// Fills `buffer` with entries in 9P2000.L's form (`DirectoryEntry`), for who reads a directory without a wire.
    pub fn over(buffer: &'a mut [u8]) -> Self {
        Self::new(Writer::new(buffer, Dialect::Linux))
    }

    /// Bytes that can still be filled; an entry takes 24 and its name.
    pub fn room(&self) -> usize {
        self.writer.room()
    }

    /// How many entries there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Bytes filled.
    pub fn len(&self) -> usize {
        self.writer.len()
    }

    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Adds an entry; `false` when it does not fit.
    pub fn add(&mut self, entry: &DirectoryEntry<'_>) -> bool {
        let fits = entry.name.len() + 24 <= self.room() && entry.emit(&mut self.writer).is_ok();
        self.count += usize::from(fits);
        fits
    }
}

type OnCancel = Box<dyn FnOnce() + Send>;

/// Tells a request under way that its client gave it up (Tflush) or is gone.
#[derive(Default)]
pub struct Cancel {
    cancelled: AtomicBool,
    waiting: Mutex<Waiting>,
}

/// Who is told of a cancel.
#[derive(Default)]
struct Waiting {
    calls: Vec<OnCancel>,
    waker: Option<Waker>,
}

impl Cancel {
    /// Whether it was given up.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    /// Has `wake` called once when the request is given up, at once if it is already; for a call that waits on
    /// something. `wake` must not block.
    pub fn on_cancel(&self, wake: impl FnOnce() + Send + 'static) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_cancelled() {
            drop(waiting);
            wake();
        } else {
            waiting.calls.push(Box::new(wake));
        }
    }

    /// Has `waker` woken, in place of the one given before, when the request is given up; at once if it is already.
    pub fn wake_on_cancel(&self, waker: &Waker) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_cancelled() {
            drop(waiting);
            waker.wake_by_ref();
        } else {
            waiting.waker = Some(waker.clone());
        }
    }

    /// Gives it up.
    pub fn cancel(&self) {
        let waiting = {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            self.cancelled.store(true, Ordering::Release);
            std::mem::take(&mut *waiting)
        };
        waiting.calls.into_iter().for_each(|wake| wake());
        if let Some(waker) = waiting.waker {
            waker.wake();
        }
    }
}

/// Waits on this thread until `poll` is ready: a blocking [`OpenFile::read`] made from its `poll_read`.
///
/// # Errors
/// What `poll` answers, and EINTR once `cancel` says that nobody waits any more.
pub fn wait_for<T>(cancel: &Cancel, mut poll: impl FnMut(&Waker) -> Poll<Answer<T>>) -> Answer<T> {
    block_on(|waker| match poll(waker) {
        Poll::Pending if cancel.is_cancelled() => Poll::Ready(Err(Errno::EINTR)),
        Poll::Pending => {
            cancel.wake_on_cancel(waker);
            Poll::Pending
        }
        ready => ready,
    })
}

/// Calls `poll` until it is ready, again each time its waker was woken.
pub(crate) fn block_on<T>(mut poll: impl FnMut(&Waker) -> Poll<T>) -> T {
    // Most are ready at once, and a waker costs an allocation.
    if let Poll::Ready(value) = poll(Waker::noop()) {
        return value;
    }
    let parked = Arc::new(Parked { thread: std::thread::current(), woken: AtomicBool::new(false) });
    let waker = Waker::from(Arc::clone(&parked));
    loop {
        if let Poll::Ready(value) = poll(&waker) {
            return value;
        }
        while !parked.woken.swap(false, Ordering::Acquire) {
            std::thread::park();
        }
    }
}

/// A thread in [`block_on`].
struct Parked {
    thread: std::thread::Thread,
    woken: AtomicBool,
}

impl std::task::Wake for Parked {
    fn wake(self: Arc<Self>) {
        self.woken.store(true, Ordering::Release);
        self.thread.unpark();
    }
}

impl std::fmt::Debug for Cancel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cancel").field("cancelled", &self.is_cancelled()).finish()
    }
}
