//! A server elsewhere as a [`Filesystem`] here: to mount it, or to serve it on.
//!
//! Nodes are fids of one [`Connection`], and are forgotten with it. What a dialect cannot do is answered EOPNOTSUPP, and
//! EXDEV for renames out of a directory, which 9P2000 and .u do not have.

use std::any::Any;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::client::{ClientError, Listed};
use crate::connection::{Called, Connection};
use crate::errno::Errno;
use crate::filesystem::{
    Answer, Attach, Cancel, Created, Entries, Filesystem, HeldLock, Node, NodeSpec, OpenFile, OpenFlags,
    XattrFlags,
};
use crate::message::{Dialect, Fid, Reply, Request};
use crate::qid::Qid;
use crate::stat::{Attributes, DirectoryEntry, LockKind, LockRange, LockStatus, SetAttributes, StatFs};

/// Bytes of one request for directory entries that are kept.
const LISTING_BYTES: u32 = 64 << 10;

/// A server's tree.
pub struct Remote {
    connection: Connection,
    token: Option<Vec<u8>>,
    pauses: Pauses,
}

/// What becomes of a stream's pauses: the read that gives nothing after each piece of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pauses {
    /// The next piece is waited for, as such a read is the end to a kernel that mounted it.
    Skipped,
    /// Passed on to a 9P client, which hands out what there is at one.
    Kept,
}

impl Remote {
    /// What `connection` leads to, to be mounted here; `token` is what the server wants to hear first, if anything.
    pub fn new(connection: Connection, token: Option<Vec<u8>>) -> Self {
        Self { connection, token, pauses: Pauses::Skipped }
    }

    /// The same, to be served on over 9P: reads are answered as the server answers them.
    pub fn to_serve(connection: Connection, token: Option<Vec<u8>>) -> Self {
        Self { connection, token, pauses: Pauses::Kept }
    }
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remote").field("connection", &self.connection).finish_non_exhaustive()
    }
}

/// The errno of what went wrong, with the server's words.
fn answer<T>(called: Called<T>) -> Answer<T> {
    called.map_err(|error| match error {
        ClientError::RefusedWithText { errno, text } => errno.with_text(text),
        ClientError::TimedOut => Errno::ETIMEDOUT,
        error => error.errno().unwrap_or(Errno::EIO),
    })
}

impl Filesystem for Remote {
    fn attach(&self, attach: &Attach<'_>) -> Answer<Arc<dyn Node>> {
        let Attach { user, numeric_user, tree } = *attach;
        let connection = &self.connection;
        let fid = answer(match &self.token {
            Some(token) => connection.attach_with_token(user, numeric_user, tree, token),
            None => connection.attach(user, numeric_user, tree),
        })?;
        let held = Held { connection: connection.clone(), fid, pauses: self.pauses };
        let qid = answer(connection.attributes(fid))?.qid;
        Ok(Arc::new(RemoteNode { held, qid }))
    }
}

/// A fid that is forgotten when dropped.
struct Held {
    connection: Connection,
    fid: Fid,
    pauses: Pauses,
}

impl Held {
    fn other(&self, fid: Fid) -> Self {
        Self { connection: self.connection.clone(), fid, pauses: self.pauses }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.connection.forget(self.fid);
    }
}

struct RemoteNode {
    held: Held,
    qid: Qid,
}

impl RemoteNode {
    fn connection(&self) -> &Connection {
        &self.held.connection
    }

    fn fid(&self) -> Fid {
        self.held.fid
    }

    fn node(&self, name: &[u8]) -> Answer<Arc<Self>> {
        let (fid, qid) = answer(self.connection().walk(self.fid(), &[name]))?;
        let held = self.held.other(fid);
        Ok(Arc::new(Self { held, qid: qid.ok_or(Errno::EIO)? }))
    }

    fn copy(&self) -> Answer<Held> {
        let fid = answer(self.connection().copy_fid(self.fid()))?;
        Ok(self.held.other(fid))
    }

    fn file(held: Held, is_directory: bool) -> Arc<dyn OpenFile> {
        Arc::new(RemoteFile {
            held,
            is_directory,
            paused_at: AtomicU64::new(NOWHERE),
            listed: Mutex::default(),
        })
    }

