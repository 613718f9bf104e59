//! Watches: what is told, to whom, and when.

use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use crate::doors::{World, through_all};

/// Reads a stream in a thread of its own.
pub fn follow(world: &World, path: &str) -> Receiver<String> {
    let mut next = world.door.stream(path).unwrap_or_else(|errno| panic!("{}: {path}: {errno}", world.name));
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        loop {
            let line = std::panic::catch_unwind(std::panic::AssertUnwindSafe(&mut next));
            if !line.is_ok_and(|line| sender.send(line).is_ok()) {
                return;
            }
        }
    });
    receiver
}

/// The next piece; waits for 20 seconds at most.
pub fn line(receiver: &Receiver<String>) -> String {
    receiver.recv_timeout(Duration::from_secs(20)).unwrap()
}

fn is_quiet(receiver: &Receiver<String>) -> bool {
    receiver.recv_timeout(Duration::from_millis(100)).is_err()
}

#[test]
fn head_live_tells_the_present_head_and_each_later_one() {
    through_all(|world| {
        world.door.make_directory("branch/b").unwrap();
        let heads = follow(world, "branch/b/head.live");
        assert_eq!(line(&heads), "\n", "{}", world.name);
        assert!(is_quiet(&heads));
        let first = world.commit("b", "f", "1\n");
        assert_eq!(line(&heads), format!("{first}\n"));
        let second = world.commit("b", "f", "2\n");
        assert_eq!(line(&heads), format!("{second}\n"));
    });
}

#[test]
fn the_reflog_leaves_nothing_out_and_says_nothing_first() {
    through_all(|world| {
        world.commit("b", "f", "0\n");
        let log = follow(world, "branch/b/reflog");
        assert!(is_quiet(&log), "{}", world.name);
        let heads: Vec<String> = (1..20).map(|n| world.commit("b", "f", &format!("{n}\n"))).collect();
        for head in heads {
            assert_eq!(line(&log), format!("{head}\n"));
        }
    });
}

#[test]
fn a_path_is_watched_whether_it_is_there_or_not() {
    through_all(|world| {
        world.door.make_directory("branch/b").unwrap();
        let root = follow(world, "branch/b/watch/tree.live");
        assert_eq!(line(&root), "D-4b825dc642cb6eb9a060e54bf8d69288fbee4904\n");
        let path = follow(world, "branch/b/watch/d.node/f.node/tree.live");
        assert_eq!(line(&path), "\n");
        world.commit("b", "g", "elsewhere\n");
        assert!(is_quiet(&path), "{}", world.name);
        let transaction = "branch/b/transactions/t";
        world.door.make_directory(transaction).unwrap();
        world.door.make_directory(&format!("{transaction}/rw/d")).unwrap();
        world.door.write(&format!("{transaction}/rw/d/f"), b"text\n").unwrap();
        world.door.write(&format!("{transaction}/ctl"), b"commit").unwrap();
        let blob = world.git(&["rev-parse", "b:d/f"]);
        assert_eq!(line(&path), format!("F-{blob}"));
        assert_eq!(world.door.list("branch/b/watch").unwrap(), ["d.node", "g.node", "tree.live"]);
    });
}

#[test]
fn a_watch_is_resumed_without_loss() {
    through_all(|world| {
        let heads: Vec<String> = (0..5).map(|n| world.commit("b", "f", &format!("{n}\n"))).collect();
        let log = follow(world, "branch/b/head.live?from=0");
        let all: Vec<(u64, String)> = (0..5)
            .map(|_| {
                let line = line(&log);
                let (number, head) = line.trim().split_once(' ').unwrap();
                (number.parse().unwrap(), head.to_owned())
            })
            .collect();
        assert_eq!(all.iter().map(|(_, head)| head.clone()).collect::<Vec<_>>(), heads, "{}", world.name);
        let again = follow(world, &format!("branch/b/head.live?from={}", all[3].0));
        assert_eq!(line(&again), format!("{} {}\n", all[3].0, heads[3]));
        assert_eq!(line(&again), format!("{} {}\n", all[4].0, heads[4]));
        let path = follow(world, &format!("branch/b/watch/f.node/tree.live?from={}", all[1].0));
        let blob = world.git(&["rev-parse", &format!("{}:f", heads[1])]);
        assert_eq!(line(&path), format!("{} F-{blob}", all[1].0));
        let now = follow(world, "branch/b/head.live?from=now");
        assert_eq!(line(&now), format!("{} {}\n", all[4].0, heads[4]));
        let next = world.commit("b", "f", "next\n");
        assert_eq!(line(&now), format!("{} {next}\n", all[4].0 + 1));
    });
}
