//! Linux's own TCP/IP as the guest, behind a TAP device with checksum and segmentation offload.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod dhcp;
mod ipv6;
mod loss;
mod path;
mod wire;
mod world;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use vpnkit::Forward;
use world::{OUTSIDE, World, run};

/// Python: `block`, a block of bytes that does not repeat within itself, and a connection to `PORT`.
const PRELUDE: &str = r#"
import socket, sys
block = bytes((i * 2654435761 >> 13) & 255 for i in range(65521))
"#;
/// The host, as guests know it.
const HOST: &str = "192.168.65.2";

/// The same block.
fn block() -> Vec<u8> {
    (0..65521u64).map(|index| ((index * 2_654_435_761) >> 13) as u8).collect()
}

fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// Reads to the end and checks every byte; returns the count.
fn read_blocks(stream: &mut TcpStream) -> usize {
    let block = block();
    let (mut total, mut buffer) = (0, vec![0; 1 << 20]);
    loop {
        let count = stream.read(&mut buffer).unwrap();
        if count == 0 {
            return total;
        }
        let mut at = 0;
        while at < count {
            let from = (total + at) % block.len();
            let length = (count - at).min(block.len() - from);
            assert!(
                buffer[at..at + length] == block[from..from + length],
                "wrong bytes after {}",
                total + at
            );
            at += length;
        }
        total += count;
    }
}

fn gigabits(bytes: usize, began: Instant) -> f64 {
    bytes as f64 * 8e-9 / began.elapsed().as_secs_f64()
}

fn upload(world: &World, blocks: usize) -> f64 {
    upload_to(world, HOST, listen().0, blocks)
}

