//! Entries of host directories: made, linked, renamed and removed.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use rustix::fd::OwnedFd;
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, RenameFlags, Uid, chmodat, chownat, linkat, mkdirat, mknodat,
    openat, renameat, renameat_with, symlinkat, unlinkat,
};
use rustix::path::DecInt;

use super::Share;
use super::confined::Name;
use super::identity::{FileKey, stat};
use super::node::HostNode;
use super::overrule::CHANGE;
use super::place::{At, Place};
use crate::errno::Errno;
use crate::filesystem::{Answer, Created, Node, NodeSpec, OpenFlags};
use crate::qid::Qid;

/// Longest target of a symbolic link, its NUL not counted (`PATH_MAX`).
const TARGET_BYTES_MAX: usize = 4095;
/// How often a create without EXCL starts again when others make and remove the name under it.
const CREATE_ATTEMPTS: usize = 8;

/// Changes owner and group, whatever kind of file it is.
pub(super) fn give(fd: &OwnedFd, uid: Option<u32>, gid: Option<u32>) -> Answer<()> {
    let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
    Ok(chownat(fd, "", uid, gid, AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW)?)
}

/// A directory in which something may be made or removed, and a good name in it.
fn writable<'a>(directory: &HostNode, name: &'a [u8]) -> Answer<Name<'a>> {
    directory.check_directory()?;
    let name = Name::new(name)?;
    directory.share.check_writable()?;
    Ok(name)
}

/// Makes a new file its maker's, with exactly the mode asked for. Of symbolic links, `mode` is `None`.
fn settle(parent: &HostNode, new: &OwnedFd, mode: Option<u32>, gid: u32) -> Answer<()> {
    let share = &parent.share;
    let uid = share.ownership.map_uid(parent.client.uid);
    let gid = share.ownership.map_gid(gid);
    let uid = (share.privileged && uid != share.effective.0 && uid != u32::MAX).then_some(uid);
    let gid = (gid != share.effective.1 && gid != u32::MAX).then_some(gid);
    if uid.is_some() || gid.is_some() {
        // The file is made: that it could not be given away as well must not undo that.
        let _kept = give(new, uid, gid);
    }
    match mode {
        // What the umask took away, or a change of owner may have.
        Some(mode) if mode & share.umask != 0 || (uid.is_some() || gid.is_some()) && mode & 0o6000 != 0 => {
            let mode = Mode::from_raw_mode(mode & 0o7777);
            Ok(chmodat(&share.proc_fds, DecInt::from_fd(new), mode, AtFlags::empty())?)
        }
        _ => Ok(()),
    }
}

/// Settles the entry that was just made and returns its qid.
fn settle_entry(parent: &HostNode, name: Name<'_>, mode: Option<u32>, gid: u32) -> Answer<Qid> {
    let node = parent.find(name)?;
    settle(parent, &*node.fd()?, mode, gid)?;
    Ok(node.qid)
}

