//! The control socket of a running command.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it did not try"
)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
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

    /// Fields of each frame in the ring, a line each, as tshark sees them; or says that `test` goes without.
    fn ring(&self, test: &str, fields: &[&str]) -> Option<String> {
        let file = self.folder.path().join("frames.pcapng");
        self.curl("/capture/ring", &["-o", file.to_str().unwrap()]);
        let mut tshark = Command::new("tshark");
        tshark
            .args(["-T", "fields"])
            .args(fields.iter().flat_map(|field| ["-e", field]))
            .arg("-r")
            .arg(&file);
        match tshark.output() {
            Ok(output) => Some(String::from_utf8(output.stdout).unwrap()),
            Err(_) => {
                println!("SKIP the capture of {test}: no tshark");
                None
            }
        }
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

/// A frame of a machine with the length before it that QEMU puts there.
fn framed(ethertype: [u8; 2], payload: &[u8]) -> Vec<u8> {
    let gateway = [0xf6, 0x16, 0x36, 0xbc, 0xf9, 0xc6];
    let frame = [&gateway[..], &MACHINE, &ethertype, payload].concat();
    [&(frame.len() as u32).to_be_bytes()[..], &frame].concat()
}

const MACHINE: [u8; 6] = [2, 0, 0, 0, 0, 9];

/// An IPv4 packet without payload; its checksum is right.
fn ipv4(src: [u8; 4]) -> Vec<u8> {
    let mut packet = [&[0x45, 0, 0, 20, 0, 0, 0, 0, 64, 6, 0, 0][..], &src, &[192, 0, 2, 1]].concat();
    let sum: u32 = packet.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet
}

#[test]
fn what_was_dropped_is_counted_and_commented_by_reason() {
    let vpnkit = Vpnkit::start(&["--capture-ring", "1"]);
    let mut machine = UnixStream::connect(vpnkit.folder.path().join("qemu")).unwrap();
    let foreign = framed([8, 0], &ipv4([10, 9, 9, 9]));
    let question =
        [&[0, 1, 8, 0, 6, 4, 0, 1][..], &MACHINE, &[192, 168, 65, 9, 0, 0, 0, 0, 0, 0, 192, 168, 65, 1]];
    let frames = [foreign.clone(), foreign, framed([8, 0], &[0x45]), framed([8, 6], &question.concat())];
    machine.write_all(&frames.concat()).unwrap();
    // When the last one is answered, all were taken.
    machine.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    machine.read_exact(&mut [0; 46]).unwrap();
    assert_eq!(vpnkit.curl("/drops", &[]), r#"{"forged_source":2,"malformed":1}"#);
    let metrics = vpnkit.curl("/metrics", &[]);
    for line in [r#"vpnkit_dropped_total{reason="forged_source"} 2"#, r#"{reason="queue_full"} 0"#] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
    let table = String::from_utf8(vpnkit.flows(&[]).stdout).unwrap();
    assert!(table.ends_with("dropped: 2 forged_source, 1 malformed\n"), "{table}");
    assert_eq!(vpnkit.curl("/cam", &[]), r#"{"02:00:00:00:00:09":0}"#);
    let Some(comments) =
        vpnkit.ring("what_was_dropped_is_counted_and_commented_by_reason", &["frame.comment"])
    else {
        return;
    };
    let lines: Vec<&str> = comments.lines().filter(|line| !line.is_empty()).collect();
    let forged = "dropped: from an address that its sender cannot have";
    assert_eq!(lines, [forged, forged, "dropped: no valid packet of its protocol"]);
    assert!(comments.lines().count() > lines.len(), "others have no comment");
}

#[test]
fn frames_between_machines_and_what_the_switch_drops_are_captured() {
    let vpnkit = Vpnkit::start(&["--capture-ring", "1"]);
    let connect = |frame: &[u8]| {
        let mut machine = UnixStream::connect(vpnkit.folder.path().join("qemu")).unwrap();
        machine.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        machine.write_all(frame).unwrap();
        machine
    };
    let frame = |to: [u8; 6], from: [u8; 6], payload: &[u8]| {
        let frame = [&to[..], &from, payload].concat();
        [&(frame.len() as u32).to_be_bytes()[..], &frame].concat()
    };
    // Who I am, to everybody; the payload is ARP.
    let hello = |mac: [u8; 6], sender: u8| {
        let arp = [&[8, 6, 0, 1, 8, 0, 6, 4, 0, 2][..], &mac, &[192, 168, 65, sender], &[0; 10]].concat();
        frame([0xff; 6], mac, &arp)
    };
    let (one, two) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let mut first = connect(&hello(one, 51));
    let mut second = connect(
        &[hello(two, 52), hello(two, 1), hello(two, 51), frame(one, two, b"\x88\xb5between")].concat(),
    );
    // The last of them has arrived, and of the others the honest one alone.
    let mut arrived = vec![0; 46 + 4 + 14 + 7];
    first.read_exact(&mut arrived).unwrap();
    assert!(arrived.ends_with(b"between"), "{arrived:02x?}");
    second.write_all(&hello(two, 52)).unwrap();
    let test = "frames_between_machines_and_what_the_switch_drops_are_captured";
    let Some(seen) = vpnkit.ring(test, &["eth.src", "frame.comment"]) else { return };
    let of_second: Vec<&str> =
        seen.lines().filter_map(|line| line.strip_prefix("02:00:00:00:00:02\t")).collect();
    let forged = "dropped: from an address that its sender cannot have";
    assert_eq!(of_second[..4], ["", forged, forged, ""], "{seen}");
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
