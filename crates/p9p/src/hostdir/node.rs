//! A file of a share as a client's fid sees it; it follows the file wherever it is renamed to.

use std::any::Any;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fd::OwnedFd;
use rustix::fs::{
    AtFlags, Mode, OFlags, RenameFlags, Statx, StatxFlags, StatxTimestamp, Timespec, Timestamps, UTIME_NOW,
    UTIME_OMIT, fstatfs, ftruncate, openat, readlinkat, statat, utimensat,
};
use rustix::path::DecInt;

use super::Share;
use super::confined::Name;
use super::entry;
use super::file::{HostDirectory, HostFile};
use super::identity::{FileKey, stat};
use super::locks::Locker;
use super::overrule;
use super::place::{At, Identity, Place};
use super::xattr;
use crate::errno::Errno;
use crate::filesystem::{Answer, Created, Node, NodeSpec, OpenFile, OpenFlags, XattrFlags};
use crate::qid::Qid;
use crate::stat::{Attributes, SetAttributes, StatFs, Time, getattr, setattr};

/// Type bits of `st_mode`.
const S_IFMT: u32 = 0o170_000;
const S_IFREG: u32 = 0o100_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFLNK: u32 = 0o120_000;

/// A file of any kind.
pub(super) struct HostNode {
    pub share: Arc<Share>,
    pub place: Arc<Place>,
    pub key: FileKey,
    pub qid: Qid,
    /// Type bits of `st_mode`, which never change.
    kind: u32,
    /// Who attached: owner of what is created, where this process may give files away.
    pub client: Client,
}

/// The attach that a node was reached through.
#[derive(Clone, Copy)]
pub(super) struct Client {
    /// Tells attaches apart.
    pub attach: u64,
    /// The user's uid at the client; `u32::MAX` is unknown.
    pub uid: u32,
}

impl HostNode {
    /// The root for a new attach.
    pub fn root(share: &Arc<Share>, uid: u32) -> Answer<Arc<dyn Node>> {
        let client = Client { attach: share.fresh_id(), uid };
        Ok(Self::kept(share, client, Arc::clone(&share.root))?)
    }

    fn new(share: &Arc<Share>, client: Client, place: Arc<Place>, stat: &Statx) -> Arc<Self> {
        let key = place.identity.key;
        let qid = share.devices.qid(stat);
        let kind = u32::from(stat.stx_mode) & S_IFMT;
        Arc::new(Self { share: Arc::clone(share), place, key, qid, kind, client })
    }

    /// A node for an open descriptor that is kept.
    fn kept(share: &Arc<Share>, client: Client, fd: Arc<OwnedFd>) -> Answer<Arc<Self>> {
        let stat = stat(&fd)?;
        Ok(Self::new(share, client, share.places.kept(Identity::of(&stat), fd), &stat))
    }

    /// Another node for this file, as it is now.
    fn again(&self) -> Answer<Arc<Self>> {
        Ok(Self::new(&self.share, self.client, Arc::clone(&self.place), &stat(&*self.fd()?)?))
    }

    /// A node for the entry `name` of this directory, which `open` opens or makes: by an `O_PATH` descriptor or, of a
    /// file just made, the open file's own.
    pub fn adopt(
        &self,
        name: Name<'_>,
        open: impl FnOnce(&OwnedFd) -> Answer<Arc<OwnedFd>>,
    ) -> Answer<Arc<Self>> {
        let places = &self.share.places;
        let directory = self.fd()?;
        let moves = places.moves();
        let fd = open(&directory)?;
        let stat = stat(&fd)?;
        let at = At::new(&self.place, name);
        let node = Self::new(&self.share, self.client, places.found(Identity::of(&stat), fd, at), &stat);
        if places.moves() != moves {
            // It may have been renamed or removed before it was noted.
            let found = statat(&directory, name.as_os_str(), AtFlags::SYMLINK_NOFOLLOW);
            if !found.is_ok_and(|found| FileKey::of_plain(&found) == node.key) {
                places.settle(&node.place, None);
            }
        }
        Ok(node)
    }

    /// The node of an entry of this directory.
    pub fn find(&self, name: Name<'_>) -> Answer<Arc<Self>> {
        self.adopt(name, |fd| Ok(Arc::new(self.share.open_entry(self.client, fd, name)?)))
    }

