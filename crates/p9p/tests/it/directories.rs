//! Listings: complete, in pieces, and while entries come and go.

use std::collections::HashSet;
use std::fs;

use p9p::Errno;
use p9p::filesystem::OpenFlags;

use crate::share::{Share, errno};

/// More than fits into one message of the smaller sizes below.
const SOME: usize = 1_500;

fn fill(share: &Share, count: usize) -> HashSet<Vec<u8>> {
    // Names of one file: quicker to make than as many files.
    let file = share.path.parent().unwrap().join("file");
    fs::write(&file, b"").unwrap();
    (0..count)
        .map(|i| {
            let name = format!("{}-{i}", "x".repeat(i % 40));
            fs::hard_link(&file, share.host(&name)).unwrap();
            name.into_bytes()
        })
        .collect()
}

fn names(listed: &[p9p::client::Listed]) -> Vec<Vec<u8>> {
    listed.iter().map(|e| e.name.clone()).filter(|name| name != b"." && name != b"..").collect()
}

#[test]
fn ten_thousand_entries_are_listed_once_each() {
    let mut share = Share::new();
    let made = fill(&share, 10_000);
    let root = share.root_copy();
    share.client.open(root, OpenFlags::DIRECTORY).unwrap();
    let listed = names(&share.client.list(root).unwrap());
    assert_eq!(listed.len(), 10_000);
    assert_eq!(listed.into_iter().collect::<HashSet<_>>(), made);
}

#[test]
fn a_listing_in_small_pieces_is_complete() {
    let mut share = Share::new();
    let made = fill(&share, SOME);
    let root = share.root_copy();
    share.client.open(root, OpenFlags::DIRECTORY).unwrap();
    let (mut listed, mut offset) = (Vec::new(), 0);
    loop {
        let piece = share.client.read_directory(root, offset, 700).unwrap();
        let Some(last) = piece.last() else { break };
        offset = last.offset;
        listed.extend(names(&piece));
    }
    assert_eq!(listed.len(), SOME);
    assert_eq!(listed.into_iter().collect::<HashSet<_>>(), made);
}

#[test]
fn removing_what_is_listed_empties_the_directory() {
    let mut share = Share::new();
    fill(&share, SOME);
    let root = share.root_copy();
    share.client.open(root, OpenFlags::DIRECTORY).unwrap();
    let mut offset = 0;
    loop {
        let piece = share.client.read_directory(root, offset, 4096).unwrap();
        let Some(last) = piece.last() else { break };
        offset = last.offset;
        for name in names(&piece) {
            share.client.unlink(share.root, &name).unwrap();
        }
    }
    assert_eq!(fs::read_dir(&share.path).unwrap().count(), 0);
}

#[test]
fn a_listing_can_go_on_from_any_entry() {
    let mut share = Share::new();
    fill(&share, SOME);
    let root = share.root_copy();
    share.client.open(root, OpenFlags::DIRECTORY).unwrap();
    let all = share.client.list(root).unwrap();
    let middle = all[all.len() / 2].offset;
    let rest = share.client.read_directory(root, middle, 4096).unwrap();
    assert_eq!(rest[..], all[all.len() / 2 + 1..][..rest.len()]);
    assert_eq!(share.client.list(root).unwrap(), all, "and again from the start");
}

#[test]
fn entries_have_the_type_and_identity_of_their_files() {
    let mut share = Share::new();
    fs::create_dir(share.host("d")).unwrap();
    fs::write(share.host("f"), b"").unwrap();
    std::os::unix::fs::symlink("f", share.host("l")).unwrap();
    let root = share.root_copy();
    share.client.open(root, OpenFlags::DIRECTORY).unwrap();
    let listed = share.client.list(root).unwrap();
    for (name, kind) in [("d", 4), ("f", 8), ("l", 10)] {
        let entry = listed.iter().find(|entry| entry.name == name.as_bytes()).unwrap();
        let fid = share.fid(name);
        let qid = share.client.getattr(fid).unwrap().qid;
        assert_eq!((entry.kind, entry.qid.path, entry.qid.kind), (kind, qid.path, qid.kind), "{name}");
    }
}

#[test]
fn names_that_are_not_utf8_pass_unchanged() {
    let mut share = Share::new();
    let name = b"\xff\xfe latin \xe9";
    share.client.mkdir(share.root, name, 0o755).unwrap();
    let root = share.root_copy();
    share.client.open(root, OpenFlags::DIRECTORY).unwrap();
    assert_eq!(names(&share.client.list(root).unwrap()), [name.to_vec()]);
}

#[test]
fn room_for_no_entry_is_an_error_and_not_the_end() {
    let mut share = Share::new();
    let root = share.root_copy();
    share.client.open(root, OpenFlags::DIRECTORY).unwrap();
    assert_eq!(errno(share.client.read_directory(root, 0, 20)), Errno::EINVAL);
    assert_eq!(errno(share.client.read(root, 0, 100)), Errno::EISDIR);
}
