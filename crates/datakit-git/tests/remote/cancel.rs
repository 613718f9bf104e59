//! Transfers that are watched, cancelled or led astray.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use datakit_git::remote::{FetchError, Phase, PushError};

use super::servers::Server;
use super::world::{World, has_git, head, quiet, remote, update};

#[test]
fn a_silent_server_can_be_left() {
    if !has_git() {
        return;
    }
    let world = World::new();
    let work = world.work("work", 1, &[]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    for scheme in ["git", "http"] {
        let there = remote(&work, &format!("{scheme}://127.0.0.1:{port}/x"));
        let transfer = quiet();
        let stopper = Arc::clone(&transfer);
        let stopping = thread::spawn(move || {
            thread::sleep(Duration::from_millis(200));
            stopper.cancel();
        });
        let began = Instant::now();
        let failed = there.fetch(Some("main"), &transfer).unwrap_err();
        assert!(matches!(failed, FetchError::Cancelled), "{scheme}: {failed}");
        let failed = there.push(vec![update("main", None, false)], false, &transfer).unwrap_err();
        assert!(matches!(failed, PushError::Cancelled), "{scheme}: {failed}");
        assert!(began.elapsed() < Duration::from_secs(5), "{scheme}: {:?}", began.elapsed());
        stopping.join().unwrap();
    }
    drop(listener);
}

#[test]
fn a_server_that_talks_nonsense_is_an_error() {
    if !has_git() {
        return;
    }
    let world = World::new();
    let work = world.work("work", 1, &[]);
    for answer in [
        &b""[..],
        b"0004",
        b"ffff",
        b"zzzzzzzz",
        b"0009hello0000",
        b"003a0000000000000000000000000000000000000000 main\0atomic\n",
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let serving = thread::spawn(move || {
            for _ in 0..2 {
                let (mut stream, _) = listener.accept().unwrap();
                let _ = stream.read(&mut [0; 4096]);
                let _ = stream.write_all(answer);
            }
        });
        let there = remote(&work, &format!("git://127.0.0.1:{port}/x"));
        let failed = there.fetch(Some("main"), &quiet());
        assert!(failed.is_err(), "{answer:?}: {failed:?}");
        let failed = there.push(vec![update("main", Some(head(&work, "main")), false)], false, &quiet());
        assert!(failed.is_err(), "{answer:?}: {failed:?}");
        serving.join().unwrap();
    }
}

#[test]
fn a_locked_door_is_named_so() {
    if !has_git() {
        return;
    }
    let world = World::new();
    let work = world.work("work", 1, &[]);
    for server in Server::all(&world).into_iter().filter(|server| server.name() == "http") {
        let there = remote(&work, &server.url("locked", &work));
        let failed = there.fetch(Some("main"), &quiet()).unwrap_err();
        assert!(matches!(failed, FetchError::Credentials { .. }), "{failed:?}");
        let failed =
            there.push(vec![update("main", Some(head(&work, "main")), false)], false, &quiet()).unwrap_err();
        assert!(matches!(failed, PushError::Credentials { .. }), "{failed:?}");
    }
}

#[test]
fn progress_is_seen_while_it_runs() {
    if !has_git() {
        return;
    }
    let world = World::new();
    let work = world.work("work", 1, &[]);
    let mut noise = 1_u32;
    for file in 0..40 {
        let bytes: Vec<u8> = (0..200_000)
            .map(|_| {
                noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                noise.to_be_bytes()[0]
            })
            .collect();
        std::fs::write(work.join(format!("noise{file}")), bytes).unwrap();
    }
    let last = super::world::commit(&work, "d1/e/f1", "noise");
    let bare = world.bare("bare", &[]);
    let transfer = quiet();
    let watched = Arc::clone(&transfer);
    let watching = thread::spawn(move || {
        let mut seen = Vec::new();
        while watched.status().phase != Phase::Done {
            let status = watched.status();
            if seen.last() != Some(&status) {
                seen.push(status);
            }
        }
        seen
    });
    let there = remote(&work, &bare.display().to_string());
    there.push(vec![update("main", Some(last), false)], false, &transfer).unwrap();
    let seen = watching.join().unwrap();
    let middle = seen.iter().filter(|status| status.phase == Phase::Sending && status.objects > 0);
    let total = transfer.status().objects_total.unwrap();
    assert!(middle.clone().any(|status| status.objects < total), "{seen:?}");
    assert!(transfer.status().bytes > 8_000_000, "{:?}", transfer.status());
}
