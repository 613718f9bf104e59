//! A disk that fills up or fails: an error, nothing acknowledged, and afterwards all is as before.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use datakit_git::{Disk, Step};
use datakit_store::{BranchName, CommitError, Durability, Options, Store};

use crate::{created, fsck, git, main_branch, path};

/// Makes the n-th step of a kind fail, for every n until none is reached.
fn fails(step: Step, error: fn() -> io::Error) {
    let mut refused = 0;
    for n in 0..40 {
        let folder = tempfile::tempdir().unwrap();
        let left = Arc::new(AtomicU64::new(u64::MAX));
        let for_disk = left.clone();
        let disk = Disk::with_fault(Arc::new(move |at, _| {
            if at != step || for_disk.load(Ordering::SeqCst) == u64::MAX {
                return Ok(());
            }
            if for_disk.fetch_sub(1, Ordering::SeqCst) == 0 {
                for_disk.store(u64::MAX, Ordering::SeqCst);
                return Err(error());
            }
            Ok(())
        }));
        let store = Store::open(folder.path(), Options { disk, ..created() }).unwrap();
        left.store(n, Ordering::SeqCst);
        let mut acknowledged = Vec::new();
        for round in 0..6 {
            let transaction = store.begin(&main_branch()).unwrap();
            transaction.write_file(&path(&format!("f{round}")), b"x").unwrap();
            match transaction.commit() {
                Ok(_) => acknowledged.push(round),
                Err(CommitError::Branch(_)) => {
                    refused += 1;
                    assert!(transaction.is_open());
                    transaction.commit().unwrap();
                    acknowledged.push(round);
                }
                Err(other) => panic!("{other}"),
            }
        }
        fsck(folder.path());
        drop(store);
        let store = Store::open(folder.path(), Options::default()).unwrap();
        drop(store);
        fsck(folder.path());
        assert_eq!(
            git(folder.path(), &["ls-tree", "--name-only", "main"]).lines().count(),
            acknowledged.len()
        );
        assert_eq!(git(folder.path(), &["rev-list", "--count", "main"]), acknowledged.len().to_string());
    }
    assert!(refused > 5, "only {refused} steps failed");
}

#[test]
fn a_full_disk_is_an_error_and_nothing_else() {
    fails(Step::Write, || io::ErrorKind::StorageFull.into());
}

#[test]
fn a_failing_fsync_is_an_error_and_nothing_else() {
    fails(Step::Sync, || io::Error::from_raw_os_error(5));
}

#[test]
fn a_file_that_cannot_be_made_or_named_is_an_error_and_nothing_else() {
    fails(Step::Create, || io::ErrorKind::StorageFull.into());
    fails(Step::Rename, || io::Error::from_raw_os_error(5));
}

#[test]
fn a_folder_of_refs_that_git_removes_while_it_is_brought_to_disk_is_no_trouble() {
    let folder = tempfile::tempdir().unwrap();
    let repository = folder.path().to_owned();
    let packed = Arc::new(AtomicU64::new(0));
    let for_disk = packed.clone();
    let disk = Disk::with_fault(Arc::new(move |step, at| {
        if step == Step::Sync && at.ends_with("refs/heads/a/b") {
            git(&repository, &["pack-refs", "--all"]);
            assert!(!at.exists(), "git leaves empty folders");
            for_disk.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    }));
    let options = Options { disk, durability: Durability::Visible, ..created() };
    let store = Store::open(folder.path(), options).unwrap();
    let transaction = store.begin(&BranchName::new("a/b/c").unwrap()).unwrap();
    transaction.write_file(&path("f"), b"x").unwrap();
    let head = transaction.commit().unwrap();
    store.sync().unwrap();
    assert_eq!(packed.load(Ordering::SeqCst), 1);
    assert_eq!(store.trouble(), None);
    drop(store);
    assert_eq!(git(folder.path(), &["rev-parse", "a/b/c"]), head.to_string());
    fsck(folder.path());
}
