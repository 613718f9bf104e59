//! Names to descriptors without ever leaving the root.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, openat, openat2, readlinkat, statat};
use rustix::path::DecInt;

use super::Share;
use super::identity::{FileKey, stat};
use super::node::Client;
use super::overrule::SEARCH;
use super::place::{Identity, Place};
use crate::errno::Errno;
use crate::filesystem::Answer;

/// Longest name of a directory entry (`NAME_MAX`).
const NAME_BYTES_MAX: usize = 255;
/// Deepest directory from which `..` is followed.
const DEPTH_MAX: usize = 4096;

/// The name of one entry: not empty, no `/`, no NUL, neither `.` nor `..`.
#[derive(Clone, Copy)]
pub(super) struct Name<'a>(&'a OsStr);

impl<'a> Name<'a> {
    /// Checks a name that a client sent.
    pub fn new(bytes: &'a [u8]) -> Answer<Self> {
        if bytes.len() > NAME_BYTES_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        let forbidden = bytes.iter().any(|byte| matches!(byte, b'/' | 0));
        if bytes.is_empty() || bytes == b"." || bytes == b".." || forbidden {
            return Err(Errno::EINVAL);
        }
        Ok(Self(OsStr::from_bytes(bytes)))
    }

    /// For system calls.
    pub fn as_os_str(self) -> &'a OsStr {
        self.0
    }

    /// As the client sent it.
    pub fn as_bytes(self) -> &'a [u8] {
        self.0.as_bytes()
    }
}

/// How entries are opened.
pub(super) struct Resolver {
    pub has_openat2: bool,
}

impl Resolver {
    /// Tries openat2, which old kernels lack and some sandboxes forbid.
    pub fn probe(root: &OwnedFd) -> Self {
        let probed = openat2(root, ".", PATH, Mode::empty(), BENEATH);
        Self { has_openat2: probed.is_ok() }
    }

    /// An `O_PATH` descriptor of the entry itself, also when it is a symbolic link.
    pub fn open(&self, directory: impl AsFd, name: Name<'_>) -> Answer<OwnedFd> {
        let opened = if self.has_openat2 {
            openat2(directory, name.0, PATH, Mode::empty(), BENEATH)
        } else {
            // A single component with O_NOFOLLOW stays in its directory as well.
            openat(directory, name.0, PATH, Mode::empty())
        };
        Ok(opened?)
    }
}

const PATH: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const BENEATH: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

impl Share {
    /// An `O_PATH` descriptor of an entry of `directory`.
    pub(super) fn open_entry(&self, client: Client, directory: &OwnedFd, name: Name<'_>) -> Answer<OwnedFd> {
        let open = || self.resolver.open(directory, name);
        self.with_rights(client, directory, SEARCH, || self.with_room(open))
    }

    /// Opens the file behind a descriptor once more, with `flags`.
    pub(super) fn reopen(&self, fd: &OwnedFd, flags: OFlags) -> Answer<OwnedFd> {
        let flags = flags | OFlags::CLOEXEC;
        self.with_room(|| Ok(openat(&self.proc_fds, DecInt::from_fd(fd), flags, Mode::empty())?))
    }

    /// Makes `open`, and once more if descriptors ran out and some were in no use.
    fn with_room<T>(&self, open: impl Fn() -> Answer<T>) -> Answer<T> {
        match open() {
            Err(Errno::EMFILE | Errno::ENFILE) if self.places.close_idle() => open(),
            other => other,
        }
    }

    /// The descriptor of a file, found again from the nearest directory above that has one.
    pub(super) fn fd_of(&self, client: Client, place: &Arc<Place>) -> Answer<Arc<OwnedFd>> {
        if let Some(fd) = place.fd() {
            return Ok(fd);
        }
        let mut closed = Vec::new();
        let mut place = Arc::clone(place);
        let mut fd = loop {
            if let Some(fd) = place.fd() {
                break fd;
            }
            let at = place.at().ok_or(Errno::ESTALE)?;
            closed.push((place, at.name));
            place = at.directory;
        };
        while let Some((place, name)) = closed.pop() {
            let found = match self.open_entry(client, &fd, Name::new(&name)?) {
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => return Err(Errno::ESTALE),
                found => found?,
            };
            if Identity::of(&stat(&found)?) != place.identity {
                return Err(Errno::ESTALE);
            }
            fd = place.reopened(Arc::new(found));
        }
        Ok(fd)
    }

    /// The directory above `directory`, which is not the root.
    ///
    /// # Errors
    /// EACCES when that is not below the root: somebody on the host moved `directory` away.
    pub(super) fn parent_of(&self, directory: impl AsFd) -> Answer<OwnedFd> {
        let parent = open_parent(directory.as_fd())?;
        let mut key = FileKey::of(&stat(&parent)?);
        let mut above = None;
        for _ in 0..DEPTH_MAX {
            if key == self.root_key {
                return Ok(parent);
            }
            let next = open_parent(above.as_ref().unwrap_or(&parent).as_fd())?;
            let next_key = FileKey::of(&stat(&next)?);
            if next_key == key {
                break;
            }
            key = next_key;
            above = Some(next);
        }
        Err(Errno::EACCES)
    }

    /// The directory that a node is in now, and its name there.
    ///
    /// # Errors
    /// ENOENT when it was removed or moved out of the root. EBUSY for the root itself.
    pub(super) fn locate(&self, fd: &OwnedFd, key: FileKey) -> Answer<(OwnedFd, Vec<u8>)> {
        if key == self.root_key {
            return Err(Errno::EBUSY);
        }
        let path = readlinkat(&self.proc_fds, DecInt::from_fd(fd), Vec::new())?.into_bytes();
        let root = readlinkat(&self.proc_fds, DecInt::from_fd(&*self.root), Vec::new())?.into_bytes();
        let root = root.strip_suffix(b"/").unwrap_or(&root);
        let below =
            path.strip_prefix(root).and_then(|below| below.strip_prefix(b"/")).ok_or(Errno::ENOENT)?;
        let mut components = below.split(|byte| *byte == b'/');
        let name = components.next_back().ok_or(Errno::ENOENT)?;
        let mut directory = self.root.try_clone().map_err(|_| Errno::EMFILE)?;
        for component in components {
            directory = self.resolver.open(&directory, Name::new(component)?)?;
        }
        // The path was true a moment ago; that it still is shows in the entry's identity.
        let found = statat(&directory, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW)?;
        if FileKey::of_plain(&found) != key {
            return Err(Errno::ENOENT);
        }
        Ok((directory, name.to_vec()))
    }

    /// The path of a descriptor for system calls that take nothing else; valid as long as the descriptor.
    pub(super) fn proc_path(fd: &OwnedFd) -> Vec<u8> {
        let mut path = b"/proc/self/fd/".to_vec();
        path.extend_from_slice(DecInt::from_fd(fd).as_bytes());
        path
    }
}

fn open_parent(directory: BorrowedFd<'_>) -> Answer<OwnedFd> {
    Ok(openat(directory, "..", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}
