//! A file in memory as a client's fid sees it.
//!
//! Locks: `Volume::names` first, where more than one inode changes; then one inode at a time.

use std::any::Any;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};

use super::file::MemoryFile;
use super::inode::{Body, Inode, S_IFDIR, S_IFLNK, S_IFMT, S_IFREG, check_name, empty};
use super::{Volume, now};
use crate::errno::Errno;
use crate::filesystem::{Answer, Created, Node, NodeSpec, OpenFile, OpenFlags, XattrFlags};
use crate::qid::Qid;
use crate::stat::{Attributes, SetAttributes, StatFs, setattr};

/// Longest target of a symbolic link (`PATH_MAX` without its NUL).
const TARGET_BYTES_MAX: usize = 4095;
/// `XATTR_SIZE_MAX`, and how many a file may have.
const XATTR_BYTES_MAX: usize = 65_536;
const XATTRS_MAX: usize = 256;
/// Deepest directory.
const DEPTH_MAX: usize = 4096;
/// Unit of the totals, in bytes.
const BLOCK_BYTES: u32 = 4096;

/// A file of any kind.
pub(super) struct MemoryNode {
    pub inode: Arc<Inode>,
    pub volume: Arc<Volume>,
    /// The user who attached.
    pub uid: u32,
    pub attach: u64,
}

impl MemoryNode {
    fn with(&self, inode: Arc<Inode>) -> Arc<Self> {
        Arc::new(Self { inode, volume: Arc::clone(&self.volume), uid: self.uid, attach: self.attach })
    }

    fn file(&self, flags: OpenFlags) -> Arc<dyn OpenFile> {
        Arc::new(MemoryFile {
            inode: Arc::clone(&self.inode),
            volume: Arc::clone(&self.volume),
            flags,
            attach: self.attach,
            opener: self.volume.next_number.fetch_add(1, Ordering::Relaxed),
        })
    }

