//! The semantics that clients count on, and the quotas.

use std::sync::Arc;

use super::*;
use crate::filesystem::{Cancel, OpenFlags, XattrFlags};
use crate::stat::{SetAttributes, setattr};

fn attach(memory: &Memory) -> Arc<dyn Node> {
    memory.attach(&Attach { user: b"", numeric_user: 1000, tree: b"" }).unwrap()
}

fn tree(bytes: u64, nodes: u64) -> (Memory, Arc<dyn Node>) {
    let memory = Memory::new(Quota { bytes, nodes });
    let root = attach(&memory);
    (memory, root)
}

fn put(directory: &dyn Node, name: &[u8], content: &[u8]) -> Answer<usize> {
    let created = directory.create(name, OpenFlags::RDWR, 0o644, u32::MAX)?;
    created.file.write(0, content, &Cancel::default())
}

fn get(directory: &dyn Node, name: &[u8]) -> Vec<u8> {
    let file = directory.walk(name).unwrap().open(OpenFlags::RDONLY).unwrap();
    let mut buffer = vec![0xff; 1 << 20];
    let count = file.read(0, &mut buffer, &Cancel::default()).unwrap();
    buffer.truncate(count);
    buffer
}

#[test]
fn holes_read_as_zeros_and_take_nothing() {
    let (memory, root) = tree(1 << 20, 10);
    let file = root.create(b"f", OpenFlags::RDWR, 0o644, 0).unwrap().file;
    let cancel = Cancel::default();
    file.write(5 << 30, b"end", &cancel).unwrap();
    let mut buffer = [1; 8];
    assert_eq!(file.read((5 << 30) - 4, &mut buffer, &cancel), Ok(7));
    assert_eq!(&buffer[..7], b"\0\0\0\0end");
    assert!(memory.used().bytes < 1 << 17);
    let change = |size| SetAttributes { valid: setattr::SIZE, size, ..SetAttributes::default() };
    let node = root.walk(b"f").unwrap();
    node.set_attributes(&change((5 << 30) + 1), None).unwrap();
    node.set_attributes(&change((5 << 30) + 3), None).unwrap();
    assert_eq!(file.read(5 << 30, &mut buffer, &cancel), Ok(3));
    assert_eq!(&buffer[..3], b"e\0\0", "what was cut off does not come back");
}

#[test]
fn a_quota_is_kept_and_given_back() {
    let (memory, root) = tree(1000, 3);
    assert_eq!(put(&*root, b"a", &[7; 2000]), Err(Errno::ENOSPC));
    assert_eq!(put(&*root, b"a", &[7; 900]), Ok(900));
    root.make_directory(b"d", 0o755, 0).unwrap();
    put(&*root, b"b", b"").unwrap();
    assert_eq!(put(&*root, b"c", b"").err(), Some(Errno::ENOSPC));
    for name in [&b"a"[..], b"b"] {
        root.unlink(name, false).unwrap();
    }
    root.unlink(b"d", true).unwrap();
    assert_eq!(memory.used(), Quota { bytes: 0, nodes: 0 });
}

#[test]
fn a_removed_file_lives_on_while_it_is_open() {
    let (memory, root) = tree(1 << 20, 10);
    put(&*root, b"f", b"content").unwrap();
    let file = root.walk(b"f").unwrap().open(OpenFlags::RDONLY).unwrap();
    root.unlink(b"f", false).unwrap();
    let mut buffer = [0; 7];
    assert_eq!(file.read(0, &mut buffer, &Cancel::default()), Ok(7));
    assert_eq!(memory.used().nodes, 1);
    drop(file);
    assert_eq!(memory.used().nodes, 0);
}