    /// The directory above this one, which is not the root.
    fn parent(&self) -> Answer<Arc<Self>> {
        let fd = Arc::new(self.share.parent_of(&*self.fd()?)?);
        let parent = Self::kept(&self.share, self.client, fd)?;
        match self.place.at() {
            // Not one more descriptor that is kept.
            Some(At { directory, .. }) if directory.identity == parent.place.identity => {
                Ok(Self::new(&self.share, self.client, directory, &stat(&*parent.fd()?)?))
            }
            _ => Ok(parent),
        }
    }

    /// The descriptor, to be held for one call or as long as the file is open.
    ///
    /// # Errors
    /// ESTALE when the descriptor was closed and the file is no longer where it was.
    pub fn fd(&self) -> Answer<Arc<OwnedFd>> {
        self.share.fd_of(self.client, &self.place)
    }

    /// [`Share::with_rights`] on this file.
    pub fn with_rights<T>(&self, bits: u32, call: impl Fn(&OwnedFd) -> Answer<T>) -> Answer<T> {
        let fd = self.fd()?;
        self.share.with_rights(self.client, &fd, bits, || call(&fd))
    }

    /// ENOTDIR unless it is a directory.
    pub fn check_directory(&self) -> Answer<()> {
        if self.kind == S_IFDIR { Ok(()) } else { Err(Errno::ENOTDIR) }
    }

    /// Another node, if it is of the same share.
    pub fn same_share<'n>(&self, other: &'n dyn Node) -> Answer<&'n Self> {
        let other = (other as &dyn Any).downcast_ref::<Self>().ok_or(Errno::EXDEV)?;
        if Arc::ptr_eq(&self.share, &other.share) { Ok(other) } else { Err(Errno::EXDEV) }
    }

    fn locker(&self) -> Locker {
        Locker::new(&self.share, self.key, self.client.attach)
    }

    /// An open regular file for a descriptor that was opened with `flags`.
    pub fn open_file(&self, fd: Arc<OwnedFd>, flags: OpenFlags) -> Answer<Arc<dyn OpenFile>> {
        Ok(Arc::new(HostFile { fd, writes: flags.writes(), locker: self.locker(), node: self.fd()? }))
    }

    fn open_directory(&self, flags: OpenFlags) -> Answer<Arc<dyn OpenFile>> {
        if flags.mutates() {
            return Err(Errno::EISDIR);
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = self.with_rights(overrule::LIST, |fd| Ok(openat(fd, ".", flags, Mode::empty())?))?;
        let (share, locker) = (Arc::clone(&self.share), self.locker());
        let position = Mutex::new(Some(0));
        Ok(Arc::new(HostDirectory { fd, share, key: self.key, locker, position, node: self.fd()? }))
    }

    /// Opens this regular file with `flags`.
    fn reopen(&self, flags: OFlags) -> Answer<OwnedFd> {
        self.with_rights(overrule::READ_WRITE, |fd| self.share.reopen(fd, flags))
    }

    fn set_size(&self, size: u64, open: Option<&dyn OpenFile>) -> Answer<()> {
        match self.kind {
            S_IFREG => {}
            S_IFDIR => return Err(Errno::EISDIR),
            _ => return Err(Errno::EINVAL),
        }
        let open = open.and_then(|open| (open as &dyn Any).downcast_ref::<HostFile>());
        match open {
            Some(file) if file.writes => ftruncate(&file.fd, size)?,
            _ => ftruncate(self.reopen(OFlags::WRONLY | OFlags::NONBLOCK)?, size)?,
        }
        Ok(())
    }

    fn set_owner(&self, change: &SetAttributes) -> Answer<()> {
        let ownership = self.share.ownership;
        let uid = (change.valid & setattr::UID != 0).then(|| ownership.map_uid(change.uid));
        let gid = (change.valid & setattr::GID != 0).then(|| ownership.map_gid(change.gid));
        if uid == Some(u32::MAX) || gid == Some(u32::MAX) {
            return Err(Errno::EINVAL);
        }
        let fd = self.fd()?;
        match entry::give(&fd, uid, gid) {
            Err(errno) if !self.share.privileged && ownership.forgives(errno) => {
                // Only on files that are this user's: see `Ownership::Mapped`.
                if stat(&fd)?.stx_uid == self.share.effective.0 { Ok(()) } else { Err(errno) }
            }
            other => other,
        }
    }

    fn set_times(&self, change: &SetAttributes) -> Answer<()> {
        let valid = change.valid;
        let times = Timestamps {
            last_access: timespec(
                valid & setattr::ATIME != 0,
                valid & setattr::ATIME_SET != 0,
                change.atime,
            )?,
            last_modification: timespec(
                valid & setattr::MTIME != 0,
                valid & setattr::MTIME_SET != 0,
                change.mtime,
            )?,
        };
        Ok(utimensat(&self.share.proc_fds, DecInt::from_fd(&*self.fd()?), &times, AtFlags::empty())?)
    }
}

