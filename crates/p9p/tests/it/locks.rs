//! Advisory locks between processes of a client, as git, dpkg and sqlite take them.

use p9p::message::{Fid, Reply, Request};
use p9p::stat::{LockKind, LockRange};
use p9p::{Errno, filesystem::OpenFlags};

use crate::share::{Share, errno};

fn range(start: u64, length: u64, process: u32) -> LockRange<'static> {
    LockRange { start, length, process, client: b"guest" }
}

/// A share with a file opened twice.
fn opened_twice() -> (Share, Fid, Fid) {
    let mut share = Share::new();
    let first = share.root_copy();
    share.client.create(first, b"f", OpenFlags::RDWR, 0o600).unwrap();
    let second = share.fid("f");
    share.client.open(second, OpenFlags::RDWR).unwrap();
    (share, first, second)
}

fn in_the_way(
    share: &mut Share,
    fid: Fid,
    kind: LockKind,
    range: LockRange<'_>,
) -> Option<(LockKind, u64, u64, u32)> {
    let asked = Request::Getlock { fid, kind, range };
    let answer = share.client.call(&asked, |reply| match reply {
        Reply::Getlock { kind, range } => Some((*kind, range.start, range.length, range.process)),
        _ => None,
    });
    answer.map(Some).unwrap().filter(|(kind, ..)| *kind != LockKind::UNLOCK)
}

#[test]
fn a_write_lock_keeps_others_out_until_it_is_given_back() {
    let (mut share, first, second) = opened_twice();
    assert!(share.client.lock(first, LockKind::WRITE, range(0, 0, 1)).unwrap());
    assert!(!share.client.lock(second, LockKind::WRITE, range(5, 1, 2)).unwrap());
    assert!(!share.client.lock(second, LockKind::READ, range(u64::MAX - 1, 1, 2)).unwrap());
    assert_eq!(
        in_the_way(&mut share, second, LockKind::READ, range(9, 1, 2)),
        Some((LockKind::WRITE, 0, 0, 1))
    );
    assert!(share.client.lock(first, LockKind::UNLOCK, range(0, 0, 1)).unwrap());
    assert!(share.client.lock(second, LockKind::WRITE, range(5, 1, 2)).unwrap());
}

#[test]
fn read_locks_go_together_and_ranges_count() {
    let (mut share, first, second) = opened_twice();
    assert!(share.client.lock(first, LockKind::READ, range(0, 100, 1)).unwrap());
    assert!(share.client.lock(second, LockKind::READ, range(50, 100, 2)).unwrap());
    assert!(!share.client.lock(second, LockKind::WRITE, range(99, 1, 2)).unwrap());
    assert!(share.client.lock(second, LockKind::WRITE, range(100, 1, 2)).unwrap());
}

#[test]
fn unlocking_the_middle_leaves_both_ends() {
    let (mut share, first, second) = opened_twice();
    assert!(share.client.lock(first, LockKind::WRITE, range(0, 100, 1)).unwrap());
    assert!(share.client.lock(first, LockKind::UNLOCK, range(40, 20, 1)).unwrap());
    assert!(share.client.lock(second, LockKind::WRITE, range(40, 20, 2)).unwrap());
    assert_eq!(
        in_the_way(&mut share, second, LockKind::WRITE, range(0, 40, 2)),
        Some((LockKind::WRITE, 0, 40, 1))
    );
    assert_eq!(
        in_the_way(&mut share, second, LockKind::WRITE, range(60, 0, 2)),
        Some((LockKind::WRITE, 60, 40, 1))
    );
}

#[test]
fn a_process_replaces_its_own_lock() {
    let (mut share, first, second) = opened_twice();
    assert!(share.client.lock(first, LockKind::WRITE, range(0, 0, 1)).unwrap());
    assert!(share.client.lock(first, LockKind::READ, range(0, 0, 1)).unwrap());
    assert!(share.client.lock(second, LockKind::READ, range(0, 0, 2)).unwrap());
}

#[test]
fn closing_the_file_gives_its_locks_back() {
    let (mut share, first, second) = opened_twice();
    assert!(share.client.lock(first, LockKind::WRITE, range(0, 0, 1)).unwrap());
    share.client.clunk(first).unwrap();
    assert!(share.client.lock(second, LockKind::WRITE, range(0, 0, 2)).unwrap());
    share.session.reset();
}

#[test]
fn bad_locks_are_refused() {
    let (mut share, first, _) = opened_twice();
    assert_eq!(errno(share.client.lock(first, LockKind(9), range(0, 0, 1))), Errno::EINVAL);
    assert_eq!(errno(share.client.lock(first, LockKind::WRITE, range(u64::MAX, 5, 1))), Errno::EINVAL);
    let root = share.root;
    assert_eq!(errno(share.client.lock(root, LockKind::WRITE, range(0, 0, 1))), Errno::EBADF);
}
