//! Real git beside the store: reads what it writes, writes what it reads, repacks and prunes meanwhile.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use datakit_store::{BranchError, BranchName, Next, Options, ReadError, Start, Store};

use crate::{commit, created, fsck, git, main_branch, path, repository};

#[test]
fn an_acknowledged_commit_is_visible_to_git_at_once() {
    let (folder, store) = repository();
    for n in 0..20 {
        let head = commit(&store, &[("a/b", &format!("{n}\n"))]);
        assert_eq!(git(folder.path(), &["rev-parse", "main"]), head.to_string());
        assert_eq!(git(folder.path(), &["show", "main:a/b"]), n.to_string());
    }
    fsck(folder.path());
    drop(store);
    fsck(folder.path());
    assert_eq!(git(folder.path(), &["rev-list", "--count", "main"]), "20");
    assert_eq!(left_open(folder.path()), [""; 0]);
}

/// Who watches the refs may be the last to know of the repository: then it, too, is to be done before `drop` returns.
#[test]
fn a_store_that_is_dropped_while_it_looks_at_a_ref_is_closed_all_the_same() {
    let (folder, store) = repository();
    for n in 0..10 {
        commit(&store, &[("a", &n.to_string())]);
    }
    // A ref that takes its time to be read.
    let slow = folder.path().join("refs/heads/slow");
    assert!(std::process::Command::new("mkfifo").arg(&slow).status().unwrap().success());
    std::thread::sleep(Duration::from_millis(1500));
    let ended = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(500));
        // Gone before its reader is let go: whoever looks again would wait for ever. Read and write: never waits itself.
        let writer = std::fs::OpenOptions::new().read(true).write(true).open(&slow).unwrap();
        std::fs::remove_file(&slow).unwrap();
        drop(writer);
    });
    drop(store);
    assert_eq!(left_open(folder.path()), [""; 0]);
    ended.join().unwrap();
    fsck(folder.path());
}

/// What a store that is open, or was not closed, has in a repository.
fn left_open(folder: &std::path::Path) -> Vec<String> {
    let names = |folder: std::path::PathBuf| {
        let entries = std::fs::read_dir(folder).unwrap().flatten();
        entries.map(|entry| entry.file_name().into_string().unwrap()).collect::<Vec<_>>()
    };
    let ours = names(folder.join("datakit")).into_iter().filter(|name| !name.starts_with("updates"));
    let packs = names(folder.join("objects/pack")).into_iter();
    ours.chain(packs.filter(|name| name.starts_with("pack-dk0-") || name.contains("tmp"))).collect()
}

#[test]
fn clients_on_disjoint_paths_lose_nothing() {
    let (folder, store) = repository();
    commit(&store, &[("start", "0")]);
    let (clients, rounds) = (16, 20);
    std::thread::scope(|scope| {
        for client in 0..clients {
            let store = store.clone();
            scope.spawn(move || {
                for round in 0..rounds {
                    let transaction = store.begin(&main_branch()).unwrap();
                    transaction.write_file(&path(&format!("c{client}/f{round}")), b"x").unwrap();
                    transaction
                        .write_file(&path(&format!("c{client}/last")), format!("{round}").as_bytes())
                        .unwrap();
                    transaction.commit().unwrap();
                }
            });
        }
    });
    drop(store);
    fsck(folder.path());
    let files = git(folder.path(), &["ls-tree", "-r", "--name-only", "main"]);
    assert_eq!(files.lines().count(), 1 + clients * (rounds + 1));
    let plain = git(folder.path(), &["rev-list", "--count", "--no-merges", "main"]);
    assert_eq!(plain, (1 + clients * rounds).to_string());
}

