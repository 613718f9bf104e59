//! Merges against git merge-tree on random trees.

use std::collections::BTreeMap;

use datakit_store::{BranchName, CommitError, Store, TreePath};

use crate::{commit, fsck, git, git_command, main_branch, path, repository};

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

/// Commits with random parents, so that many pairs have several best common ancestors.
#[test]
fn merges_of_criss_crossed_histories_are_as_gits() {
    let seed = 0x5eed_0003;
    println!("seed {seed:#x}");
    let mut random = Random(seed);
    let (folder, store) = repository();
    let files: Vec<String> = (0..6).map(|n| format!("d{}/f{n}", n % 2)).collect();
    let all: Vec<(&str, &str)> = files.iter().map(|file| (file.as_str(), "0\n")).collect();
    let (mut clean, mut conflicts, mut virtual_bases) = (0, 0, 0);
    for round in 0..40 {
        let branch = |n: usize| BranchName::new(format!("r{round}-{n}")).unwrap();
        let first = {
            let transaction = store.begin(&branch(0)).unwrap();
            all.iter().for_each(|(file, text)| transaction.write_file(&path(file), text.as_bytes()).unwrap());
            transaction.commit().unwrap()
        };
        let mut heads = [first, first];
        for step in 0..6 {
            for side in [0, 1] {
                let transaction = store.begin_at(&branch(2 * step + side + 1), Some(heads[side])).unwrap();
                let file = &files[usize::try_from(random.below(files.len() as u64)).unwrap()];
                transaction.write_file(&path(file), format!("{}\n", random.below(4)).as_bytes()).unwrap();
                heads[side] = transaction.commit().unwrap();
            }
            // Each side takes the other's last but keeps its own tree where both changed: a cross.
            if step % 2 == 1 {
                let crossed = [0, 1].map(|side: usize| {
                    let transaction =
                        store.begin_at(&branch(20 + 2 * step + side), Some(heads[side])).unwrap();
                    transaction.merge(heads[1 - side]).unwrap();
                    for conflict in transaction.conflicts() {
                        let text = format!("{}\n", random.below(4));
                        transaction
                            .write_file(&TreePath::parse(&conflict.path).unwrap(), text.as_bytes())
                            .unwrap();
                    }
                    transaction.commit().unwrap()
                });
                heads = crossed;
            }
        }
        let last = [0, 1].map(|side| {
            let transaction = store.begin_at(&branch(40 + side), Some(heads[side])).unwrap();
            edit(&store, &mut random, &transaction, &files);
            transaction.commit().unwrap()
        });
        let bases = git(folder.path(), &["merge-base", "--all", &last[0].to_string(), &last[1].to_string()]);
        virtual_bases += usize::from(bases.lines().count() > 1);
        let transaction = store.begin_at(&branch(50), Some(last[0])).unwrap();
        let found = transaction.merge(last[1]).unwrap();
        let arguments = ["merge-tree", "--write-tree", "-X", "no-renames"].map(str::to_owned);
        let arguments: Vec<String> = arguments.into_iter().chain(last.map(|id| id.to_string())).collect();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let output = git_command(folder.path(), &arguments).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert_eq!(found.is_empty(), output.status.success(), "round {round}: {found:?}, git: {said}");
        if found.is_empty() {
            assert_eq!(transaction.tree_id().unwrap().to_string(), said.trim(), "round {round}");
            clean += 1;
        } else {
            conflicts += 1;
        }
    }
    println!("{clean} clean, {conflicts} conflicts, {virtual_bases} of several bases");
    assert!(clean > 3 && conflicts > 3 && virtual_bases > 10);
}

#[test]
fn gitattributes_say_which_files_are_merged_inside_and_git_agrees() {
    let (folder, store) = repository();
    let attributes = "*.txt merge=text\n*.log merge=union\n*.mine merge=ours\n*.no -merge\n";
    let files = ["a.txt", "d/a.log", "a.mine"];
    let base: String = (0..20).map(|n| format!("{n}\n")).collect();
    let mut all = vec![(".gitattributes", attributes), ("a.no", base.as_str()), ("a", base.as_str())];
    all.extend(files.map(|file| (file, base.as_str())));
    commit(&store, &all);
    let change = |transaction: &datakit_store::Transaction, file: &str, from: &str, to: &str| {
        transaction.write_file(&path(file), base.replace(from, to).as_bytes()).unwrap();
    };
    // Who commits second merges: its side is the one that is there already.
    let (first, second) = (store.begin(&main_branch()).unwrap(), store.begin(&main_branch()).unwrap());
    for (file, from, to) in [("a.txt", "17\n", "last\n"), ("d/a.log", "5\n", "x\n"), ("a.mine", "5\n", "x\n")]
    {
        change(&second, file, "\n3\n", "\nthree\n");
        change(&first, file, from, to);
    }
    let theirs = first.commit().unwrap();
    second.commit().unwrap();
    assert_eq!(git(folder.path(), &["rev-parse", "main^1"]), theirs.to_string());
    let merge = ["--attr-source=main", "merge-tree", "--write-tree", "main^1", "main^2"];
    let tree = git(folder.path(), &[&["-c", "merge.ours.driver=true"], &merge[..]].concat());
    for file in files {
        let [ours, gits] =
            ["main", &tree].map(|tree| git(folder.path(), &["show", &format!("{tree}:{file}")]));
        assert_eq!(ours, gits, "{file}");
    }
    assert!(git(folder.path(), &["show", "main:a.txt"]).contains("three\n4\n"));
    // Where nothing is said, and where it is said not to, both sides are a conflict.
    for file in ["a.no", "a"] {
        let (first, second) = (store.begin(&main_branch()).unwrap(), store.begin(&main_branch()).unwrap());
        change(&first, file, "17\n", "last\n");
        change(&second, file, "\n3\n", "\nthree\n");
        first.commit().unwrap();
        let refused = second.commit().unwrap_err();
        assert!(refused.to_string().contains(&format!("Merge conflict: {file}")), "{refused}");
    }
    // What git's attributes say goes before what the transaction asks for.
    let (first, second) = (store.begin(&main_branch()).unwrap(), store.begin(&main_branch()).unwrap());
    first.write_file(&path("a.no"), b"1").unwrap();
    second.write_file(&path("a.no"), b"2").unwrap();
    second.set_merge_driver(Some(datakit_store::MergeDriver::Union));
    first.commit().unwrap();
    assert!(second.commit().is_err());
    fsck(folder.path());
}
