//! Commits that are acknowledged before git sees them: seen here at once, by git soon, and in order.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use datakit_git::{Disk, Step};
use datakit_store::{BranchName, CommitError, Durability, Options, Store};

use crate::{commit, created, fsck, git, git_command, main_branch, path};

fn behind() -> Options {
    Options { durability: Durability::Behind, ..created() }
}

#[test]
fn what_is_acknowledged_is_seen_at_once_here_and_by_git_after_a_sync() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), behind()).unwrap();
    let side = BranchName::new("side/way").unwrap();
    for n in 0..200 {
        let head = commit(&store, &[("a/b", &format!("{n}\n"))]);
        assert_eq!(store.head(&main_branch()).unwrap(), Some(head));
        assert_eq!(
            store.begin(&main_branch()).unwrap().read_file(&path("a/b")).unwrap(),
            format!("{n}\n").as_bytes()
        );
        if n == 100 {
            store.create_branch(&side, head).unwrap();
            assert_eq!(store.branches().unwrap().len(), 2);
            assert!(
                store.create_branch(&BranchName::new("side").unwrap(), head).is_err(),
                "it is a directory"
            );
        }
        if n % 50 == 49 {
            store.sync().unwrap();
            assert_eq!(git(folder.path(), &["rev-parse", "main"]), head.to_string());
        }
    }
    store.delete_branch(&side).unwrap();
    let head = commit(&store, &[("end", "1")]);
    drop(store);
    assert_eq!(git(folder.path(), &["for-each-ref", "--format=%(objectname)"]), head.to_string());
    assert_eq!(git(folder.path(), &["rev-list", "--count", "main"]), "201");
    fsck(folder.path());
}

#[test]
fn git_sees_it_without_being_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), behind()).unwrap();
    let head = commit(&store, &[("a", "1")]).to_string();
    let began = Instant::now();
    while git_command(folder.path(), &["rev-parse", "-q", "--verify", "main"])
        .output()
        .unwrap()
        .stdout
        .is_empty()
    {
        assert!(began.elapsed() < Duration::from_secs(30));
    }
    assert_eq!(git(folder.path(), &["rev-parse", "main"]), head);
}

#[test]
fn git_moves_the_same_branch_meanwhile_and_nothing_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let repo = folder.path().join("repo.git");
    let store = Store::open(&repo, behind()).unwrap();
    commit(&store, &[("start", "0")]);
    store.sync().unwrap();
    git(folder.path(), &["clone", "-q", "-b", "main", "repo.git", "work"]);
    let work = folder.path().join("work");
    let stop = AtomicBool::new(false);
    let (acknowledged, pushed) = std::thread::scope(|scope| {
        let pushing = scope.spawn(|| {
            let mut pushed = Vec::new();
            for n in 0.. {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                std::fs::write(work.join("pushed"), n.to_string()).unwrap();
                git(&work, &["add", "-A"]);
                git(&work, &["commit", "-q", "-m", "pushed"]);
                if git_command(&work, &["push", "-q", "origin", "HEAD:main"])
                    .output()
                    .unwrap()
                    .status
                    .success()
                {
                    pushed.push(git(&work, &["rev-parse", "HEAD"]));
                } else {
                    git(&work, &["pull", "-q", "--no-rebase", "--no-edit", "origin", "main"]);
                }
            }
            pushed
        });
        let committing: Vec<_> = (0..3)
            .map(|client| {
                let store = store.clone();
                scope.spawn(move || {
                    let mut heads = Vec::new();
                    for n in 0..400 {
                        let transaction = store.begin(&main_branch()).unwrap();
                        transaction.write_file(&path(&format!("c{client}/{n}")), b"x").unwrap();
                        heads.push(transaction.commit().unwrap().to_string());
                        if n % 20 == 19 {
                            std::thread::sleep(Duration::from_millis(30));
                        }
                    }
                    heads
                })
            })
            .collect();
        let done: Vec<_> = committing.into_iter().map(|client| client.join()).collect();
        stop.store(true, Ordering::SeqCst);
        (done.into_iter().flat_map(|heads| heads.unwrap()).collect::<Vec<_>>(), pushing.join().unwrap())
    });
    drop(store);
    let history = git(&repo, &["rev-list", "main"]);
    let history: std::collections::HashSet<&str> = history.lines().collect();
    let lost: Vec<_> =
        acknowledged.iter().chain(&pushed).filter(|id| !history.contains(id.as_str())).collect();
    assert!(lost.is_empty(), "{lost:?}");
    let files = git(&repo, &["ls-tree", "-r", "--name-only", "main"]);
    assert_eq!(files.lines().filter(|file| file.starts_with('c')).count(), 1200);
    println!("{} pushes came between {} commits", pushed.len(), acknowledged.len());
    fsck(&repo);
}

#[test]
fn a_publication_that_fails_is_told_and_made_up_for() {
    for step in [Step::Create, Step::Write, Step::Rename] {
        let folder = tempfile::tempdir().unwrap();
        let is_full = Arc::new(AtomicBool::new(false));
        let for_disk = is_full.clone();
        let disk = Disk::with_fault(Arc::new(move |at, _| {
            if at == step && for_disk.load(Ordering::SeqCst) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            Ok(())
        }));
        let store = Store::open(folder.path(), Options { disk, ..behind() }).unwrap();
        let mut heads = vec![commit(&store, &[("f", "0")])];
        store.sync().unwrap();
        is_full.store(true, Ordering::SeqCst);
        let began = Instant::now();
        // Some are acknowledged before the failure is known; then there is an error and no acknowledgement.
        loop {
            assert!(began.elapsed() < Duration::from_secs(30), "nobody noticed");
            let transaction = store.begin(&main_branch()).unwrap();
            transaction.write_file(&path("f"), heads.len().to_string().as_bytes()).unwrap();
            match transaction.commit() {
                Ok(head) => heads.push(head),
                Err(CommitError::Branch(error)) => {
                    println!("{step:?}: {error}");
                    break;
                }
                Err(other) => panic!("{other}"),
            }
        }
        assert_eq!(store.head(&main_branch()).unwrap(), heads.last().copied());
        is_full.store(false, Ordering::SeqCst);
        while store.sync().is_err() {
            assert!(began.elapsed() < Duration::from_secs(60), "it does not recover");
        }
        heads.push(commit(&store, &[("f", "end")]));
        drop(store);
        let history = git(folder.path(), &["rev-list", "--reverse", "main"]);
        assert_eq!(
            history.lines().collect::<Vec<_>>(),
            heads.iter().map(|id| id.to_string()).collect::<Vec<_>>()
        );
        fsck(folder.path());
    }
}