    /// Another node, if it is of a server, which is then taken to be this one.
    fn same_server(other: &dyn Node) -> Answer<&Self> {
        (other as &dyn Any).downcast_ref::<Self>().ok_or(Errno::EXDEV)
    }
}

impl Node for RemoteNode {
    fn qid(&self) -> Qid {
        self.qid
    }

    fn walk(&self, name: &[u8]) -> Answer<Arc<dyn Node>> {
        Ok(self.node(name)?)
    }

    fn attributes(&self, _mask: u64) -> Answer<Attributes> {
        answer(self.connection().attributes(self.fid()))
    }

    fn walk_each(&self, names: &[&[u8]], _mask: u64) -> Vec<Answer<(Arc<dyn Node>, Attributes)>> {
        let found = self.connection().walk_each(self.fid(), names);
        let node = |found| {
            let (fid, attributes): (Fid, Attributes) = answer(found)?;
            let held = self.held.other(fid);
            Ok((Arc::new(Self { held, qid: attributes.qid }) as Arc<dyn Node>, attributes))
        };
        found.into_iter().map(node).collect()
    }

    fn set_attributes(&self, change: &SetAttributes, open: Option<&dyn OpenFile>) -> Answer<()> {
        let open = open.and_then(|open| (open as &dyn Any).downcast_ref::<RemoteFile>());
        let fid = open.map_or(self.fid(), |file| file.held.fid);
        answer(self.connection().set_attributes(fid, change))
    }

    fn open(&self, flags: OpenFlags) -> Answer<Arc<dyn OpenFile>> {
        let held = self.copy()?;
        answer(self.connection().open_file(held.fid, flags))?;
        Ok(Self::file(held, self.qid.kind.is_directory()))
    }

    fn create(&self, name: &[u8], flags: OpenFlags, mode: u32, gid: u32) -> Answer<Created> {
        let held = self.copy()?;
        answer(self.connection().create_file(held.fid, name, flags, mode, gid))?;
        let node = self.node(name)?;
        Ok(Created { node, file: Self::file(held, false) })
    }

    fn read_link(&self) -> Answer<Vec<u8>> {
        answer(self.connection().read_link(self.fid()))
    }

    fn make_directory(&self, name: &[u8], mode: u32, gid: u32) -> Answer<Qid> {
        answer(self.connection().make_directory(self.fid(), name, mode, gid))
    }

    fn make_symlink(&self, name: &[u8], target: &[u8], gid: u32) -> Answer<Qid> {
        answer(self.connection().make_symlink(self.fid(), name, target, gid))
    }

    fn make_node(&self, name: &[u8], spec: &NodeSpec) -> Answer<Qid> {
        answer(self.connection().make_node(self.fid(), name, spec))
    }

    fn link(&self, target: &dyn Node, name: &[u8]) -> Answer<()> {
        answer(self.connection().link(self.fid(), Self::same_server(target)?.fid(), name))
    }

    fn rename_entry(&self, old_name: &[u8], directory: &dyn Node, new_name: &[u8]) -> Answer<()> {
        let directory = Self::same_server(directory)?;
        if self.connection().dialect() != Dialect::Linux && directory.qid.path != self.qid.path {
            return Err(Errno::EXDEV);
        }
        answer(self.connection().rename(self.fid(), old_name, directory.fid(), new_name))
    }

    fn rename(&self, directory: &dyn Node, name: &[u8]) -> Answer<()> {
        let directory = Self::same_server(directory)?;
        if self.connection().dialect() != Dialect::Linux {
            // Which directory it is in is not known here, so neither whether it would stay there.
            return Err(Errno::EXDEV);
        }
        let request = Request::Rename { fid: self.fid(), directory: directory.fid(), name };
        answer(self.connection().call(&request, |reply| matches!(reply, Reply::Rename {}).then_some(())))
    }

    fn unlink(&self, name: &[u8], is_directory: bool) -> Answer<()> {
        answer(self.connection().unlink(self.fid(), name, is_directory))
    }

    fn remove(&self) -> Answer<()> {
        // Tremove forgets its fid, and this one is still needed.
        let copy = answer(self.connection().copy_fid(self.fid()))?;
        answer(self.connection().remove(copy))
    }

