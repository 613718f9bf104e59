//! Trees and commits as they are in a repository: the first byte says which. What is read is written alike.
#![no_main]

use datakit_git::{Commit, HashKind, Tree, parse_id};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((choice, bytes)) = bytes.split_first() else { return };
    let kind = if choice & 2 == 0 { HashKind::Sha1 } else { HashKind::Sha256 };
    if choice & 1 == 0 {
        let Ok(tree) = Tree::parse(kind, bytes) else { return };
        // Modes are written as git writes them now, so the text may differ, but not what it says.
        assert_eq!(Tree::parse(kind, &tree.encode()).as_ref(), Ok(&tree));
        assert!(tree.entries.iter().all(|entry| tree.try_find(&entry.name) == Some(entry)));
    } else if let Ok(commit) = Commit::parse(kind, bytes) {
        let again = Commit::parse(kind, &commit.encode()).expect("we wrote it");
        assert_eq!((again.tree, again.parents), (commit.tree, commit.parents));
    }
    let _ = parse_id(kind, bytes);
});
