//! kill -9 under load: every acknowledged commit is there, git finds nothing wrong, the next start needs no hand.
//!
//! The child is this test binary again, told by its environment to write.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use datakit_store::Store;

use crate::{commit, created, fsck, git, main_branch, path};

const FOLDER: &str = "DATAKIT_CRASH_FOLDER";

/// Writes until it is killed; prints each acknowledged file.
#[test]
fn child() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let store = Store::open(Path::new(&folder), created()).unwrap();
    std::thread::scope(|scope| {
        for client in 0..4 {
            let store = store.clone();
            scope.spawn(move || {
                for round in 0u64.. {
                    let file = format!("p{}/c{client}/{round}", std::process::id());
                    let transaction = store.begin(&main_branch()).unwrap();
                    transaction.write_file(&path(&file), b"x").unwrap();
                    transaction.commit().unwrap();
                    println!("ACK {file}");
                }
            });
        }
    });
}

#[test]
fn a_killed_writer_loses_nothing_that_it_acknowledged() {
    let kills = if std::env::var_os("CORACLE_SOAK").is_some() { 2000 } else { 60 };
    let folder = tempfile::tempdir().unwrap();
    commit(&Store::open(folder.path(), created()).unwrap(), &[("start", "0")]);
    let mut acknowledged = Vec::new();
    for kill in 0..kills {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crash::child", "--nocapture", "--test-threads=1"])
            .env(FOLDER, folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let output = child.stdout.take().unwrap();
        let reader = std::thread::spawn(move || {
            let lines = BufReader::new(output).lines().map_while(Result::ok);
            lines.filter_map(|line| line.split("ACK ").nth(1).map(str::to_owned)).collect::<Vec<_>>()
        });
        std::thread::sleep(Duration::from_millis(30 + (kill * 37) % 90));
        child.kill().unwrap();
        child.wait().unwrap();
        acknowledged.extend(reader.join().unwrap());
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
    assert!(acknowledged.len() > 50, "only {} commits in {kills} lives", acknowledged.len());
    drop(store);
    fsck(folder.path());
    let left: Vec<_> =
        std::fs::read_dir(folder.path().join("datakit")).unwrap().flatten().map(|e| e.path()).collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}