#[test]
fn gits_own_commits_and_packs_are_seen_and_appear_in_watches() {
    let (folder, store) = repository();
    commit(&store, &[("a", "1")]);
    let mut updates = store.updates(None, Start::Now).unwrap();
    let clone = tempfile::tempdir().unwrap();
    git(clone.path(), &["clone", "-q", "-b", "main", folder.path().to_str().unwrap(), "."]);
    for n in 0..5 {
        std::fs::write(clone.path().join("b"), format!("{n}")).unwrap();
        git(clone.path(), &["add", "b"]);
        git(clone.path(), &["commit", "-qm", "from outside"]);
        git(clone.path(), &["push", "-q", "origin", "main"]);
        let pushed = git(clone.path(), &["rev-parse", "HEAD"]);
        let Next::Value(update) = updates.next(Some(Duration::from_secs(10))).unwrap() else {
            panic!("no update")
        };
        assert_eq!(update.new.map(|id| id.to_string()), Some(pushed));
        let transaction = store.begin(&main_branch()).unwrap();
        assert_eq!(transaction.read_file(&path("b")).unwrap(), format!("{n}").into_bytes());
    }
    git(folder.path(), &["pack-refs", "--all"]);
    commit(&store, &[("c", "2")]);
    git(folder.path(), &["gc", "-q", "--prune=now"]);
    commit(&store, &[("d", "3")]);
    fsck(folder.path());
}

#[test]
fn git_repacks_and_prunes_while_clients_commit() {
    let (folder, store) = repository();
    commit(&store, &[("start", "0")]);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|client| {
                let store = store.clone();
                scope.spawn(move || {
                    for round in 0..150 {
                        let transaction = store.begin(&main_branch()).unwrap();
                        transaction
                            .write_file(
                                &path(&format!("c{client}/{}", round % 10)),
                                format!("{round}").as_bytes(),
                            )
                            .unwrap();
                        transaction.commit().unwrap();
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                git(folder.path(), &["repack", "-adq"]);
                git(folder.path(), &["gc", "-q", "--prune=now"]);
            }
        });
        let results: Vec<_> = clients.into_iter().map(|client| client.join()).collect();
        stop.store(true, Ordering::Relaxed);
        assert!(results.iter().all(Result::is_ok));
    });
    fsck(folder.path());
    let plain = git(folder.path(), &["rev-list", "--count", "--no-merges", "main"]);
    assert_eq!(plain, "601");
    drop(store);
    fsck(folder.path());
}

#[test]
fn two_stores_on_one_repository_lose_nothing() {
    let (folder, first) = repository();
    commit(&first, &[("start", "0")]);
    let second = Store::open(folder.path(), Options::default()).unwrap();
    std::thread::scope(|scope| {
        for (n, store) in [&first, &second, &first, &second].into_iter().enumerate() {
            scope.spawn(move || {
                for round in 0..40 {
                    let transaction = store.begin(&main_branch()).unwrap();
                    transaction.write_file(&path(&format!("{n}/{round}")), b"x").unwrap();
                    transaction.commit().unwrap();
                }
            });
        }
    });
    fsck(folder.path());
    assert_eq!(git(folder.path(), &["ls-tree", "-r", "--name-only", "main"]).lines().count(), 161);
    drop((first, second));
    fsck(folder.path());
}

/// Each start looks for what the dead left: those that live, begin or end meanwhile are none.
#[test]
fn stores_that_come_and_go_at_once_lose_nothing() {
    let (folder, store) = repository();
    commit(&store, &[("start", "0")]);
    drop(store);
    let (clients, rounds) = (4, 25);
    std::thread::scope(|scope| {
        for client in 0..clients {
            let folder = folder.path();
            scope.spawn(move || {
                for round in 0..rounds {
                    let store = Store::open(folder, created()).unwrap();
                    let transaction = store.begin(&main_branch()).unwrap();
                    transaction.write_file(&path(&format!("{client}/{round}")), b"x").unwrap();
                    transaction.commit().unwrap();
                }
            });
        }
    });
    fsck(folder.path());
    let files = git(folder.path(), &["ls-tree", "-r", "--name-only", "main"]);
    assert_eq!(files.lines().count(), 1 + clients * rounds);
    assert_eq!(left_open(folder.path()), [""; 0]);
}

