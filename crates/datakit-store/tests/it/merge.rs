//! Merges against git merge-tree on random trees.

use std::collections::BTreeMap;

use datakit_store::{CommitError, Store};

use crate::{commit, fsck, git_command, main_branch, path, repository};

/// A small generator of random numbers; the seed is printed.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

fn edit(store: &Store, random: &mut Random, transaction: &datakit_store::Transaction, files: &[String]) {
    let _ = store;
    for _ in 0..1 + random.below(4) {
        let file = &files[usize::try_from(random.below(files.len() as u64)).unwrap()];
        if random.below(4) == 0 {
            transaction.remove_path(&path(file)).ok();
        } else {
            transaction.write_file(&path(file), format!("{}\n", random.below(3)).as_bytes()).unwrap();
        }
    }
}

#[test]
fn random_merges_are_as_gits() {
    let seed = 0x5eed_0001;
    println!("seed {seed:#x}");
    let mut random = Random(seed);
    let (folder, store) = repository();
    let files: Vec<String> =
        (0..4).flat_map(|a| (0..4).map(move |b| format!("d{a}/e{}/f{b}", b % 2))).collect();
    let all: Vec<(&str, &str)> = files.iter().map(|file| (file.as_str(), "0\n")).collect();
    commit(&store, &all);
    let (mut clean, mut conflicts) = (0, 0);
    for _ in 0..120 {
        let (ours, theirs) = (store.begin(&main_branch()).unwrap(), store.begin(&main_branch()).unwrap());
        edit(&store, &mut random, &ours, &files);
        edit(&store, &mut random, &theirs, &files);
        let expected_theirs = theirs.tree_id().unwrap();
        let ours_head = ours.commit().unwrap();
        // The other side as a commit of its own, for git.
        let base = theirs.parents()[0];
        let side = theirs.merge_trees();
        assert_eq!(side, None);
        let result = theirs.commit();
        let theirs_commit = {
            let other = datakit_store::BranchName::new("side").unwrap();
            let copy = store.begin_at(&other, Some(base)).unwrap();
            let now: BTreeMap<_, _> =
                store.diff(Some(store.commit_of(base).unwrap().tree), Some(expected_theirs)).map_or_else(
                    |_| BTreeMap::new(),
                    |changes| changes.into_iter().map(|change| (change.path.clone(), change)).collect(),
                );
            let _ = now;
            drop(copy);
            let message = ["commit-tree", &expected_theirs.to_string(), "-p", &base.to_string(), "-m", "x"]
                .map(str::to_owned);
            let arguments: Vec<&str> = message.iter().map(String::as_str).collect();
            let output = git_command(folder.path(), &arguments).output().unwrap();
            String::from_utf8(output.stdout).unwrap().trim().to_owned()
        };
        if theirs_commit.is_empty() {
            // A conflict: our side's tree was never written, which is right.
            assert!(matches!(result, Err(CommitError::Conflicts { .. })));
            conflicts += 1;
            continue;
        }
        let output = git_command(
            folder.path(),
            &["merge-tree", "--write-tree", "-X", "no-renames", &ours_head.to_string(), &theirs_commit],
        )
        .output()
        .unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        match result {
            Ok(head) => {
                assert!(output.status.success(), "git sees a conflict, we do not: {said}");
                assert_eq!(store.commit_of(head).unwrap().tree.to_string(), said.trim());
                clean += 1;
            }
            Err(CommitError::Conflicts { .. }) => {
                assert!(!output.status.success(), "we see a conflict, git does not: {said}");
                conflicts += 1;
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert!(clean > 10 && conflicts > 10, "{clean} clean, {conflicts} conflicts");
    fsck(folder.path());
}
