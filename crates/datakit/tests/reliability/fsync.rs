//! A disk whose fsync fails: the repository is on a file system that says EIO to every fsync(2) for a while.

use std::any::Any;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use datakit_client::CommitId;
use p9p::filesystem::{
    Answer, Attach, Cancel, Created, Entries, HeldLock, Node, NodeSpec, OpenFile, OpenFlags, XattrFlags,
};
use p9p::hostdir::HostDir;
use p9p::qid::Qid;
use p9p::stat::{Attributes, LockKind, LockRange, LockStatus, SetAttributes, StatFs};
use p9p::{Errno, Filesystem};
use p9p_fuse::{Mount, MountError, MountOptions};

use super::world::{PATIENCE, Server, World, fsck, git};

/// Whether fsync fails now, and how often it did.
#[derive(Clone, Default)]
struct Switch {
    fails: Arc<AtomicBool>,
    failed: Arc<AtomicU64>,
}

/// A directory of this host on such a disk.
struct Disk(HostDir, Switch);

struct DiskNode(Arc<dyn Node>, Switch);

struct DiskFile(Arc<dyn OpenFile>, Switch);

impl Filesystem for Disk {
    fn attach(&self, attach: &Attach<'_>) -> Answer<Arc<dyn Node>> {
        Ok(Arc::new(DiskNode(self.0.attach(attach)?, self.1.clone())))
    }
}

/// The host's node behind one of this disk.
fn beneath(node: &dyn Node) -> &dyn Node {
    (node as &dyn Any).downcast_ref::<DiskNode>().map_or(node, |node| &*node.0)
}

impl DiskNode {
    fn file(&self, file: Arc<dyn OpenFile>) -> Arc<dyn OpenFile> {
        Arc::new(DiskFile(file, self.1.clone()))
    }
}

impl Node for DiskNode {
    fn qid(&self) -> Qid {
        self.0.qid()
    }
    fn walk(&self, name: &[u8]) -> Answer<Arc<dyn Node>> {
        Ok(Arc::new(DiskNode(self.0.walk(name)?, self.1.clone())))
    }
    fn attributes(&self, mask: u64) -> Answer<Attributes> {
        self.0.attributes(mask)
    }
    fn set_attributes(&self, change: &SetAttributes, open: Option<&dyn OpenFile>) -> Answer<()> {
        let open = open.and_then(|open| (open as &dyn Any).downcast_ref::<DiskFile>()).map(|open| &*open.0);
        self.0.set_attributes(change, open)
    }
    fn open(&self, flags: OpenFlags) -> Answer<Arc<dyn OpenFile>> {
        Ok(self.file(self.0.open(flags)?))
    }
    fn create(&self, name: &[u8], flags: OpenFlags, mode: u32, gid: u32) -> Answer<Created> {
        let Created { node, file } = self.0.create(name, flags, mode, gid)?;
        Ok(Created { node: Arc::new(DiskNode(node, self.1.clone())), file: self.file(file) })
    }
    fn read_link(&self) -> Answer<Vec<u8>> {
        self.0.read_link()
    }
    fn make_directory(&self, name: &[u8], mode: u32, gid: u32) -> Answer<Qid> {
        self.0.make_directory(name, mode, gid)
    }
    fn make_symlink(&self, name: &[u8], target: &[u8], gid: u32) -> Answer<Qid> {
        self.0.make_symlink(name, target, gid)
    }
    fn make_node(&self, name: &[u8], spec: &NodeSpec) -> Answer<Qid> {
        self.0.make_node(name, spec)
    }
    fn link(&self, target: &dyn Node, name: &[u8]) -> Answer<()> {
        self.0.link(beneath(target), name)
    }
    fn rename_entry(&self, old_name: &[u8], directory: &dyn Node, new_name: &[u8]) -> Answer<()> {
        self.0.rename_entry(old_name, beneath(directory), new_name)
    }
    fn rename(&self, directory: &dyn Node, name: &[u8]) -> Answer<()> {
        self.0.rename(beneath(directory), name)
    }
    fn unlink(&self, name: &[u8], is_directory: bool) -> Answer<()> {
        self.0.unlink(name, is_directory)
    }
    fn remove(&self) -> Answer<()> {
        self.0.remove()
    }
    fn statfs(&self) -> Answer<StatFs> {
        self.0.statfs()
    }
    fn xattr(&self, name: &[u8]) -> Answer<Vec<u8>> {
        self.0.xattr(name)
    }
    fn xattr_names(&self) -> Answer<Vec<u8>> {
        self.0.xattr_names()
    }
    fn set_xattr(&self, name: &[u8], value: Option<&[u8]>, flags: XattrFlags) -> Answer<()> {
        self.0.set_xattr(name, value, flags)
    }
}

