//! kill -9 under load: every acknowledged commit is there, git finds nothing wrong, the next start needs no hand.
//!
//! The child is this test binary again, told by its environment to write.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

use datakit_store::{Durability, Options, Store};

use crate::{commit, created, fsck, git, main_branch, path};

const FOLDER: &str = "DATAKIT_CRASH_FOLDER";

/// How long a child may take for one commit.
const PATIENCE: Duration = Duration::from_secs(60);

/// Set when the child is to acknowledge before git sees it, and to print what it has synced.
const BEHIND: &str = "DATAKIT_CRASH_BEHIND";

/// Kills of one repository when there are many.
const KILLS_OF_EACH: u64 = 100;

/// Writes until it is killed; prints each acknowledged file.
#[test]
fn child() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let is_behind = std::env::var_os(BEHIND).is_some();
    let durability = if is_behind { Durability::Behind } else { Durability::Fsync };
    let store = Store::open(Path::new(&folder), Options { durability, ..created() }).unwrap();
    std::thread::scope(|scope| {
        for client in 0..4 {
            let store = store.clone();
            scope.spawn(move || {
                for round in 0u64.. {
                    let file = format!("p{}/c{client}/{round}", std::process::id());
                    let transaction = store.begin(&main_branch()).unwrap();
                    transaction.write_file(&path(&file), b"x").unwrap();
                    transaction.commit().unwrap();
                    if is_behind && round % 40 == 39 {
                        store.sync().unwrap();
                    }
                    if !is_behind || round % 40 == 39 {
                        println!("ACK {file}");
                    }
                }
            });
        }
    });
}

/// Kills in one repository; in more of them where there are to be many, as each is checked again and again.
fn killed_often(few: u64, many: u64, is_behind: bool) {
    if std::env::var_os("CORACLE_SOAK").is_none() {
        return killed(few, is_behind);
    }
    for repository in 0..many / KILLS_OF_EACH {
        killed(KILLS_OF_EACH, is_behind);
        println!("{} kills", (repository + 1) * KILLS_OF_EACH);
    }
}

#[test]
fn a_killed_writer_loses_nothing_that_it_acknowledged() {
    killed_often(60, 2000, false);
}

#[test]
fn a_killed_writer_that_runs_behind_loses_nothing_that_it_synced() {
    killed_often(15, 1000, true);
}

fn killed(kills: u64, is_behind: bool) {
    let folder = tempfile::tempdir().unwrap();
    commit(&Store::open(folder.path(), created()).unwrap(), &[("start", "0")]);
    let mut acknowledged = Vec::new();
    for kill in 0..kills {
        let mut child = Command::new(std::env::current_exe().unwrap());
        if is_behind {
            child.env(BEHIND, "1");
        }
        let mut child = child
            .args(["--exact", "crash::child", "--nocapture", "--test-threads=1"])
            .env(FOLDER, folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let output = child.stdout.take().unwrap();
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            let lines = BufReader::new(output).lines().map_while(Result::ok);
            let files = lines.filter_map(|line| line.split("ACK ").nth(1).map(str::to_owned));
            files.for_each(|file| sender.send(file).unwrap());
        });
        // Any moment: after some acknowledgements, or while it starts, which also tidies up behind the one before.
        for _ in 0..kill % 4 {
            acknowledged.push(receiver.recv_timeout(PATIENCE).expect("nothing is acknowledged"));
        }
        std::thread::sleep(Duration::from_micros((kill * 7919) % 60_000));
        child.kill().unwrap();
        child.wait().unwrap();
        acknowledged.extend(receiver);
        if kill % 10 == 9 {
            fsck(folder.path());
        }
    }
    let store = Store::open(folder.path(), created()).unwrap();
    commit(&store, &[("end", "1")]);
    let files = git(folder.path(), &["ls-tree", "-r", "--name-only", "main"]);
    let files: std::collections::HashSet<&str> = files.lines().collect();
    let lost: Vec<&String> = acknowledged.iter().filter(|file| !files.contains(file.as_str())).collect();
    assert!(lost.is_empty(), "{} of {} acknowledged commits are lost", lost.len(), acknowledged.len());
    assert!(acknowledged.len() as u64 > kills, "only {} commits in {kills} lives", acknowledged.len());
    drop(store);
    fsck(folder.path());
    let left: Vec<_> =
        std::fs::read_dir(folder.path().join("datakit")).unwrap().flatten().map(|e| e.path()).collect();
    let left: Vec<_> = left.iter().filter(|path| !is_log(path)).collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

/// The updates, which are kept.
fn is_log(path: &Path) -> bool {
    path.ends_with("updates") || path.ends_with("updates.held")
}
