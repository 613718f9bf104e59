//! Nodes whose descriptors were closed, beside such as kept theirs.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;

use super::Places;
use crate::errno::Errno;
use crate::filesystem::{Answer, Attach, Cancel, Filesystem, Node, OpenFlags};
use crate::hostdir::HostDir;
use crate::stat::getattr;

/// The root of a share that keeps about `idle_max` descriptors.
fn share(path: &Path, idle_max: usize) -> (Arc<Places>, Arc<dyn Node>) {
    let mut share = Arc::into_inner(HostDir::new(path, false).unwrap().share).unwrap();
    share.places = Places::with_idle_max(idle_max);
    let places = Arc::clone(&share.places);
    let directory = HostDir { share: Arc::new(share) };
    (places, directory.attach(&Attach { user: b"", numeric_user: 0, tree: b"" }).unwrap())
}

fn content(node: &dyn Node) -> Answer<Vec<u8>> {
    let mut buffer = [0; 64];
    let count = node.open(OpenFlags::RDONLY)?.read(0, &mut buffer, &Cancel::default())?;
    Ok(buffer[..count].to_vec())
}

fn inode(node: &dyn Node) -> Answer<u64> {
    Ok(node.attributes(getattr::BASIC)?.qid.path)
}

/// How many of the places known have a descriptor.
fn open_count(places: &Places) -> usize {
    let clock = places.open.lock().unwrap();
    clock
        .places
        .iter()
        .filter_map(std::sync::Weak::upgrade)
        .filter(|place| place.state().fd.is_some())
        .count()
}

#[test]
fn many_nodes_need_few_descriptors_and_all_stay_usable() {
    let directory = tempfile::tempdir().unwrap();
    for number in 0..40 {
        fs::create_dir(directory.path().join(format!("d{number}"))).unwrap();
        for file in 0..25 {
            fs::write(directory.path().join(format!("d{number}/{file}")), format!("{number}/{file}"))
                .unwrap();
        }
    }
    let (places, root) = share(directory.path(), 20);
    let mut nodes = Vec::new();
    for number in 0..40 {
        let parent = root.walk(format!("d{number}").as_bytes()).unwrap();
        for file in 0..25 {
            nodes.push((format!("{number}/{file}"), parent.walk(file.to_string().as_bytes()).unwrap()));
        }
    }
    assert!(open_count(&places) <= 40, "{} are open", open_count(&places));
    for (name, node) in nodes.iter().rev() {
        assert_eq!(content(&**node).unwrap(), name.as_bytes());
        let expected = fs::metadata(directory.path().join(format!("d{name}"))).unwrap().ino();
        assert_eq!(inode(&**node).unwrap(), expected);
    }
    assert!(open_count(&places) <= 40, "{} are open", open_count(&places));
    drop(nodes);
    assert!(places.entries().is_empty(), "entries of nodes that are gone stay behind");
}

#[test]
fn what_is_moved_or_removed_through_the_share_is_followed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    fs::create_dir_all(path.join("a/b")).unwrap();
    fs::create_dir(path.join("c")).unwrap();
    for name in ["a/b/deep", "moved", "removed", "replaced", "by"] {
        fs::write(path.join(name), name).unwrap();
    }
    let (places, root) = share(path, 0);
    let walk = |name: &[u8]| root.walk(name).unwrap();
    let (a, c) = (walk(b"a"), walk(b"c"));
    let deep = a.walk(b"b").unwrap().walk(b"deep").unwrap();
    let (moved, removed, replaced, by) = (walk(b"moved"), walk(b"removed"), walk(b"replaced"), walk(b"by"));
    places.close_idle();
    assert_eq!(open_count(&places), 0);
    root.rename_entry(b"moved", &*a.walk(b"b").unwrap(), b"here").unwrap();
    root.rename_entry(b"a", &*c, b"d").unwrap();
    root.unlink(b"removed", false).unwrap();
    by.rename(&*root, b"replaced").unwrap();
    places.close_idle();
    assert_eq!(content(&*deep).unwrap(), b"a/b/deep");
    assert_eq!(content(&*moved).unwrap(), b"moved");
    assert_eq!(content(&*by).unwrap(), b"by");
    assert_eq!(fs::read(path.join("c/d/b/here")).unwrap(), b"moved");
    for gone in [removed, replaced] {
        assert_eq!(gone.attributes(getattr::BASIC).unwrap().nlink, 0, "removed, and still there for its fid");
    }
}

#[test]
fn what_the_host_moved_is_stale_and_found_again_by_its_new_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    fs::write(path.join("moved"), "1").unwrap();
    fs::write(path.join("exchanged"), "2").unwrap();
    let (places, root) = share(path, 0);
    let (moved, exchanged) = (root.walk(b"moved").unwrap(), root.walk(b"exchanged").unwrap());
    let held = exchanged.open(OpenFlags::RDONLY).unwrap();
    places.close_idle();
    fs::rename(path.join("moved"), path.join("there")).unwrap();
    fs::write(path.join("other"), "3").unwrap();
    fs::rename(path.join("other"), path.join("exchanged")).unwrap();
    assert_eq!(moved.attributes(getattr::BASIC).err(), Some(Errno::ESTALE));
    assert_eq!(content(&*root.walk(b"there").unwrap()).unwrap(), b"1");
    assert_eq!(exchanged.attributes(getattr::BASIC).unwrap().nlink, 0, "an open file keeps its descriptor");
    assert_eq!(content(&*root.walk(b"exchanged").unwrap()).unwrap(), b"3");
    drop(held);
}

