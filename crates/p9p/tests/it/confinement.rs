//! Nothing that a client sends leads out of the share.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::UnixListener;

use p9p::client::{Client, Direct};
use p9p::filesystem::OpenFlags;
use p9p::message::Request;
use p9p::{Errno, HostDir, HostDirError};

use crate::share::{MSIZE, Share, errno};

#[test]
fn dot_dot_of_the_root_is_the_root() {
    let mut share = Share::new();
    fs::create_dir_all(share.host("a/b")).unwrap();
    let up = share.client.walk(share.root, &[b"..", b"..", b".."]).unwrap();
    let root = share.client.getattr(share.root).unwrap().qid;
    assert_eq!(share.client.getattr(up).unwrap().qid.path, root.path);
    let back = share.client.walk(share.root, &[b"a", b"b", b"..", b".."]).unwrap();
    assert_eq!(share.client.getattr(back).unwrap().qid.path, root.path);
    let further = share.client.walk(share.root, &[b"a", b"b", b"..", b"..", b"..", b".."]).unwrap();
    assert_eq!(share.client.getattr(further).unwrap().qid.path, root.path);
}

#[test]
fn dot_dot_of_a_directory_that_was_moved_out_is_refused() {
    let mut share = Share::new();
    fs::create_dir_all(share.host("a/b")).unwrap();
    let b = share.fid("a/b");
    fs::rename(share.host("a/b"), share.path.parent().unwrap().join("gone")).unwrap();
    assert_eq!(errno(share.client.walk(b, &[b".."])), Errno::EACCES);
    assert_eq!(errno(share.client.remove(b)), Errno::ENOENT);
}

#[test]
fn the_listing_of_the_root_does_not_tell_what_is_above() {
    let mut share = Share::new();
    let root = share.root_copy();
    share.client.open(root, OpenFlags::DIRECTORY).unwrap();
    let listed = share.client.list(root).unwrap();
    let path = |name: &[u8]| listed.iter().find(|entry| entry.name == name).unwrap().qid.path;
    assert_eq!(path(b".."), path(b"."));
}

#[test]
fn symbolic_links_are_not_followed() {
    let mut share = Share::new();
    let outside = share.path.parent().unwrap().to_owned();
    fs::write(outside.join("canary"), b"secret").unwrap();
    symlink(&outside, share.host("absolute")).unwrap();
    symlink("..", share.host("relative")).unwrap();
    symlink("../canary", share.host("file")).unwrap();
    for name in [&b"absolute"[..], b"relative"] {
        assert_eq!(errno(share.client.walk(share.root, &[name, b"canary"])), Errno::ENOENT);
        let link = share.client.walk(share.root, &[name]).unwrap();
        assert_eq!(errno(share.client.walk(link, &[b"canary"])), Errno::ENOTDIR);
        assert_eq!(errno(share.client.mkdir(link, b"made", 0o755)), Errno::ENOTDIR);
    }
    let root = share.root_copy();
    assert_eq!(errno(share.client.create(root, b"file", OpenFlags::RDWR, 0o644)), Errno::ELOOP);
    let truncate = OpenFlags::RDWR | OpenFlags::TRUNC;
    let file = share.fid("file");
    assert_eq!(errno(share.client.open(file, truncate)), Errno::ELOOP);
    assert_eq!(share.client.readlink(file).unwrap(), b"../canary");
    assert_eq!(fs::read(outside.join("canary")).unwrap(), b"secret");
}

#[test]
fn attributes_of_a_symbolic_link_are_changed_on_the_link() {
    let mut share = Share::new();
    let canary = share.path.parent().unwrap().join("canary");
    fs::write(&canary, b"secret").unwrap();
    let before = fs::metadata(&canary).unwrap();
    symlink("../canary", share.host("l")).unwrap();
    let link = share.fid("l");
    use p9p::stat::{SetAttributes, Time, setattr};
    let time = Time { seconds: 1, nanoseconds: 0 };
    let times = setattr::ATIME | setattr::ATIME_SET | setattr::MTIME | setattr::MTIME_SET;
    share
        .client
        .setattr(link, SetAttributes { valid: times, atime: time, mtime: time, ..Default::default() })
        .unwrap();
    let mode = SetAttributes { valid: setattr::MODE, mode: 0o777, ..Default::default() };
    assert_eq!(errno(share.client.setattr(link, mode)), Errno::EOPNOTSUPP);
    let size = SetAttributes { valid: setattr::SIZE, ..Default::default() };
    assert_eq!(errno(share.client.setattr(link, size)), Errno::EINVAL);
    let after = fs::metadata(&canary).unwrap();
    assert_eq!(
        (before.modified().unwrap(), before.permissions()),
        (after.modified().unwrap(), after.permissions())
    );
    assert_eq!(share.client.getattr(link).unwrap().mtime, time);
}

