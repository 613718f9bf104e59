//! The control socket of a running command.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Output};
use std::time::Duration;

const VPNKIT: &str = env!("CARGO_BIN_EXE_vpnkit");

/// A running command with a control socket, ended with the test.
struct Vpnkit {
    child: Child,
    folder: tempfile::TempDir,
}

impl Vpnkit {
    fn start(arguments: &[&str]) -> Vpnkit {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(VPNKIT);
        command.arg("--listen-qemu").arg(folder.path().join("qemu"));
        command.arg("--control").arg(folder.path().join("control")).args(arguments);
        let child = command.spawn().unwrap();
        let vpnkit = Vpnkit { child, folder };
        for _ in 0..500 {
            if vpnkit.folder.path().join("control").exists() {
                return vpnkit;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("no control socket after ten seconds");
    }

    fn curl(&self, path: &str, arguments: &[&str]) -> String {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--max-time", "20", "--unix-socket"]).arg(self.folder.path().join("control"));
        curl.args(arguments).arg(format!("http://vpnkit{path}"));
        String::from_utf8(curl.output().unwrap().stdout).unwrap()
    }

    fn flows(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(VPNKIT);
        command.args(["flows", "--control"]).arg(self.folder.path().join("control")).args(arguments);
        command.output().unwrap()
    }
}

impl Drop for Vpnkit {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn ports_of_the_command_line_and_of_the_api_are_one_list() {
    let (first, second) = (free_port(), free_port());
    let vpnkit = Vpnkit::start(&["-t", &format!("127.0.0.1/{first}:80")]);
    let body = format!(r#"{{"local": "127.0.0.1:{second}", "remote": "192.168.65.3:22"}}"#);
    vpnkit.curl("/services/forwarder/expose", &["-H", "Content-Type: application/json", "-d", &body]);
    let all = vpnkit.curl("/services/forwarder/all", &[]);
    assert!(all.contains(&format!("127.0.0.1:{first}")), "{all}");
    assert!(all.contains(&format!("127.0.0.1:{second}")), "{all}");
    TcpStream::connect(("127.0.0.1", first)).unwrap();
    TcpStream::connect(("127.0.0.1", second)).unwrap();
}

#[test]
fn flows_are_shown_as_a_table_and_as_json() {
    let vpnkit = Vpnkit::start(&["--capture-ring", "1"]);
    let table = vpnkit.flows(&[]);
    assert!(table.status.success());
    assert!(String::from_utf8(table.stdout).unwrap().starts_with("PROTO STATE"));
    assert_eq!(vpnkit.flows(&["--json"]).stdout, b"[]\n");
    assert!(vpnkit.curl("/metrics", &[]).contains("vpnkit_tcp_flows 0"));
}

#[test]
fn what_is_wrong_is_one_line_and_code_2() {
    let refused = |arguments: &[&str], expected: &str| {
        let output = Command::new(VPNKIT).args(arguments).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
        assert!(error.contains(expected), "{error}");
    };
    refused(&["flows", "--control", "/not/there"], "was it started with --control?");
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("qemu").display().to_string();
    let port = format!("127.0.0.1/{}:80", free_port());
    let arguments = ["--listen-qemu", &socket, "--allowed-bind-addresses", "127.0.0.2", "-t", &port];
    refused(&arguments, "127.0.0.1 is not one of the addresses");
}