    fn names(&self) -> MutexGuard<'_, ()> {
        self.volume.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn same_tree<'n>(&self, other: &'n dyn Node) -> Answer<&'n Self> {
        let other = (other as &dyn Any).downcast_ref::<Self>().ok_or(Errno::EXDEV)?;
        if Arc::ptr_eq(&self.volume, &other.volume) { Ok(other) } else { Err(Errno::EXDEV) }
    }

    fn find(&self, name: &[u8]) -> Answer<Arc<Inode>> {
        let state = self.inode.lock();
        let Body::Directory(directory) = &state.body else { return Err(Errno::ENOTDIR) };
        match name {
            b"." => Ok(Arc::clone(&self.inode)),
            b".." => Ok(directory.parent.upgrade().unwrap_or_else(|| Arc::clone(&self.inode))),
            name if name.len() > 255 => Err(Errno::ENAMETOOLONG),
            name => directory.find(name).ok_or(Errno::ENOENT),
        }
    }

    fn owner(&self, gid: u32) -> (u32, u32) {
        let known = |id: u32| if id == u32::MAX { 0 } else { id };
        (known(self.uid), if gid == u32::MAX { self.inode.lock().gid } else { gid })
    }

    /// Makes an entry; the caller holds the names.
    fn make(&self, name: &[u8], mode: u32, gid: u32, body: Body, rdev: u64) -> Answer<Arc<Inode>> {
        check_name(name)?;
        match self.find(name) {
            Ok(_) => return Err(Errno::EEXIST),
            Err(Errno::ENOENT) => {}
            Err(errno) => return Err(errno),
        }
        if self.inode.lock().nlink == 0 {
            return Err(Errno::ENOENT);
        }
        if mode & S_IFMT == S_IFDIR && depth(&self.inode) >= DEPTH_MAX {
            return Err(Errno::ELOOP);
        }
        self.volume.take_bytes(name.len() as u64)?;
        let made = Inode::make(&self.volume, mode, self.owner(gid), body, rdev);
        let inode = made.inspect_err(|_| self.volume.give_bytes(name.len() as u64))?;
        self.add(name, &inode);
        Ok(inode)
    }

    /// Adds an entry whose name is counted already.
    fn add(&self, name: &[u8], inode: &Arc<Inode>) {
        let mut state = self.inode.lock();
        if let Body::Directory(directory) = &mut state.body {
            directory.insert(name, Arc::clone(inode));
        }
        state.nlink += u64::from(inode.kind == S_IFDIR);
        self.inode.touch(&mut state);
    }

    /// Takes an entry out, whose name is not counted any more.
    fn take(&self, name: &[u8]) -> Option<Arc<Inode>> {
        let mut state = self.inode.lock();
        let Body::Directory(directory) = &mut state.body else { return None };
        let inode = directory.remove(name)?;
        state.nlink -= u64::from(inode.kind == S_IFDIR);
        self.inode.touch(&mut state);
        drop(state);
        self.volume.give_bytes(name.len() as u64);
        Some(inode)
    }

    /// Removes an entry; the caller holds the names.
    fn remove_entry(&self, name: &[u8], is_directory: bool) -> Answer<()> {
        check_name(name)?;
        let inode = self.find(name)?;
        match (inode.kind == S_IFDIR, is_directory) {
            (true, false) => return Err(Errno::EISDIR),
            (false, true) => return Err(Errno::ENOTDIR),
            _ => {}
        }
        check_empty(&inode)?;
        drop(self.take(name));
        unlinked(&inode);
        Ok(())
    }

    /// rename(2); the caller holds the names.
    fn move_entry(&self, old_name: &[u8], to: &Self, new_name: &[u8]) -> Answer<()> {
        check_name(old_name)?;
        check_name(new_name)?;
        let moved = self.find(old_name)?;
        if to.inode.lock().nlink == 0 {
            return Err(Errno::ENOENT);
        }
        if moved.kind == S_IFDIR {
            check_not_above(&moved, &to.inode)?;
        }
        match to.find(new_name) {
            Ok(replaced) if Arc::ptr_eq(&replaced, &moved) => return Ok(()),
            Ok(replaced) => {
                match (replaced.kind == S_IFDIR, moved.kind == S_IFDIR) {
                    (true, false) => return Err(Errno::EISDIR),
                    (false, true) => return Err(Errno::ENOTDIR),
                    _ => check_empty(&replaced)?,
                }
                self.volume.take_bytes(new_name.len() as u64)?;
                drop(to.take(new_name));
                unlinked(&replaced);
            }
            Err(Errno::ENOENT) => self.volume.take_bytes(new_name.len() as u64)?,
            Err(errno) => return Err(errno),
        }
        drop(self.take(old_name));
        to.add(new_name, &moved);
        let mut state = moved.lock();
        if let Body::Directory(directory) = &mut state.body {
            directory.parent = Arc::downgrade(&to.inode);
        }
        state.ctime = now();
        Ok(())
    }

    /// The directory that this node is in, by one of its names. Only directories know theirs; other files are looked
    /// for.
    fn locate(&self) -> Answer<(Self, Arc<[u8]>)> {
        let root = self.root()?;
        let mut directories = vec![root];
        while let Some(directory) = directories.pop() {
            let state = directory.lock();
            let Body::Directory(body) = &state.body else { continue };
            if let Some(name) = body.name_of(&self.inode) {
                drop(state);
                let parent = Self {
                    inode: directory,
                    volume: Arc::clone(&self.volume),
                    uid: self.uid,
                    attach: self.attach,
                };
                return Ok((parent, name));
            }
            directories.extend(
                body.after(0)
                    .filter(|(_, _, inode)| inode.kind == S_IFDIR)
                    .map(|(_, _, inode)| Arc::clone(inode)),
            );
        }
        Err(Errno::ENOENT)
    }

    fn root(&self) -> Answer<Arc<Inode>> {
        self.volume.root.get().and_then(std::sync::Weak::upgrade).ok_or(Errno::ESTALE)
    }
}

fn parent(inode: &Inode) -> Option<Arc<Inode>> {
    match &inode.lock().body {
        Body::Directory(directory) => directory.parent.upgrade(),
        _ => None,
    }
}

fn depth(inode: &Arc<Inode>) -> usize {
    let mut depth = 0;
    let mut at = Arc::clone(inode);
    while let Some(above) = parent(&at) {
        if Arc::ptr_eq(&above, &at) || depth >= DEPTH_MAX {
            break;
        }
        depth += 1;
        at = above;
    }
    depth
}

/// EINVAL where `directory` would become its own ancestor.
fn check_not_above(directory: &Arc<Inode>, target: &Arc<Inode>) -> Answer<()> {
    let mut at = Arc::clone(target);
    loop {
        if Arc::ptr_eq(&at, directory) {
            return Err(Errno::EINVAL);
        }
        match parent(&at) {
            Some(above) if !Arc::ptr_eq(&above, &at) => at = above,
            _ => return Ok(()),
        }
    }
}

fn check_empty(inode: &Inode) -> Answer<()> {
    match &inode.lock().body {
        Body::Directory(directory) if !directory.is_empty() => Err(Errno::ENOTEMPTY),
        _ => Ok(()),
    }
}

/// One name less.
fn unlinked(inode: &Inode) {
    let mut state = inode.lock();
    state.nlink = if inode.kind == S_IFDIR { 0 } else { state.nlink.saturating_sub(1) };
    state.ctime = now();
}