#[test]
fn branches_are_made_renamed_deleted_and_moved_forward_only() {
    let (folder, store) = repository();
    let first = commit(&store, &[("a", "1")]);
    let second = commit(&store, &[("a", "2")]);
    let (b, c) = (BranchName::new("b").unwrap(), BranchName::new("c/d").unwrap());
    store.create_branch(&b, first).unwrap();
    assert!(matches!(store.create_branch(&b, second), Err(BranchError::Exists { .. })));
    store.fast_forward(&b, second).unwrap();
    store.fast_forward(&b, second).unwrap();
    assert!(matches!(store.fast_forward(&b, first), Err(BranchError::NotFastForward { .. })));
    let missing = store.parse_id("1".repeat(40)).unwrap();
    assert!(matches!(store.fast_forward(&b, missing), Err(BranchError::Read(ReadError::Missing { .. }))));
    assert!(store.parse_id("xyz").unwrap_err().to_string().starts_with("invalid-hash \"xyz\""));
    store.rename_branch(&b, &c).unwrap();
    assert_eq!(
        git(folder.path(), &["for-each-ref", "--format=%(refname)"]),
        "refs/heads/c/d\nrefs/heads/main"
    );
    git(folder.path(), &["pack-refs", "--all"]);
    assert!(store.create_branch(&BranchName::new("c").unwrap(), first).is_err(), "c is a directory of refs");
    store.delete_branch(&c).unwrap();
    assert_eq!(store.head(&c).unwrap(), None);
    store.create_branch(&BranchName::new("c").unwrap(), first).unwrap();
    fsck(folder.path());
}

#[test]
fn work_trees_alternates_and_sha256_are_served_in_place() {
    let outer = tempfile::tempdir().unwrap();
    for format in ["sha1", "sha256"] {
        let top = outer.path().join(format);
        std::fs::create_dir(&top).unwrap();
        git(&top, &["init", "-q", "-b", "main", "--object-format", format]);
        std::fs::write(top.join("f"), "1").unwrap();
        git(&top, &["add", "f"]);
        git(&top, &["commit", "-qm", "one"]);
        git(&top, &["worktree", "add", "-q", "../linked-of-it", "-b", "other"]);
        let borrowed = outer.path().join("borrowed");
        git(outer.path(), &["clone", "-q", "--bare", "--shared", top.to_str().unwrap(), "borrowed"]);
        for place in [&top, &outer.path().join("linked-of-it"), &borrowed] {
            let store = Store::open(place, Options::default()).unwrap();
            let head = commit(&store, &[(&format!("g{}", place.ends_with("borrowed")), "2")]);
            assert_eq!(git(place, &["rev-parse", "main"]), head.to_string());
            assert_eq!(store.begin(&main_branch()).unwrap().read_file(&path("f")).unwrap(), b"1");
            drop(store);
            fsck(place);
        }
        git(&top, &["worktree", "remove", "--force", "../linked-of-it"]);
        std::fs::remove_dir_all(borrowed).unwrap();
    }
}

#[test]
fn a_corrupt_object_is_named() {
    let (folder, store) = repository();
    commit(&store, &[("a", "some text\n")]);
    drop(store);
    let blob = git(folder.path(), &["rev-parse", "main:a"]);
    let unpacked = tempfile::tempdir().unwrap();
    git(unpacked.path(), &["init", "-q", "--bare", "."]);
    for pack in std::fs::read_dir(folder.path().join("objects/pack")).unwrap().flatten() {
        if pack.path().extension().is_some_and(|extension| extension == "pack") {
            let mut command = crate::git_command(unpacked.path(), &["unpack-objects", "-q"]);
            command.stdin(std::fs::File::open(pack.path()).unwrap());
            assert!(command.status().unwrap().success());
        }
    }
    let file = unpacked.path().join("objects").join(&blob[..2]).join(&blob[2..]);
    std::fs::remove_file(&file).unwrap();
    std::fs::write(&file, b"this is not zlib").unwrap();
    let store = Store::open(unpacked.path(), created()).unwrap();
    let error = store.object(store.parse_id(&blob).unwrap()).unwrap_err();
    assert!(error.to_string().contains(&blob) && matches!(error, ReadError::Corrupt { .. }), "{error}");
}

