//! Mounting and unmounting.

mod guard;
mod kernel;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use p9p::Errno;
use p9p::filesystem::{Attach, Filesystem};

use crate::abi::{self, Body, OUT_HEADER_BYTES, init, op};
use crate::caching::{Caching, Policy};
use crate::inodes::Inodes;
use crate::invalidate::Invalidator;
use crate::reply::Reply;
use crate::session::{Features, IO_BYTES_MAX, Session};
use guard::Guard;
use kernel::Unmounter;

/// How long an unmount waits for those who still use the tree.
const UNMOUNT_WAIT: Duration = Duration::from_secs(2);
/// Requests that the kernel sends ahead of a program that reads or writes in sequence.
const BACKGROUND_MAX: u16 = 64;

/// Why a directory cannot be mounted on.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// No FUSE here.
    #[error("there is no /dev/fuse: load the module (modprobe fuse), or give the container that device")]
    NoDevice,
    /// The directory is missing or a file.
    #[error("cannot mount on {}: {errno}", path.display())]
    Directory {
        /// As given.
        path: PathBuf,
        /// Why.
        errno: Errno,
    },
    /// Not root, and no fusermount3.
    #[error(
        "mounting on {} takes root, a user namespace, or fusermount3, which is not installed (package fuse3)",
        path.display()
    )]
    NotPermitted {
        /// As given.
        path: PathBuf,
    },
    /// fusermount3 refused.
    #[error("fusermount3 did not mount {}: {said}", path.display())]
    Fusermount {
        /// As given.
        path: PathBuf,
        /// Its own words.
        said: String,
    },
    /// The kernel's FUSE is too old or says what we do not understand.
    #[error("the kernel speaks FUSE {major}.{minor}, and we need at least 7.31 (Linux 5.4)")]
    Version {
        /// Its version.
        major: u32,
        /// Its version.
        minor: u32,
    },
    /// The service has no such tree.
    #[error("the service refused the attach: {0}")]
    Attach(Errno),
    /// A system call failed.
    #[error("{call} failed: {errno}")]
    System {
        /// Which.
        call: &'static str,
        /// Why.
        errno: Errno,
    },
}

/// How to mount.
pub struct MountOptions {
    /// What the first column of /proc/mounts says.
    pub source: String,
    /// Whether other users may use it; the kernel then checks modes itself.
    pub allow_other: bool,
    /// Whether the kernel refuses every change.
    pub read_only: bool,
    /// Whether the kernel collects writes. Only for trees that nobody else changes or looks at.
    pub writeback: bool,
    /// Whether locks go to the service, where its other clients meet them; otherwise the kernel keeps them.
    pub server_locks: bool,
    /// Whether there are extended attributes; without, the kernel asks for none, which spares it a request a write.
    pub xattrs: bool,
    /// Nodes that the kernel may know before it is asked to forget some.
    pub inodes_max: usize,
    /// Whether a helper process unmounts when this one dies.
    pub guard: bool,
    /// Which tree of the service.
    pub tree: Vec<u8>,
    /// What the kernel may keep.
    pub policy: Policy,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            source: "9p".into(),
            allow_other: false,
            read_only: false,
            writeback: false,
            server_locks: false,
            xattrs: true,
            inodes_max: 1 << 20,
            guard: true,
            tree: Vec::new(),
            policy: Arc::new(|_| Caching::SHARED),
        }
    }
}

/// A mounted service. Unmounts when dropped.
pub struct Mount {
    path: PathBuf,
    session: Arc<Session>,
    unmounter: Unmounter,
    guard: Option<Guard>,
}

impl Mount {
    /// Mounts `filesystem` on the directory `path`, and returns when it can be used.
    ///
    /// What a dead server left there is unmounted first.
    ///
    /// # Errors
    /// See [`MountError`].
    pub fn new(
        filesystem: &dyn Filesystem,
        path: impl AsRef<Path>,
        options: MountOptions,
    ) -> Result<Self, MountError> {
        let attach =
            Attach { user: b"", numeric_user: rustix::process::geteuid().as_raw(), tree: &options.tree };
        let root = filesystem.attach(&attach).map_err(MountError::Attach)?;
        let path = kernel::check_directory(path.as_ref())?;
        let (device, unmounter) = kernel::mount(&path, &options)?;
        // Before anybody can use it, so that there is no moment at which a kill leaves it behind.
        let guard = options.guard.then(|| Guard::start(&path, &unmounter)).flatten();
        match Self::begin(path, root, device, unmounter.clone(), options) {
            Ok(mut mount) => {
                mount.guard = guard;
                Ok(mount)
            }
            Err((path, error)) => {
                unmounter.unmount(&path);
                if let Some(guard) = guard {
                    guard.dismiss();
                }
                Err(error)
            }
        }
    }

