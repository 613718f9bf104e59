//! Branches that are pushed by themselves.

use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use datakit_git::remote::{AutoPush, Pace};

use super::world::{World, commit, fsck, git, has_git, head, remote, try_head};

const QUICK: Pace = Pace {
    collect: Duration::from_millis(100),
    retry_first: Duration::from_millis(50),
    retry_max: Duration::from_millis(200),
};

#[test]
fn what_changes_is_pushed_in_batches_and_what_goes_is_deleted() {
    if !has_git() {
        return;
    }
    let world = World::new();
    let work = world.work("work", 1, &[]);
    let bare = world.bare("bare", &[]);
    let (sender, log) = channel();
    let auto = AutoPush::start(
        remote(&work, &bare.display().to_string()),
        QUICK,
        || Ok(()),
        move |line| {
            sender.send(line.to_owned()).unwrap();
        },
    )
    .unwrap();
    for number in 0..10 {
        git(&work, &["branch", &format!("b{number}")]);
        auto.changed(&format!("b{number}"));
    }
    let line = log.recv_timeout(Duration::from_secs(20)).unwrap();
    assert!(line.contains("pushed 10 branches"), "{line}");
    assert_eq!(try_head(&bare, "b9"), Some(head(&work, "main")));

    git(&work, &["branch", "-D", "-q", "b3"]);
    auto.changed("b3");
    // What waits is pushed before it ends.
    drop(auto);
    assert_eq!(try_head(&bare, "b3"), None);
    fsck(&bare);
}

#[test]
fn failures_are_seen_and_made_good() {
    if !has_git() {
        return;
    }
    let world = World::new();
    let work = world.work("work", 1, &[]);
    let url = world.path("bare").display().to_string();
    let (sender, log) = channel();
    let auto = AutoPush::start(
        remote(&work, &url),
        QUICK,
        || Ok(()),
        move |line| {
            let _ = sender.send(line.to_owned());
        },
    )
    .unwrap();
    let began = Instant::now();
    auto.changed("main");
    assert!(began.elapsed() < Duration::from_millis(90), "a change waited");
    for _ in 0..3 {
        let line = log.recv_timeout(Duration::from_secs(20)).unwrap();
        assert!(line.contains("trying again"), "{line}");
    }
    let status = auto.status();
    assert_eq!(status.waiting, ["main"]);
    assert!(status.failures >= 3 && status.last_failure.is_some(), "{status:?}");

    let bare = world.bare("bare", &[]);
    let last = commit(&work, "d1/e/f1", "later");
    while !log.recv_timeout(Duration::from_secs(20)).unwrap().contains("pushed 1 ") {}
    assert_eq!(head(&bare, "main"), last);
    let status = auto.status();
    assert!(status.waiting.is_empty() && status.last_failure.is_none() && status.pushed == 1, "{status:?}");
}
