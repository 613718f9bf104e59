//! The command behind sockets: QEMU as the client, and the test as its guest.
//!
//! QEMU needs no guest to prove its side of the wire: a hub inside of it joins the netdev under test to another one,
//! which carries each frame in a UDP datagram to this test.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says why it did not run"
)]

use std::io::Write;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const VPNKIT: &str = env!("CARGO_BIN_EXE_vpnkit");
const QEMU: &str = "qemu-system-x86_64";
const GATEWAY: [u8; 4] = [192, 168, 65, 1];

/// A process, ended with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("vpnkit-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Starts the command and waits for its socket.
fn vpnkit(arguments: &[&str], socket: &str) -> Running {
    let child = Running(Command::new(VPNKIT).args(arguments).spawn().unwrap());
    let began = Instant::now();
    while !Path::new(socket).exists() {
        assert!(began.elapsed() < Duration::from_secs(10), "no socket {socket}");
        thread::sleep(Duration::from_millis(10));
    }
    child
}

/// QEMU with `netdev` (whose id is `link`) joined to datagrams that the test sends and gets.
struct Qemu {
    _process: Running,
    guest: UdpSocket,
}

impl Qemu {
    fn new(netdev: &str) -> Self {
        let guest = UdpSocket::bind("127.0.0.1:0").unwrap();
        let free = UdpSocket::bind("127.0.0.1:0").unwrap();
        let (ours, theirs) = (guest.local_addr().unwrap().port(), free.local_addr().unwrap().port());
        drop(free);
        let datagrams = format!(
            "dgram,id=test,local.type=inet,local.host=127.0.0.1,local.port={theirs},\
             remote.type=inet,remote.host=127.0.0.1,remote.port={ours}"
        );
        let child = Command::new(QEMU)
            .args(["-machine", "none", "-nodefaults", "-display", "none", "-monitor", "none"])
            .args(["-netdev", netdev, "-netdev", "hubport,id=h0,hubid=0,netdev=link"])
            .args(["-netdev", &datagrams, "-netdev", "hubport,id=h1,hubid=0,netdev=test"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        guest.connect(("127.0.0.1", theirs)).unwrap();
        guest.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        Self { _process: Running(child), guest }
    }

    /// Asks who has the gateway's address until it is answered.
    fn gateway_answers(&self, number: u8) -> bool {
        let mac = [2, 0, 0, 0, 0, number];
        let request = [
            &[0xff; 6][..],
            &mac,
            &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
            &mac,
            &[192, 168, 65, number],
            &[0; 6],
            &GATEWAY,
            &[0; 18],
        ]
        .concat();
        let began = Instant::now();
        let mut frame = [0; 2000];
        while began.elapsed() < Duration::from_secs(20) {
            // Until QEMU is there, a datagram is refused.
            let _ = self.guest.send(&request);
            if let Ok(count) = self.guest.recv(&mut frame)
                && count >= 42
                && frame[..6] == mac
                && frame[12..14] == [8, 6]
                && frame[20..22] == [0, 2]
                && frame[28..32] == GATEWAY
            {
                return true;
            }
        }
        false
    }
}

fn has_qemu(test: &str) -> bool {
    let there = Command::new(QEMU).arg("--version").stdout(Stdio::null()).status().is_ok();
    if !there {
        println!("SKIP {test}: no {QEMU}");
    }
    there
}

#[test]
fn qemu_attaches_by_stream_and_comes_back() {
    if !has_qemu("qemu_attaches_by_stream_and_comes_back") {
        return;
    }
    let folder = Folder::new();
    let socket = folder.path("stream");
    let _vpnkit = vpnkit(&["--listen-qemu", &format!("unix:{socket}")], &socket);
    let netdev = format!("stream,id=link,server=off,addr.type=unix,addr.path={socket}");
    for number in [7, 8, 7] {
        assert!(Qemu::new(&netdev).gateway_answers(number), "machine {number}");
    }
}

#[test]
fn qemu_attaches_by_datagrams() {
    if !has_qemu("qemu_attaches_by_datagrams") {
        return;
    }
    let folder = Folder::new();
    let (ours, theirs) = (folder.path("vpnkit"), folder.path("qemu"));
    let _vpnkit = vpnkit(&["--listen-vfkit", &ours], &ours);
    let netdev =
        format!("dgram,id=link,local.type=unix,local.path={theirs},remote.type=unix,remote.path={ours}");
    assert!(Qemu::new(&netdev).gateway_answers(7));
}

#[test]
fn a_socket_that_it_is_started_with_is_a_machine() {
    let (mut here, there) = UnixStream::pair().unwrap();
    // Bash lets a command inherit a descriptor by number without more ado.
    let number = there.as_raw_fd();
    let script = format!("exec {VPNKIT} --no-ipv6 --fd 9 9<&{number}");
    rustix::io::fcntl_setfd(&there, rustix::io::FdFlags::empty()).unwrap();
    let _vpnkit = Running(Command::new("sh").args(["-c", &script]).spawn().unwrap());
    drop(there);
    let mac = [2, 0, 0, 0, 0, 9];
    let request =
        [&[0xff; 6][..], &mac, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &mac, &[192, 168, 65, 9], &[0; 6], &GATEWAY]
            .concat();
    here.write_all(&(request.len() as u32).to_be_bytes()).unwrap();
    here.write_all(&request).unwrap();
    here.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut answer = [0; 46];
    std::io::Read::read_exact(&mut here, &mut answer).unwrap();
    assert_eq!((answer[3], &answer[4..10], &answer[24..26]), (42, &mac[..], &[0, 2][..]));
}

#[test]
fn nothing_to_attach_to_is_one_line_and_code_2() {
    let output = Command::new(VPNKIT).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.starts_with("vpnkit: nothing to attach to") && error.lines().count() == 1, "{error}");
}