impl Node for MemoryNode {
    fn qid(&self) -> Qid {
        self.inode.qid()
    }

    fn walk(&self, name: &[u8]) -> Answer<Arc<dyn Node>> {
        Ok(self.with(self.find(name)?))
    }

    fn attributes(&self, _mask: u64) -> Answer<Attributes> {
        Ok(self.inode.attributes())
    }

    fn set_attributes(&self, change: &SetAttributes, _open: Option<&dyn OpenFile>) -> Answer<()> {
        let has = |bit| change.valid & bit != 0;
        if has(setattr::MODE) && self.inode.kind == S_IFLNK {
            return Err(Errno::EOPNOTSUPP);
        }
        let mut state = self.inode.lock();
        if has(setattr::SIZE) {
            match &mut state.body {
                Body::File(content) => content.set_len(change.size, &self.volume)?,
                Body::Directory(_) => return Err(Errno::EISDIR),
                _ => return Err(Errno::EINVAL),
            }
            self.inode.touch(&mut state);
        }
        if has(setattr::MODE) {
            state.mode = change.mode & 0o7777;
        }
        if has(setattr::UID) {
            state.uid = change.uid;
        }
        if has(setattr::GID) {
            state.gid = change.gid;
        }
        if has(setattr::ATIME) {
            state.atime = if has(setattr::ATIME_SET) { change.atime } else { now() };
        }
        if has(setattr::MTIME) {
            state.mtime = if has(setattr::MTIME_SET) { change.mtime } else { now() };
        }
        state.ctime = now();
        Ok(())
    }

    fn open(&self, flags: OpenFlags) -> Answer<Arc<dyn OpenFile>> {
        match self.inode.kind {
            S_IFDIR if flags.mutates() => return Err(Errno::EISDIR),
            S_IFDIR => {}
            S_IFREG if flags.contains(OpenFlags::DIRECTORY) => return Err(Errno::ENOTDIR),
            S_IFREG => {
                if flags.contains(OpenFlags::TRUNC) {
                    let mut state = self.inode.lock();
                    if let Body::File(content) = &mut state.body {
                        content.set_len(0, &self.volume)?;
                    }
                    self.inode.touch(&mut state);
                }
            }
            S_IFLNK => return Err(Errno::ELOOP),
            _ => return Err(Errno::ENXIO),
        }
        Ok(self.file(flags))
    }

    fn create(&self, name: &[u8], flags: OpenFlags, mode: u32, gid: u32) -> Answer<Created> {
        check_name(name)?;
        let names = self.names();
        let node = match self.find(name) {
            Ok(_) if flags.contains(OpenFlags::EXCL) => return Err(Errno::EEXIST),
            Ok(found) => {
                drop(names);
                let node = self.with(found);
                let file = node.open(flags)?;
                return Ok(Created { node, file });
            }
            Err(Errno::ENOENT) => self.with(self.make(name, S_IFREG | mode & 0o7777, gid, empty(), 0)?),
            Err(errno) => return Err(errno),
        };
        let file = node.file(flags);
        Ok(Created { node, file })
    }

    fn read_link(&self) -> Answer<Vec<u8>> {
        match &self.inode.lock().body {
            Body::Link(target) => Ok(target.clone()),
            _ => Err(Errno::EINVAL),
        }
    }

    fn make_directory(&self, name: &[u8], mode: u32, gid: u32) -> Answer<Qid> {
        let _names = self.names();
        let body = Inode::directory(&self.inode);
        Ok(self.make(name, S_IFDIR | mode & 0o7777, gid, body, 0)?.qid())
    }

    fn make_symlink(&self, name: &[u8], target: &[u8], gid: u32) -> Answer<Qid> {
        match target.len() {
            0 => return Err(Errno::ENOENT),
            len if len > TARGET_BYTES_MAX => return Err(Errno::ENAMETOOLONG),
            _ => {}
        }
        let _names = self.names();
        Ok(self.make(name, S_IFLNK | 0o777, gid, Body::Link(target.to_vec()), 0)?.qid())
    }

    fn make_node(&self, name: &[u8], spec: &NodeSpec) -> Answer<Qid> {
        let (kind, body) = match spec.mode & S_IFMT {
            0 | S_IFREG => (S_IFREG, empty()),
            S_IFDIR | S_IFLNK => return Err(Errno::EINVAL),
            kind => (kind, Body::Other),
        };
        let (major, minor) = (u64::from(spec.major), u64::from(spec.minor));
        let rdev = minor & 0xff | major << 8 | (minor & !0xff) << 12;
        let _names = self.names();
        Ok(self.make(name, kind | spec.mode & 0o7777, spec.gid, body, rdev)?.qid())
    }

