//! Transactions: what they hold, what a commit makes of them.

use datakit_store::{CommitError, ConflictReason, MergeDriver, Store, Transaction, TransactionError};

use crate::{commit, main_branch, name, path};

#[test]
fn disjoint_changes_of_two_transactions_are_both_kept() {
    let store = Store::memory();
    commit(&store, &[("a/x", "1"), ("b/y", "1")]);
    let (first, second) = (store.begin(&main_branch()).unwrap(), store.begin(&main_branch()).unwrap());
    first.write_file(&path("a/x"), b"2").unwrap();
    second.write_file(&path("b/y"), b"2").unwrap();
    first.commit().unwrap();
    second.commit().unwrap();
    let now = store.begin(&main_branch()).unwrap();
    assert_eq!(now.read_file(&path("a/x")).unwrap(), b"2");
    assert_eq!(now.read_file(&path("b/y")).unwrap(), b"2");
}

#[test]
fn a_conflict_leaves_the_transaction_open_and_names_the_path() {
    let store = Store::memory();
    commit(&store, &[("a", "1\n")]);
    let (first, second) = (store.begin(&main_branch()).unwrap(), store.begin(&main_branch()).unwrap());
    first.write_file(&path("a"), b"2\n").unwrap();
    second.write_file(&path("a"), b"3\n").unwrap();
    let head = first.commit().unwrap();
    let Err(CommitError::Conflicts { conflicts }) = second.commit() else { panic!("no conflict") };
    assert_eq!(conflicts[0].path, "a");
    assert!(second.is_open());

    let conflicts = second.merge(head).unwrap();
    assert_eq!((conflicts.len(), conflicts[0].reason), (1, ConflictReason::Changed));
    assert_eq!(second.read_file(&path("a")).unwrap(), b"** Conflict **\nChanged on both branches\n");
    assert!(matches!(second.commit(), Err(CommitError::Unresolved { .. })));
    second.write_file(&path("a"), b"4\n").unwrap();
    assert!(second.conflicts().is_empty());
    second.commit().unwrap();
    assert_eq!(store.begin(&main_branch()).unwrap().read_file(&path("a")).unwrap(), b"4\n");
}

#[test]
fn text_is_merged_inside_files_where_asked() {
    let store = Store::memory();
    commit(&store, &[("a", "1\n2\n3\n4\n5\n")]);
    let (first, second) = (store.begin(&main_branch()).unwrap(), store.begin(&main_branch()).unwrap());
    first.write_file(&path("a"), b"one\n2\n3\n4\n5\n").unwrap();
    second.write_file(&path("a"), b"1\n2\n3\n4\nfive\n").unwrap();
    second.set_merge_driver(Some(MergeDriver::Text));
    first.commit().unwrap();
    second.commit().unwrap();
    assert_eq!(store.begin(&main_branch()).unwrap().read_file(&path("a")).unwrap(), b"one\n2\n3\n4\nfive\n");
}

#[test]
fn an_empty_directory_is_there_while_open_and_not_in_the_commit() {
    let store = Store::memory();
    let transaction = store.begin(&main_branch()).unwrap();
    let directory = transaction.make_directory(Transaction::ROOT, &name("empty")).unwrap();
    transaction.write_file(&path("file"), b"x").unwrap();
    assert_eq!(transaction.list(directory).unwrap(), []);
    assert_eq!(transaction.list(Transaction::ROOT).unwrap().len(), 2);
    transaction.remove(Transaction::ROOT, &name("empty")).unwrap();
    assert_eq!(transaction.list(Transaction::ROOT).unwrap().len(), 1);
    transaction.make_directory(Transaction::ROOT, &name("empty")).unwrap();
    let commit = transaction.commit().unwrap();
    let tree = store.tree(store.commit_of(commit).unwrap().tree).unwrap();
    assert_eq!(tree.entries.len(), 1);
}

#[test]
fn files_are_written_at_offsets_renamed_and_removed() {
    let store = Store::memory();
    commit(&store, &[("d/old", "hello"), ("d/keep", "k")]);
    let transaction = store.begin(&main_branch()).unwrap();
    let node = transaction.walk(&path("d/old")).unwrap();
    transaction.write(node, 8, b"!").unwrap();
    transaction.truncate(node, 9).unwrap();
    let (d, e) = (
        transaction.walk(&path("d")).unwrap(),
        transaction.make_directory(Transaction::ROOT, &name("e")).unwrap(),
    );
    transaction.rename((d, &name("old")), (e, &name("new"))).unwrap();
    assert_eq!(transaction.read_file(&path("e/new")).unwrap(), b"hello\0\0\0!");
    assert!(matches!(
        transaction.rename((Transaction::ROOT, &name("e")), (e, &name("f"))),
        Err(TransactionError::IntoItself)
    ));
    let root = Transaction::ROOT;
    assert!(matches!(
        transaction.rename_to_new((d, &name("keep")), (e, &name("new"))),
        Err(TransactionError::Exists { .. })
    ));
    assert_eq!(transaction.read_file(&path("d/keep")).unwrap(), b"k");
    transaction.rename_to_new((d, &name("keep")), (root, &name("moved"))).unwrap();
    transaction.rename_to_new((root, &name("moved")), (d, &name("keep"))).unwrap();
    transaction.retain(node);
    transaction.remove_path(&path("e")).unwrap();
    let mut bytes = [0; 5];
    assert_eq!(transaction.read(node, 0, &mut bytes).unwrap(), 5);
    transaction.release(node);
    assert!(matches!(transaction.read(node, 0, &mut bytes), Err(TransactionError::NoNode(_))));
    assert_eq!(transaction.list_path(&path("d")).unwrap().len(), 1);
}