/// Sends blocks from the guest to the host, which it knows as `host`; returns Gb/s.
fn upload_to(world: &World, host: &str, listener: TcpListener, blocks: usize) -> f64 {
    let port = listener.local_addr().unwrap().port();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let began = Instant::now();
        let total = read_blocks(&mut stream);
        stream.write_all(total.to_string().as_bytes()).unwrap();
        (total, gigabits(total, began))
    });
    let program = format!(
        "{PRELUDE}
c = socket.create_connection((\"{host}\", {port}), 20)
for _ in range({blocks}): c.sendall(block)
c.shutdown(socket.SHUT_WR)
print(c.recv(100).decode())"
    );
    assert_eq!(world.python(&program), (blocks * 65521).to_string());
    let (total, rate) = server.join().unwrap();
    assert_eq!(total, blocks * 65521);
    rate
}

fn download(world: &World, blocks: usize) -> f64 {
    download_from(world, HOST, listen().0, blocks)
}

/// Sends blocks from the host, which the guest knows as `host`, to it; returns Gb/s.
fn download_from(world: &World, host: &str, listener: TcpListener, blocks: usize) -> f64 {
    let port = listener.local_addr().unwrap().port();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let (block, began) = (block(), Instant::now());
        for _ in 0..blocks {
            stream.write_all(&block).unwrap();
        }
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        (answer, gigabits(blocks * block.len(), began))
    });
    let program = format!(
        "{PRELUDE}
c = socket.create_connection((\"{host}\", {port}), 20)
total = 0
buffer = bytearray(65521)
view = memoryview(buffer)
while True:
    at = total % 65521
    count = c.recv_into(view[at:])
    if count == 0: break
    if view[at:at + count] != block[at:at + count]: sys.exit(\"wrong bytes after %d\" % total)
    total += count
c.sendall(str(total).encode())"
    );
    world.python(&program);
    let (answer, rate) = server.join().unwrap();
    assert_eq!(answer, (blocks * 65521).to_string());
    rate
}

#[test]
fn bytes_arrive_both_ways_in_super_frames() {
    run("bytes_arrive_both_ways_in_super_frames", 1500, |world| {
        let (up, down) = (upload(world, 8000), download(world, 8000));
        println!("MTU 1500: up {up:.1} Gb/s, down {down:.1} Gb/s, {:?}", world.engine.counters());
        world.check_nothing_lost();
    });
}

#[test]
fn bytes_arrive_both_ways_with_the_largest_mtu() {
    run("bytes_arrive_both_ways_with_the_largest_mtu", 65520, |world| {
        let (up, down) = (upload(world, 1000), download(world, 1000));
        println!("MTU 65520: up {up:.1} Gb/s, down {down:.1} Gb/s, {:?}", world.engine.counters());
    });
}

#[test]
fn bytes_arrive_without_offload_of_the_guest() {
    run("bytes_arrive_without_offload_of_the_guest", 1500, |world| {
        world.shell("ethtool -K tap0 tx off tso off gso off 2>/dev/null || ip link set tap0 gso_max_segs 1");
        upload(world, 300);
    });
}

#[test]
fn a_thousand_connections_stay_open_and_answer() {
    run("a_thousand_connections_stay_open_and_answer", 1500, |world| {
        const COUNT: usize = 1000;
        let (listener, port) = listen();
        thread::spawn(move || {
            let streams: Vec<_> = (0..COUNT).map(|_| listener.accept().unwrap().0).collect();
            for mut stream in streams {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                stream.write_all(&byte).unwrap();
            }
        });
        let program = format!(
            "{PRELUDE}
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
all = [socket.create_connection((\"{HOST}\", {port}), 20) for _ in range({COUNT})]
for c in all: c.sendall(b\"x\")
print(sum(c.recv(1) == b\"x\" for c in all))"
        );
        assert_eq!(world.python(&program), COUNT.to_string());
    });
}

#[test]
fn pings_reach_gateway_host_and_outside() {
    run("pings_reach_gateway_host_and_outside", 1500, |world| {
        world.shell("echo 0 0 > /proc/sys/net/ipv4/ping_group_range");
        let program = format!(
            "
import socket, struct
for address in (\"192.168.65.1\", \"192.168.65.2\", \"{OUTSIDE}\"):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
    s.settimeout(10)
    s.sendto(struct.pack(\"!BBHHH\", 8, 0, 0, 0, 7) + b\"hello\", (address, 0))
    answer, peer = s.recvfrom(100)
    assert peer[0] == address and answer[0] == 0 and answer[6:] == b\"\\0\\7hello\", (peer, answer)"
        );
        world.python(&program);
    });
}

#[test]
fn large_datagrams_cross_in_fragments() {
    run("large_datagrams_cross_in_fragments", 1500, |world| {
        let server = UdpSocket::bind((OUTSIDE, 0)).unwrap();
        let port = server.local_addr().unwrap().port();
        thread::spawn(move || {
            let mut buffer = vec![0; 65536];
            let (count, from) = server.recv_from(&mut buffer).unwrap();
            server.send_to(&buffer[..count], from).unwrap();
        });
        let program = format!(
            "{PRELUDE}
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(10)
s.sendto(block[:30000], (\"{OUTSIDE}\", {port}))
answer, peer = s.recvfrom(65536)
assert answer == block[:30000] and peer == (\"{OUTSIDE}\", {port}), peer"
        );
        world.python(&program);
    });
}

#[test]
fn errors_reach_the_programs_of_the_guest() {
    run("errors_reach_the_programs_of_the_guest", 1500, |world| {
        let program = format!(
            "
import socket, errno, time
def error(call):
    began = time.time()
    try: call()
    except OSError as e:
        assert time.time() - began < 2, \"slow\"
        return errno.errorcode[e.errno]
def connect(address):
    socket.create_connection((address, 1), 10)
def datagram(address):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.settimeout(10)
    s.connect((address, 1))
    s.send(b\"x\")
    s.recv(10)
print(error(lambda: connect(\"{OUTSIDE}\")), error(lambda: connect(\"203.0.113.1\")), error(lambda: datagram(\"{OUTSIDE}\")))"
        );
        assert_eq!(world.python(&program), "ECONNREFUSED ENETUNREACH ECONNREFUSED");
    });
}

#[test]
fn a_client_outside_reaches_a_server_of_the_guest_and_is_seen() {
    run("a_client_outside_reaches_a_server_of_the_guest_and_is_seen", 1500, |world| {
        let guest: SocketAddr = "192.168.65.3:8000".parse().unwrap();
        let at = world.engine.forward(Forward::tcp((OUTSIDE, 0).into(), guest)).unwrap();
        let program = "
import socket
l = socket.create_server((\"\", 8000))
c, peer = l.accept()
c.sendall((\"%s got %s\" % (peer[0], c.recv(100).decode())).encode())";
        let mut server = world.guest(&format!("python3 -c '{program}'")).spawn().unwrap();
        let mut answer = String::new();
        for _ in 0..100 {
            // Until the server listens, the guest refuses.
            let mut stream = TcpStream::connect(at).unwrap();
            if stream.write_all(b"hello").is_ok() && stream.read_to_string(&mut answer).is_ok() {
                break;
            }
            thread::sleep(Duration::from_millis(50));
        }
        assert_eq!(answer, format!("{OUTSIDE} got hello"));
        server.wait().unwrap();
    });
}

#[test]
fn curl_fetches_a_page() {
    run("curl_fetches_a_page", 1500, |world| {
        if world.guest("command -v curl").output().is_ok_and(|output| !output.status.success()) {
            println!("SKIP: no curl");
            return;
        }
        let (listener, port) = listen();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1000];
            assert!(stream.read(&mut request).unwrap() > 0);
            stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nashore").unwrap();
        });
        assert_eq!(world.shell(&format!("curl -sS --max-time 10 http://192.168.65.2:{port}/")), "ashore");
    });
}
