//! Forwards through a hypervisor's socket, with a forwarder in the machine that gives back what it gets.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use vpnkit::{Counters, Flows, Forward, ForwardError, MacAddr, Protocol, Update};
use vpnkit_control::Network;
use vpnkit_forwarder::Tunnel;
use vpnkit_forwarder::mux::{Destination, Event, Multiplexer, Side, StreamId};

const PATIENCE: Duration = Duration::from_secs(60);

/// A network that the forwards must not reach.
struct Unused;

impl Network for Unused {
    fn check_guest(&self, _guest: SocketAddr) -> Result<(), ForwardError> {
        unreachable!()
    }
    fn lead(&self, _stream: std::os::fd::OwnedFd, _guest: SocketAddr) -> Result<(), ForwardError> {
        unreachable!()
    }
    fn lead_to_path(&self, _stream: std::os::fd::OwnedFd, _path: &Path) -> Result<(), ForwardError> {
        unreachable!()
    }
    fn check_path(&self, _path: &Path) -> Result<(), ForwardError> {
        unreachable!()
    }
    fn leases(&self) -> Vec<(Ipv4Addr, MacAddr)> {
        unreachable!()
    }
    fn update(&self, _update: Update) {}
    fn forward(&self, _forward: Forward) -> Result<SocketAddr, ForwardError> {
        panic!("a forward went over the Ethernet")
    }
    fn unforward(&self, _forward: Forward) -> Result<(), ForwardError> {
        panic!("a forward was looked for on the Ethernet")
    }
    fn flows(&self) -> Flows {
        Flows::default()
    }
    fn counters(&self) -> Counters {
        Counters::default()
    }
}

/// What the machine's forwarder was asked to connect to.
type Seen = Arc<Mutex<Vec<Destination>>>;

/// A hypervisor's socket with a forwarder behind it that echoes; `connections` of them, one after the other, each until
/// `requests` streams were closed.
fn machine(path: &Path, lives: Vec<usize>) -> Seen {
    let listener = UnixListener::bind(path).unwrap();
    let seen = Seen::default();
    let noted = Arc::clone(&seen);
    thread::spawn(move || {
        for streams in lives {
            let (socket, _) = listener.accept().unwrap();
            serve(socket, streams, &noted);
        }
    });
    seen
}

fn serve(socket: UnixStream, streams: usize, seen: &Seen) {
    let mut reader = BufReader::new(socket.try_clone().unwrap());
    let mut writer = socket;
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    assert_eq!(line, "00000003.0000f3a5\n");
    let mut mux = Multiplexer::new(Side::Guest);
    let mut echoes: HashMap<StreamId, (Vec<u8>, bool)> = HashMap::new();
    let mut closed = 0;
    let mut buffer = vec![0; 100_000];
    while closed < streams {
        writer.write_all(mux.output()).unwrap();
        mux.sent(mux.output().len());
        let count = reader.read(&mut buffer).unwrap();
        if count == 0 {
            return;
        }
        let mut events = Vec::new();
        mux.receive(&buffer[..count], &mut events).unwrap();
        for event in events {
            match event {
                Event::Opened(id, destination) => {
                    seen.lock().unwrap().push(destination);
                    echoes.insert(id, (Vec::new(), false));
                }
                Event::Data(id, bytes) => echoes.get_mut(&id).unwrap().0.extend(bytes),
                Event::Shutdown(id) => echoes.get_mut(&id).unwrap().1 = true,
                Event::Closed(id) => {
                    mux.close(id);
                    echoes.remove(&id);
                    closed += 1;
                }
                Event::Writable(_) => {}
            }
        }
        for (id, (bytes, ended)) in &mut echoes {
            let count = mux.send(*id, bytes);
            bytes.drain(..count);
            mux.consumed(*id, count);
            if *ended && bytes.is_empty() {
                mux.shutdown(*id);
            }
        }
    }
    assert_eq!(mux.n_strays(), 0);
}

const GUEST: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::new(172, 17, 0, 2), 80));

fn tunnel(path: &Path) -> Tunnel {
    let path = path.to_owned();
    Tunnel::start(Arc::new(Unused), Box::new(move || UnixStream::connect(&path))).unwrap()
}

fn any(protocol: Protocol) -> Forward {
    Forward { protocol, bind: "127.0.0.1:0".parse().unwrap(), guest: GUEST }
}

