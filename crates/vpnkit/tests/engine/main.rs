//! The engine with a guest in this process and servers on loopback.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod dns;
mod forward;
mod guest;

use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::sync::Arc;
use std::thread;

use guest::Guest;
use smoltcp::socket::{icmp, tcp};
use smoltcp::wire::{Icmpv4Message, Icmpv4Packet, IpAddress};
use vpnkit::{Config, Engine, Flows, MemoryLink};

/// Address that stands for the host.
const HOST: [u8; 4] = [192, 168, 65, 2];

fn start(config: Config) -> (Engine, Guest) {
    start_with_room(config, 1024)
}

fn start_with_room(config: Config, frames: usize) -> (Engine, Guest) {
    let link = Arc::new(MemoryLink::new());
    let engine = Engine::start(config, link.clone()).unwrap();
    (engine, Guest::new(link, frames))
}

fn pattern(count: usize) -> Vec<u8> {
    (0..count as u32).map(|at| (at.wrapping_mul(0x9e37_79b9) >> 24) as u8).collect()
}

/// A server that sends back what comes on each of `connections`, until the client ends.
fn echo_server(connections: usize) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming().take(connections) {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let mut buffer = [0; 16384];
                while let Ok(count @ 1..) = stream.read(&mut buffer) {
                    stream.write_all(&buffer[..count]).unwrap();
                }
            });
        }
    });
    port
}

#[test]
fn a_megabyte_is_echoed_by_a_server_of_the_host() {
    let (engine, mut guest) = start(Config::default());
    let socket = guest.connect(HOST, echo_server(1), 50_000);
    let bytes = pattern(1 << 20);
    assert!(guest.exchange(socket, &bytes) == bytes, "the echo differs");
    engine.stop();
}

#[test]
fn a_guest_with_few_buffers_loses_nothing() {
    let (engine, mut guest) = start_with_room(Config::default(), 3);
    let socket = guest.connect(HOST, echo_server(1), 50_000);
    let bytes = pattern(1 << 20);
    assert!(guest.exchange(socket, &bytes) == bytes, "the echo differs");
    assert_eq!(engine.counters().retransmitted, 0);
}

#[test]
fn the_answer_after_the_end_of_the_request_arrives() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = Vec::new();
        stream.read_to_end(&mut request).unwrap();
        stream.write_all(format!("got {}", request.len()).as_bytes()).unwrap();
    });
    let (_engine, mut guest) = start(Config::default());
    let socket = guest.connect(HOST, port, 50_000);
    assert_eq!(guest.exchange(socket, &pattern(100_000)), b"got 100000");
    server.join().unwrap();
}

#[test]
fn many_connections_are_served_at_once() {
    const COUNT: usize = 200;
    let (engine, mut guest) = start(Config::default());
    let port = echo_server(COUNT);
    let sockets: Vec<_> = (0..COUNT).map(|index| guest.connect(HOST, port, 50_000 + index as u16)).collect();
    guest.run("all to connect", |guest| {
        sockets.iter().all(|socket| guest.tcp(*socket).may_send()).then_some(())
    });
    // The last acknowledgement may still be on its way.
    guest.run("all to be established", |_| {
        let established = engine.flows().tcp.iter().filter(|flow| flow.state == "ESTABLISHED").count();
        (established == COUNT).then_some(())
    });
    for (index, socket) in sockets.iter().enumerate() {
        let bytes = pattern(100 + index * 10);
        assert_eq!(guest.exchange(*socket, &bytes), bytes);
    }
    guest.run("TIME-WAIT to end", |_| (engine.flows() == Flows::default()).then_some(()));
}

#[test]
fn a_refused_connection_is_reset_at_once() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (engine, mut guest) = start(Config::default());
    let socket = guest.connect(HOST, port, 50_000);
    guest.run("the reset", |guest| (guest.tcp(socket).state() == tcp::State::Closed).then_some(()));
    assert!(engine.flows().tcp.is_empty());
}

#[test]
fn a_reset_by_the_server_reaches_the_guest() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (engine, mut guest) = start(Config::default());
    let socket = guest.connect(HOST, port, 50_000);
    guest.run("to connect", |guest| guest.tcp(socket).may_send().then_some(()));
    guest.tcp(socket).send_slice(b"never read").unwrap();
    let (stream, _) = listener.accept().unwrap();
    guest.run("the request", |_| (stream.peek(&mut [0]).unwrap() == 1).then_some(()));
    // Closing with unread data resets: RFC 2525 §2.17.
    drop(stream);
    guest.run("the reset", |guest| (guest.tcp(socket).state() == tcp::State::Closed).then_some(()));
    assert!(engine.flows().tcp.is_empty());
}

#[test]
fn a_reset_by_the_guest_reaches_the_server() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (_engine, mut guest) = start(Config::default());
    let socket = guest.connect(HOST, port, 50_000);
    guest.run("to connect", |guest| guest.tcp(socket).may_send().then_some(()));
    let (mut stream, _) = listener.accept().unwrap();
    guest.tcp(socket).abort();
    guest.run("the reset to leave", |guest| (guest.tcp(socket).remote_endpoint().is_none()).then_some(()));
    let error = stream.read(&mut [0; 8]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[test]
fn datagrams_go_to_a_server_of_the_host_and_back() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((count, from)) = server.recv_from(&mut buffer) {
            buffer[..count].reverse();
            server.send_to(&buffer[..count], from).unwrap();
        }
    });
    let (engine, mut guest) = start(Config::default());
    let socket = guest.udp_socket(6000);
    for text in [&b"abc"[..], b"xyzzy"] {
        let (answer, from, from_port) = guest.ask(socket, (HOST, port), text);
        assert_eq!(answer.iter().rev().copied().collect::<Vec<_>>(), text);
        assert_eq!((from, from_port), (IpAddress::v4(192, 168, 65, 2), port));
    }
    let flows = engine.flows();
    assert_eq!((flows.udp.len(), flows.udp[0].bytes_up, flows.udp[0].bytes_down), (1, 8, 8));
}

#[test]
fn a_datagram_that_nobody_takes_is_answered_with_an_icmp_error() {
    let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (_engine, mut guest) = start(Config::default());
    let socket = guest.udp_socket(6000);
    let buffer = || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 4], vec![0; 4096]);
    let mut errors = icmp::Socket::new(buffer(), buffer());
    errors.bind(icmp::Endpoint::Udp(6000.into())).unwrap();
    let errors = guest.sockets.add(errors);
    guest.send(socket, (HOST, port), b"anybody?");
    let (message, code) = guest.run("the error", |guest| {
        let (bytes, _) = guest.sockets.get_mut::<icmp::Socket>(errors).recv().ok()?;
        let packet = Icmpv4Packet::new_checked(bytes).unwrap();
        Some((packet.msg_type(), packet.msg_code()))
    });
    assert_eq!((message, code), (Icmpv4Message::DstUnreachable, 3));
}

#[test]
fn a_stopped_engine_closes_its_connections() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (engine, mut guest) = start(Config::default());
    let socket = guest.connect(HOST, port, 50_000);
    guest.run("to connect", |guest| guest.tcp(socket).may_send().then_some(()));
    let (mut stream, _) = listener.accept().unwrap();
    engine.stop();
    assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0);
}
