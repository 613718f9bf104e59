//! A disk that fills up while a repository on it is served: a small file system of its own.

use std::collections::HashSet;
use std::process::Command;
use std::time::{Duration, Instant};

use super::world::{PATIENCE, Server, World, fsck, git, git_command};

/// A file system in memory, unmounted when dropped.
struct Small(std::path::PathBuf);

impl Small {
    /// `None`, and says why, where nothing may be mounted.
    fn mount(folder: std::path::PathBuf) -> Option<Small> {
        std::fs::create_dir(&folder).unwrap();
        let mount =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=48m", "tmpfs"]).arg(&folder).output();
        if !mount.is_ok_and(|output| output.status.success()) {
            println!("SKIP: nothing can be mounted here");
            return None;
        }
        Some(Small(folder))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_is_an_error_for_clients_and_nothing_is_lost() {
    for durability in ["fsync", "behind"] {
        let world = World::new();
        let Some(small) = Small::mount(world.path("small")) else { return };
        let repo = small.0.join("repo.git");
        git(&small.0, &["init", "-q", "--bare", "repo.git"]);
        let served = World { folder: tempfile::tempdir().unwrap(), repo: repo.clone() };
        let mut server = Server::start(&served, "socket", &["--durability", durability]);
        let main = server.connect().branch("main").unwrap();
        // What does not compress.
        let mut random = 0x5eed_u64;
        let mut noise = || -> Vec<u8> {
            let mut next = || {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (random >> 56) as u8
            };
            (0..200_000).map(|_| next()).collect()
        };
        let mut acknowledged = Vec::new();
        let refused = loop {
            let bytes = noise();
            match main.update(|t| t.write(&format!("f{}", acknowledged.len()), &bytes)) {
                Ok(commit) => acknowledged.push(commit),
                Err(error) => break error,
            }
            assert!(acknowledged.len() < 1000, "48 MiB hold that much");
        };
        println!("{durability}: after {} commits: {refused}", acknowledged.len());
        assert!(acknowledged.len() > 20, "{refused}");
        assert!(!refused.is_conflict(), "{refused}");
        // What was acknowledged can be read, and the server lives.
        assert_eq!(main.head().unwrap().as_ref(), acknowledged.last());
        assert!(server.child.try_wait().unwrap().is_none());
        let grown = Command::new("mount").args(["-o", "remount,size=128m"]).arg(&small.0).status().unwrap();
        assert!(grown.success());
        let began = Instant::now();
        loop {
            match main.update(|t| t.write("after", b"room")) {
                Ok(commit) => break acknowledged.push(commit),
                Err(error) => assert!(began.elapsed() < PATIENCE, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        while git_command(&repo, &["cat-file", "-e", "main:after"]).output().unwrap().status.code() != Some(0)
        {
            assert!(began.elapsed() < PATIENCE, "git does not see it");
            std::thread::sleep(Duration::from_millis(20));
        }
        server.kill();
        drop(server);
        drop(Server::start(&served, "again", &[]));
        let history = git(&repo, &["rev-list", "main"]);
        let history: HashSet<&str> = history.lines().collect();
        let lost = acknowledged.iter().filter(|commit| !history.contains(commit.as_str())).count();
        assert_eq!(lost, 0, "{durability}: of {}", acknowledged.len());
        fsck(&repo);
    }
}