#[test]
fn ten_thousand_directories_one_in_another_are_found_and_let_go() {
    let directory = tempfile::tempdir().unwrap();
    let (places, root) = share(directory.path(), 0);
    let mut node = root;
    for _ in 0..10_000 {
        node.make_directory(b"d", 0o755, u32::MAX).unwrap();
        node = node.walk(b"d").unwrap();
    }
    places.close_idle();
    node.make_directory(b"last", 0o755, u32::MAX).unwrap();
    let last = node.walk(b"last").unwrap();
    let before = inode(&*last).unwrap();
    places.close_idle();
    assert_eq!(open_count(&places), 0);
    assert_eq!(inode(&*last).unwrap(), before);
    drop((node, last));
    assert!(places.entries().is_empty());
}

#[derive(Debug, Clone)]
enum Step {
    Walk(u8, u8),
    Create(u8, u8),
    Rename(u8, u8, u8, u8),
    RenameNode(u8, u8, u8),
    Unlink(u8, u8),
    Remove(u8),
    Read(u8),
    CloseIdle,
}

fn step() -> impl Strategy<Value = Step> {
    let (d, f) = (0_u8..4, 0_u8..4);
    prop_oneof![
        (d.clone(), f.clone()).prop_map(|(d, f)| Step::Walk(d, f)),
        (d.clone(), f.clone()).prop_map(|(d, f)| Step::Create(d, f)),
        (d.clone(), f.clone(), d.clone(), f.clone()).prop_map(|(a, b, c, d)| Step::Rename(a, b, c, d)),
        (any::<u8>(), d.clone(), f.clone()).prop_map(|(n, d, f)| Step::RenameNode(n, d, f)),
        (d, f).prop_map(|(d, f)| Step::Unlink(d, f)),
        any::<u8>().prop_map(Step::Remove),
        any::<u8>().prop_map(Step::Read),
        Just(Step::CloseIdle),
    ]
}

/// Takes a step in one share; what the client would see.
fn take(step: &Step, (places, nodes): (&Places, &mut Vec<Arc<dyn Node>>)) -> Answer<Vec<u8>> {
    let directory = |nodes: &[Arc<dyn Node>], number: u8| Arc::clone(&nodes[usize::from(number)]);
    let name = |number: u8| [b'a' + number];
    match *step {
        Step::Walk(d, f) => nodes.push(directory(nodes, d).walk(&name(f))?),
        Step::Create(d, f) => {
            let made = directory(nodes, d).create(&name(f), OpenFlags::RDWR, 0o644, u32::MAX)?;
            made.file.write(0, nodes.len().to_string().as_bytes(), &Cancel::default())?;
            nodes.push(made.node);
        }
        Step::Rename(d, f, e, g) => {
            directory(nodes, d).rename_entry(&name(f), &*directory(nodes, e), &name(g))?;
        }
        Step::RenameNode(n, d, f) => {
            let node = &nodes[usize::from(n) % nodes.len()];
            node.rename(&*directory(nodes, d), &name(f))?;
        }
        Step::Unlink(d, f) => directory(nodes, d).unlink(&name(f), false)?,
        Step::Remove(n) => nodes[usize::from(n) % nodes.len()].remove()?,
        Step::Read(n) => {
            let node = &nodes[usize::from(n) % nodes.len()];
            let links = node.attributes(getattr::BASIC)?.nlink;
            return Ok([content(&**node)?, links.to_string().into_bytes()].concat());
        }
        Step::CloseIdle => {
            places.close_idle();
        }
    }
    Ok(Vec::new())
}

/// Four directories, of which two are in others, to take steps in.
fn prepared(path: &Path, idle_max: usize) -> (Arc<Places>, Vec<Arc<dyn Node>>) {
    fs::create_dir_all(path.join("w/x")).unwrap();
    fs::create_dir_all(path.join("y")).unwrap();
    let (places, root) = share(path, idle_max);
    let w = root.walk(b"w").unwrap();
    let nodes = vec![Arc::clone(&root), Arc::clone(&w), w.walk(b"x").unwrap(), root.walk(b"y").unwrap()];
    (places, nodes)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn no_client_can_tell_whether_descriptors_are_closed(steps in prop::collection::vec(step(), 1..120)) {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (closing, mut few) = prepared(one.path(), 0);
        let (keeping, mut all) = prepared(other.path(), usize::MAX);
        for step in &steps {
            let answer = take(step, (&closing, &mut few));
            // Nothing is closed there: it is the share as it was before anything was closed.
            let expected = match step {
                Step::CloseIdle => Ok(Vec::new()),
                step => take(step, (&keeping, &mut all)),
            };
            prop_assert_eq!(answer, expected, "{:?}", step);
        }
    }
}