impl OpenFile for DiskFile {
    fn read(&self, offset: u64, buffer: &mut [u8], cancel: &Cancel) -> Answer<usize> {
        self.0.read(offset, buffer, cancel)
    }
    fn write(&self, offset: u64, bytes: &[u8], cancel: &Cancel) -> Answer<usize> {
        self.0.write(offset, bytes, cancel)
    }
    fn read_directory(&self, offset: u64, entries: &mut Entries<'_>) -> Answer<()> {
        self.0.read_directory(offset, entries)
    }
    fn sync(&self, data_only: bool) -> Answer<()> {
        if self.1.fails.load(Ordering::SeqCst) {
            self.1.failed.fetch_add(1, Ordering::SeqCst);
            return Err(Errno::EIO);
        }
        self.0.sync(data_only)
    }
    fn lock(&self, kind: LockKind, range: &LockRange<'_>) -> Answer<LockStatus> {
        self.0.lock(kind, range)
    }
    fn conflicting_lock(&self, kind: LockKind, range: &LockRange<'_>) -> Answer<Option<HeldLock>> {
        self.0.conflicting_lock(kind, range)
    }
}

/// Mounts the world's folder on `place`, or says SKIP.
fn mount(world: &World, place: &std::path::Path, switch: &Switch) -> Option<Mount> {
    let disk = Disk(HostDir::new(world.folder.path(), false).unwrap(), switch.clone());
    match Mount::new(&disk, place, MountOptions::default()) {
        Ok(mount) => Some(mount),
        Err(error @ (MountError::NoDevice | MountError::NotPermitted { .. })) => {
            println!("SKIP: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn check(durability: &str) {
    let (on_disk, place) = (World::new(), tempfile::tempdir().unwrap());
    let switch = Switch::default();
    let Some(mounted) = mount(&on_disk, place.path(), &switch) else { return };
    let served = World { folder: tempfile::tempdir().unwrap(), repo: place.path().join("repo.git") };
    let mut server = Server::start(&served, "socket", &["--durability", durability]);
    let datakit = server.connect();
    let main = datakit.branch("main").unwrap();
    let mut acknowledged: Vec<CommitId> = Vec::new();
    let commit = |n: usize| main.update(|t| t.write(&format!("f{n}"), n.to_string().as_bytes()));
    for n in 0..10 {
        acknowledged.push(commit(n).unwrap());
    }
    datakit.sync().unwrap();

    switch.fails.store(true, Ordering::SeqCst);
    // A durable commit is refused; a server that promises less says so to who asks with fsync.
    let refused = if durability == "fsync" {
        let refused: Vec<_> = (0..5).map(|n| commit(100 + n).unwrap_err()).collect();
        assert!(refused.iter().all(|error| !error.is_conflict()), "{refused:?}");
        refused.into_iter().next().unwrap()
    } else {
        acknowledged.push(commit(100).unwrap());
        datakit.sync().unwrap_err()
    };
    println!("{durability}: {refused}");
    assert!(!refused.is_conflict(), "{refused}");
    assert!(switch.failed.load(Ordering::SeqCst) > 0, "nobody called fsync");
    assert_eq!(main.head().unwrap().as_ref(), acknowledged.last(), "{durability}");
    assert!(server.child.try_wait().unwrap().is_none());

    switch.fails.store(false, Ordering::SeqCst);
    let began = Instant::now();
    let retried = |what: &dyn Fn() -> bool| {
        while !what() {
            assert!(began.elapsed() < PATIENCE, "{durability}: it does not recover");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    retried(&|| datakit.sync().is_ok());
    for n in 200..210 {
        acknowledged.push(commit(n).unwrap());
    }
    datakit.sync().unwrap();
    server.kill();
    drop(Server::start(&served, "again", &["--durability", durability]));
    let history = git(&on_disk.repo, &["rev-list", "main"]);
    let history: HashSet<&str> = history.lines().collect();
    let lost = acknowledged.iter().filter(|commit| !history.contains(commit.as_str())).count();
    assert_eq!(lost, 0, "{durability}: of {}", acknowledged.len());
    fsck(&on_disk.repo);
    mounted.unmount();
}

#[test]
fn an_fsync_that_fails_is_an_error_for_clients_and_nothing_is_lost() {
    for durability in ["fsync", "visible", "behind"] {
        check(durability);
    }
}
