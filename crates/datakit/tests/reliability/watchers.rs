//! Watchers that come and go: nothing of them stays.

use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use super::world::{PATIENCE, Server, World, rounds};

/// Watches at a time; each is a connection.
const WATCHES: usize = 300;
/// Those of them that are stopped while they wait.
const WAITING: usize = 10;
/// Rounds after which memory is taken to have been used for all that it is kept for: buffers, which are not watchers.
const WARM_ROUNDS: usize = 40;
/// What it may grow by after that, in KiB.
const GROWTH_KIB_MAX: usize = 16 << 10;
/// What it may be at any time, in KiB.
const KIB_MAX: usize = 256 << 10;

#[test]
fn watchers_by_the_thousand_leave_nothing_behind() {
    let world = World::new();
    let server = Server::start(&world, "socket", &[]);
    let datakit = server.connect();
    let main = datakit.branch("main").unwrap();
    main.update(|t| t.write("a/f", b"0")).unwrap();
    let mut after_first = None;
    let mut warm = None;
    let rounds = rounds(4, 100);
    for round in 0..rounds {
        let mut watches: Vec<_> = (0..WATCHES)
            .map(|number| {
                let path = if number % 2 == 0 { "a/f" } else { "a" };
                // Some share a connection, most have one of their own.
                let own = (number % 4 != 0).then(|| server.connect().branch("main").unwrap());
                let mut watch = own.as_ref().unwrap_or(&main).watch_path(path).unwrap();
                watch.next().unwrap().unwrap();
                watch
            })
            .collect();
        // All are told; some then wait again when they go.
        main.update(|t| t.write("a/f", format!("round {round}").as_bytes())).unwrap();
        for watch in watches[..WATCHES - WAITING].iter_mut().step_by(3) {
            watch.next().unwrap().unwrap();
        }
        let waiting = watches.split_off(WATCHES - WAITING);
        thread::scope(|scope| {
            for mut watch in waiting {
                let stopper = watch.stopper();
                let (told, was_told) = channel();
                let ended = scope.spawn(move || {
                    watch.next().unwrap().unwrap();
                    told.send(()).unwrap();
                    watch.next().is_none()
                });
                was_told.recv_timeout(PATIENCE).unwrap();
                stopper.stop();
                assert!(ended.join().unwrap(), "a stopped watch had something to tell");
            }
        });
        drop(watches);
        let began = Instant::now();
        // The one connection of `datakit` stays.
        let usage = loop {
            let usage = server.usage();
            let (fds, threads, _) = after_first.unwrap_or(usage);
            if usage.0 <= fds && usage.1 <= threads && (after_first.is_some() || usage.0 < WATCHES / 2) {
                break usage;
            }
            assert!(began.elapsed() < PATIENCE, "round {round}: {usage:?}, after the first {after_first:?}");
            thread::sleep(Duration::from_millis(20));
        };
        println!("round {round}: descriptors, threads, KiB: {usage:?}");
        after_first.get_or_insert(usage);
        if round >= WARM_ROUNDS {
            warm.get_or_insert(usage.2);
        }
    }
    let (first, last) = (after_first.unwrap(), server.usage());
    println!(
        "{} watches; descriptors, threads, KiB: {first:?} after the first round, {last:?} at the end",
        rounds * WATCHES
    );
    assert!(last.2 <= KIB_MAX, "{} KiB are in use", last.2);
    let warm = warm.unwrap_or(last.2);
    assert!(last.2 <= warm + GROWTH_KIB_MAX, "memory grew from {warm} to {} KiB", last.2);
}