fn timespec(changes: bool, is_set: bool, time: Time) -> Answer<Timespec> {
    let special = |tv_nsec| Timespec { tv_sec: 0, tv_nsec };
    match (changes, is_set) {
        (false, _) => Ok(special(UTIME_OMIT)),
        (true, false) => Ok(special(UTIME_NOW)),
        (true, true) if time.nanoseconds < 1_000_000_000 => Ok(Timespec {
            tv_sec: time.seconds.cast_signed(),
            tv_nsec: time.nanoseconds.try_into().map_err(|_| Errno::EINVAL)?,
        }),
        (true, true) => Err(Errno::EINVAL),
    }
}

/// `open` once more with the flags of a client: what the host is not to see is left out.
fn host_flags(flags: OpenFlags) -> Answer<OFlags> {
    let mut host = match flags.0 & 0o3 {
        0 => OFlags::RDONLY,
        1 => OFlags::WRONLY,
        2 => OFlags::RDWR,
        _ => return Err(Errno::EINVAL),
    };
    let passed = [
        (OpenFlags::TRUNC, OFlags::TRUNC),
        (OpenFlags::APPEND, OFlags::APPEND),
        (OpenFlags::DSYNC, OFlags::DSYNC),
        (OpenFlags::SYNC, OFlags::SYNC),
    ];
    for (theirs, ours) in passed {
        if flags.contains(theirs) {
            host |= ours;
        }
    }
    // A lease or mandatory lock of the host must not stop a worker.
    Ok(host | OFlags::NONBLOCK | OFlags::CLOEXEC)
}

impl Node for HostNode {
    fn qid(&self) -> Qid {
        self.qid
    }

    fn walk(&self, name: &[u8]) -> Answer<Arc<dyn Node>> {
        self.check_directory()?;
        Ok(match name {
            // walk(5) has clients leave it out; diod's do not.
            b"." => self.again()?,
            b".." if self.key == self.share.root_key => self.again()?,
            b".." => self.parent()?,
            name => self.find(Name::new(name)?)?,
        })
    }

    fn attributes(&self, _mask: u64) -> Answer<Attributes> {
        let stat = stat(&*self.fd()?)?;
        Ok(attributes_of(&self.share, &stat))
    }

    /// The size first, as that needs the old permissions; the mode after the owner, whose change takes away setuid;
    /// the times last, as all else changes them.
    fn set_attributes(&self, change: &SetAttributes, open: Option<&dyn OpenFile>) -> Answer<()> {
        self.share.check_writable()?;
        if change.valid & setattr::SIZE != 0 {
            self.set_size(change.size, open)?;
        }
        if change.valid & (setattr::UID | setattr::GID) != 0 {
            self.set_owner(change)?;
        }
        if change.valid & setattr::MODE != 0 {
            if self.kind == S_IFLNK {
                return Err(Errno::EOPNOTSUPP);
            }
            let _modes = self.share.modes.lock().unwrap_or_else(PoisonError::into_inner);
            self.share.change_mode(&*self.fd()?, change.mode)?;
        }
        // A truncation sets mtime to now by itself.
        let times = change.valid & (setattr::ATIME | setattr::MTIME);
        let by_truncation = change.valid & (setattr::SIZE | setattr::MTIME_SET) == setattr::SIZE;
        if times != 0 && !(by_truncation && times == setattr::MTIME) {
            self.set_times(change)?;
        }
        Ok(())
    }

    fn open(&self, flags: OpenFlags) -> Answer<Arc<dyn OpenFile>> {
        match self.kind {
            S_IFDIR => self.open_directory(flags),
            S_IFREG if flags.contains(OpenFlags::DIRECTORY) => Err(Errno::ENOTDIR),
            S_IFREG => {
                if flags.mutates() {
                    self.share.check_writable()?;
                }
                let fd = self.reopen(host_flags(flags)?)?;
                self.open_file(Arc::new(fd), flags)
            }
            S_IFLNK => Err(Errno::ELOOP),
            // The client's kernel handles these itself; opening them here could wait for ever.
            _ => Err(Errno::ENXIO),
        }
    }

