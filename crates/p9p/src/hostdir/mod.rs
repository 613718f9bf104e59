//! A host directory as a 9P service, with the rights of the user who runs the server.
//!
//! Confinement: every node is an `O_PATH` descriptor; a name is resolved one component at a time from its directory's
//! descriptor, by `openat2(RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)` or, where the kernel lacks it, with `O_NOFOLLOW`.
//! Symbolic links are handed to the client as links and never followed here; `..` is checked against the root. So
//! neither names, nor links, nor renames in between lead out. FIFOs, sockets and devices are never opened.
//!
//! Files are opened again from their `O_PATH` descriptor through `/proc/self/fd`, which is what keeps a removed or
//! renamed file usable through its fid. Descriptors are fewer than fids: see `place`.
//!
//! Locks are kept here, between the clients of one [`HostDir`]: processes of the host do not see them.

mod confined;
mod entry;
mod file;
mod identity;
mod locks;
mod node;
mod overrule;
mod ownership;
mod place;
#[cfg(test)]
mod tests;
mod xattr;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use rustix::fd::OwnedFd;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno as OsErrno;

use crate::errno::Errno;
use crate::filesystem::{Answer, Attach, Filesystem, Node};
use confined::Resolver;
use identity::{Devices, FileKey};
use locks::LockTable;
use node::HostNode;
pub use ownership::Ownership;
use place::Places;

/// Why a host directory cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum HostDirError {
    /// It is not there, or not to be reached.
    #[error("cannot open {}: {errno}", path.display())]
    Open {
        /// As given.
        path: PathBuf,
        /// Why.
        errno: Errno,
    },
    /// It is a file.
    #[error("{} is not a directory", path.display())]
    NotADirectory {
        /// As given.
        path: PathBuf,
    },
    /// `/proc` is not mounted, without which files cannot be opened safely.
    #[error("cannot open /proc/self/fd, which serving {} needs: {errno}", path.display())]
    NoProc {
        /// As given.
        path: PathBuf,
        /// Why.
        errno: Errno,
    },
}

/// A directory of the host, to be given to a [`Session`](crate::Session). Cheap to clone; clones share their locks.
#[derive(Clone)]
pub struct HostDir {
    share: Arc<Share>,
}

/// What all nodes of a share have in common.
struct Share {
    root: Arc<OwnedFd>,
    root_key: FileKey,
    /// `/proc/self/fd`.
    proc_fds: OwnedFd,
    resolver: Resolver,
    places: Arc<Places>,
    read_only: bool,
    ownership: Ownership,
    /// Whether this process may give files away.
    privileged: bool,
    effective: (u32, u32),
    /// What the kernel takes away from the mode of new files.
    umask: u32,
    devices: Devices,
    locks: LockTable,
    /// Held while modes are changed, see `overrule`.
    modes: Mutex<()>,
    next_id: AtomicU64,
}

impl HostDir {
    /// Serves the directory at `path` with [`Ownership::of_this_process`].
    ///
    /// # Errors
    /// [`HostDirError`] when it is missing, not a directory, or this process may not open it.
    pub fn new(path: impl AsRef<Path>, read_only: bool) -> Result<Self, HostDirError> {
        Self::with_ownership(path, read_only, Ownership::of_this_process())
    }

    /// Serves the directory at `path`; read-only, every change fails with EROFS.
    ///
    /// # Errors
    /// As [`HostDir::new`].
    pub fn with_ownership(
        path: impl AsRef<Path>,
        read_only: bool,
        ownership: Ownership,
    ) -> Result<Self, HostDirError> {
        let path = path.as_ref();
        let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let failed = |errno: OsErrno| match errno {
            OsErrno::NOTDIR if path.exists() => HostDirError::NotADirectory { path: path.into() },
            errno => HostDirError::Open { path: path.into(), errno: errno.into() },
        };
        let root = openat(CWD, path, directory, Mode::empty()).map_err(failed)?;
        let proc_fds = openat(CWD, "/proc/self/fd", directory, Mode::empty())
            .map_err(|errno| HostDirError::NoProc { path: path.into(), errno: errno.into() })?;
        let root_key = identity::stat(&root)
            .map_err(|errno| HostDirError::Open { path: path.into(), errno })
            .map(|stat| FileKey::of(&stat))?;
        let effective = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let share = Share {
            resolver: Resolver::probe(&root),
            places: Places::new(),
            root: Arc::new(root),
            root_key,
            proc_fds,
            read_only,
            ownership,
            privileged: effective.0 == 0,
            effective,
            umask: ownership::umask_of_this_process(),
            devices: Devices::new(root_key),
            locks: LockTable::default(),
            modes: Mutex::new(()),
            next_id: AtomicU64::new(0),
        };
        Ok(Self { share: Arc::new(share) })
    }
}

impl std::fmt::Debug for HostDir {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostDir")
            .field("read_only", &self.share.read_only)
            .field("ownership", &self.share.ownership)
            .finish_non_exhaustive()
    }
}

impl Share {
    /// A number that nothing else in this share has.
    fn fresh_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// EROFS where nothing may change.
    fn check_writable(&self) -> Answer<()> {
        if self.read_only { Err(Errno::EROFS) } else { Ok(()) }
    }
}

impl Filesystem for HostDir {
    /// `tree` is a path below the root, empty or `/` for the root itself.
    fn attach(&self, attach: &Attach<'_>) -> Answer<Arc<dyn Node>> {
        let mut node: Arc<dyn Node> = HostNode::root(&self.share, attach.numeric_user)?;
        for name in attach.tree.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            node = node.walk(name)?;
        }
        Ok(node)
    }
}
