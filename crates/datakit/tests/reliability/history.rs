//! What many clients at once did and saw, checked against what they may have.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use datakit_client::{DataKit, Error, Retries};

use super::world::{Mounted, PATIENCE, Server, World, fsck, git, git_command, has_fuse, rounds};

/// Plenty of attempts: whoever gives up is no fault of the server.
const PATIENT: Retries =
    Retries { attempts: 1000, wait_first: Duration::from_millis(2), wait_max: Duration::from_millis(100) };

/// A number and who wrote it: two that write the same bytes do not conflict, so who counts must sign.
pub fn number(bytes: impl AsRef<[u8]>) -> u64 {
    String::from_utf8_lossy(bytes.as_ref()).split_whitespace().next().unwrap().parse().unwrap()
}

/// Adds one to a shared number and writes it to two files, over 9P.
fn add_by_9p(datakit: &DataKit, name: &str, times: usize) {
    let main = datakit.branch("main").unwrap();
    for _ in 0..times {
        let change = |transaction: &datakit_client::Transaction| {
            let next = format!("{} {name}\n", number(&transaction.read("one")?) + 1);
            transaction.write("one", next.as_bytes())?;
            transaction.write("other/two", next.as_bytes())
        };
        main.update_with(PATIENT, change).unwrap();
    }
}

/// The same with nothing but files.
fn add_by_files(mount: &Path, name: &str, times: usize) {
    let began = Instant::now();
    let branch = mount.join("branch/main");
    let mut done = 0;
    let mut attempt = 0;
    while done < times {
        attempt += 1;
        let transaction = branch.join(format!("transactions/{name}-{attempt}"));
        fs::create_dir(&transaction).unwrap();
        let next = format!("{} {name}\n", number(fs::read(transaction.join("rw/one")).unwrap()) + 1);
        fs::write(transaction.join("rw/one"), &next).unwrap();
        fs::write(transaction.join("rw/other/two"), &next).unwrap();
        if fs::write(transaction.join("ctl"), "commit").is_ok() {
            done += 1;
        } else {
            fs::write(transaction.join("ctl"), "close").unwrap();
        }
        assert!(began.elapsed() < PATIENCE * 4, "{done} of {times} after {attempt} attempts");
    }
}

/// Reads snapshots until told to stop; both numbers are the same in each, and never go back.
fn read_pairs(datakit: &DataKit, stop: &AtomicBool) -> u64 {
    let main = datakit.branch("main").unwrap();
    let (mut last, mut reads) = (0, 0);
    while !stop.load(Ordering::SeqCst) {
        let head = main.head().unwrap().unwrap();
        let tree = datakit.snapshot(&head).unwrap().tree();
        let (one, two) = (tree.read("one").unwrap(), tree.read("other/two").unwrap());
        assert_eq!(one, two, "a torn commit: {head}");
        let one = number(&one);
        assert!(one >= last, "the branch went back from {last} to {one}");
        last = one;
        reads += 1;
    }
    reads
}

#[test]
fn no_update_is_lost_and_no_read_is_torn() {
    updates_are_kept_and_reads_whole("fsync");
}

#[test]
fn no_update_is_lost_and_no_read_is_torn_ahead_of_git() {
    updates_are_kept_and_reads_whole("behind");
}

fn updates_are_kept_and_reads_whole(durability: &str) {
    let world = World::new();
    let folder = world.path("mount");
    fs::create_dir(&folder).unwrap();
    let with_fuse = has_fuse();
    let mount = folder.display().to_string();
    let mut arguments = vec!["--durability", durability];
    if with_fuse {
        arguments.extend(["--fuse", &mount]);
    }
    let server = Server::start(&world, "socket", &arguments);
    let mounted = with_fuse.then(|| Mounted::wait(folder));
    let start = server.connect().branch("main").unwrap();
    start
        .update(|transaction| {
            transaction.write("one", b"0\n")?;
            transaction.write("other/two", b"0\n")
        })
        .unwrap();

    let times = rounds(25, 2000);
    let stop = AtomicBool::new(false);
    let reads = AtomicU64::new(0);
    thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| scope.spawn(|| reads.fetch_add(read_pairs(&server.connect(), &stop), Ordering::SeqCst)))
            .collect();
        let mut writers: Vec<_> = (0..4)
            .map(|n| {
                let datakit = server.connect();
                scope.spawn(move || add_by_9p(&datakit, &format!("9p-{n}"), times))
            })
            .collect();
        if let Some(Mounted(path)) = &mounted {
            writers.extend(
                (0..2).map(|n| scope.spawn(move || add_by_files(path, &format!("files-{n}"), times))),
            );
        }
        let written: Vec<_> = writers.into_iter().map(|writer| writer.join()).collect();
        // Also when one failed: the readers would go on for ever.
        stop.store(true, Ordering::SeqCst);
        written.into_iter().for_each(|written| written.unwrap());
        for reader in readers {
            reader.join().unwrap();
        }
    });
    let total = times * if with_fuse { 6 } else { 4 };
    assert_eq!(number(start.tree().read("one").unwrap()), total as u64);
    let reads = reads.into_inner();
    assert!(reads > 0);
    server.connect().sync().unwrap();
    check_counted(&world, total);
    println!("{durability}: {total} updates, {reads} reads of both");
    drop(mounted);
    fsck(&world.repo);
}