    fn create(&self, name: &[u8], flags: OpenFlags, mode: u32, gid: u32) -> Answer<Created> {
        entry::create(self, name, (flags, host_flags(flags)?), mode, gid)
    }

    fn read_link(&self) -> Answer<Vec<u8>> {
        if self.kind != S_IFLNK {
            return Err(Errno::EINVAL);
        }
        Ok(readlinkat(&*self.fd()?, "", Vec::new())?.into_bytes())
    }

    fn make_directory(&self, name: &[u8], mode: u32, gid: u32) -> Answer<Qid> {
        entry::make_directory(self, name, mode, gid)
    }

    fn make_symlink(&self, name: &[u8], target: &[u8], gid: u32) -> Answer<Qid> {
        entry::make_symlink(self, name, target, gid)
    }

    fn make_node(&self, name: &[u8], spec: &NodeSpec) -> Answer<Qid> {
        entry::make_node(self, name, spec)
    }

    fn link(&self, target: &dyn Node, name: &[u8]) -> Answer<()> {
        entry::link(self, self.same_share(target)?, name)
    }

    fn rename_entry(&self, old_name: &[u8], directory: &dyn Node, new_name: &[u8]) -> Answer<()> {
        entry::rename(self, old_name, self.same_share(directory)?, new_name, RenameFlags::empty())
    }

    fn rename_to_new_entry(&self, old_name: &[u8], directory: &dyn Node, new_name: &[u8]) -> Answer<()> {
        entry::rename(self, old_name, self.same_share(directory)?, new_name, RenameFlags::NOREPLACE)
    }

    fn rename(&self, directory: &dyn Node, name: &[u8]) -> Answer<()> {
        entry::rename_node(self, self.same_share(directory)?, name)
    }

    fn unlink(&self, name: &[u8], is_directory: bool) -> Answer<()> {
        entry::unlink(self, name, is_directory)
    }

    fn remove(&self) -> Answer<()> {
        entry::remove_node(self, self.kind == S_IFDIR)
    }

    fn statfs(&self) -> Answer<StatFs> {
        let totals = fstatfs(&*self.fd()?)?;
        Ok(StatFs {
            kind: StatFs::V9FS_MAGIC,
            block_size: totals.f_bsize.try_into().unwrap_or(4096),
            blocks: totals.f_blocks,
            blocks_free: totals.f_bfree,
            blocks_available: totals.f_bavail,
            files: totals.f_files,
            files_free: totals.f_ffree,
            fsid: u64::from(self.key.device.0) << 32 | u64::from(self.key.device.1),
            name_bytes_max: totals.f_namelen.try_into().unwrap_or(255),
        })
    }

    fn xattr(&self, name: &[u8]) -> Answer<Vec<u8>> {
        xattr::value(&*self.fd()?, name)
    }

    fn xattr_names(&self) -> Answer<Vec<u8>> {
        xattr::names(&*self.fd()?)
    }

    fn set_xattr(&self, name: &[u8], value: Option<&[u8]>, flags: XattrFlags) -> Answer<()> {
        self.share.check_writable()?;
        xattr::set(&*self.fd()?, name, value, flags)
    }
}

fn attributes_of(share: &Share, stat: &Statx) -> Attributes {
    let (major, minor) = (u64::from(stat.stx_rdev_major), u64::from(stat.stx_rdev_minor));
    let has_btime = stat.stx_mask & StatxFlags::BTIME.bits() != 0;
    Attributes {
        valid: getattr::BASIC | if has_btime { getattr::BTIME } else { 0 },
        qid: share.devices.qid(stat),
        mode: stat.stx_mode.into(),
        uid: share.ownership.map_uid(stat.stx_uid),
        gid: share.ownership.map_gid(stat.stx_gid),
        nlink: stat.stx_nlink.into(),
        // Linux's new_encode_dev.
        rdev: minor & 0xff | major << 8 | (minor & !0xff) << 12,
        size: stat.stx_size,
        block_size: stat.stx_blksize.into(),
        blocks: stat.stx_blocks,
        atime: time(stat.stx_atime),
        mtime: time(stat.stx_mtime),
        ctime: time(stat.stx_ctime),
        btime: if has_btime { time(stat.stx_btime) } else { Time::default() },
        generation: 0,
        data_version: 0,
    }
}

fn time(stamp: StatxTimestamp) -> Time {
    Time { seconds: stamp.tv_sec.cast_unsigned(), nanoseconds: stamp.tv_nsec.into() }
}
