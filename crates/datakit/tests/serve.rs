//! `datakit serve` as its command line says: where it listens, what it serves, what it tells; and `datakit doctor`.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests, which say what they skip")]

mod world;

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use datakit_client::DataKit;
use world::{PATIENCE, World, git};

/// The program with these arguments, ended when dropped.
struct Running(Child);

impl Running {
    fn new(arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_datakit"));
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().unwrap())
    }

    /// Tells it to end; its exit code.
    fn stop(mut self) -> Option<i32> {
        assert!(Command::new("kill").arg(self.0.id().to_string()).status().unwrap().success());
        self.0.wait().unwrap().code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until somebody answers.
fn connect(url: &str) -> DataKit {
    let began = Instant::now();
    loop {
        match DataKit::connect(url) {
            Ok(datakit) => return datakit,
            Err(error) => assert!(began.elapsed() < PATIENCE, "{url}: {error}"),
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn commit(url: &str, text: &str) -> String {
    let main = connect(url).branch("main").unwrap();
    main.update(|t| t.write("f", text.as_bytes())).unwrap().as_str().to_owned()
}

#[test]
fn the_original_flags_are_understood() {
    let world = World::new();
    let (tcp, metrics) = (format!("tcp://127.0.0.1:{}", free_port()), free_port().to_string());
    let unix = format!("file://{}", world.path("socket").display());
    let (listen, log) = (format!("{tcp},{unix}"), world.path("log"));
    let repo = world.path("made/by/it.git").display().to_string();
    fs::create_dir_all(world.path("made/by")).unwrap();
    let log_argument = log.display().to_string();
    let server = Running::new(&[
        "--git",
        &repo,
        "--listen-9p",
        &listen,
        "--listen-prometheus",
        &metrics,
        "-v",
        "--log-destination",
        &log_argument,
    ]);
    let head = commit(&tcp, "1");
    let unix = unix.replace("file://", "unix://");
    assert_eq!(connect(&unix).branch("main").unwrap().head().unwrap().unwrap().as_str(), head);
    assert_eq!(git(&world.path("made/by/it.git"), &["rev-parse", "main"]), head);

    let mut stream = TcpStream::connect(format!("127.0.0.1:{metrics}")).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("\ndatakit_commits_total 1\n"), "{answer}");
    let logged = fs::read_to_string(&log).unwrap();
    assert!(logged.contains(&format!("main is at {head}")), "{logged}");
    assert_eq!(server.stop(), Some(0));
    assert!(!world.path("socket").exists(), "its socket stays");
    let left = fs::read_dir(world.path("made/by/it.git/datakit")).unwrap().flatten();
    let left: Vec<_> = left.map(|entry| entry.file_name().into_string().unwrap()).collect();
    assert!(left.iter().all(|name| name.starts_with("updates")), "it is not closed: {left:?}");
}

#[test]
fn a_socket_that_is_inherited_is_listened_at() {
    let world = World::new();
    let path = world.path("inherited");
    let socket = UnixListener::bind(&path).unwrap();
    rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::empty()).unwrap();
    let listen = format!("fd://{}", socket.as_raw_fd());
    let repo = world.repo.display().to_string();
    let server = Running::new(&["serve", "--git", &repo, "--listen", &listen]);
    // Whoever comes before it is ready is answered all the same: the socket is there already.
    let head = commit(&format!("unix://{}", path.display()), "1");
    assert_eq!(git(&world.repo, &["rev-parse", "main"]), head);
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn a_store_in_memory_is_gone_with_its_server() {
    let world = World::new();
    let url = format!("unix://{}", world.path("socket").display());
    for _ in 0..2 {
        let server = Running::new(&["serve", "--memory", "--listen", &url]);
        let datakit = connect(&url);
        assert_eq!(datakit.branches().unwrap(), Vec::<String>::new());
        commit(&url, "1");
        assert_eq!(datakit.branch("main").unwrap().tree().read("f").unwrap(), b"1");
        drop(datakit);
        assert_eq!(server.stop(), Some(0));
    }
    for arguments in [&["--memory", "--git", "x"][..], &["--memory", "--auto-push", "file:///x"]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_datakit"));
        let output = command.arg("serve").args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn what_cannot_be_served_is_said_in_a_line() {
    let world = World::new();
    fs::write(world.path("file"), "text").unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = format!("tcp://{}", taken.local_addr().unwrap());
    let (file, repo) = (world.path("file").display().to_string(), world.repo.display().to_string());
    let unix = format!("unix://{}", world.path("socket").display());
    for (arguments, said) in [
        (&["--git", &file, "--listen", &unix][..], "file: Not a directory"),
        (&["--git", &repo, "--nonsense"], "--nonsense"),
        (&["--git", &repo, "--memory"], "--memory"),
        (&["--git", &repo, "--listen", &taken], "127.0.0.1"),
        (&["--git", &repo, "--listen", "http://x"], "--listen: `http://x` is not"),
        (&["--git", &repo, "--listen", &unix, "--durability", "sometimes"], "use fsync, visible or behind"),
        (&["--git", &repo, "--listen", &unix, "--log-destination", "/no/where"], "--log-destination"),
        (&["--git", &repo, "--fuse", "/no/where"], "--fuse"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_datakit"));
        let output = command.arg("serve").args(arguments).stdin(Stdio::null()).output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        let lines: Vec<&str> = errors.lines().filter(|line| !line.contains("listening at")).collect();
        assert_eq!((output.status.code(), lines.len()), (Some(2), 1), "{arguments:?}: {errors}");
        assert!(lines[0].contains(said), "{arguments:?}: {errors}");
    }
}

#[test]
fn a_repository_with_an_extension_that_is_not_understood_is_left_alone() {
    // Extensions as git-config(1) has them; the last is nobody's.
    for (name, value) in [("refStorage", "reftable"), ("compatObjectFormat", "sha256"), ("unheardOf", "1")] {
        let world = World::new();
        git(&world.repo, &["config", "core.repositoryFormatVersion", "1"]);
        git(&world.repo, &["config", &format!("extensions.{name}"), value]);
        let before = fs::read_dir(&world.repo).unwrap().count();
        let mut command = Command::new(env!("CARGO_BIN_EXE_datakit"));
        command.args(["put", "main", "f", "/dev/null", "--git"]).arg(&world.repo);
        let output = command.stdin(Stdio::null()).output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), errors.lines().count()), (Some(2), 1), "{errors}");
        assert!(errors.contains(&name.to_lowercase()) && errors.contains(value), "{errors}");
        assert_eq!(fs::read_dir(&world.repo).unwrap().count(), before, "nothing was made in it");
    }
}

#[test]
fn a_server_of_nohup_outlives_its_terminal() {
    let world = World::new();
    let url = format!("unix://{}", world.path("socket").display());
    let mut command = Command::new("nohup");
    command.args([env!("CARGO_BIN_EXE_datakit"), "serve", "--memory", "--listen", &url]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let Ok(child) = command.spawn() else { return println!("SKIP: no nohup") };
    let server = Running(child);
    commit(&url, "before");
    assert!(Command::new("kill").args(["-HUP", &server.0.id().to_string()]).status().unwrap().success());
    thread::sleep(Duration::from_millis(300));
    commit(&url, "after");
    assert_eq!(server.stop(), Some(0), "SIGTERM ends it");
}

#[test]
fn the_doctor_looks_at_the_host_and_at_a_repository() {
    let world = World::new();
    let doctor = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_datakit"));
        let output = command.arg("doctor").args(arguments).output().unwrap();
        (String::from_utf8(output.stdout).unwrap(), output.status.code().unwrap())
    };
    let (said, code) = doctor(&[]);
    assert_eq!(code, 0);
    for what in ["fuse", "git", "inotify", "files", "v9fs"] {
        assert!(said.lines().any(|line| line[4..].starts_with(what)), "{what}: {said}");
    }
    let repo = world.repo.display().to_string();
    let url = format!("unix://{}", world.path("socket").display());
    let server = Running::new(&["serve", "--git", &repo, "--listen", &url]);
    commit(&url, "1");
    let (said, _) = doctor(&["--git", &repo]);
    assert!(said.contains("ok  packs        1 small packs, "), "{said}");
    assert!(said.contains("ok  journals     1 journals, of servers that run"), "{said}");
    drop(server);
    let (said, _) = doctor(&["--git", &repo]);
    assert!(said.contains("--  journals     1 journals of servers that died"), "{said}");
    let (_, code) = doctor(&["--git", &world.path("absent").display().to_string()]);
    assert_eq!(code, 2);
}