/// Creates and opens a regular file; without EXCL one that is there is opened.
pub(super) fn create(
    parent: &HostNode,
    name: &[u8],
    (flags, host_flags): (OpenFlags, OFlags),
    mode: u32,
    gid: u32,
) -> Answer<Created> {
    let name = writable(parent, name)?;
    for _ in 0..CREATE_ATTEMPTS {
        match make_file(parent, name, (flags, host_flags), mode, gid) {
            Err(Errno::EEXIST) if !flags.contains(OpenFlags::EXCL) => {}
            made => return made,
        }
        match parent.find(name) {
            Ok(node) => {
                let file = node.open(flags)?;
                return Ok(Created { node, file });
            }
            Err(Errno::ENOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::ESTALE)
}

/// Creates a regular file that is not there yet.
fn make_file(
    parent: &HostNode,
    name: Name<'_>,
    (flags, host_flags): (OpenFlags, OFlags),
    mode: u32,
    gid: u32,
) -> Answer<Created> {
    let exclusive = host_flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
    let host_mode = Mode::from_raw_mode(mode & 0o7777);
    let mut open = None;
    let node = parent.adopt(name, |directory| {
        let make = || Ok(openat(directory, name.as_os_str(), exclusive, host_mode)?);
        let fd = parent.share.with_rights(parent.client, directory, CHANGE, make)?;
        settle(parent, &fd, Some(mode), gid)?;
        Ok(Arc::clone(open.insert(Arc::new(fd))))
    })?;
    let file = node.open_file(open.ok_or(Errno::EIO)?, flags)?;
    Ok(Created { node, file })
}

/// mkdir(2).
pub(super) fn make_directory(parent: &HostNode, name: &[u8], mode: u32, gid: u32) -> Answer<Qid> {
    let name = writable(parent, name)?;
    let host_mode = Mode::from_raw_mode(mode & 0o7777);
    parent.with_rights(CHANGE, |fd| Ok(mkdirat(fd, name.as_os_str(), host_mode)?))?;
    settle_entry(parent, name, Some(mode), gid)
}

/// symlink(2). The target is the client's affair: nothing here follows it.
pub(super) fn make_symlink(parent: &HostNode, name: &[u8], target: &[u8], gid: u32) -> Answer<Qid> {
    let name = writable(parent, name)?;
    match target.len() {
        0 => return Err(Errno::ENOENT),
        len if len > TARGET_BYTES_MAX => return Err(Errno::ENAMETOOLONG),
        _ if target.contains(&0) => return Err(Errno::EINVAL),
        _ => {}
    }
    let target = OsStr::from_bytes(target);
    parent.with_rights(CHANGE, |fd| Ok(symlinkat(target, fd, name.as_os_str())?))?;
    settle_entry(parent, name, None, gid)
}

/// mknod(2) of files, FIFOs and sockets; of devices it is refused, also to root.
pub(super) fn make_node(parent: &HostNode, name: &[u8], spec: &NodeSpec) -> Answer<Qid> {
    let name = writable(parent, name)?;
    let kind = match spec.mode & 0o170_000 {
        0 | 0o100_000 => FileType::RegularFile,
        0o010_000 => FileType::Fifo,
        0o140_000 => FileType::Socket,
        0o020_000 | 0o060_000 => return Err(Errno::EPERM),
        _ => return Err(Errno::EINVAL),
    };
    let host_mode = Mode::from_raw_mode(spec.mode & 0o7777);
    parent.with_rights(CHANGE, |fd| Ok(mknodat(fd, name.as_os_str(), kind, host_mode, 0)?))?;
    settle_entry(parent, name, Some(spec.mode), spec.gid)
}

/// link(2), of a symbolic link the link itself.
pub(super) fn link(parent: &HostNode, target: &HostNode, name: &[u8]) -> Answer<()> {
    let name = writable(parent, name)?;
    let target_fd = target.fd()?;
    parent.with_rights(CHANGE, |fd| {
        let (links, target) = (&target.share.proc_fds, DecInt::from_fd(&*target_fd));
        Ok(linkat(links, target, fd, name.as_os_str(), AtFlags::SYMLINK_FOLLOW)?)
    })
}

/// An entry, by its directory and name.
type Entry<'a> = (FileKey, &'a [u8]);

/// What fids know at an entry that is about to be renamed or removed, with its descriptor: without a name it could not be
/// found again.
fn hold(node: &HostNode, (directory, name): Entry<'_>) -> Option<(Arc<Place>, Arc<OwnedFd>)> {
    let place = node.share.places.entry(directory, name)?;
    // One that was lost already stays so.
    let fd = node.share.fd_of(node.client, &place).ok()?;
    Some((place, fd))
}

/// Notes that an entry is gone.
fn forget(share: &Share, (directory, name): Entry<'_>) {
    share.places.count_move();
    if let Some(place) = share.places.entry(directory, name) {
        share.places.settle(&place, None);
    }
}

/// Notes that an entry was moved, to where another may have been.
fn follow((directory, name): Entry<'_>, new: &HostNode, new_name: Name<'_>) {
    if (directory, name) == (new.key, new_name.as_bytes()) {
        return;
    }
    forget(&new.share, (new.key, new_name.as_bytes()));
    if let Some(place) = new.share.places.entry(directory, name) {
        new.share.places.settle(&place, Some(At::new(&new.place, new_name)));
    }
}

/// renameat2(2).
pub(super) fn rename(
    old: &HostNode,
    old_name: &[u8],
    new: &HostNode,
    new_name: &[u8],
    flags: RenameFlags,
) -> Answer<()> {
    let old_name = writable(old, old_name)?;
    let new_name = writable(new, new_name)?;
    let _held = (hold(old, (old.key, old_name.as_bytes())), hold(new, (new.key, new_name.as_bytes())));
    let (old_fd, new_fd) = (old.fd()?, new.fd()?);
    let rename = || Ok(renameat_with(&old_fd, old_name.as_os_str(), &new_fd, new_name.as_os_str(), flags)?);
    match old.with_rights(CHANGE, |_| rename()) {
        Err(Errno::EACCES) if old.key != new.key => new.with_rights(CHANGE, |_| rename())?,
        result => result?,
    }
    follow((old.key, old_name.as_bytes()), new, new_name);
    Ok(())
}

/// rename(2) of what a node is, wherever it is now.
pub(super) fn rename_node(node: &HostNode, directory: &HostNode, new_name: &[u8]) -> Answer<()> {
    let new_name = writable(directory, new_name)?;
    let (fd, directory_fd) = (node.fd()?, directory.fd()?);
    let (parent, name) = node.share.locate(&fd, node.key)?;
    let parent_key = FileKey::of(&stat(&parent)?);
    let _held = (hold(node, (parent_key, &name)), hold(directory, (directory.key, new_name.as_bytes())));
    renameat(&parent, OsStr::from_bytes(&name), &directory_fd, new_name.as_os_str())?;
    follow((parent_key, &name), directory, new_name);
    Ok(())
}

/// unlink(2) or rmdir(2).
pub(super) fn unlink(parent: &HostNode, name: &[u8], is_directory: bool) -> Answer<()> {
    let name = writable(parent, name)?;
    let _held = hold(parent, (parent.key, name.as_bytes()));
    parent.with_rights(CHANGE, |fd| Ok(unlinkat(fd, name.as_os_str(), removal(is_directory))?))?;
    forget(&parent.share, (parent.key, name.as_bytes()));
    Ok(())
}

/// unlink(2) or rmdir(2) of what a node is, wherever it is now.
pub(super) fn remove_node(node: &HostNode, is_directory: bool) -> Answer<()> {
    node.share.check_writable()?;
    let fd = node.fd()?;
    let (parent, name) = node.share.locate(&fd, node.key)?;
    let parent_key = FileKey::of(&stat(&parent)?);
    let _held = hold(node, (parent_key, &name));
    unlinkat(&parent, OsStr::from_bytes(&name), removal(is_directory))?;
    forget(&node.share, (parent_key, &name));
    Ok(())
}

fn removal(is_directory: bool) -> AtFlags {
    if is_directory { AtFlags::REMOVEDIR } else { AtFlags::empty() }
}
