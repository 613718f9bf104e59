//! What commits take on disk: directories that change a little are kept as what changed.

use datakit_store::{Durability, Options, Store};

use crate::{commit, created, fsck, git, main_branch};

fn packs(folder: &std::path::Path) -> (usize, u64) {
    let files = std::fs::read_dir(folder.join("objects/pack")).unwrap().flatten();
    let packs = files.filter(|file| file.path().extension().is_some_and(|end| end == "pack"));
    let sizes: Vec<u64> = packs.map(|file| file.metadata().unwrap().len()).collect();
    (sizes.len(), sizes.iter().sum())
}

#[test]
fn directories_that_change_a_little_grow_a_little_and_are_read_as_they_were() {
    let (folder, files) = (tempfile::tempdir().unwrap(), 300);
    let options = || Options { durability: Durability::Visible, ..created() };
    let names: Vec<String> = (0..files).map(|n| format!("outer/inner/a-file-with-a-name-{n}")).collect();
    let all: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "0")).collect();
    let mut heads = Vec::new();
    // Each close makes a pack; sixteen of them become one.
    let (lives, commits) = (20, 25);
    for life in 0..lives {
        let store = Store::open(folder.path(), options()).unwrap();
        if life == 0 {
            heads.push(commit(&store, &all));
        }
        for n in 0..commits {
            let n = life * commits + n;
            heads.push(commit(&store, &[(&names[n * 7 % files], &n.to_string())]));
        }
    }
    let tree = git(folder.path(), &["cat-file", "-s", "main:outer/inner"]).parse::<u64>().unwrap();
    let (count, bytes) = packs(folder.path());
    assert!(count < lives, "{count} packs are left of {lives}");
    let whole = tree * heads.len() as u64;
    println!("{} commits: {bytes} bytes in {count} packs; the trees alone are {whole}", heads.len());
    assert!(bytes * 5 < whole, "{bytes} bytes, and the trees alone are {whole}");
    fsck(folder.path());
    let store = Store::open(folder.path(), options()).unwrap();
    let paths: Vec<_> = names.iter().map(|name| crate::path(name)).collect();
    for (n, head) in heads.iter().enumerate().step_by(17) {
        let tree = store.commit_of(*head).unwrap().tree;
        for path in paths.iter().step_by(31) {
            assert!(store.look_up(tree, path).unwrap().is_some(), "commit {n}");
        }
    }
    let last = store.begin(&main_branch()).unwrap();
    let n = lives * commits - 1;
    assert_eq!(last.read_file(&paths[n * 7 % files]).unwrap(), n.to_string().into_bytes());
    // Git makes of it what it likes.
    git(folder.path(), &["gc", "-q", "--aggressive", "--prune=now"]);
    fsck(folder.path());
}
