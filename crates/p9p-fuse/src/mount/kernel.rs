//! The system calls of mounting: directly where we may, otherwise through `fusermount3`.

use std::ffi::CString;
use std::io::{IoSliceMut, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use p9p::Errno;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno as OsErrno;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType, recvmsg,
    socketpair,
};

use super::{MountError, MountOptions};

/// Names of the program that mounts for users.
const FUSERMOUNTS: [&str; 2] = ["fusermount3", "fusermount"];

/// How it came to be mounted, and so how it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Unmounter {
    /// umount2(2).
    Direct,
    /// This program.
    Fusermount(&'static str),
}

impl Unmounter {
    /// Detaches it: the name is gone at once, the rest when nobody uses it.
    pub fn unmount(&self, path: &Path) {
        match self {
            // It fails when somebody else was faster, which is as well.
            Self::Direct => drop(rustix::mount::unmount(path, UnmountFlags::DETACH)),
            Self::Fusermount(program) => {
                let arguments = ["-u", "-z", "-q", "--"];
                let _ = Command::new(program).args(arguments).arg(path).stderr(Stdio::null()).status();
            }
        }
    }
}

/// The directory's absolute path. What a dead server left mounted there is unmounted.
pub(super) fn check_directory(path: &Path) -> Result<PathBuf, MountError> {
    let failed = |errno: Errno| MountError::Directory { path: path.into(), errno };
    for retries_left in [true, false] {
        // Listing, as the kernel may still know attributes of a dead server's root.
        match std::fs::read_dir(path) {
            Ok(_) => break,
            Err(error) if retries_left && error.raw_os_error() == Some(OsErrno::NOTCONN.raw_os_error()) => {
                Unmounter::Direct.unmount(path);
                for program in FUSERMOUNTS {
                    if std::fs::read_dir(path).is_err() {
                        Unmounter::Fusermount(program).unmount(path);
                    }
                }
            }
            Err(error) => {
                let number = error.raw_os_error().map_or(Errno::EIO.0, i32::unsigned_abs);
                return Err(failed(Errno(number)));
            }
        }
    }
    std::fs::canonicalize(path).map_err(|_| failed(Errno::ENOENT))
}

/// Mounts, and returns the descriptor through which the kernel asks.
pub(super) fn mount(path: &Path, options: &MountOptions) -> Result<(OwnedFd, Unmounter), MountError> {
    match open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
        Ok(device) => match mount_directly(&device, path, options) {
            Ok(()) => return Ok((device, Unmounter::Direct)),
            Err(OsErrno::PERM | OsErrno::ACCESS) => {}
            Err(errno) => return Err(MountError::System { call: "mount(2)", errno: errno.into() }),
        },
        Err(OsErrno::NOENT | OsErrno::NXIO | OsErrno::NODEV) => return Err(MountError::NoDevice),
        Err(OsErrno::ACCESS | OsErrno::PERM) => {}
        Err(errno) => return Err(MountError::System { call: "opening /dev/fuse", errno: errno.into() }),
    }
    for program in FUSERMOUNTS {
        match mount_by(program, path, options) {
            Err(MountError::NotPermitted { .. }) => {}
            result => return result.map(|device| (device, Unmounter::Fusermount(program))),
        }
    }
    Err(MountError::NotPermitted { path: path.into() })
}

fn mount_directly(device: &OwnedFd, path: &Path, options: &MountOptions) -> Result<(), OsErrno> {
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let fd = device.as_raw_fd();
    let mut text = format!("fd={fd},rootmode=40000,user_id={uid},group_id={gid}");
    if options.allow_other {
        text.push_str(",allow_other,default_permissions");
    }
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
    if options.read_only {
        flags |= MountFlags::RDONLY;
    }
    let text = CString::new(text).map_err(|_| OsErrno::INVAL)?;
    rustix::mount::mount(&*options.source, path, "fuse.9p", flags, Some(text.as_c_str()))
}

/// Has fusermount3 mount: it sends the descriptor over the socket whose number is in `_FUSE_COMMFD`.
fn mount_by(program: &'static str, path: &Path, options: &MountOptions) -> Result<OwnedFd, MountError> {
    let system = |call| move |errno: OsErrno| MountError::System { call, errno: errno.into() };
    // The child's end is inherited; ours is not.
    let pair = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::empty(), None);
    let (ours, theirs) = pair.map_err(system("socketpair(2)"))?;
    rustix::io::fcntl_setfd(&ours, rustix::io::FdFlags::CLOEXEC).map_err(system("fcntl(2)"))?;
    let source: String = options.source.chars().filter(|letter| !matches!(letter, ',' | '\\')).collect();
    let mut text = format!("fsname={source},subtype=9p,nosuid,nodev");
    if options.allow_other {
        text.push_str(",allow_other,default_permissions");
    }
    if options.read_only {
        text.push_str(",ro");
    }
    let spawned = Command::new(program)
        .args(["-o", &text, "--"])
        .arg(path)
        .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    drop(theirs);
    let Ok(mut child) = spawned else {
        return Err(MountError::NotPermitted { path: path.into() });
    };
    let device = receive(&ours);
    let mut said = String::new();
    if let Some(stderr) = child.stderr.take() {
        let _ = stderr.take(4096).read_to_string(&mut said);
    }
    let _ = child.wait();
    device.ok_or_else(|| MountError::Fusermount { path: path.into(), said: said.trim().replace('\n', "; ") })
}

fn receive(socket: &OwnedFd) -> Option<OwnedFd> {
    let mut byte = [0; 8];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut slices = [IoSliceMut::new(&mut byte)];
    loop {
        match recvmsg(socket, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(OsErrno::INTR) => {}
            Err(_) => return None,
            Ok(_) => break,
        }
    }
    control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    })
}

/// The kernel's name of the connection behind a mount: its device number.
pub(super) fn connection_of(path: &Path) -> Option<PathBuf> {
    // Not of the mounted root itself: asking that would be a request to ourselves, which may be stuck.
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    let wanted = path.to_str()?;
    let line = mounts.lines().rev().find(|line| line.split(' ').nth(4) == Some(wanted))?;
    let minor = line.split(' ').nth(2)?.split(':').nth(1)?;
    Some(PathBuf::from(format!("/sys/fs/fuse/connections/{minor}")))
}

/// Ends a connection that somebody still uses; where fusectl is not mounted, it ends with this process.
pub(super) fn abort(connection: &Path) {
    let _ = std::fs::write(connection.join("abort"), "1");
}

/// The kernel reads 128 KiB ahead unless its administrator says otherwise, which as root we are.
pub(super) fn raise_readahead(path: &Path) {
    let Ok(metadata) = std::fs::metadata(path) else { return };
    let device = metadata.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let _ = std::fs::write(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"), "1024");
}
