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

/// What one client was told in one life of the server.
#[derive(Debug)]
struct Told {
    /// The commits that were acknowledged, in order.
    commits: Vec<CommitId>,
    /// How many of them must survive.
    kept: usize,
}

/// Commits ever larger numbers until the connection breaks. All that is acknowledged must survive, or, if the client
/// asks for that with an fsync now and then, what was acknowledged before the last.
fn count(url: &str, counter: &mut Counter, done: &AtomicUsize, fsyncs: bool) -> Told {
    let mut told = Told { commits: Vec::new(), kept: 0 };
    let Ok(datakit) = DataKit::connect(url) else { return told };
    let main = datakit.branch("main").unwrap();
    loop {
        counter.tried += 1;
        let text = format!("{}\n", counter.tried);
        match main.update(|transaction| transaction.write(&counter.path, text.as_bytes())) {
            Ok(commit) => told.commits.push(commit),
            Err(_) => return told,
        }
        if fsyncs && (!told.commits.len().is_multiple_of(3) || datakit.sync().is_err()) {
            continue;
        }
        counter.acknowledged = counter.tried;
        told.kept = told.commits.len();
        done.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn what_was_acknowledged_survives_kill_9() {
    survives("fsync", rounds(25, 1000));
}

#[test]
fn what_was_synced_survives_kill_9_of_a_server_that_is_ahead_of_git() {
    survives("behind", rounds(15, 1000));
}

/// Kills the server so many times.
fn survives(durability: &str, kills: usize) {
    let world = World::new();
    let clients = 8;
    let arguments = ["--durability", durability];
    let mut counters: Vec<_> = (0..clients)
        .map(|number| Counter { path: format!("clients/{number}/n"), acknowledged: 0, tried: 0 })
        .collect();
    let mut all = Vec::new();
    for round in 0..kills {
        let mut server = Server::start(&world, "socket", &arguments);
        let url = server.url.clone();
        let (sender, receiver) = channel();
        let done = Arc::new(AtomicUsize::new(0));
        for mut counter in counters.drain(..) {
            let (url, sender, done) = (url.clone(), sender.clone(), Arc::clone(&done));
            let fsyncs = durability == "behind";
            thread::spawn(move || {
                let told = count(&url, &mut counter, &done, fsyncs);
                sender.send((counter, told)).unwrap();
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
        for (counter, told) in receiver {
            counters.push(counter);
            all.push(told);
        }
        let server = Server::start(&world, "socket", &arguments);
        check_counters(&server, &mut counters, round);
        // Before git looks: it would miss packs that the server puts together meanwhile.
        drop(server);
        if round % 50 == 0 {
            fsck(&world.repo);
            println!("{durability}: {round} of {kills} rounds");
        }
    }
    fsck(&world.repo);
    check_history(&world, &all);
    let told: usize = all.iter().map(|told| told.commits.len()).sum();
    let kept: usize = all.iter().map(|told| told.kept).sum();
    assert!(kept >= kills, "only {kept} commits were to survive");
    println!("{durability}: {kills} kills, {told} commits acknowledged, {kept} that had to survive did");
}

/// Each file has the last number that was acknowledged, or a later one.
fn check_counters(server: &Server, counters: &mut [Counter], round: usize) {
    let tree = server.connect().branch("main").unwrap().tree();
    for counter in counters {
        let found = match tree.read(&counter.path) {
            Ok(bytes) => String::from_utf8(bytes).unwrap().trim().parse().unwrap(),
            Err(datakit_client::Error::NotFound { .. }) => 0,
            Err(error) => panic!("round {round}: {error}"),
        };
        let possible = counter.acknowledged..=counter.tried;
        assert!(possible.contains(&found), "round {round}: {found}, not {possible:?} in {}", counter.path);
        counter.tried = counter.tried.max(found);
    }
}

/// No commit is lost that had to survive, and of the others none whose successor was not lost.
fn check_history(world: &World, all: &[Told]) {
    let history = git(&world.repo, &["rev-list", "main"]);
    let history: HashSet<_> = history.lines().collect();
    for told in all {
        let is_there = |commit: &CommitId| history.contains(commit.as_str());
        let there = told.commits.iter().take_while(|commit| is_there(commit)).count();
        assert!(there >= told.kept, "{there} are there of {told:?}");
        let after = told.commits[there..].iter().find(|commit| is_there(commit));
        assert_eq!(after, None, "what came before it is lost: {told:?}");
    }
}
