//! The command behind sockets: QEMU as the client, and the test as its guest.
//!
//! QEMU needs no guest to prove its side of the wire: a hub inside of it joins the netdev under test to another one,
//! which carries each frame in a UDP datagram to this test.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says why it did not run"
)]

use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
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

/// Who has `target`? Asked by the station of this number.
fn arp_request(number: u8, target: [u8; 4]) -> Vec<u8> {
    let mac = [2, 0, 0, 0, 0, number];
    [&[0xff; 6][..], &mac, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &mac, &[192, 168, 65, number], &[0; 6], &target]
        .concat()
}

/// Whether a frame tells the station of this number where `target` is.
fn is_arp_reply(frame: &[u8], number: u8, target: [u8; 4]) -> bool {
    frame.len() >= 42
        && frame[..6] == [2, 0, 0, 0, 0, number]
        && frame[12..14] == [8, 6]
        && frame[28..32] == target
}

/// A machine on a socket of sequenced packets, as user-mode Linux attaches.
struct Packets(OwnedFd);

impl Packets {
    fn connect(path: &str) -> Self {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
        let flags = SocketFlags::CLOEXEC;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        rustix::net::connect(&socket, &rustix::net::SocketAddrUnix::new(path).unwrap()).unwrap();
        let patience = Some(Duration::from_secs(20));
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, patience).unwrap();
        Self(socket)
    }

    fn send(&self, frame: &[u8]) {
        assert_eq!(rustix::io::write(&self.0, frame).unwrap(), frame.len());
    }

    /// The next frame that `wanted` wants.
    fn receive(&self, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let mut buffer = [0; 2000];
        loop {
            let count = rustix::io::read(&self.0, &mut buffer).unwrap();
            assert!(count > 0, "the socket was closed");
            if wanted(&buffer[..count]) {
                return buffer[..count].to_vec();
            }
        }
    }
}

/// Asks over a stream whose frames have their length before them; returns when it was told.
fn ask_over_stream(stream: &mut (impl Read + Write), number: u8, length: fn(usize) -> Vec<u8>) {
    let request = arp_request(number, GATEWAY);
    stream.write_all(&[length(request.len()), request].concat()).unwrap();
    let mut head = length(0);
    loop {
        stream.read_exact(&mut head).unwrap();
        let big = head.len() == 4;
        let fold =
            |bytes: &mut dyn Iterator<Item = &u8>| bytes.fold(0, |sum, byte| sum << 8 | usize::from(*byte));
        let count = if big { fold(&mut head.iter()) } else { fold(&mut head.iter().rev()) };
        let mut frame = vec![0; count];
        stream.read_exact(&mut frame).unwrap();
        if is_arp_reply(&frame, number, GATEWAY) {
            return;
        }
    }
}