#[test]
fn names_with_a_slash_or_nul_or_dots_are_refused() {
    let mut share = Share::new();
    fs::create_dir(share.host("d")).unwrap();
    fs::write(share.host("f"), b"").unwrap();
    let f = share.fid("f");
    let (root, client) = (share.root, &mut share.client);
    for name in [&b""[..], b".", b"..", b"../x", b"/etc", b"d/x", b"a\0b"] {
        assert_eq!(errno(client.mkdir(root, name, 0o755)), Errno::EINVAL);
        assert_eq!(errno(client.symlink(root, name, b"x")), Errno::EINVAL);
        assert_eq!(errno(client.mknod(root, name, 0o100_644)), Errno::EINVAL);
        assert_eq!(errno(client.link(root, f, name)), Errno::EINVAL);
        assert_eq!(errno(client.unlink(root, name)), Errno::EINVAL);
        assert_eq!(errno(client.rmdir(root, name)), Errno::EINVAL);
        assert_eq!(errno(client.rename(root, b"f", root, name)), Errno::EINVAL);
        assert_eq!(errno(client.rename(root, name, root, b"g")), Errno::EINVAL);
        assert_eq!(errno(client.create(root, name, OpenFlags::RDWR, 0o644)), Errno::EINVAL);
        let request = Request::Rename { fid: f, directory: root, name };
        assert_eq!(errno(client.call(&request, |_| Some(()))), Errno::EINVAL);
    }
    for name in [&b""[..], b"../x", b"/etc", b"d/x", b"a\0b"] {
        assert_eq!(errno(client.walk(root, &[name])), Errno::EINVAL);
    }
}

#[test]
fn file_systems_mounted_below_the_root_keep_their_files_apart() {
    // The whole host is the one share in which mounts are sure to be.
    let whole_host = crate::share::session(std::path::Path::new("/"), true);
    let mut client = Client::connect(Direct::new(whole_host.into()), MSIZE).unwrap();
    let root = client.attach(b"", 0, b"").unwrap();
    let (proc, sys) = (client.walk(root, &[b"proc"]).unwrap(), client.walk(root, &[b"sys"]).unwrap());
    let inode = |path: &str| fs::metadata(path).unwrap().ino();
    assert_eq!(client.getattr(root).unwrap().qid.path, inode("/"));
    let (proc_path, sys_path) =
        (client.getattr(proc).unwrap().qid.path, client.getattr(sys).unwrap().qid.path);
    assert_eq!((proc_path as u32, sys_path as u32), (inode("/proc") as u32, inode("/sys") as u32));
    assert_ne!(proc_path >> 48, sys_path >> 48);
    assert_ne!(proc_path >> 48, 0);
    let up = client.walk(proc, &[b"self", b".."]);
    assert_eq!(errno(up), Errno::ENOENT, "self is a link");
    let up = client.walk(proc, &[b".."]).unwrap();
    assert_eq!(client.getattr(up).unwrap().qid.path, inode("/"));
}

#[test]
fn fifos_sockets_and_devices_are_not_opened() {
    let mut share = Share::new();
    share.client.mknod(share.root, b"fifo", 0o010_644).unwrap();
    let _listener = UnixListener::bind(share.host("socket")).unwrap();
    for name in ["fifo", "socket"] {
        let fid = share.fid(name);
        assert_eq!(errno(share.client.open(fid, OpenFlags::RDONLY)), Errno::ENXIO);
        assert_eq!(errno(share.client.open(fid, OpenFlags::RDWR | OpenFlags::TRUNC)), Errno::ENXIO);
        let root = share.root_copy();
        assert_eq!(errno(share.client.create(root, name.as_bytes(), OpenFlags::WRONLY, 0o644)), Errno::ENXIO);
    }
}

#[test]
fn the_root_cannot_be_removed_or_renamed() {
    let mut share = Share::new();
    fs::create_dir(share.host("d")).unwrap();
    let (root, d) = (share.root_copy(), share.fid("d"));
    let request = Request::Rename { fid: root, directory: d, name: b"x" };
    assert_eq!(errno(share.client.call(&request, |_| Some(()))), Errno::EBUSY);
    assert_eq!(errno(share.client.remove(root)), Errno::EBUSY);
    assert!(share.path.is_dir());
}

#[test]
fn a_share_that_is_missing_or_a_file_is_one_clear_error() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, b"").unwrap();
    let missing = HostDir::new(directory.path().join("nothing"), false).unwrap_err();
    assert!(missing.to_string().ends_with("nothing: no such file or directory"), "{missing}");
    let refused = HostDir::new(&file, false).unwrap_err();
    assert!(matches!(refused, HostDirError::NotADirectory { .. }));
    assert!(refused.to_string().ends_with("file is not a directory"), "{refused}");
}