#[test]
fn a_corrupt_object_in_a_pack_is_named_and_the_others_are_read() {
    let (source, store) = repository();
    // Versions of one file, for git to make deltas of, and one that does not compress.
    let text = |n: usize| (0..400).map(|line| format!("{n} {}\n", line * (1 + n % 2))).collect::<String>();
    let noise: String = (0..4000_u32).map(|n| format!("{:08x}", n.wrapping_mul(0x9e37_79b9))).collect();
    for n in 0..4 {
        commit(&store, &[("a", &text(n)), (&format!("n{n}"), &format!("{n}{noise}"))]);
    }
    drop(store);
    // Our own packs are kept by git; a clone has what it packs itself.
    let served = source.path().display().to_string();
    let folder = tempfile::tempdir().unwrap();
    git(folder.path(), &["clone", "-q", "--bare", "--no-local", &served, "."]);
    git(folder.path(), &["repack", "-a", "-d", "-f", "-q"]);
    drop(source);
    let packs = std::fs::read_dir(folder.path().join("objects/pack")).unwrap().flatten();
    let mut packs =
        packs.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "pack"));
    let pack = packs.next().unwrap();
    assert_eq!(packs.next(), None, "everything is in one pack");
    let listed = git(folder.path(), &["verify-pack", "-v", &pack.display().to_string()]);
    // Lines are: id, kind, size, size in the pack, offset, and for a delta its depth and its base.
    let objects: Vec<Vec<&str>> = listed
        .lines()
        .map(|line| line.split_whitespace().collect())
        .filter(|fields: &Vec<&str>| fields.len() >= 5 && fields[0].len() == 40)
        .collect();
    assert!(objects.iter().any(|fields| fields.len() == 7), "no deltas: {listed}");
    let sound = std::fs::read(&pack).unwrap();
    let store_reads = |damaged: &[u8]| -> Vec<Result<(), String>> {
        std::fs::remove_file(&pack).unwrap();
        std::fs::write(&pack, damaged).unwrap();
        let store = Store::open(folder.path(), created()).unwrap();
        let read = |fields: &Vec<&str>| {
            let read = store.object(store.parse_id(fields[0]).unwrap());
            read.map(drop).map_err(|error| {
                assert!(error.to_string().contains(fields[0]), "{error} does not name {}", fields[0]);
                assert!(matches!(error, ReadError::Corrupt { .. } | ReadError::TooLarge { .. }), "{error}");
                error.to_string()
            })
        };
        objects.iter().map(read).collect()
    };
    assert!(store_reads(&sound).iter().all(Result::is_ok));
    for (at, fields) in objects.iter().enumerate() {
        let (length, offset): (usize, usize) = (fields[3].parse().unwrap(), fields[4].parse().unwrap());
        for flipped in [offset, offset + length / 2] {
            let mut damaged = sound.clone();
            damaged[flipped] ^= 0x10;
            let read = store_reads(&damaged);
            assert!(read[at].is_err(), "{fields:?} is read with byte {flipped} damaged");
            // Whatever is not made of it is as it was.
            let is_made_of = |other: &Vec<&str>| {
                let mut base = other.get(6).copied();
                while let Some(id) = base {
                    if id == fields[0] {
                        return true;
                    }
                    base = objects.iter().find(|o| o[0] == id).and_then(|o| o.get(6).copied());
                }
                false
            };
            for (other, read) in objects.iter().zip(&read) {
                if other[0] != fields[0] && !is_made_of(other) {
                    assert_eq!(*read, Ok(()), "{other:?} with byte {flipped} of {fields:?} damaged");
                }
            }
        }
    }
}