/// Waits until the network knows of no machine. One that left is there until the last descriptor of its socket is closed, and
/// processes that other tests start have it too before they are programs of their own.
fn wait_until_all_left(control: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let mut stream = UnixStream::connect(control).unwrap();
        stream.write_all(b"GET /cam HTTP/1.1\r\nHost: vpnkit\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        if answer.ends_with("\r\n\r\n{}") {
            return;
        }
        assert!(Instant::now() < deadline, "machines that left are known: {answer}");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn machines_of_other_kinds_attach_and_come_back_and_reach_one_another() {
    let folder = Folder::new();
    let (bess, connect, control) = (folder.path("bess"), folder.path("connect"), folder.path("control"));
    let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (gvproxy, qemu) = (format!("unix://{connect}"), format!("tcp:127.0.0.1:{port}"));
    let flags = ["--listen-bess", &bess, "--listen", &gvproxy, "--listen-qemu", &qemu, "--control", &control];
    let _vpnkit = vpnkit(&flags, &control);
    for _ in 0..3 {
        wait_until_all_left(&control);
        let packets = Packets::connect(&bess);
        packets.send(&arp_request(11, GATEWAY));
        packets.receive(|frame| is_arp_reply(frame, 11, GATEWAY));

        let mut stream = UnixStream::connect(&connect).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(b"POST /connect HTTP/1.1\r\nHost: vpnkit\r\nContent-Length: 0\r\n\r\n").unwrap();
        ask_over_stream(&mut stream, 12, |count| (count as u16).to_le_bytes().to_vec());

        let mut over_tcp = TcpStream::connect(("127.0.0.1", port)).unwrap();
        over_tcp.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        ask_over_stream(&mut over_tcp, 13, |count| (count as u32).to_be_bytes().to_vec());

        // From one to the other, past the gateway.
        let frame = [&[2, 0, 0, 0, 0, 11][..], &[2, 0, 0, 0, 0, 12], &[0x88, 0xb5], b"across"].concat();
        stream.write_all(&[&(frame.len() as u16).to_le_bytes()[..], &frame].concat()).unwrap();
        assert_eq!(packets.receive(|frame| frame[12..14] == [0x88, 0xb5]), frame);
        // Nobody takes the address of another while that is there.
        over_tcp.write_all(&[&(frame.len() as u32).to_be_bytes()[..], &frame].concat()).unwrap();
        ask_over_stream(&mut over_tcp, 13, |count| (count as u32).to_be_bytes().to_vec());
        packets.send(&arp_request(11, GATEWAY));
        let next = packets.receive(|frame| frame[12..14] == [0x88, 0xb5] || is_arp_reply(frame, 11, GATEWAY));
        assert!(is_arp_reply(&next, 11, GATEWAY), "a frame with another's address was passed on");
    }
}

/// A machine that looks for an address by DHCP, and asks for what it is offered; returns its last byte.
fn lease_over(packets: &Packets, number: u8) -> Option<u8> {
    let message = |kind: u8, options: &[u8]| {
        let mut message = vec![0; 240];
        message[..8].copy_from_slice(&[1, 1, 6, 0, 1, 2, 3, number]);
        message[28..34].copy_from_slice(&[2, 0, 0, 0, 0, number]);
        message[236..].copy_from_slice(&[99, 130, 83, 99]);
        message.extend([53, 1, kind]);
        message.extend_from_slice(options);
        message.push(255);
        let total = (28 + message.len()) as u16;
        let mut ip =
            [&[0x45, 0][..], &total.to_be_bytes(), &[0, 0, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0], &[255; 4]]
                .concat();
        let sum = ip.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum::<u32>();
        ip[10..12].copy_from_slice(&(!((sum >> 16) + (sum & 0xffff)) as u16).to_be_bytes());
        // UDP's checksum may be left out.
        let udp = [&[0, 68, 0, 67][..], &(total - 20).to_be_bytes(), &[0, 0]].concat();
        [&[0xff; 6][..], &[2, 0, 0, 0, 0, number], &[8, 0], &ip, &udp, &message].concat()
    };
    // What comes to the client's port, or what answers the question after it.
    let told = |frame: &[u8]| {
        is_arp_reply(frame, number, GATEWAY)
            || (frame.len() > 286 && frame[12..14] == [8, 0] && frame[36..38] == [0, 68])
    };
    packets.send(&message(1, &[]));
    packets.send(&arp_request(number, GATEWAY));
    let offer = packets.receive(told);
    if offer[12..14] == [8, 6] {
        return None;
    }
    packets.receive(told);
    let address: [u8; 4] = offer[58..62].try_into().unwrap();
    packets.send(&message(3, &[&[50, 4][..], &address].concat()));
    let answer = packets.receive(told);
    assert_eq!(answer[284], 5, "an ACK");
    Some(address[3])
}

#[test]
fn machines_that_come_and_go_do_not_use_the_addresses_up() {
    let folder = Folder::new();
    let bess = folder.path("bess");
    let _vpnkit = vpnkit(&["--listen-bess", &bess, "--highest-ip", "192.168.65.5", "--no-ipv6"], &bess);
    let stays = Packets::connect(&bess);
    assert_eq!(lease_over(&stays, 100), Some(3));
    for number in 101..120 {
        let packets = Packets::connect(&bess);
        let began = Instant::now();
        // That the one before is gone may be noticed a moment later.
        let address = loop {
            match lease_over(&packets, number) {
                Some(address) => break address,
                None => {
                    assert!(began.elapsed() < Duration::from_secs(20), "machine {number} gets no address")
                }
            }
        };
        assert!([4, 5].contains(&address), "machine {number} has {address}");
    }
    assert_eq!(lease_over(&stays, 100), Some(3), "who is there keeps its own");
}

#[test]
fn nothing_to_attach_to_is_one_line_and_code_2() {
    let output = Command::new(VPNKIT).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.starts_with("vpnkit: nothing to attach to") && error.lines().count() == 1, "{error}");
}