    fn link(&self, target: &dyn Node, name: &[u8]) -> Answer<()> {
        let target = self.same_tree(target)?;
        check_name(name)?;
        if target.inode.kind == S_IFDIR {
            return Err(Errno::EPERM);
        }
        let _names = self.names();
        match self.find(name) {
            Ok(_) => return Err(Errno::EEXIST),
            Err(Errno::ENOENT) => {}
            Err(errno) => return Err(errno),
        }
        let mut state = target.inode.lock();
        if state.nlink == 0 {
            return Err(Errno::ENOENT);
        }
        self.volume.take_bytes(name.len() as u64)?;
        state.nlink += 1;
        state.ctime = now();
        drop(state);
        self.add(name, &target.inode);
        Ok(())
    }

    fn rename_entry(&self, old_name: &[u8], directory: &dyn Node, new_name: &[u8]) -> Answer<()> {
        let directory = self.same_tree(directory)?;
        let _names = self.names();
        self.move_entry(old_name, directory, new_name)
    }

    fn rename_to_new_entry(&self, old_name: &[u8], directory: &dyn Node, new_name: &[u8]) -> Answer<()> {
        let directory = self.same_tree(directory)?;
        let _names = self.names();
        match directory.find(new_name) {
            Ok(_) => Err(Errno::EEXIST),
            Err(Errno::ENOENT) => self.move_entry(old_name, directory, new_name),
            Err(errno) => Err(errno),
        }
    }

    fn rename(&self, directory: &dyn Node, name: &[u8]) -> Answer<()> {
        let directory = self.same_tree(directory)?;
        let _names = self.names();
        let (parent, old_name) = self.locate()?;
        parent.move_entry(&old_name, directory, name)
    }

    fn unlink(&self, name: &[u8], is_directory: bool) -> Answer<()> {
        let _names = self.names();
        self.remove_entry(name, is_directory)
    }

    fn remove(&self) -> Answer<()> {
        let _names = self.names();
        if Arc::ptr_eq(&self.root()?, &self.inode) {
            return Err(Errno::EBUSY);
        }
        let (parent, name) = self.locate()?;
        parent.remove_entry(&name, self.inode.kind == S_IFDIR)
    }

    fn statfs(&self) -> Answer<StatFs> {
        let blocks = |bytes: u64| bytes / u64::from(BLOCK_BYTES);
        let quota = self.volume.quota;
        let free = blocks(quota.bytes.saturating_sub(self.volume.bytes.load(Ordering::Relaxed)));
        Ok(StatFs {
            kind: StatFs::V9FS_MAGIC,
            block_size: BLOCK_BYTES,
            blocks: blocks(quota.bytes),
            blocks_free: free,
            blocks_available: free,
            files: quota.nodes,
            files_free: quota.nodes.saturating_sub(self.volume.nodes.load(Ordering::Relaxed)),
            fsid: 0,
            name_bytes_max: 255,
        })
    }

    fn xattr(&self, name: &[u8]) -> Answer<Vec<u8>> {
        self.inode.lock().xattrs.get(name).cloned().ok_or(Errno::ENODATA)
    }

    fn xattr_names(&self) -> Answer<Vec<u8>> {
        let state = self.inode.lock();
        Ok(state.xattrs.keys().flat_map(|name| name.iter().copied().chain([0])).collect())
    }

    fn set_xattr(&self, name: &[u8], value: Option<&[u8]>, flags: XattrFlags) -> Answer<()> {
        if name.is_empty() || name.len() > 255 || name.contains(&0) {
            return Err(Errno::ERANGE);
        }
        if !name.starts_with(b"user.") {
            return Err(Errno::EOPNOTSUPP);
        }
        if value.is_some_and(|value| value.len() > XATTR_BYTES_MAX) {
            return Err(Errno::E2BIG);
        }
        let mut state = self.inode.lock();
        let old = state.xattrs.get(name).map(|old| (name.len() + old.len()) as u64);
        match (old, value) {
            (None, None) => return Err(Errno::ENODATA),
            (None, Some(_)) if flags == XattrFlags::REPLACE => return Err(Errno::ENODATA),
            (Some(_), Some(_)) if flags == XattrFlags::CREATE => return Err(Errno::EEXIST),
            (None, Some(_)) if state.xattrs.len() >= XATTRS_MAX => return Err(Errno::ENOSPC),
            _ => {}
        }
        if let Some(value) = value {
            self.volume.take_bytes((name.len() + value.len()) as u64)?;
            state.xattrs.insert(name.to_vec(), value.to_vec());
        } else {
            state.xattrs.remove(name);
        }
        self.volume.give_bytes(old.unwrap_or(0));
        state.ctime = now();
        Ok(())
    }
}
