//! Watches: every update in order, the newest value, and nobody woken for nothing.

use std::time::Duration;

use datakit_store::{BranchName, Next, Options, Seq, Start, Store};

use crate::{commit, created, git, main_branch, path, repository};

const SHORT: Option<Duration> = Some(Duration::from_millis(20));

#[test]
fn updates_are_numbered_and_nothing_is_lost() {
    let store = Store::memory();
    let mut all = store.updates(None, Start::Now).unwrap();
    let heads: Vec<_> = (0..50).map(|n| commit(&store, &[("a", &n.to_string())])).collect();
    let mut last = None;
    for head in &heads {
        let update = all.try_next().unwrap().unwrap();
        assert_eq!((update.old, update.new), (last, Some(*head)));
        last = Some(*head);
    }
    assert_eq!(all.try_next().unwrap(), None);
    let mut again = store.updates(Some(&main_branch()), Start::From(Seq(11))).unwrap();
    assert_eq!(again.try_next().unwrap().unwrap().new, Some(heads[10]));
}

#[test]
fn a_path_wakes_only_when_it_changes() {
    let store = Store::memory();
    commit(&store, &[("a/b", "1"), ("c", "1")]);
    let mut watch = store.watch_path(&main_branch(), &path("a/b")).unwrap();
    let mut absent = store.watch_path(&main_branch(), &path("a/x/y")).unwrap();
    assert!(matches!(watch.next(SHORT), Next::Value(Some(_))));
    assert_eq!(absent.next(SHORT), Next::Value(None));
    commit(&store, &[("c", "2")]);
    assert_eq!(watch.next(SHORT), Next::TimedOut);
    commit(&store, &[("a/b", "2"), ("a/x/y", "1")]);
    assert!(matches!(watch.next(SHORT), Next::Value(Some(_))));
    assert!(matches!(absent.next(SHORT), Next::Value(Some(_))));
    store.delete_branch(&main_branch()).unwrap();
    assert_eq!(watch.next(SHORT), Next::Value(None));
}

#[test]
fn a_wait_is_cancelled_from_another_thread() {
    let store = Store::memory();
    let mut watch = store.watch_head(&main_branch());
    assert_eq!(watch.next(None), Next::Value(None));
    let canceller = watch.canceller();
    let waiting = std::thread::spawn(move || watch.next(None));
    canceller.cancel();
    assert_eq!(waiting.join().unwrap(), Next::Cancelled);
}

#[test]
fn numbers_go_on_after_a_restart_and_nothing_is_lost() {
    let (folder, store) = repository();
    let mut heads: Vec<_> = (0..5).map(|n| Some(commit(&store, &[("a", &n.to_string())]))).collect();
    drop(store);
    // Others, while nobody serves.
    let side = git(folder.path(), &["rev-parse", "main~2"]);
    git(folder.path(), &["branch", "side", "main~2"]);
    let store = Store::open(folder.path(), Options::default()).unwrap();
    heads.push(store.parse_id(&side).ok());
    store.delete_branch(&BranchName::new("side").unwrap()).unwrap();
    heads.push(None);
    heads.push(Some(commit(&store, &[("a", "again")])));
    for from in 1..=heads.len() {
        let mut updates = store.updates(None, Start::From(Seq(from as u64))).unwrap();
        for (n, head) in heads.iter().enumerate().skip(from - 1) {
            let update = updates.try_next().unwrap().unwrap();
            assert_eq!((update.seq, update.new), (Seq(n as u64 + 1), *head));
        }
        assert_eq!(updates.try_next().unwrap(), None);
    }
    let future = store.updates(None, Start::From(Seq(heads.len() as u64 + 2))).unwrap_err();
    assert!(future.to_string().contains("the next one is 9"), "{future}");
}

#[test]
fn updates_beyond_what_is_kept_are_refused_also_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = created();
    options.limits.updates = 4;
    let store = Store::open(folder.path(), options.clone()).unwrap();
    for n in 0..30 {
        commit(&store, &[("a", &n.to_string())]);
    }
    drop(store);
    let store = Store::open(folder.path(), options).unwrap();
    let refused = store.updates(None, Start::From(Seq(26))).unwrap_err();
    assert_eq!((refused.oldest, refused.next), (Seq(27), Seq(31)));
    let mut kept = store.updates(None, Start::From(Seq(27))).unwrap();
    assert_eq!(kept.try_next().unwrap().unwrap().seq, Seq(27));
}

#[test]
fn a_second_store_has_numbers_of_its_own() {
    let (folder, first) = repository();
    commit(&first, &[("a", "1")]);
    let second = Store::open(folder.path(), Options::default()).unwrap();
    commit(&second, &[("a", "2")]);
    assert!(second.updates(None, Start::From(Seq(2))).is_err());
    assert!(first.updates(None, Start::From(Seq(1))).is_ok());
}
