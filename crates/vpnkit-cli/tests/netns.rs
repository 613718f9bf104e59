//! The command attached to a network namespace that belongs to another user namespace.
//!
//! A test runs itself again as root of new user and network namespaces, so that it needs no privilege and touches
//! nothing of the machine. Where that is not possible it says SKIP and why.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says why it did not run"
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const INSIDE: &str = "VPNKIT_TEST_INSIDE";
const VPNKIT: &str = env!("CARGO_BIN_EXE_vpnkit");

#[test]
fn a_namespace_of_another_user_namespace_gets_a_network() {
    run("a_namespace_of_another_user_namespace_gets_a_network", |guest| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"ashore").unwrap();
        });
        let arguments = ["--config-net", "--mtu", "9000", "-t", "127.0.0.1/18080:80"];
        let _vpnkit = guest.serve(&arguments);
        assert!(guest.shell("ip -o link show tap0").contains("mtu 9000"));
        assert!(guest.shell("ip -o link show tap0").contains("qlen 10000"));
        assert!(guest.shell("ip -o -4 address show tap0").contains("192.168.65.3/24"));
        assert!(guest.shell("ip route show default").contains("192.168.65.1"));
        assert_eq!(
            guest.python(&format!(
                "print(socket.create_connection((\"192.168.65.2\",{port}),10).recv(9).decode())"
            )),
            "ashore"
        );
        server.join().unwrap();

        let program = "l=socket.create_server((\"\",80));print(\"ready\",flush=True);l.accept()[0].sendall(b\"afloat\")";
        let mut server = guest.python_command(program).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(server.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let mut answer = String::new();
        TcpStream::connect("127.0.0.1:18080").unwrap().read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "afloat");
        server.wait().unwrap();
    });
}

#[test]
fn the_command_ends_with_its_namespace() {
    run("the_command_ends_with_its_namespace", |guest| {
        let mut vpnkit = guest.serve(&["--config-net"]);
        guest.end();
        assert!(ends(&mut vpnkit.0, Duration::from_secs(20)), "still there without a namespace");
    });
}

#[test]
fn a_wrong_namespace_is_one_line_and_code_2() {
    let output = Command::new(VPNKIT).args(["--netns", "not-there", "--tap", "tap0"]).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(error.contains("there is no network namespace not-there"), "{error}");
}

fn ends(child: &mut Child, within: Duration) -> bool {
    let began = Instant::now();
    while began.elapsed() < within {
        if child.try_wait().unwrap().is_some() {
            return true;
        }
        thread::sleep(Duration::from_millis(20));
    }
    false
}

/// A process in namespaces of its own.
struct Guest(Child);

/// The command, ended with the test.
struct Vpnkit(Child);

impl Drop for Vpnkit {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Guest {
    fn new() -> Self {
        let mut guest = Command::new("unshare")
            .args(["--user", "--map-root-user", "--net", "sh", "-c", "echo ready; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(guest.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        Self(guest)
    }

    /// Starts the command and waits until the guest reaches the gateway's name server.
    fn serve(&self, arguments: &[&str]) -> Vpnkit {
        let child = Command::new(VPNKIT)
            .args(["--netns", &self.0.id().to_string(), "--tap", "tap0"])
            .args(arguments)
            .spawn()
            .unwrap();
        let vpnkit = Vpnkit(child);
        self.python(
            "
import time
for attempt in range(200):
    try:
        socket.create_connection((\"192.168.65.1\", 53), 1)
        break
    except OSError: time.sleep(0.05)
else: raise SystemExit(\"no network\")",
        );
        vpnkit
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args([
            "--preserve-credentials",
            "--user",
            "--net",
            "--target",
            &self.0.id().to_string(),
            program,
        ]);
        command
    }

    fn shell(&self, line: &str) -> String {
        let output = self.command("sh").args(["-c", line]).output().unwrap();
        assert!(output.status.success(), "{line}\n{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    fn python_command(&self, program: &str) -> Command {
        let mut command = self.command("python3");
        command.args(["-c", &format!("import socket\n{program}")]);
        command
    }

    fn python(&self, program: &str) -> String {
        let output = self.python_command(program).output().unwrap();
        assert!(output.status.success(), "{program}\n{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Ends the namespace: its only process.
    fn end(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs `body` in namespaces of its own; `test` is the name of the test that calls it.
fn run(test: &str, body: impl FnOnce(Guest)) {
    if std::env::var_os(INSIDE).is_some() {
        let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
        assert!(up.success());
        let address: SocketAddr = ([127, 0, 0, 1], 0).into();
        drop(TcpListener::bind(address).unwrap());
        return body(Guest::new());
    }
    let probe = "ip link set lo up && ip tuntap add probe mode tap && python3 -c pass && unshare --user --map-root-user --net true";
    let obstacle = match Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "sh", "-c", probe])
        .output()
    {
        Err(error) => Some(format!("unshare: {error}")),
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
    };
    if let Some(reason) = obstacle {
        println!("SKIP {test}: {reason}");
        return;
    }
    let status = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .unwrap();
    assert!(status.success(), "{test} failed inside of its namespaces");
}