/// Sends all, says that it is all, and returns what comes back.
fn echo(at: SocketAddr, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut client = TcpStream::connect(at)?;
    client.set_read_timeout(Some(PATIENCE))?;
    let mut writer = client.try_clone()?;
    thread::scope(|scope| {
        scope.spawn(move || {
            // Whoever is reset sees it when reading.
            let _ = writer.write_all(bytes).and_then(|()| writer.shutdown(Shutdown::Write));
        });
        let mut back = Vec::new();
        client.read_to_end(&mut back)?;
        Ok(back)
    })
}

#[test]
fn clients_reach_the_machine_and_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("connect");
    let seen = machine(&path, vec![usize::MAX]);
    let tunnel = tunnel(&path);
    let at = tunnel.forward(any(Protocol::Tcp)).unwrap();
    // Many windows, in both directions at once.
    let big: Vec<u8> = (0..8u32 << 20).map(|n| (n >> 8 ^ n) as u8).collect();
    thread::scope(|scope| {
        for n in 0..20u8 {
            scope.spawn(move || assert_eq!(echo(at, &[n; 1000]).unwrap(), [n; 1000]));
        }
        assert!(echo(at, &big).unwrap() == big);
    });
    assert_eq!(echo(at, b"").unwrap(), b"");
    assert!(seen.lock().unwrap().iter().all(|to| *to == Destination::Tcp(GUEST)));
    assert_eq!(seen.lock().unwrap().len(), 22);
}

#[test]
fn datagrams_find_their_way_back_to_who_sent_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("connect");
    let seen = machine(&path, vec![usize::MAX]);
    let tunnel = tunnel(&path);
    let at = tunnel.forward(any(Protocol::Udp)).unwrap();
    let clients: Vec<UdpSocket> = (0..3).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    for (n, client) in clients.iter().enumerate() {
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.send_to(&vec![n as u8; 1 + 700 * n], at).unwrap();
    }
    for (n, client) in clients.iter().enumerate() {
        let mut buffer = [0; 2000];
        let (count, from) = client.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..count], from), (&vec![n as u8; 1 + 700 * n][..], at));
    }
    assert_eq!(*seen.lock().unwrap(), [Destination::Udp(GUEST)]);
}

#[test]
fn a_stream_reaches_a_path_in_the_machine() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("connect");
    let seen = machine(&path, vec![usize::MAX]);
    let tunnel = tunnel(&path);
    let inner = Path::new("/run/docker.sock");
    let (mut client, led) = UnixStream::pair().unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    tunnel.lead_to_path(led.into(), inner).unwrap();
    client.write_all(b"GET /_ping").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut back = Vec::new();
    client.read_to_end(&mut back).unwrap();
    assert_eq!(back, b"GET /_ping");
    assert_eq!(*seen.lock().unwrap(), [Destination::Unix(b"/run/docker.sock".to_vec())]);
    let long = "x".repeat(108);
    for impossible in ["", &long] {
        assert!(matches!(tunnel.check_path(Path::new(impossible)), Err(ForwardError::NotPath(_))));
    }
}

#[test]
fn a_port_that_is_hidden_is_free_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let tunnel = tunnel(&folder.path().join("nobody"));
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let bind = tunnel.forward(any(protocol)).unwrap();
        let forward = Forward { bind, ..any(protocol) };
        assert!(matches!(tunnel.forward(forward), Err(ForwardError::InUse { .. })));
        tunnel.unforward(forward).unwrap();
        assert!(matches!(tunnel.unforward(forward), Err(ForwardError::Unknown { .. })));
        tunnel.forward(forward).unwrap();
    }
}

#[test]
fn a_machine_that_comes_back_is_found_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("connect");
    let tunnel = tunnel(&path);
    let at = tunnel.forward(any(Protocol::Tcp)).unwrap();
    // Nobody is there: clients are let go, and not left waiting.
    assert!(matches!(echo(at, b""), Ok(back) if back.is_empty()));
    machine(&path, vec![1, 1]);
    assert_eq!(echo(at, b"first").unwrap(), b"first");
    let began = std::time::Instant::now();
    // The first life ends with its stream; that is noticed by and by.
    while echo(at, b"second").ok().as_deref() != Some(b"second") {
        assert!(began.elapsed() < PATIENCE);
        thread::sleep(Duration::from_millis(10));
    }
}