    fn begin(
        path: PathBuf,
        root: Arc<dyn p9p::filesystem::Node>,
        device: OwnedFd,
        unmounter: Unmounter,
        options: MountOptions,
    ) -> Result<Self, (PathBuf, MountError)> {
        let device = Arc::new(device);
        let features = match handshake(&device, &options) {
            Ok(features) => features,
            Err(error) => return Err((path, error)),
        };
        let inodes = Arc::new(Inodes::new(root, options.inodes_max));
        let thread_failed = |path: PathBuf, _: std::io::Error| {
            (path, MountError::System { call: "starting a thread", errno: Errno::EAGAIN })
        };
        let invalidator = match Invalidator::start(Arc::clone(&inodes), Arc::clone(&device)) {
            Ok(invalidator) => invalidator,
            Err(error) => return Err(thread_failed(path, error)),
        };
        let session = Arc::new(Session::new(device, inodes, options.policy, features, invalidator));
        if let Err(error) = session.start() {
            session.stop();
            return Err(thread_failed(path, error));
        }
        kernel::raise_readahead(&path);
        Ok(Self { path, session, unmounter, guard: None })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Tells the kernel of changes.
    pub fn invalidator(&self) -> Invalidator {
        self.session.invalidator.clone()
    }

    /// How many nodes the kernel knows.
    pub fn n_inodes(&self) -> usize {
        self.session.inodes.len()
    }

    /// Waits until somebody unmounts it.
    pub fn wait(&self) {
        self.session.ended.wait(None);
    }

    /// Waits at most so long; says whether it is unmounted.
    pub fn wait_timeout(&self, timeout: Duration) -> bool {
        self.session.ended.wait(Some(timeout))
    }

    /// Unmounts. Reads that wait are given up; programs that still have files open get errors.
    pub fn unmount(self) {
        drop(self);
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if !self.session.ended.wait(Some(Duration::ZERO)) {
            let connection = kernel::connection_of(&self.path);
            self.unmounter.unmount(&self.path);
            self.session.cancel_all();
            if !self.session.ended.wait(Some(UNMOUNT_WAIT))
                && let Some(connection) = connection
            {
                kernel::abort(&connection);
                self.session.ended.wait(Some(UNMOUNT_WAIT));
            }
        }
        self.session.stop();
        if let Some(guard) = self.guard.take() {
            guard.dismiss();
        }
    }
}

impl std::fmt::Debug for Mount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mount").field("path", &self.path).finish_non_exhaustive()
    }
}

/// FUSE_INIT: agrees on a version, sizes and features.
fn handshake(device: &OwnedFd, options: &MountOptions) -> Result<Features, MountError> {
    let failed = |call| move |errno: rustix::io::Errno| MountError::System { call, errno: errno.into() };
    let mut buffer = vec![0; IO_BYTES_MAX + 4096];
    loop {
        let count = match rustix::io::read(device, &mut *buffer) {
            Err(rustix::io::Errno::INTR | rustix::io::Errno::NOENT | rustix::io::Errno::AGAIN) => continue,
            result => result.map_err(failed("reading /dev/fuse"))?,
        };
        let malformed = MountError::Version { major: 0, minor: 0 };
        let (header, mut body) = abi::parse(&buffer[..count]).ok_or(malformed)?;
        if header.opcode != op::INIT {
            return Err(MountError::Version { major: 0, minor: 0 });
        }
        let offer =
            Offer::parse(&mut body).map_err(|errno| MountError::System { call: "FUSE_INIT", errno })?;
        let mut reply = Reply::default();
        if offer.major > abi::MAJOR {
            // It asks again in ours.
            reply.u32(abi::MAJOR);
            reply.u32(abi::MINOR);
            rustix::io::write(device, reply.finish(header.unique, Ok(()))).map_err(failed("FUSE_INIT"))?;
            continue;
        }
        if offer.major < abi::MAJOR || offer.minor < abi::MINOR_MIN {
            let _ = rustix::io::write(device, reply.finish(header.unique, Err(Errno::EPROTO)));
            return Err(MountError::Version { major: offer.major, minor: offer.minor });
        }
        let features = offer.accept(options, &mut reply);
        debug_assert_eq!(reply.len() + OUT_HEADER_BYTES, 80);
        rustix::io::write(device, reply.finish(header.unique, Ok(()))).map_err(failed("FUSE_INIT"))?;
        return Ok(features);
    }
}

/// `fuse_init_in`.
struct Offer {
    major: u32,
    minor: u32,
    readahead: u32,
    flags: u32,
}

impl Offer {
    fn parse(body: &mut Body<'_>) -> Result<Self, Errno> {
        Ok(Self { major: body.u32()?, minor: body.u32()?, readahead: body.u32()?, flags: body.u32()? })
    }

    /// `fuse_init_out`.
    fn accept(&self, options: &MountOptions, reply: &mut Reply) -> Features {
        let mut wanted = init::ASYNC_READ
            | init::ATOMIC_O_TRUNC
            | init::BIG_WRITES
            | init::AUTO_INVAL_DATA
            | init::DO_READDIRPLUS
            | init::READDIRPLUS_AUTO
            | init::ASYNC_DIO
            | init::PARALLEL_DIROPS
            | init::MAX_PAGES;
        if options.writeback {
            wanted |= init::WRITEBACK_CACHE;
        }
        if options.server_locks {
            wanted |= init::POSIX_LOCKS | init::FLOCK_LOCKS;
        }
        let agreed = wanted & self.flags;
        reply.u32(abi::MAJOR);
        reply.u32(abi::MINOR);
        reply.u32(self.readahead.max(1 << 20));
        reply.u32(agreed);
        reply.extend(&BACKGROUND_MAX.to_ne_bytes());
        reply.extend(&(BACKGROUND_MAX / 4 * 3).to_ne_bytes());
        reply.u32(u32::try_from(IO_BYTES_MAX).unwrap_or(1 << 20));
        reply.u32(1);
        // Pages of 4 KiB in the largest message; the kernel has its own limit.
        reply.extend(&u16::try_from(IO_BYTES_MAX / 4096).unwrap_or(256).to_ne_bytes());
        reply.extend(&[0; 2]);
        for _ in 0..8 {
            reply.u32(0);
        }
        Features {
            writeback: agreed & init::WRITEBACK_CACHE != 0,
            server_locks: agreed & (init::POSIX_LOCKS | init::FLOCK_LOCKS)
                == init::POSIX_LOCKS | init::FLOCK_LOCKS,
            xattrs: options.xattrs,
        }
    }
}