    fn statfs(&self) -> Answer<StatFs> {
        answer(self.connection().totals(self.fid()))
    }

    fn xattr(&self, name: &[u8]) -> Answer<Vec<u8>> {
        answer(self.connection().xattr(self.fid(), name))
    }

    fn xattr_names(&self) -> Answer<Vec<u8>> {
        answer(self.connection().xattr(self.fid(), b""))
    }

    fn set_xattr(&self, name: &[u8], value: Option<&[u8]>, flags: XattrFlags) -> Answer<()> {
        answer(self.connection().set_xattr(self.fid(), name, value, flags))
    }
}

/// No offset.
const NOWHERE: u64 = u64::MAX;

struct RemoteFile {
    held: Held,
    is_directory: bool,
    /// Where the last read ended that gave less than was asked for. A stream may then give nothing once, so that a kernel's
    /// client hands out what there is, and go on: its end is where it gives nothing twice.
    paused_at: AtomicU64,
    /// A directory's entries in the dialects that do not let one begin in the middle.
    listed: Mutex<Option<Vec<Listed>>>,
}

impl RemoteFile {
    fn connection(&self) -> &Connection {
        &self.held.connection
    }

    /// Entries by their number, out of a whole listing.
    fn read_listing(&self, offset: u64, entries: &mut Entries<'_>) -> Answer<()> {
        let mut listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        if offset == 0 || listed.is_none() {
            *listed = Some(answer(self.connection().list(self.held.fid))?);
        }
        let start = usize::try_from(offset).map_err(|_| Errno::EINVAL)?;
        for (n, entry) in listed.iter().flatten().enumerate().skip(start) {
            let Listed { qid, kind, name, .. } = entry;
            if !entries.add(&DirectoryEntry { qid: *qid, offset: n as u64 + 1, kind: *kind, name }) {
                return if entries.count() == 0 { Err(Errno::EINVAL) } else { Ok(()) };
            }
        }
        Ok(())
    }
}

impl OpenFile for RemoteFile {
    fn read(&self, offset: u64, buffer: &mut [u8], cancel: &Cancel) -> Answer<usize> {
        if self.is_directory {
            return Err(Errno::EISDIR);
        }
        let read =
            |buffer: &mut [u8]| answer(self.connection().read_full(self.held.fid, offset, buffer, cancel));
        let mut count = read(buffer)?;
        if self.held.pauses == Pauses::Kept {
            return Ok(count);
        }
        if count == 0 && self.paused_at.load(Ordering::Relaxed) == offset {
            count = read(buffer)?;
        }
        let is_short = count > 0 && count < buffer.len();
        let pause = if is_short { offset.saturating_add(count as u64) } else { NOWHERE };
        self.paused_at.store(pause, Ordering::Relaxed);
        Ok(count)
    }

    fn write(&self, offset: u64, bytes: &[u8], _cancel: &Cancel) -> Answer<usize> {
        answer(self.connection().write(self.held.fid, offset, bytes))
    }

    fn read_directory(&self, offset: u64, entries: &mut Entries<'_>) -> Answer<()> {
        if self.connection().dialect() != Dialect::Linux {
            return self.read_listing(offset, entries);
        }
        let room = u32::try_from(entries.room()).unwrap_or(u32::MAX).min(LISTING_BYTES);
        for entry in answer(self.connection().read_directory(self.held.fid, offset, room))? {
            let Listed { qid, offset, kind, name } = &entry;
            if !entries.add(&DirectoryEntry { qid: *qid, offset: *offset, kind: *kind, name }) {
                break;
            }
        }
        Ok(())
    }

    fn sync(&self, data_only: bool) -> Answer<()> {
        answer(self.connection().sync(self.held.fid, data_only))
    }

    fn lock(&self, kind: LockKind, range: &LockRange<'_>) -> Answer<LockStatus> {
        answer(self.connection().lock(self.held.fid, kind, range))
    }

    fn conflicting_lock(&self, kind: LockKind, range: &LockRange<'_>) -> Answer<Option<HeldLock>> {
        answer(self.connection().conflicting_lock(self.held.fid, kind, range))
    }
}
