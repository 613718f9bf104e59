//! Clients of VPNKit start this command as they start that one, and read what it gives.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use p9p::connection::{ConnectOptions, Connection};
use p9p::filesystem::OpenFlags;
use p9p::message::Dialect;

const VPNKIT: &str = env!("CARGO_BIN_EXE_vpnkit");

/// Docker Desktop's command line (moby/vpnkit#482).
const DOCKER_DESKTOP: &str = "--ethernet fd:3 --port vpnkit.port.sock --port hyperkit://:62373/./vms/0 --diagnostics fd:4 --pcap fd:5 --vsock-path vms/0/connect \
    --host-names host.docker.internal,docker.for.mac.host.internal,docker.for.mac.localhost \
    --gateway-names gateway.docker.internal,docker.for.mac.gateway.internal,docker.for.mac.http.internal \
    --vm-names docker-for-desktop --listen-backlog 32 --mtu 1500 --allowed-bind-addresses 0.0.0.0 \
    --http http_proxy.json --dhcp dhcp.json --port-max-idle-time 300 --max-connections 2000 \
    --gateway-ip 192.168.65.1 --host-ip 192.168.65.2 --lowest-ip 192.168.65.3 --highest-ip 192.168.65.254 \
    --log-destination asl --udpv4-forwards 123:127.0.0.1:53859 --gc-compact-interval 1800";

/// Binds three sockets, hands them over as descriptors 3 to 5, and becomes the command.
const START: &str = "
import os, socket, sys
for number, name in ((3, 'ethernet'), (4, 'diagnostics'), (5, 'pcap')):
    s = socket.socket(socket.AF_UNIX); s.bind(name)
    moved = os.dup2(s.fileno(), number + 40); s.close()
for number in (3, 4, 5): os.dup2(number + 40, number); os.set_inheritable(number, True)
os.execv(sys.argv[1], sys.argv[1:])
";

struct Vpnkit(Child);

