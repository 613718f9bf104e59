//! `--port` and `--vsock-path` of a running command, and `vpnkit-expose-port`'s flags as Docker gives them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader, Read};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use p9p::connection::{ConnectOptions, Connection};
use p9p::filesystem::OpenFlags;
use p9p::message::Dialect;

const VPNKIT: &str = env!("CARGO_BIN_EXE_vpnkit");
const PATIENCE: Duration = Duration::from_secs(60);

struct Vpnkit(Child);

impl Vpnkit {
    fn start(folder: &Path, arguments: &[&str]) -> Self {
        let mut command = Command::new(VPNKIT);
        command.arg("--listen-qemu").arg(folder.join("qemu")).arg("--port").arg(folder.join("port"));
        let child = command.args(arguments).stderr(Stdio::null()).spawn().unwrap();
        let began = Instant::now();
        while !folder.join("port").exists() {
            assert!(began.elapsed() < PATIENCE, "nothing is served");
            std::thread::sleep(Duration::from_millis(10));
        }
        Self(child)
    }
}

impl Drop for Vpnkit {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Exposes a port; it stays so while the connection is kept.
fn expose(folder: &Path, specification: &str) -> (Connection, String) {
    let address = format!("unix://{}", folder.join("port").display()).parse().unwrap();
    let options = ConnectOptions { dialects: vec![Dialect::Unix], ..ConnectOptions::default() };
    let connection = Connection::open(&address, &options).unwrap();
    let root = connection.attach(b"", u32::MAX, b"").unwrap();
    connection.make_directory(root, b"web", 0o755, 0).unwrap();
    let ctl = connection.walk_path(root, b"web/ctl").unwrap();
    connection.open_file(ctl, OpenFlags::RDWR).unwrap();
    connection.write_all(ctl, 0, specification.as_bytes()).unwrap();
    let mut answer = vec![0; 200];
    let count = connection.read(ctl, 0, &mut answer).unwrap();
    answer.truncate(count);
    (connection, String::from_utf8(answer).unwrap())
}

fn host_port(answer: &str) -> u16 {
    assert!(answer.starts_with("OK tcp:127.0.0.1:"), "{answer}");
    answer.split(':').nth(2).unwrap().parse().unwrap()
}

#[test]
fn a_sandboxed_network_exposes_ports_over_9p() {
    let folder = tempfile::tempdir().unwrap();
    let _vpnkit = Vpnkit::start(folder.path(), &[]);
    let (connection, answer) = expose(folder.path(), "tcp:127.0.0.1:0:tcp:192.168.65.3:80");
    let port = host_port(&answer);
    TcpStream::connect(("127.0.0.1", port)).unwrap();
    drop(connection);
    let began = Instant::now();
    while TcpListener::bind(("127.0.0.1", port)).is_err() {
        assert!(began.elapsed() < PATIENCE, "the port outlives its client");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_sandboxed_network_forwards_through_the_socket_of_a_hypervisor() {
    let folder = tempfile::tempdir().unwrap();
    let machine = UnixListener::bind(folder.path().join("connect")).unwrap();
    let path = folder.path().join("connect").display().to_string();
    let _vpnkit = Vpnkit::start(folder.path(), &["--vsock-path", &path]);
    let (_connection, answer) = expose(folder.path(), "tcp:127.0.0.1:0:tcp:192.168.65.3:80");
    let _client = TcpStream::connect(("127.0.0.1", host_port(&answer))).unwrap();
    let (socket, _) = machine.accept().unwrap();
    let mut reader = BufReader::new(socket);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    assert_eq!(line, "00000003.0000f3a5\n");
    line.clear();
    reader.read_line(&mut line).unwrap();
    assert_eq!(line, "https://github.com/moby/vpnkit multiplexer protocol\n");
    // No payload, then the stream that is opened to the port of the machine.
    let mut frame = [0; 2 + 17];
    reader.read_exact(&mut frame).unwrap();
    assert_eq!(frame, [0, 0, 17, 0, 1, 0, 0, 0, 0, 2, 1, 4, 0, 192, 168, 65, 3, 80, 0]);
}

/// Asks for a pipe as VPNKit's Go client does; returns what is said.
fn expose_pipe(folder: &Path, from: &Path, to: &str) -> String {
    let body = serde_json::json!({"proto": "unix", "out_path": from, "in_path": to}).to_string();
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--max-time", "20", "-X", "PUT", "-H", "Content-Type: application/json", "-d", &body]);
    curl.arg("--unix-socket").arg(folder.join("control")).arg("http://vpnkit/forwards/expose/pipe");
    String::from_utf8(curl.output().unwrap().stdout).unwrap()
}

#[test]
fn a_pipe_leads_to_a_path_in_the_machine_where_there_is_a_way_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::create_dir(path("pipes")).unwrap();
    let pipe = folder.path().join("pipes/docker.sock");
    let arguments = ["--control", &path("control"), "--forward-sockets", &path("pipes")];
    let vpnkit = Vpnkit::start(folder.path(), &arguments);
    let said = expose_pipe(folder.path(), &pipe, "/run/docker.sock");
    assert!(said.contains("start the network with --vsock-path") && !pipe.exists(), "{said}");
    drop(vpnkit);
    for name in ["port", "qemu", "control"] {
        let _ = std::fs::remove_file(path(name));
    }

    let machine = UnixListener::bind(path("connect")).unwrap();
    let _vpnkit =
        Vpnkit::start(folder.path(), &[&arguments[..], &["--vsock-path", &path("connect")]].concat());
    let said = expose_pipe(folder.path(), &pipe, "/run/docker.sock");
    assert!(said.contains(r#""in_path":"/run/docker.sock""#), "{said}");
    let _client = UnixStream::connect(&pipe).unwrap();
    let mut reader = BufReader::new(machine.accept().unwrap().0);
    let mut line = String::new();
    for _ in 0..2 {
        reader.read_line(&mut line).unwrap();
    }
    // No payload, then the stream that is opened to the path.
    let mut frame = [0; 2 + 27];
    reader.read_exact(&mut frame).unwrap();
    assert_eq!(frame[..13], [0, 0, 27, 0, 1, 0, 0, 0, 0, 2, 3, 16, 0]);
    assert_eq!(frame[13..], *b"/run/docker.sock");
}

#[test]
fn what_cannot_be_is_one_line_and_code_2() {
    let folder = tempfile::tempdir().unwrap();
    for (arguments, expected) in [
        (&["--port", "gopher://x"][..], "--port gopher://x"),
        (&["--port", "/not/there/port"], "--port unix:///not/there/port"),
    ] {
        let mut command = Command::new(VPNKIT);
        command.arg("--listen-qemu").arg(folder.path().join("qemu")).args(arguments);
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(expected) && said.lines().count() == 1, "{said}");
    }
}
