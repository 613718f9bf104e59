//! A file of any kind: what stays the same under all its names.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::content::Content;
use super::{Volume, now};
use crate::errno::Errno;
use crate::filesystem::{Answer, HeldLock};
use crate::qid::{Qid, QidKind};
use crate::stat::{Attributes, LockKind, LockRange, LockStatus, Time, getattr};

/// Type bits of `st_mode`.
pub(super) const S_IFMT: u32 = 0o170_000;
pub(super) const S_IFDIR: u32 = 0o040_000;
pub(super) const S_IFREG: u32 = 0o100_000;
pub(super) const S_IFLNK: u32 = 0o120_000;
/// Longest name of an entry.
const NAME_BYTES_MAX: usize = 255;
/// Most locks of one file.
const LOCKS_MAX: usize = 4096;

/// A file.
pub(super) struct Inode {
    pub number: u64,
    /// Type bits.
    pub kind: u32,
    pub rdev: u64,
    /// Changes with the content.
    version: AtomicU32,
    pub state: Mutex<State>,
    volume: Arc<Volume>,
}

/// What can change.
pub(super) struct State {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub nlink: u64,
    pub atime: Time,
    pub mtime: Time,
    pub ctime: Time,
    pub btime: Time,
    pub body: Body,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub locks: Vec<Lock>,
}

/// What a file is made of.
pub(super) enum Body {
    File(Content),
    Directory(Directory),
    Link(Vec<u8>),
    Other,
}

/// A lock that is held.
#[derive(Clone)]
pub(super) struct Lock {
    pub exclusive: bool,
    pub start: u64,
    pub end: u64,
    pub owner: (u64, u32, Vec<u8>),
    /// The open file it was taken through.
    pub opener: u64,
}

/// A directory's entries: by name, and in the order in which they were made, which is the order of a listing.
pub(super) struct Directory {
    pub parent: Weak<Inode>,
    names: HashMap<Arc<[u8]>, u64>,
    entries: BTreeMap<u64, (Arc<[u8]>, Arc<Inode>)>,
    next_cookie: u64,
}

/// A name that an entry can have.
pub(super) fn check_name(name: &[u8]) -> Answer<()> {
    match name {
        b"" | b"." | b".." => Err(Errno::EINVAL),
        name if name.len() > NAME_BYTES_MAX => Err(Errno::ENAMETOOLONG),
        name if name.iter().any(|byte| matches!(byte, b'/' | 0)) => Err(Errno::EINVAL),
        _ => Ok(()),
    }
}

impl Directory {
    fn new(parent: Weak<Inode>) -> Self {
        // Cookies 1 and 2 are those of `.` and `..`.
        Self { parent, names: HashMap::new(), entries: BTreeMap::new(), next_cookie: 3 }
    }

    pub fn find(&self, name: &[u8]) -> Option<Arc<Inode>> {
        let cookie = self.names.get(name)?;
        self.entries.get(cookie).map(|(_, inode)| Arc::clone(inode))
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Adds an entry whose name is not there.
    pub fn insert(&mut self, name: &[u8], inode: Arc<Inode>) {
        let name: Arc<[u8]> = name.into();
        self.names.insert(Arc::clone(&name), self.next_cookie);
        self.entries.insert(self.next_cookie, (name, inode));
        self.next_cookie += 1;
    }

    pub fn remove(&mut self, name: &[u8]) -> Option<Arc<Inode>> {
        let cookie = self.names.remove(name)?;
        self.entries.remove(&cookie).map(|(_, inode)| inode)
    }

    /// The entries after a cookie.
    pub fn after(&self, cookie: u64) -> impl Iterator<Item = (u64, &[u8], &Arc<Inode>)> {
        self.entries.range(cookie + 1..).map(|(cookie, (name, inode))| (*cookie, &**name, inode))
    }

    /// Some name of an inode.
    pub fn name_of(&self, inode: &Arc<Inode>) -> Option<Arc<[u8]>> {
        self.entries.values().find(|(_, found)| Arc::ptr_eq(found, inode)).map(|(name, _)| Arc::clone(name))
    }
}

impl Inode {
    /// The root of a tree.
    pub fn root(volume: &Arc<Volume>) -> Arc<Self> {
        let root = |this: &Weak<Self>| {
            let body = Body::Directory(Directory::new(this.clone()));
            Self::assemble(volume, 0, S_IFDIR | 0o755, (0, 0), body, 0)
        };
        Arc::new_cyclic(root)
    }

    /// A new file without a name, counted against the quota until it is dropped.
    pub fn make(
        volume: &Arc<Volume>,
        mode: u32,
        owner: (u32, u32),
        body: Body,
        rdev: u64,
    ) -> Answer<Arc<Self>> {
        if let Body::Link(target) = &body {
            volume.take_bytes(target.len() as u64)?;
        }
        match volume.take_node() {
            Ok(number) => Ok(Arc::new(Self::assemble(volume, number, mode, owner, body, rdev))),
            Err(errno) => {
                if let Body::Link(target) = &body {
                    volume.give_bytes(target.len() as u64);
                }
                Err(errno)
            }
        }
    }

    /// A directory's body, below `parent`.
    pub fn directory(parent: &Arc<Self>) -> Body {
        Body::Directory(Directory::new(Arc::downgrade(parent)))
    }

