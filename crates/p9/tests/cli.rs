//! The command as a person and a script meet it: against its own server, over a unix socket.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests, which say what they skip")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};

const P9: &str = env!("CARGO_BIN_EXE_p9");

struct Server {
    child: Child,
    directory: tempfile::TempDir,
    url: String,
}

impl Server {
    /// Serves `share` of a temporary directory, with further arguments.
    fn start(arguments: &[&str]) -> Self {
        Self::start_by(Command::new(P9), arguments)
    }

    /// Runs `p9` by a command that ends in its name.
    fn start_by(mut command: Command, arguments: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("share")).unwrap();
        let url = format!("unix://{}", directory.path().join("socket").display());
        command.arg("serve").args(["--listen", &url]).args(arguments).stderr(Stdio::piped());
        if !arguments.contains(&"--memory") {
            command.arg(directory.path().join("share"));
        }
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, format!("p9: serving on {url}\n"));
        Self { child, directory, url }
    }

    fn share(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join("share").join(name)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.run_with(arguments, b"")
    }

    fn run_with(&self, arguments: &[&str], stdin: &[u8]) -> Output {
        let (command, rest) = arguments.split_first().unwrap();
        let mut child = Command::new(P9)
            .args([*command, &*self.url])
            .args(rest)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(stdin).unwrap();
        child.wait_with_output().unwrap()
    }

    fn succeed(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn fail(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        String::from_utf8(output.stderr).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn usage(arguments: &[&str]) -> String {
    let output = Command::new(P9).args(arguments).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    let line = String::from_utf8(output.stderr).unwrap();
    assert_eq!(line.lines().count(), 1, "{line}");
    line
}

#[test]
fn files_go_there_and_back_in_every_dialect() {
    let server = Server::start(&[]);
    let content: Vec<u8> = (0..3_000_000u32).map(|i| (i % 249) as u8).collect();
    for dialect in ["9P2000.L", "9P2000.u", "9P2000"] {
        let d = ["--dialect", dialect];
        server.succeed(&[&["mkdir", "-p", "a/b"], &d[..]].concat());
        let put = server.run_with(&[&["put", "a/b/f"], &d[..]].concat(), &content);
        assert!(put.status.success(), "{dialect}: {}", String::from_utf8_lossy(&put.stderr));
        assert_eq!(fs::read(server.share("a/b/f")).unwrap(), content);
        let cat = server.run(&[&["cat", "a/b/f"], &d[..]].concat());
        assert!(cat.stdout == content, "{dialect}");
        assert_eq!(server.succeed(&[&["ls", "a"], &d[..]].concat()), "b\n");
        let json: serde_json::Value =
            serde_json::from_str(&server.succeed(&[&["ls", "--json", "a/b"], &d[..]].concat())).unwrap();
        assert_eq!(json[0]["name"], "f");
        assert_eq!(json[0]["size"], 3_000_000);
        let stat = server.succeed(&[&["stat", "--json", "a/b/f"], &d[..]].concat());
        let stat: serde_json::Value = serde_json::from_str(&stat).unwrap();
        assert_eq!((&stat["kind"], &stat["mode"]), (&"file".into(), &"644".into()));
        let refused = server.fail(&[&["rm", "a"], &d[..]].concat());
        assert_eq!(refused, "p9: a: is a directory; -r removes it and all that is in it\n");
        server.succeed(&[&["rm", "-r", "a"], &d[..]].concat());
        assert!(!server.share("a").exists());
    }
}

#[test]
fn what_is_not_there_is_said_in_one_line() {
    let server = Server::start(&[]);
    assert_eq!(server.fail(&["cat", "no/where"]), "p9: no/where: no such file or directory\n");
    assert_eq!(server.fail(&["ls", "nothing"]), "p9: nothing: no such file or directory\n");
}

#[test]
fn a_wrong_command_line_is_exit_code_2() {
    assert!(usage(&["ls", "localhost"]).contains("tcp://host:port"));
    assert!(usage(&["frobnicate"]).contains("frobnicate"));
    assert!(usage(&["serve"]).contains("DIRECTORY"));
    assert!(usage(&["serve", "/no/such/directory"]).contains("/no/such/directory"));
    assert!(usage(&["serve", ".", "--listen", "unix:///no/such/directory/s"]).contains("cannot listen"));
    assert!(usage(&["serve", ".", "--listen", "fd://900"]).contains("fd://900"));
    assert_eq!(usage(&[]), "p9: nothing to do; `p9 --help` says what there is\n");
    assert!(usage(&["serve", ".", "--auth", "magic"]).contains("`peer` and `token=FILE`"));
    assert!(usage(&["cat", "tcp://localhost:1", "f", "--dialect", "9P3000"]).contains("9P2000.L"));
}

#[test]
fn nobody_at_the_address_is_said() {
    let output = Command::new(P9).args(["ls", "unix:///no/such/socket"]).output().unwrap();
    let line = String::from_utf8(output.stderr).unwrap();
    assert!(line.starts_with("p9: cannot connect to unix:///no/such/socket: No such file"), "{line}");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn a_read_only_server_refuses_changes() {
    let server = Server::start(&["--readonly"]);
    assert_eq!(server.fail(&["mkdir", "d"]), "p9: d: read-only file system\n");
}

#[test]
fn a_token_is_asked_for() {
    let secrets = tempfile::tempdir().unwrap();
    let (right, wrong) = (secrets.path().join("right"), secrets.path().join("wrong"));
    fs::write(&right, "correct horse\n").unwrap();
    fs::write(&wrong, "battery staple\n").unwrap();
    let server = Server::start(&["--auth", &format!("token={}", right.display())]);
    assert!(server.fail(&["ls"]).ends_with("permission denied\n"));
    assert!(server.fail(&["ls", "--token-file", wrong.to_str().unwrap()]).ends_with("permission denied\n"));
    server.succeed(&["ls", "--token-file", right.to_str().unwrap()]);
}

#[test]
fn memory_is_served() {
    let server = Server::start(&["--memory"]);
    assert!(server.run_with(&["put", "f"], b"kept").status.success());
    assert_eq!(server.succeed(&["cat", "f"]), "kept");
}

#[test]
fn a_signal_removes_the_socket() {
    let mut server = Server::start(&[]);
    let pid = server.child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert!(server.child.wait().unwrap().success());
    assert!(!server.directory.path().join("socket").exists());
}

#[test]
fn what_cannot_be_put_leaves_nothing_behind() {
    let server = Server::start(&[]);
    fs::write(server.share("kept"), "as it was").unwrap();
    for target in ["new", "kept"] {
        let output = server.run(&["put", target, "."]);
        assert_eq!(output.status.code(), Some(2));
        assert_eq!(String::from_utf8(output.stderr).unwrap(), "p9: .: is a directory\n");
    }
    assert!(!server.share("new").exists());
    assert_eq!(fs::read_to_string(server.share("kept")).unwrap(), "as it was");
}

#[test]
fn a_place_that_cannot_be_mounted_on_is_exit_code_2() {
    let server = Server::start(&[]);
    let output = server.run(&["mount", "/no/such/directory"]);
    let line = String::from_utf8(output.stderr).unwrap();
    // Without FUSE, that comes first.
    if line.contains("/dev/fuse") {
        println!("SKIP: no /dev/fuse");
        return;
    }
    assert_eq!(line, "p9: cannot mount on /no/such/directory: no such file or directory\n");
    assert_eq!(output.status.code(), Some(2));
}

/// `p9 mount` of a server.
struct Mounted {
    child: Child,
    place: tempfile::TempDir,
}

impl Mounted {
    /// `None`, and SKIP is said, where nothing can be mounted.
    fn start(server: &Server, arguments: &[&str]) -> Option<Self> {
        if !Path::new("/dev/fuse").exists() {
            println!("SKIP: /dev/fuse is not here");
            return None;
        }
        let place = tempfile::tempdir().unwrap();
        let mut child = Command::new(P9)
            .args(["mount", &server.url, place.path().to_str().unwrap()])
            .args(arguments)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
        if !line.contains("is mounted") {
            println!("SKIP: nothing can be mounted here: {line}");
            child.wait().unwrap();
            return None;
        }
        Some(Self { child, place })
    }

    fn at(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    fn end(mut self) {
        assert!(self.terminate().success());
        assert_eq!(fs::read_dir(self.place.path()).unwrap().count(), 0, "it is unmounted");
    }

    fn terminate(&mut self) -> ExitStatus {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        self.child.wait().unwrap()
    }
}

impl Drop for Mounted {
    /// A mount that is left behind would hang whoever looks at it.
    fn drop(&mut self) {
        if self.child.try_wait().unwrap().is_none() {
            self.terminate();
        }
    }
}

#[test]
fn a_server_is_mounted() {
    for dialect in ["9P2000.L", "9P2000.u"] {
        let server = Server::start(&[]);
        fs::write(server.share("there"), "before").unwrap();
        let Some(mounted) = Mounted::start(&server, &["--dialect", dialect]) else { return };
        let at = |name: &str| mounted.at(name);
        assert_eq!(fs::read_to_string(at("there")).unwrap(), "before");
        fs::create_dir(at("d")).unwrap();
        fs::write(at("d/new"), "through the mount").unwrap();
        fs::rename(at("d/new"), at("d/renamed")).unwrap();
        assert_eq!(fs::read_to_string(server.share("d/renamed")).unwrap(), "through the mount");
        std::os::unix::fs::symlink("d/renamed", at("link")).unwrap();
        assert_eq!(fs::read_to_string(at("link")).unwrap(), "through the mount");
        assert_eq!(fs::read_dir(at("")).unwrap().count(), 3);
        fs::remove_file(at("d/renamed")).unwrap();
        fs::remove_dir(at("d")).unwrap();
        mounted.end();
    }
}

/// The kernel holds a fid for each file that it remembers, and remembers as many as it likes.
#[test]
fn more_files_are_known_than_the_server_may_have_open() {
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -n 128 && exec \"$0\" \"$@\"", P9]);
    let server = Server::start_by(limited, &[]);
    for directory in 0..20 {
        fs::create_dir(server.share(&format!("d{directory}"))).unwrap();
        for file in 0..100 {
            fs::write(server.share(&format!("d{directory}/{file}")), format!("{directory} {file}")).unwrap();
        }
    }
    let Some(mounted) = Mounted::start(&server, &[]) else { return };
    let files = |place: &Path| {
        let find = Command::new("find").arg(place).args(["-type", "f", "-size", "1"]).output().unwrap();
        assert!(find.status.success(), "{}", String::from_utf8_lossy(&find.stderr));
        String::from_utf8(find.stdout).unwrap().lines().count()
    };
    assert_eq!(files(&mounted.at("")), 2000);
    fs::rename(mounted.at("d7"), mounted.at("d8/moved")).unwrap();
    for file in 0..100 {
        let content = fs::read_to_string(mounted.at(&format!("d8/moved/{file}"))).unwrap();
        assert_eq!(content, format!("7 {file}"));
    }
    // What the host moves is found where it is now.
    let deep = mounted.at("d8/moved/50");
    assert_eq!(files(&mounted.at("")), 2000);
    fs::rename(server.share("d8/moved"), server.share("d9/back")).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(1100));
    assert!(!deep.exists(), "attributes may be a second old, not older");
    assert_eq!(fs::read_to_string(mounted.at("d9/back/50")).unwrap(), "7 50");
    assert_eq!(files(&mounted.at("")), 2000);
    mounted.end();
}