#[test]
fn a_large_file_goes_through_disk_and_comes_back() {
    let (folder, store) = repository();
    let transaction = store.begin(&main_branch()).unwrap();
    transaction.write_file(&path("large"), b"").unwrap();
    let node = transaction.walk(&path("large")).unwrap();
    let block: Vec<u8> = (0..1 << 20).map(|n: u32| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for n in 0..24 {
        transaction.write(node, n << 20, &block).unwrap();
    }
    let head = transaction.commit().unwrap();
    let tree = store.commit_of(head).unwrap().tree;
    let value = store.look_up(tree, &path("large")).unwrap().unwrap();
    let mut reader = store.open_blob(value.id).unwrap();
    let mut read = vec![0; 1 << 20];
    for n in [0, 23, 5, 6] {
        assert_eq!(reader.read_at(n << 20, &mut read).unwrap(), 1 << 20);
        assert!(read == block, "block {n}");
    }
    assert_eq!(git(folder.path(), &["cat-file", "-s", "main:large"]), (24 << 20).to_string());
    // The same from a pack, beside what is a delta of it.
    git(folder.path(), &["-c", "core.bigFileThreshold=1m", "repack", "-adq"]);
    git(folder.path(), &["prune-packed"]);
    let mut reader = store.open_blob(value.id).unwrap();
    for n in [0, 23, 5, 6] {
        assert_eq!(reader.read_at((n << 20) + 7, &mut read[..100]).unwrap(), 100);
        assert!(read[..100] == block[7..107], "block {n}, packed");
    }
    fsck(folder.path());
}

/// Peak of this process's resident memory so far, in bytes.
fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// In a process of its own: what is measured is that process's memory, and other tests take some.
#[test]
fn a_huge_file_takes_bounded_memory() {
    if std::env::var_os("TEST_ALONE").is_some() {
        return huge_file();
    }
    let mut alone = Command::new(std::env::current_exe().unwrap());
    alone.args(["--exact", "git::a_huge_file_takes_bounded_memory", "--nocapture"]).env("TEST_ALONE", "1");
    let output = alone.output().unwrap();
    let (said, failed) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("1 passed"), "{said}{failed}");
}

/// 4 GiB with CORACLE_SOAK=1, so that no length fits 32 bits.
fn huge_file() {
    let blocks: u64 = if std::env::var_os("CORACLE_SOAK").is_some() { 4097 } else { 160 };
    let (folder, store) = repository();
    let before = peak_bytes();
    let transaction = store.begin(&main_branch()).unwrap();
    transaction.write_file(&path("huge"), b"").unwrap();
    let node = transaction.walk(&path("huge")).unwrap();
    let block = |n: u64| [n.to_le_bytes(), [7; 8]].concat().repeat(1 << 16);
    for n in 0..blocks {
        transaction.write(node, n << 20, &block(n)).unwrap();
    }
    let head = transaction.commit().unwrap();
    let tree = store.commit_of(head).unwrap().tree;
    let value = store.look_up(tree, &path("huge")).unwrap().unwrap();
    let mut buffer = vec![0; 1 << 20];
    for packed in [false, true] {
        if packed {
            git(folder.path(), &["-c", "core.bigFileThreshold=1m", "repack", "-adq"]);
            git(folder.path(), &["prune-packed"]);
        }
        let mut reader = store.open_blob(value.id).unwrap();
        assert_eq!(reader.size(), blocks << 20);
        for n in [0, blocks / 2, blocks - 1] {
            assert_eq!(reader.read_at(n << 20, &mut buffer).unwrap(), 1 << 20);
            assert!(buffer == block(n), "block {n}");
        }
    }
    let grown = peak_bytes() - before;
    assert!(grown < 96 << 20, "{} MiB for a file of {blocks} MiB", grown >> 20);
    assert_eq!(git(folder.path(), &["cat-file", "-s", "main:huge"]), (blocks << 20).to_string());
}
