//! What only shows from inside: resolution without openat2, ids, qid paths.

use std::os::unix::fs::symlink;
use std::sync::Arc;

use super::*;
use crate::filesystem::OpenFlags;

/// The root of a share as on a kernel without openat2, at `path`.
fn root_without_openat2(path: &Path) -> Arc<dyn Node> {
    let mut share = Arc::into_inner(HostDir::new(path, false).unwrap().share).unwrap();
    share.resolver = Resolver { has_openat2: false };
    let directory = HostDir { share: Arc::new(share) };
    directory.attach(&Attach { user: b"", numeric_user: 0, tree: b"" }).unwrap()
}

#[test]
fn without_openat2_links_are_not_followed_either() {
    let directory = tempfile::tempdir().unwrap();
    let share = directory.path().join("share");
    std::fs::create_dir_all(share.join("a/b")).unwrap();
    std::fs::write(directory.path().join("canary"), b"secret").unwrap();
    symlink("..", share.join("up")).unwrap();
    symlink("../canary", share.join("out")).unwrap();
    let root = root_without_openat2(&share);
    let up = root.walk(b"up").unwrap();
    assert_eq!(up.read_link().unwrap(), b"..");
    assert_eq!(up.walk(b"canary").err(), Some(Errno::ENOTDIR));
    assert_eq!(root.walk(b"out").unwrap().open(OpenFlags::RDONLY).err(), Some(Errno::ELOOP));
    let b = root.walk(b"a").unwrap().walk(b"b").unwrap();
    let above = b.walk(b"..").unwrap().walk(b"..").unwrap().walk(b"..").unwrap();
    assert_eq!(above.qid().path, root.qid().path);
}

#[test]
fn a_tree_below_the_root_can_be_attached_and_nothing_above() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(directory.path().join("share/a/b")).unwrap();
    let host = HostDir::new(directory.path().join("share"), false).unwrap();
    let attach = |tree: &'static [u8]| host.attach(&Attach { user: b"", numeric_user: 0, tree });
    let b = attach(b"/").unwrap().walk(b"a").unwrap().walk(b"b").unwrap();
    assert_eq!(attach(b"a//b/").unwrap().qid(), b.qid());
    assert_eq!(attach(b"../..").unwrap().qid(), attach(b"").unwrap().qid());
    assert_eq!(attach(b"c").err(), Some(Errno::ENOENT));
}

#[test]
fn ownership_maps_one_to_one() {
    let mapped = Ownership::Mapped { host_uid: 1000, host_gid: 100 };
    assert_eq!([0, 1, 1000].map(|uid| mapped.map_uid(uid)), [1000, 1, 0]);
    assert_eq!([0, 100, 1000].map(|gid| mapped.map_gid(gid)), [100, 0, 1000]);
    assert_eq!([0, 1000].map(|uid| Ownership::Unmapped.map_uid(uid)), [0, 1000]);
    let root = Ownership::Mapped { host_uid: 0, host_gid: 0 };
    assert_eq!([0, 1000].map(|uid| root.map_uid(uid)), [0, 1000]);
}

#[test]
fn paths_of_qids_differ_for_all_kinds_of_inodes() {
    let key = |minor, inode| FileKey { device: (8, minor), inode };
    let devices = Devices::new(key(1, 2));
    let keys = [key(1, 7), key(2, 7), key(3, 7), key(1, 7 | 1 << 60), key(2, 7 | 1 << 60), key(1, u64::MAX)];
    let paths = keys.map(|key| devices.path(key));
    assert_eq!(paths[0], 7, "on the root's own file system the path is the inode");
    let distinct: std::collections::HashSet<_> = paths.into_iter().collect();
    assert_eq!(distinct.len(), keys.len());
    assert_eq!(keys.map(|key| devices.path(key)), paths, "and stay the same");
}
