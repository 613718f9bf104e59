//! `datakit mount`: what a server publishes elsewhere, and a repository without a server, on a directory.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests, which say what they skip")]

mod world;

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use world::{Mounted, PATIENCE, Server, World, fsck, git, has_fuse};

/// `datakit mount`, ended when dropped.
struct Mount {
    child: Child,
    at: Mounted,
}

impl Mount {
    fn new(world: &World, name: &str, source: &str, arguments: &[&str]) -> Self {
        let folder = world.path(name);
        fs::create_dir(&folder).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_datakit"));
        command.arg("mount").args(arguments).arg(source).arg(&folder).stderr(Stdio::null());
        Self { child: command.spawn().unwrap(), at: Mounted::wait(folder) }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.at.0.join(path)
    }

    /// Tells it to end, and waits until it has.
    fn stop(mut self) {
        assert!(Command::new("kill").arg(self.child.id().to_string()).status().unwrap().success());
        assert!(self.child.wait().unwrap().success());
        assert_eq!(fs::read_dir(&self.at.0).unwrap().count(), 0, "it is mounted still");
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A server that listens on TCP; its address.
fn by_tcp(world: &World) -> (Server, String) {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("tcp://127.0.0.1:{port}");
    (Server::start(world, "socket", &["--listen", &url]), url)
}

/// Commits one file through a mounted tree, as a shell would.
fn commit(mount: &Mount, file: &str, text: &str) {
    let transaction = mount.path("branch/main/transactions/t");
    fs::create_dir_all(mount.path("branch/main")).unwrap();
    fs::create_dir(&transaction).unwrap();
    fs::write(transaction.join("rw").join(file), text).unwrap();
    fs::write(transaction.join("ctl"), "commit").unwrap();
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn a_server_at_the_other_end_of_tcp_is_mounted() {
    if !has_fuse() {
        return;
    }
    let world = World::new();
    let (server, url) = by_tcp(&world);
    let mount = Mount::new(&world, "here", &url, &[]);
    commit(&mount, "f", "one\n");
    let head = git(&world.repo, &["rev-parse", "main"]);
    assert_eq!(read(&mount.path("branch/main/head")).trim(), head);
    assert_eq!(read(&mount.path("branch/main/ro/f")), "one\n");

    // What others commit is told, and read.
    let mut live = BufReader::new(fs::File::open(mount.path("branch/main/head.live")).unwrap());
    let mut line = String::new();
    live.read_line(&mut line).unwrap();
    assert_eq!(line.trim(), head);
    let main = server.connect().branch("main").unwrap();
    let second = main.update(|t| t.write("f", b"two\n")).unwrap();
    line.clear();
    live.read_line(&mut line).unwrap();
    assert_eq!(line.trim(), second.as_str());
    assert_eq!(read(&mount.path("branch/main/ro/f")), "two\n");
    drop(live);

    // A conflict is an error, and the words are in the file.
    let transaction = mount.path("branch/main/transactions/t");
    fs::create_dir(&transaction).unwrap();
    fs::write(transaction.join("rw/f"), "ours\n").unwrap();
    main.update(|t| t.write("f", b"theirs\n")).unwrap();
    let refused = fs::write(transaction.join("ctl"), "commit").unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ResourceBusy, "{refused}");
    assert!(read(&transaction.join("ctl")).contains("Merge conflict: f"));
    mount.stop();
    drop(server);
    fsck(&world.repo);
}

#[test]
fn two_mounts_of_one_server_see_one_another_and_one_may_only_read() {
    if !has_fuse() {
        return;
    }
    let world = World::new();
    let (server, url) = by_tcp(&world);
    let (writes, reads) =
        (Mount::new(&world, "writes", &url, &[]), Mount::new(&world, "reads", &server.url, &["--read-only"]));
    for n in 0..20 {
        commit(&writes, "f", &n.to_string());
        assert_eq!(read(&reads.path("branch/main/ro/f")), n.to_string());
    }
    let refused = fs::create_dir(reads.path("branch/main/transactions/t")).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    reads.stop();
    writes.stop();
}

#[test]
fn a_server_that_goes_is_an_error_and_the_mount_can_be_ended() {
    if !has_fuse() {
        return;
    }
    let world = World::new();
    let (mut server, url) = by_tcp(&world);
    let mount = Mount::new(&world, "here", &url, &[]);
    commit(&mount, "f", "one\n");
    let waits = fs::File::open(mount.path("branch/main/head.live")).unwrap();
    let waiting = std::thread::spawn(move || BufReader::new(waits).lines().map_while(Result::ok).count());
    std::thread::sleep(Duration::from_millis(100));
    server.kill();
    let began = Instant::now();
    let failed = fs::read(mount.path("branch/main/head")).unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(20), "{failed}");
    assert_eq!(waiting.join().unwrap(), 1, "who waits for a change is told the end");
    mount.stop();
}

#[test]
fn a_repository_is_mounted_without_a_server() {
    if !has_fuse() {
        return;
    }
    let world = World::new();
    let mount = Mount::new(&world, "here", &world.repo.display().to_string(), &[]);
    commit(&mount, "f", "one\n");
    assert_eq!(git(&world.repo, &["show", "main:f"]), "one");
    mount.stop();
    fsck(&world.repo);
}

#[test]
fn what_cannot_be_mounted_is_said_in_a_line() {
    let world = World::new();
    let here = world.path("here");
    fs::create_dir(&here).unwrap();
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (source, code) in [
        (format!("tcp://{nobody}"), 1),
        ("unix:///no/such/socket".to_owned(), 1),
        ("http://example.com/".to_owned(), 2),
        (world.path("absent").display().to_string(), 2),
    ] {
        let began = Instant::now();
        let mount = ["mount", &source];
        let output = Command::new(env!("CARGO_BIN_EXE_datakit")).args(mount).arg(&here).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{source}: {said}");
        assert!(said.lines().count() == 1 && !said.contains("--listen"), "{source}: {said}");
        assert!(began.elapsed() < PATIENCE);
    }
}
