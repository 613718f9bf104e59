//! File systems of the guest: the kernel's own, the root on a disk, and the host's folders.

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use guest_protocol::Share;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_move, unmount};

/// Says, by being there, that the root file system is on the first disk; its contents are the type.
const ROOT_MARKER: &str = "/etc/coracle/root";
/// First virtio block device.
const ROOT_DISK: &str = "/dev/vda";
/// How long a disk may take to appear once its driver is there.
const DISK_WAIT: Duration = Duration::from_secs(5);
/// Mount options of shares. `mmap` is needed for shared writable mappings (git, linkers) and otherwise caches nothing,
/// so that the host's edits are seen at once. Linux takes no larger message over virtio.
const SHARE_OPTIONS: &CStr = c"trans=virtio,version=9p2000.L,msize=512000,cache=mmap,access=any";
/// Where a share that is a single file is mounted before the file is bound.
const FILE_SHARES: &str = "/run/coracle/shares";

/// Mounts `/proc`, which the command line is read from.
///
/// # Errors
/// What the kernel says.
pub fn mount_proc() -> io::Result<()> {
    std::fs::create_dir_all("/proc")?;
    Ok(mount("proc", "/proc", "proc", MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC, None)?)
}

/// Mounts everything else that every Linux program expects.
///
/// # Errors
/// The mount point and what the kernel says.
pub fn mount_kernel_file_systems() -> Result<(), String> {
    let quiet = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let table: [(&str, &str, MountFlags, Option<&CStr>); 7] = [
        ("/sys", "sysfs", quiet, None),
        ("/dev", "devtmpfs", MountFlags::NOSUID, Some(c"mode=0755")),
        ("/dev/pts", "devpts", MountFlags::NOSUID | MountFlags::NOEXEC, Some(c"gid=5,mode=620,ptmxmode=666")),
        ("/dev/shm", "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(c"mode=1777")),
        ("/run", "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(c"mode=0755")),
        ("/tmp", "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(c"mode=1777")),
        ("/sys/fs/cgroup", "cgroup2", quiet, None),
    ];
    for (target, kind, flags, options) in table {
        let result =
            std::fs::create_dir_all(target).and_then(|()| Ok(mount(kind, target, kind, flags, options)?));
        result.map_err(|error| format!("cannot mount {target}: {error}"))?;
    }
    for (link, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        // A guest whose /dev has them already is as good.
        let _ = std::os::unix::fs::symlink(target, link);
    }
    Ok(())
}

/// Whether the image wants its root from a disk.
pub fn has_root_disk() -> bool {
    Path::new(ROOT_MARKER).exists()
}

/// Whether the machine has a virtio block device (virtio 1.2 §5: device 2).
pub fn has_disk() -> bool {
    let devices = std::fs::read_dir("/sys/bus/virtio/devices").into_iter().flatten().flatten();
    devices
        .map(|device| std::fs::read_to_string(device.path().join("device")).unwrap_or_default())
        .any(|id| id.trim() == "0x0002")
}

/// Makes the first disk, with a memory file system over it for what is written, the root of PID 1.
///
/// # Errors
/// What failed, on one line.
pub fn switch_to_root_disk() -> Result<(), String> {
    let kind = std::fs::read_to_string(ROOT_MARKER)
        .map_err(|error| format!("cannot read {ROOT_MARKER}: {error}"))?;
    let begun = Instant::now();
    while !Path::new(ROOT_DISK).exists() {
        if begun.elapsed() > DISK_WAIT {
            return Err(format!(
                "there is no {ROOT_DISK}: the machine was started without its root file system"
            ));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    switch_root(kind.trim())
        .map_err(|error| format!("cannot use the root file system on {ROOT_DISK}: {error}"))
}

fn switch_root(kind: &str) -> io::Result<()> {
    mount("tmpfs", "/mnt", "tmpfs", MountFlags::empty(), Some(c"mode=0755"))?;
    for folder in ["/mnt/lower", "/mnt/upper", "/mnt/work", "/mnt/root"] {
        std::fs::create_dir(folder)?;
    }
    mount(ROOT_DISK, "/mnt/lower", kind, MountFlags::RDONLY | MountFlags::NODEV, None)?;
    let options = c"lowerdir=/mnt/lower,upperdir=/mnt/upper,workdir=/mnt/work";
    mount("overlay", "/mnt/root", "overlay", MountFlags::empty(), Some(options))?;
    for folder in ["/dev", "/proc", "/sys", "/run", "/tmp"] {
        let target = format!("/mnt/root{folder}");
        std::fs::create_dir_all(&target)?;
        mount_move(folder, target.as_str())?;
    }
    rustix::process::chdir("/mnt/root")?;
    mount_move(".", "/")?;
    rustix::process::chroot(".")?;
    rustix::process::chdir("/")?;
    Ok(())
}

/// Mounts the host's folders; returns what to unmount in the end, the last first.
///
/// # Errors
/// The share and what the kernel says.
pub fn mount_shares(shares: &[Share]) -> Result<Vec<PathBuf>, String> {
    let mut mounted = Vec::new();
    for share in shares {
        let path = PathBuf::from(OsStr::from_bytes(&share.path));
        let result = match &share.file {
            None => mount_folder(share, &path).map(|()| mounted.push(path.clone())),
            Some(file) => mount_file(share, &path, OsStr::from_bytes(file), &mut mounted),
        };
        result.map_err(|error| {
            format!("cannot mount the share {} on {}: {error}", share.tag, path.display())
        })?;
    }
    mounted.reverse();
    Ok(mounted)
}

fn mount_folder(share: &Share, path: &Path) -> io::Result<()> {
    std::fs::create_dir_all(path)?;
    let flags = if share.read_only { MountFlags::RDONLY } else { MountFlags::empty() };
    let tag = CString::new(share.tag.as_bytes())?;
    Ok(mount(tag, path, "9p", flags | MountFlags::NODEV | MountFlags::NOSUID, Some(SHARE_OPTIONS))?)
}

fn mount_file(share: &Share, path: &Path, file: &OsStr, mounted: &mut Vec<PathBuf>) -> io::Result<()> {
    let folder = Path::new(FILE_SHARES).join(&share.tag);
    mount_folder(share, &folder)?;
    mounted.push(folder.clone());
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    if !path.exists() {
        std::fs::write(path, b"")?;
    }
    mount_bind(folder.join(file), path)?;
    mounted.push(path.to_owned());
    Ok(())
}

/// Writes everything back and lets go of the shares.
pub fn unmount_all(mounted: &[PathBuf]) {
    rustix::fs::sync();
    for path in mounted {
        // The machine ends in a moment; a share that is busy was synced above.
        let _ = unmount(path, UnmountFlags::DETACH);
    }
}
