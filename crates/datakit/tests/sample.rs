//! The CI of 2016, from `examples/ci-2016`, on a mounted repository: pushes of real git are built.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests, which say what they skip")]

mod world;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use world::{Mounted, PATIENCE, Server, World, fsck, git, has, has_fuse};

/// A process that is ended when dropped, with the shells that it made.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The result of building a commit, once there is one: its message and its log.
fn result(mount: &Path, commit: &str) -> (String, String) {
    let branch = mount.join(format!("branch/build-of-{commit}"));
    let began = Instant::now();
    loop {
        let head = fs::read_to_string(branch.join("head")).unwrap_or_default();
        if let head @ 1.. = head.trim().len() {
            assert!(matches!(head, 40 | 64));
            let head = fs::read_to_string(branch.join("head")).unwrap();
            let message = fs::read_to_string(mount.join(format!("snapshots/{}/msg", head.trim()))).unwrap();
            return (message, fs::read_to_string(branch.join("ro/log")).unwrap());
        }
        assert!(began.elapsed() < PATIENCE, "{commit} was not built");
        thread::sleep(Duration::from_millis(20));
    }
}

fn push(work: &Path, recipe: &str) -> String {
    fs::write(work.join("Makefile"), format!("all:\n\t{recipe}\n")).unwrap();
    git(work, &["add", "-A"]);
    git(work, &["commit", "-q", "-m", recipe]);
    git(work, &["push", "-q", "origin", "HEAD:main"]);
    git(work, &["rev-parse", "HEAD"])
}

#[test]
fn each_push_is_built_and_its_log_kept() {
    if !has("make") || !has_fuse() {
        return;
    }
    let world = World::new();
    let work = world.clone("work");
    let first = push(&work, "@echo this is the build");
    let folder = world.path("mount");
    fs::create_dir(&folder).unwrap();
    let _server = Server::start(&world, "socket", &["--fuse", &folder.display().to_string()]);
    let Mounted(mount) = &Mounted::wait(folder);
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../examples/ci-2016/ci.sh");
    let errors = fs::File::create(world.path("ci.log")).unwrap();
    let _ci = Running(
        Command::new(script)
            .env("DB", mount)
            .env("BRANCH", "main")
            .env("BUILD", "make -C rw")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors)
            .spawn()
            .unwrap(),
    );
    // What is there already is built, and then what is pushed.
    let (message, log) = result(mount, &first);
    assert_eq!(message, "PASSED\n");
    assert!(log.contains("this is the build"), "{log}");
    let second = push(&work, "@echo this breaks; false");
    let (message, log) = result(mount, &second);
    assert_eq!(message, "BUILD FAILED\n");
    assert!(log.contains("this breaks"), "{log}");
    let third = push(&work, "@echo mended");
    assert_eq!(result(mount, &third).0, "PASSED\n");

    // For git it is a commit on top of what was built, with the log beside the sources.
    let branch = format!("build-of-{second}");
    assert_eq!(git(&world.repo, &["rev-parse", &format!("{branch}^")]), second);
    let changed = git(&world.repo, &["diff", "--name-only", &second, &branch]);
    assert_eq!(changed, "log");
    fsck(&world.repo);
}