    fn assemble(
        volume: &Arc<Volume>,
        number: u64,
        mode: u32,
        (uid, gid): (u32, u32),
        body: Body,
        rdev: u64,
    ) -> Self {
        let time = now();
        let nlink = if mode & S_IFMT == S_IFDIR { 2 } else { 1 };
        let state = State {
            mode: mode & 0o7777,
            uid,
            gid,
            nlink,
            atime: time,
            mtime: time,
            ctime: time,
            btime: time,
            body,
            xattrs: BTreeMap::new(),
            locks: Vec::new(),
        };
        Self {
            number,
            kind: mode & S_IFMT,
            rdev,
            version: AtomicU32::new(0),
            state: Mutex::new(state),
            volume: Arc::clone(volume),
        }
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn qid(&self) -> Qid {
        let kind = match self.kind {
            S_IFDIR => QidKind::DIRECTORY,
            S_IFLNK => QidKind::SYMLINK,
            _ => QidKind::FILE,
        };
        Qid { kind, version: self.version.load(Ordering::Relaxed), path: self.number }
    }

    /// The content is another.
    pub fn touch(&self, state: &mut State) {
        self.version.fetch_add(1, Ordering::Relaxed);
        state.mtime = now();
        state.ctime = state.mtime;
    }

    pub fn attributes(&self) -> Attributes {
        let state = self.lock();
        let (size, taken) = match &state.body {
            Body::File(content) => (content.len(), content.taken()),
            Body::Link(target) => (target.len() as u64, 0),
            Body::Directory(directory) => (directory.entries.len() as u64, 0),
            Body::Other => (0, 0),
        };
        Attributes {
            valid: getattr::BASIC | getattr::BTIME,
            qid: self.qid(),
            mode: self.kind | state.mode,
            uid: state.uid,
            gid: state.gid,
            nlink: state.nlink,
            rdev: self.rdev,
            size,
            block_size: 4096,
            blocks: taken.div_ceil(512),
            atime: state.atime,
            mtime: state.mtime,
            ctime: state.ctime,
            btime: state.btime,
            generation: 0,
            data_version: self.version.load(Ordering::Relaxed).into(),
        }
    }

    /// Takes or gives back a lock; the rules are those of fcntl(2).
    pub fn set_lock(&self, kind: LockKind, wanted: Lock) -> Answer<LockStatus> {
        let mut state = self.lock();
        if kind != LockKind::UNLOCK && conflict(&state.locks, &wanted).is_some() {
            return Ok(LockStatus::Blocked);
        }
        let mut pieces = Vec::new();
        state.locks.retain(|held| {
            if held.owner != wanted.owner || held.start > wanted.end || wanted.start > held.end {
                return true;
            }
            if held.start < wanted.start {
                pieces.push(Lock { end: wanted.start - 1, ..held.clone() });
            }
            if held.end > wanted.end {
                pieces.push(Lock { start: wanted.end + 1, ..held.clone() });
            }
            false
        });
        state.locks.append(&mut pieces);
        if kind != LockKind::UNLOCK {
            if state.locks.len() >= LOCKS_MAX {
                return Err(Errno::ENOLCK);
            }
            state.locks.push(wanted);
        }
        Ok(LockStatus::Success)
    }

    /// The first lock in the way.
    pub fn find_lock(&self, wanted: &Lock) -> Option<HeldLock> {
        let state = self.lock();
        conflict(&state.locks, wanted).map(|held| HeldLock {
            kind: if held.exclusive { LockKind::WRITE } else { LockKind::READ },
            start: held.start,
            length: if held.end == u64::MAX { 0 } else { held.end - held.start + 1 },
            process: held.owner.1,
            client: held.owner.2.clone(),
        })
    }
}

impl Lock {
    pub fn new(kind: LockKind, range: &LockRange<'_>, attach: u64, opener: u64) -> Answer<Self> {
        if range.client.len() > NAME_BYTES_MAX || kind.0 > LockKind::UNLOCK.0 {
            return Err(Errno::EINVAL);
        }
        let end = match range.length {
            0 => u64::MAX,
            length => range.start.checked_add(length - 1).ok_or(Errno::EINVAL)?,
        };
        let owner = (attach, range.process, range.client.to_vec());
        Ok(Self { exclusive: kind == LockKind::WRITE, start: range.start, end, owner, opener })
    }
}

fn conflict<'l>(locks: &'l [Lock], wanted: &Lock) -> Option<&'l Lock> {
    locks
        .iter()
        .filter(|held| held.start <= wanted.end && wanted.start <= held.end)
        .find(|held| held.owner != wanted.owner && (held.exclusive || wanted.exclusive))
}

impl Drop for Inode {
    /// What it took is free again. A deep tree is taken apart in a loop: dropping it recursively could take more stack
    /// than there is.
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        let mut bytes: u64 = state.xattrs.iter().map(|(name, value)| (name.len() + value.len()) as u64).sum();
        let mut below = Vec::new();
        match &mut state.body {
            Body::File(content) => bytes += content.taken(),
            Body::Link(target) => bytes += target.len() as u64,
            Body::Directory(directory) => below.extend(std::mem::take(&mut directory.entries).into_values()),
            Body::Other => {}
        }
        while let Some((name, inode)) = below.pop() {
            bytes += name.len() as u64;
            let Some(inode) = Arc::into_inner(inode) else { continue };
            if let Body::Directory(directory) = &mut inode.lock().body {
                below.extend(std::mem::take(&mut directory.entries).into_values());
            }
        }
        self.volume.give_bytes(bytes);
        if self.number != 0 {
            self.volume.nodes.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// An empty file's body.
pub(super) fn empty() -> Body {
    Body::File(Content::default())
}
