//! Namespaces of a test's own: it runs itself again as root of new user and network namespaces, so that it needs no
//! privilege and touches nothing of the machine. Where that is not possible it says SKIP and why.
#![allow(dead_code, reason = "not every test uses everything")]

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};

const INSIDE: &str = "VPNKIT_TEST_INSIDE";
pub const VPNKIT: &str = env!("CARGO_BIN_EXE_vpnkit");

/// A process in namespaces of its own.
pub struct Guest(pub Child);

/// The command, ended with the test.
pub struct Vpnkit(pub Child);

impl Drop for Vpnkit {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Guest {
    pub fn new() -> Self {
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
    pub fn serve(&self, arguments: &[&str]) -> Vpnkit {
        self.serve_by(Command::new(VPNKIT), arguments)
    }

    /// The same by a command that becomes [`VPNKIT`].
    pub fn serve_by(&self, mut command: Command, arguments: &[&str]) -> Vpnkit {
        command.args(["--netns", &self.0.id().to_string(), "--tap", "tap0"]).args(arguments);
        let vpnkit = Vpnkit(command.spawn().unwrap());
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

    pub fn command(&self, program: &str) -> Command {
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

    pub fn shell(&self, line: &str) -> String {
        let output = self.command("sh").args(["-c", line]).output().unwrap();
        assert!(output.status.success(), "{line}\n{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    pub fn python_command(&self, program: &str) -> Command {
        let mut command = self.command("python3");
        command.args(["-c", &format!("import socket\n{program}")]);
        command
    }

    pub fn python(&self, program: &str) -> String {
        let output = self.python_command(program).output().unwrap();
        assert!(output.status.success(), "{program}\n{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Ends the namespace: its only process.
    pub fn end(mut self) {
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
pub fn run(test: &str, body: impl FnOnce(Guest)) {
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
