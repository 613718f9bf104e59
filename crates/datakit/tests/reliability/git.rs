//! Real git at work in the repository that is being served, and a second server on it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use datakit_client::Retries;

use super::world::{PATIENCE, Server, World, fsck, git, git_command, rounds};

const PATIENT: Retries =
    Retries { attempts: 1000, wait_first: Duration::from_millis(2), wait_max: Duration::from_millis(100) };

#[test]
fn git_pushes_collects_and_repacks_meanwhile() {
    let world = World::new();
    let server = Server::start(&world, "socket", &[]);
    server.connect().branch("main").unwrap().update(|t| t.write("start", b"x")).unwrap();
    let work = world.clone("work");
    let (clients, times) = (4, rounds(20, 1000));
    let stop = AtomicBool::new(false);
    let (pushes, collections) = thread::scope(|scope| {
        let collecting = scope.spawn(|| {
            let mut done = 0;
            while !stop.load(Ordering::SeqCst) {
                let how: &[&str] = if done % 2 == 0 { &["gc", "-q"] } else { &["repack", "-a", "-d", "-q"] };
                git(&world.repo, how);
                done += 1;
            }
            done
        });
        let pushing = scope.spawn(|| {
            let mut done = 0;
            while !stop.load(Ordering::SeqCst) {
                std::fs::write(work.join("pushed"), done.to_string()).unwrap();
                git(&work, &["add", "-A"]);
                git(&work, &["commit", "-q", "-m", "pushed"]);
                git(&work, &["push", "-q", "origin", "HEAD:pushed"]);
                done += 1;
                // Others move this branch all the time: what git cannot fast-forward it must leave alone.
                let main = git_command(&work, &["push", "-q", "origin", "HEAD:main"]).output().unwrap();
                if !main.status.success() {
                    git(&work, &["pull", "-q", "--no-rebase", "--no-edit", "origin", "main"]);
                }
            }
            done
        });
        let committing: Vec<_> = (0..clients)
            .map(|client| {
                let datakit = server.connect();
                scope.spawn(move || {
                    let main = datakit.branch("main").unwrap();
                    let write = |time: usize| {
                        let file = format!("c{client}/f{time}");
                        main.update_with(PATIENT, |t| t.write(&file, time.to_string().as_bytes())).unwrap()
                    };
                    (0..times).map(write).collect::<Vec<_>>()
                })
            })
            .collect();
        let committed: Vec<_> = committing.into_iter().map(|client| client.join()).collect();
        // Also when one failed: the others would go on for ever.
        stop.store(true, Ordering::SeqCst);
        let commits: Vec<_> = committed.into_iter().flat_map(|commits| commits.unwrap()).collect();
        let history = git(&world.repo, &["rev-list", "main"]);
        for commit in &commits {
            assert!(history.contains(commit.as_str()), "{commit} is lost");
        }
        (pushing.join().unwrap(), collecting.join().unwrap())
    });
    println!("{pushes} pushes, {collections} collections");
    assert!(collections > 0 && pushes > 0);
    let tree = server.connect().branch("main").unwrap().tree();
    for client in 0..clients {
        assert_eq!(tree.list(&format!("c{client}")).unwrap().len(), times);
    }
    fsck(&world.repo);
}

#[test]
fn git_finds_nothing_wrong_while_clients_commit() {
    let world = World::new();
    let server = Server::start(&world, "socket", &[]);
    server.connect().branch("main").unwrap().update(|t| t.write("start", b"x")).unwrap();
    let stop = AtomicBool::new(false);
    let (checks, commits) = thread::scope(|scope| {
        let committing: Vec<_> = (0..2)
            .map(|client| {
                let (datakit, stop) = (server.connect(), &stop);
                scope.spawn(move || {
                    let main = datakit.branch("main").unwrap();
                    let mut done = 0;
                    while !stop.load(Ordering::SeqCst) {
                        let file = format!("c{client}/f{}", done % 50);
                        main.update_with(PATIENT, |t| t.write(&file, done.to_string().as_bytes())).unwrap();
                        done += 1;
                    }
                    done
                })
            })
            .collect();
        let checks = rounds(3, 150);
        let checked =
            thread::scope(|inner| inner.spawn(|| (0..checks).for_each(|_| fsck(&world.repo))).join());
        // Also when it failed: the others would go on for ever.
        stop.store(true, Ordering::SeqCst);
        checked.unwrap();
        (checks, committing.into_iter().map(|client| client.join().unwrap()).sum::<usize>())
    });
    println!("{checks} checks during {commits} commits");
}

#[test]
fn a_push_is_seen_by_watches() {
    let world = World::new();
    let server = Server::start(&world, "socket", &[]);
    let main = server.connect().branch("main").unwrap();
    let first = main.update(|t| t.write("f", b"1")).unwrap();
    let mut heads = main.watch_head().unwrap();
    assert_eq!(heads.next().unwrap().unwrap(), Some(first));
    let work = world.clone("work");
    std::fs::write(work.join("f"), "2").unwrap();
    git(&work, &["commit", "-q", "-a", "-m", "pushed"]);
    git(&work, &["push", "-q", "origin", "HEAD:main"]);
    let pushed = git(&work, &["rev-parse", "HEAD"]);
    let stopper = heads.stopper();
    let began = Instant::now();
    thread::scope(|scope| {
        let told = scope.spawn(move || heads.next());
        while !told.is_finished() {
            if began.elapsed() > PATIENCE {
                stopper.stop();
            }
            thread::sleep(Duration::from_millis(1));
        }
        let told = told.join().unwrap().expect("the watch was not told").unwrap();
        assert_eq!(told.unwrap().as_str(), pushed);
    });
    println!("told of the push {:?} after it", began.elapsed());
    assert_eq!(main.tree().read("f").unwrap(), b"2");
}

#[test]
fn two_servers_share_a_repository() {
    let world = World::new();
    let servers = [Server::start(&world, "one", &[]), Server::start(&world, "two", &[])];
    servers[0].connect().branch("main").unwrap().update(|t| t.write("n", b"0")).unwrap();
    let times = rounds(20, 1000);
    thread::scope(|scope| {
        for (number, server) in servers.iter().enumerate() {
            for client in 0..2 {
                let datakit = server.connect();
                scope.spawn(move || {
                    let main = datakit.branch("main").unwrap();
                    for time in 0..times {
                        main.update_with(PATIENT, |t| {
                            let text = String::from_utf8(t.read("n")?).unwrap();
                            let n: u64 = text.split(' ').next().unwrap().parse().unwrap();
                            // Signed: two that write the same bytes do not conflict.
                            t.write("n", format!("{} {number} {client}", n + 1).as_bytes())?;
                            t.write(&format!("log/{number}-{client}"), time.to_string().as_bytes())
                        })
                        .unwrap();
                    }
                });
            }
        }
    });
    for server in &servers {
        let tree = server.connect().branch("main").unwrap().tree();
        let text = String::from_utf8(tree.read("n").unwrap()).unwrap();
        assert_eq!(text.split(' ').next().unwrap(), (4 * times).to_string());
    }
    fsck(&world.repo);
}