/// What some files have at each commit of the branch's own line, oldest first, as git has it.
pub fn texts_along(world: &World, files: &[&str]) -> Vec<String> {
    let commits = git(&world.repo, &["rev-list", "--reverse", "--first-parent", "main"]);
    let of = |commit: &str| files.iter().map(|file| format!("{commit}:{file}\n")).collect::<String>();
    let names: String = commits.lines().map(of).collect();
    let mut cat = git_command(&world.repo, &["cat-file", "--batch=%(objecttype)"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = cat.stdin.take().unwrap();
    let feeder = thread::spawn(move || stdin.write_all(names.as_bytes()));
    let output = String::from_utf8(cat.wait_with_output().unwrap().stdout).unwrap();
    feeder.join().unwrap().unwrap();
    output.lines().filter(|line| !line.is_empty() && *line != "blob").map(str::to_owned).collect()
}

/// Along the branch's own line, as git has it, the number never goes back and ends at `total`; each update is one commit.
fn check_counted(world: &World, total: usize) {
    let texts = texts_along(world, &["one", "other/two"]);
    let mut last = 0;
    for pair in texts.chunks(2) {
        assert_eq!(pair[0], pair[1], "a torn commit");
        let one = number(&pair[0]);
        assert!(one == last || one == last + 1, "{one} after {last}");
        last = one;
    }
    assert_eq!(last as usize, total);
}

#[test]
fn merges_of_disjoint_changes_are_those_of_git() {
    merges_are_those_of_git("fsync");
}

#[test]
fn merges_of_disjoint_changes_are_those_of_git_ahead_of_git() {
    merges_are_those_of_git("behind");
}

fn merges_are_those_of_git(durability: &str) {
    let world = World::new();
    let server = Server::start(&world, "socket", &["--durability", durability]);
    server.connect().branch("main").unwrap().update(|t| t.write("start", b"x")).unwrap();
    let (clients, times) = (8, rounds(15, 500));
    thread::scope(|scope| {
        for client in 0..clients {
            let datakit = server.connect();
            scope.spawn(move || {
                let main = datakit.branch("main").unwrap();
                for time in 0..times {
                    let file = format!("d{}/c{client}/f{}", time % 3, time % 5);
                    // All see the same head, most of the time, so that most commits merge.
                    main.update_with(PATIENT, |t| t.write(&file, format!("{client} {time}").as_bytes()))
                        .unwrap();
                }
            });
        }
    });
    server.connect().sync().unwrap();
    let merges = git(&world.repo, &["rev-list", "--min-parents=2", "--max-count=200", "main"]);
    for merge in merges.lines() {
        let parents = git(&world.repo, &["rev-parse", &format!("{merge}^1"), &format!("{merge}^2")]);
        let parents: Vec<_> = parents.lines().collect();
        let tree = git(&world.repo, &["rev-parse", &format!("{merge}^{{tree}}")]);
        assert_eq!(
            git(&world.repo, &["merge-tree", "--write-tree", parents[0], parents[1]]),
            tree,
            "{merge}"
        );
    }
    println!("{durability}: {} merges checked", merges.lines().count());
    let tree = server.connect().branch("main").unwrap().tree();
    for client in 0..clients {
        let last = times - 1;
        let file = format!("d{}/c{client}/f{}", last % 3, last % 5);
        assert_eq!(tree.read(&file).unwrap(), format!("{client} {last}").as_bytes());
    }
    fsck(&world.repo);
}

#[test]
fn a_conflict_is_told_and_nothing_is_committed() {
    let world = World::new();
    let server = Server::start(&world, "socket", &[]);
    let main = server.connect().branch("main").unwrap();
    main.update(|t| t.write("f", b"0")).unwrap();
    let mut one = main.transaction().unwrap();
    let mut two = main.transaction().unwrap();
    one.write("f", b"1").unwrap();
    two.write("f", b"2").unwrap();
    let head = one.try_commit().unwrap();
    let refused = two.try_commit().unwrap_err();
    assert!(matches!(refused, Error::Conflict { .. }), "{refused:?}");
    assert_eq!(main.head().unwrap(), Some(head));
    // The transaction is open still, and can be made good.
    two.merge(&main.head().unwrap().unwrap()).unwrap();
    assert_eq!(two.conflicts().unwrap(), ["f"]);
    two.write("f", b"both").unwrap();
    two.try_commit().unwrap();
    assert_eq!(main.tree().read("f").unwrap(), b"both");
}
