//! Watches: every update in order, the newest value, and nobody woken for nothing.

use std::time::Duration;

use datakit_store::{Next, Seq, Start, Store};

use crate::{commit, main_branch, path};

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