impl Drop for Vpnkit {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(folder: &Path, arguments: &str) -> Vpnkit {
    let mut command = Command::new("python3");
    command.args(["-c", START, VPNKIT]).args(arguments.split_whitespace()).current_dir(folder);
    Vpnkit(command.spawn().unwrap())
}

fn connect(path: &Path) -> UnixStream {
    for _ in 0..1000 {
        if let Ok(stream) = UnixStream::connect(path) {
            stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
            return stream;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("nobody listens at {}", path.display());
}

/// VPNKit's handshake with a command of 41 bytes; returns the reply.
fn shake_hands(stream: &mut UnixStream, command: &[u8]) -> [u8; 258] {
    let hello = [&b"VMN3T"[..], &22u32.to_le_bytes(), &[0; 40]].concat();
    stream.write_all(&[&hello, command].concat()).unwrap();
    let mut answer = [0; 49 + 258];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer[..9], &hello[..9]);
    *answer.last_chunk().unwrap()
}

/// What a machine that prefers 192.168.65.`last` is answered.
fn prefer(path: &Path, uuid: u8, last: u8) -> Result<[u8; 6], String> {
    let command = [&[8][..], &[uuid; 36], &[last, 65, 168, 192]].concat();
    let reply = shake_hands(&mut connect(path), &command);
    match reply[0] {
        1 => Ok(reply[5..11].try_into().unwrap()),
        _ => Err(String::from_utf8_lossy(&reply[2..2 + usize::from(reply[1])]).into_owned()),
    }
}

#[test]
fn preferred_addresses_are_kept_for_their_machines() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let _vpnkit = start(folder.path(), "--ethernet fd:3 --control control --highest-ip 192.168.65.9");
    let ethernet = path("ethernet");
    let mac = prefer(&ethernet, b'a', 7).unwrap();
    assert_eq!(prefer(&ethernet, b'a', 7), Ok(mac), "the same machine again");
    assert!(prefer(&ethernet, b'a', 8).unwrap_err().starts_with("UUID already assigned to a different IP"));
    assert_eq!(prefer(&ethernet, b'b', 7), Err("Preferred IP address already used.".into()));
    assert_eq!(prefer(&ethernet, b'b', 77), Err("Preferred IP address out of range.".into()));
    let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--unix-socket"]).arg(path("control")).arg("http://vpnkit/services/dhcp/leases");
    assert_eq!(
        String::from_utf8(curl.output().unwrap().stdout).unwrap(),
        format!(r#"{{"192.168.65.7":"{mac}"}}"#)
    );
}

/// VPNKit's handshake of a machine without a name; returns its address.
fn greet(stream: &mut UnixStream) -> [u8; 6] {
    let answer = shake_hands(stream, &[&[1][..], &[0; 40]].concat());
    assert_eq!(answer[..5], [1, 0xdc, 5, 0x0e, 6], "an Ethernet of MTU 1500");
    answer[5..11].try_into().unwrap()
}

/// Who has the gateway's address? With its length before it.
fn arp(mac: [u8; 6]) -> Vec<u8> {
    let mut frame = [0xff; 6].to_vec();
    frame.extend(mac);
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(mac);
    frame.extend([192, 168, 65, 3, 0, 0, 0, 0, 0, 0, 192, 168, 65, 1]);
    frame.resize(60, 0);
    [&60u16.to_le_bytes()[..], &frame].concat()
}

#[test]
fn docker_desktops_command_line_starts_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("http_proxy.json"), "{}").unwrap();
    std::fs::write(path("dhcp.json"), r#"{"searchDomains": ["corp"], "domainName": "corp"}"#).unwrap();
    std::fs::create_dir_all(path("vms/0")).unwrap();
    let _vpnkit = start(folder.path(), DOCKER_DESKTOP);
    let mut machine = connect(&path("ethernet"));
    let mac = greet(&mut machine);

    let mut pcap = connect(&path("pcap"));
    let mut head = [0; 24];
    pcap.read_exact(&mut head).unwrap();
    assert_eq!(head[..4], [0xd4, 0xc3, 0xb2, 0xa1]);
    assert_eq!(head[16..20], 128u32.to_le_bytes(), "128 bytes of each frame, as VPNKit has it");
    machine.write_all(&arp(mac)).unwrap();
    // The router may have said something of its own before.
    let reply = loop {
        let mut length = [0; 2];
        machine.read_exact(&mut length).unwrap();
        let mut frame = vec![0; usize::from(u16::from_le_bytes(length))];
        machine.read_exact(&mut frame).unwrap();
        if frame[12..14] == [8, 6] {
            break frame;
        }
    };
    assert_eq!(reply[6..12], [0xf6, 0x16, 0x36, 0xbc, 0xf9, 0xc6], "the gateway's address");
    let mut record = [0; 16 + 60];
    pcap.read_exact(&mut record).unwrap();
    assert_eq!(record[16..], arp(mac)[2..], "the frame as it was sent");

    let archive = path("archive.tar");
    let mut bytes = Vec::new();
    connect(&path("diagnostics")).read_to_end(&mut bytes).unwrap();
    std::fs::write(&archive, bytes).unwrap();
    let list = Command::new("tar").arg("tf").arg(&archive).output().unwrap();
    let names = String::from_utf8(list.stdout).unwrap();
    for name in ["connections", "flows", "endpoints", "ports", "capture/all.pcap", "capture/dns.pcap"] {
        assert!(names.lines().any(|line| line == name), "{name} is not in {names}");
    }
}

#[test]
fn the_state_is_files_over_9p() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let _vpnkit = start(folder.path(), "--ethernet fd:3 --introspection state -t 127.0.0.1/18099:80");
    let mut machine = connect(&path("ethernet"));
    let mac = greet(&mut machine);
    machine.write_all(&arp(mac)).unwrap();
    machine.read_exact(&mut [0; 2]).unwrap();
    drop(connect(&path("state")));
    let address = format!("unix://{}", path("state").display()).parse().unwrap();
    for dialect in [Dialect::Unix, Dialect::Linux] {
        let options = ConnectOptions { dialects: vec![dialect], ..ConnectOptions::default() };
        let client = Connection::open(&address, &options).unwrap();
        let root = client.attach(b"", u32::MAX, b"").unwrap();
        let read = |name: &str| {
            let fid = client.walk_path(root, name.as_bytes()).unwrap();
            client.open_file(fid, OpenFlags::RDONLY).unwrap();
            let mut content = Vec::new();
            let mut piece = vec![0; 4096];
            loop {
                let count = client.read(fid, content.len() as u64, &mut piece).unwrap();
                if count == 0 {
                    return content;
                }
                content.extend_from_slice(&piece[..count]);
            }
        };
        assert_eq!(read("ports"), b"tcp:127.0.0.1:18099:tcp:192.168.65.3:80\n");
        let all = read("capture/all.pcap");
        assert!(all.windows(60).any(|window| window == &arp(mac)[2..]), "the machine's frame is in the ring");
        assert!(!read("capture/dns.pcap").windows(60).any(|window| window == &arp(mac)[2..]));
        assert!(client.walk_path(root, b"secrets").is_err());
        let file = client.walk_path(root, b"flows").unwrap();
        assert!(client.open_file(file, OpenFlags::RDWR).is_err(), "it may be read alone");
    }
}

#[test]
fn what_is_not_here_is_refused_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |flags: &str, expected: &str| {
        let mut command = Command::new(VPNKIT);
        command.args(flags.split_whitespace()).current_dir(folder.path()).stdout(Stdio::null());
        let output = command.output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{flags}: {error}");
        assert!(error.contains(expected), "{flags}: {error}");
    };
    refused("--ethernet s --introspection gopher://x", "--introspection gopher://x");
    refused("--ethernet hyperv-connect://0", "not of this system");
    refused("--ethernet s --dhcp none.json", "--dhcp-path none.json is missing");
    std::fs::write(folder.path().join("hosts"), "127.0.0.1 localhost\n").unwrap();
    refused("--ethernet s --dns hosts", "hosts is not understood: it has no line `nameserver IP`");
    refused("--ethernet s --highest-ip 192.168.65.2 --guest-ip 192.168.65.9", "comes before");
    refused("--ethernet s --udpv4-forwards 1:2", "PORT:IP:PORT");
    // Short for --gateway-ip, --gateway-names and --gateway-forwards.
    refused("--ethernet s --gateway x", "--gateway");
}