#[test]
fn renames_replace_and_directories_do_not_swallow_themselves() {
    let (_memory, root) = tree(1 << 20, 20);
    put(&*root, b"a", b"a").unwrap();
    put(&*root, b"b", b"b").unwrap();
    root.rename_entry(b"a", &*root, b"b").unwrap();
    assert_eq!(get(&*root, b"b"), b"a");
    root.make_directory(b"d", 0o755, 0).unwrap();
    let d = root.walk(b"d").unwrap();
    d.make_directory(b"e", 0o755, 0).unwrap();
    let e = d.walk(b"e").unwrap();
    assert_eq!(root.rename_entry(b"d", &*e, b"x"), Err(Errno::EINVAL));
    assert_eq!(root.rename_entry(b"b", &*root, b"d"), Err(Errno::EISDIR));
    assert_eq!(root.rename_entry(b"d", &*root, b"b"), Err(Errno::ENOTDIR));
    e.rename(&*root, b"moved").unwrap();
    assert_eq!(e.walk(b"..").unwrap().qid().path, root.qid().path);
    assert_eq!(root.unlink(b"d", false), Err(Errno::EISDIR));
    root.walk(b"d").unwrap().remove().unwrap();
    assert_eq!(root.walk(b"d").err(), Some(Errno::ENOENT));
}

#[test]
fn links_are_counted() {
    let (_memory, root) = tree(1 << 20, 20);
    put(&*root, b"a", b"x").unwrap();
    let a = root.walk(b"a").unwrap();
    root.link(&*a, b"b").unwrap();
    assert_eq!(a.attributes(0).unwrap().nlink, 2);
    root.unlink(b"a", false).unwrap();
    assert_eq!(get(&*root, b"b"), b"x");
    root.unlink(b"b", false).unwrap();
    assert_eq!(root.link(&*a, b"again"), Err(Errno::ENOENT));
    assert_eq!(root.link(&*root, b"loop"), Err(Errno::EPERM));
}

#[test]
fn a_rename_to_a_new_entry_replaces_nothing() {
    let (_memory, root) = tree(1 << 20, 20);
    put(&*root, b"a", b"one").unwrap();
    put(&*root, b"b", b"two").unwrap();
    assert_eq!(root.rename_to_new_entry(b"a", &*root, b"b"), Err(Errno::EEXIST));
    assert_eq!((get(&*root, b"a"), get(&*root, b"b")), (b"one".to_vec(), b"two".to_vec()));
    assert_eq!(root.rename_to_new_entry(b"missing", &*root, b"c"), Err(Errno::ENOENT));
    root.rename_to_new_entry(b"a", &*root, b"c").unwrap();
    assert_eq!(get(&*root, b"c"), b"one");
}

#[test]
fn hostile_names_are_refused() {
    let (_memory, root) = tree(1 << 20, 20);
    for name in [&b""[..], b".", b"..", b"a/b", b"a\0b"] {
        assert_eq!(root.make_directory(name, 0o755, 0), Err(Errno::EINVAL), "{name:?}");
    }
    assert_eq!(root.make_directory(&[b'x'; 256], 0o755, 0), Err(Errno::ENAMETOOLONG));
    root.make_directory(&[b'x'; 255], 0o755, 0).unwrap();
}

#[test]
fn attributes_of_the_user_namespace_are_kept() {
    let (memory, root) = tree(1 << 20, 20);
    root.set_xattr(b"user.a", Some(b"1"), XattrFlags::CREATE).unwrap();
    assert_eq!(root.set_xattr(b"user.a", Some(b"2"), XattrFlags::CREATE), Err(Errno::EEXIST));
    assert_eq!(root.xattr_names().unwrap(), b"user.a\0");
    assert_eq!(root.xattr(b"user.a").unwrap(), b"1");
    root.set_xattr(b"user.a", None, XattrFlags(0)).unwrap();
    assert_eq!(root.xattr(b"user.a"), Err(Errno::ENODATA));
    assert_eq!(root.set_xattr(b"trusted.a", Some(b"1"), XattrFlags(0)), Err(Errno::EOPNOTSUPP));
    assert_eq!(memory.used().bytes, 0);
}

#[test]
fn a_deep_tree_is_dropped_without_a_deep_stack() {
    let (memory, root) = tree(1 << 20, 10_000);
    let mut at = Arc::clone(&root);
    for _ in 0..4000 {
        at.make_directory(b"d", 0o755, 0).unwrap();
        at = at.walk(b"d").unwrap();
    }
    drop(at);
    root.rename_entry(b"d", &*root, b"e").unwrap();
    drop((root, memory));
}
