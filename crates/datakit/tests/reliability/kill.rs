//! The server is killed under load, again and again.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use datakit_client::{CommitId, DataKit};

use super::world::{PATIENCE, Server, World, fsck, git, rounds};

/// What one client knows of one of its files.
#[derive(Debug, Clone)]
struct Counter {
    path: String,
    /// The last number whose commit was acknowledged.
    acknowledged: u64,
    /// The last number that was tried.
    tried: u64,
}

/// Commits ever larger numbers until the connection breaks; returns what was acknowledged.
fn count(url: &str, counter: &mut Counter, done: &AtomicUsize) -> Vec<CommitId> {
    let mut commits = Vec::new();
    let Ok(datakit) = DataKit::connect(url) else { return commits };
    let main = datakit.branch("main").unwrap();
    loop {
        counter.tried += 1;
        let text = format!("{}\n", counter.tried);
        match main.update(|transaction| transaction.write(&counter.path, text.as_bytes())) {
            Ok(commit) => {
                counter.acknowledged = counter.tried;
                done.fetch_add(1, Ordering::SeqCst);
                commits.push(commit);
            }
            Err(_) => return commits,
        }
    }
}

#[test]
fn what_was_acknowledged_survives_kill_9() {
    let world = World::new();
    let clients = 8;
    let mut counters: Vec<_> = (0..clients)
        .map(|number| Counter { path: format!("clients/{number}/n"), acknowledged: 0, tried: 0 })
        .collect();
    let mut acknowledged = HashSet::new();
    let kills = rounds(25, 3000);
    for round in 0..kills {
        let mut server = Server::start(&world, "socket", &[]);
        let url = server.url.clone();
        let (sender, receiver) = channel();
        let done = Arc::new(AtomicUsize::new(0));
        for mut counter in counters.drain(..) {
            let (url, sender, done) = (url.clone(), sender.clone(), Arc::clone(&done));
            thread::spawn(move || {
                let commits = count(&url, &mut counter, &done);
                sender.send((counter, commits)).unwrap();
            });
        }
        drop(sender);
        // Any moment: after none, one or some acknowledgements, and a while that is another each time.
        let began = Instant::now();
        while done.load(Ordering::SeqCst) < round % 5 {
            assert!(began.elapsed() < PATIENCE, "round {round}: nothing is acknowledged");
            thread::sleep(Duration::from_micros(100));
        }
        thread::sleep(Duration::from_micros((round as u64 * 7919) % 50_000));
        server.kill();
        for (counter, commits) in receiver {
            counters.push(counter);
            acknowledged.extend(commits);
        }

        let server = Server::start(&world, "socket", &[]);
        let tree = server.connect().branch("main").unwrap().tree();
        for counter in &mut counters {
            let found = match tree.read(&counter.path) {
                Ok(bytes) => String::from_utf8(bytes).unwrap().trim().parse().unwrap(),
                Err(datakit_client::Error::NotFound { .. }) => 0,
                Err(error) => panic!("round {round}: {error}"),
            };
            let possible = counter.acknowledged..=counter.tried;
            assert!(
                possible.contains(&found),
                "round {round}: {found}, not {possible:?} in {}",
                counter.path
            );
            counter.tried = counter.tried.max(found);
        }
        if round % 50 == 0 {
            fsck(&world.repo);
        }
    }
    fsck(&world.repo);
    let history = git(&world.repo, &["rev-list", "main"]);
    let history: HashSet<_> = history.lines().collect();
    let lost: Vec<_> = acknowledged.iter().filter(|commit| !history.contains(commit.as_str())).collect();
    assert!(lost.is_empty(), "{} of {} commits are lost: {lost:?}", lost.len(), acknowledged.len());
    assert!(acknowledged.len() >= kills, "only {} commits were acknowledged", acknowledged.len());
    println!("{kills} kills, {} commits acknowledged, none lost", acknowledged.len());
}
