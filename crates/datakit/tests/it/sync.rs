//! fsync, which waits for what a server with `--durability behind` acknowledged ahead of git.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use datakit_git::{Disk, Step};
use datakit_store::{Durability, Options};
use p9p::Errno;

use crate::doors::through_all_with;

/// What of the tree is synced: it is all one.
const ANY: [&str; 5] = ["", "branch", "branch/main", "branch/main/head", "branch/main/ro/f"];

#[test]
fn fsync_waits_for_commits_and_says_why_they_cannot_be_published() {
    let is_full = Arc::new(AtomicBool::new(false));
    let options = || {
        let is_full = Arc::clone(&is_full);
        let disk = Disk::with_fault(Arc::new(move |step, _| {
            if step == Step::Create && is_full.load(Ordering::SeqCst) {
                return Err(io::Error::from_raw_os_error(28));
            }
            Ok(())
        }));
        Options { durability: Durability::Behind, disk, ..Options::default() }
    };
    through_all_with(options, |world| {
        for (n, path) in ANY.into_iter().enumerate() {
            let head = world.commit("main", "f", &format!("{n}\n"));
            world.door.sync(path).unwrap();
            assert_eq!(world.git(&["rev-parse", "main"]).trim(), head, "{}: {path:?}", world.name);
        }
        // The ref is locked already when the disk is full, so that this one is acknowledged.
        let before = world.git(&["rev-parse", "main"]);
        world.door.make_directory("branch/main/transactions/t").unwrap();
        world.door.write("branch/main/transactions/t/rw/f", b"last\n").unwrap();
        // A file that is not committed has nothing to wait for.
        is_full.store(true, Ordering::SeqCst);
        world.door.sync("branch/main/transactions/t/rw/f").unwrap();
        let committed = world.door.write("branch/main/transactions/t/ctl", b"commit");
        let acknowledged = world.text("branch/main/ro/f") == "last\n";
        assert_eq!(committed.is_ok(), acknowledged, "{}", world.name);
        let began = Instant::now();
        if acknowledged {
            let refused = world.door.sync("branch/main/head").unwrap_err();
            // Plain 9P2000 has texts alone.
            assert!(refused == Errno::ENOSPC.0 || world.name == "9P2000", "{}: {refused}", world.name);
            assert_eq!(world.git(&["rev-parse", "main"]), before);
        }
        is_full.store(false, Ordering::SeqCst);
        while world.door.sync("branch/main/head").is_err() {
            assert!(began.elapsed() < Duration::from_secs(60), "{}: it does not recover", world.name);
        }
        let head = world.text("branch/main/head");
        assert_eq!(world.git(&["rev-parse", "main"]), head, "{}", world.name);
    });
}
