//! Ports of the host that lead to the guest.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use smoltcp::socket::tcp;
use vpnkit::{Config, Forward, ForwardError};

use crate::{pattern, start};

const GUEST: Ipv4Addr = Ipv4Addr::new(192, 168, 65, 3);

fn any() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

#[test]
fn a_client_of_the_host_reaches_a_server_of_the_guest() {
    let (engine, mut guest) = start(Config::default());
    let socket = guest.tcp_socket();
    guest.tcp(socket).listen(80).unwrap();
    let at = engine.forward(Forward::tcp(any(), SocketAddr::new(GUEST.into(), 80))).unwrap();
    let bytes = pattern(300_000);
    let sent = bytes.clone();
    let client = thread::spawn(move || {
        let mut stream = TcpStream::connect(at).unwrap();
        let mut reader = stream.try_clone().unwrap();
        let reading = thread::spawn(move || {
            let mut received = Vec::new();
            reader.read_to_end(&mut received).unwrap();
            received
        });
        stream.write_all(&sent).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        reading.join().unwrap()
    });
    let answer = pattern(200_000);
    guest.run("the client", |guest| guest.tcp(socket).may_recv().then_some(()));
    let from = guest.tcp(socket).remote_endpoint().unwrap();
    assert_eq!(from.addr.to_string(), "192.168.65.2", "a client on loopback is the host");
    assert!(guest.exchange(socket, &answer) == bytes, "the request differs");
    assert!(client.join().unwrap() == answer, "the answer differs");
}

#[test]
fn a_client_sees_a_reset_when_no_server_listens_in_the_guest() {
    let (engine, mut guest) = start(Config::default());
    let at = engine.forward(Forward::tcp(any(), SocketAddr::new(GUEST.into(), 81))).unwrap();
    let mut stream = TcpStream::connect(at).unwrap();
    let reading = thread::spawn(move || stream.read(&mut [0; 8]).unwrap_err().kind());
    guest.run("the reset", |_| reading.is_finished().then_some(()));
    assert_eq!(reading.join().unwrap(), std::io::ErrorKind::ConnectionReset);
}

#[test]
fn datagrams_reach_the_guest_and_answers_their_senders() {
    let (engine, mut guest) = start(Config::default());
    let socket = guest.udp_socket(5353);
    let at = engine.forward(Forward::udp(any(), SocketAddr::new(GUEST.into(), 5353))).unwrap();
    let clients: Vec<_> = (0..3).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    for (index, client) in clients.iter().enumerate() {
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        client.send_to(&[index as u8, 1], at).unwrap();
    }
    for _ in 0..clients.len() {
        let (bytes, from, port) = guest.receive(socket);
        assert_eq!(from.to_string(), "192.168.65.2");
        guest.send(socket, ([192, 168, 65, 2], port), &[bytes[0], 2]);
    }
    guest.run("the answers to leave", |guest| {
        let flows = engine.flows();
        let _ = guest;
        (flows.udp.len() == 3 && flows.udp.iter().all(|flow| flow.bytes_up == 2)).then_some(())
    });
    for (index, client) in clients.iter().enumerate() {
        let mut buffer = [0; 8];
        let (count, from) = client.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..count], from), (&[index as u8, 2][..], at));
    }
}

#[test]
fn a_forward_that_ended_refuses_and_its_connections_go_on() {
    let (engine, mut guest) = start(Config::default());
    let socket = guest.tcp_socket();
    guest.tcp(socket).listen(80).unwrap();
    let forward = Forward::tcp(any(), SocketAddr::new(GUEST.into(), 80));
    let at = engine.forward(forward).unwrap();
    let mut stream = TcpStream::connect(at).unwrap();
    guest.run("the client", |guest| guest.tcp(socket).may_send().then_some(()));
    engine.unforward(Forward { bind: at, ..forward }).unwrap();
    assert_eq!(TcpStream::connect(at).unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    assert!(matches!(engine.unforward(Forward { bind: at, ..forward }), Err(ForwardError::Unknown { .. })));
    guest.tcp(socket).send_slice(b"still here").unwrap();
    guest.run("the bytes to leave", |guest| (guest.tcp(socket).send_queue() == 0).then_some(()));
    let mut bytes = [0; 10];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"still here");
    assert_eq!(guest.tcp(socket).state(), tcp::State::Established);
}

#[test]
fn what_cannot_be_bound_is_said_in_a_line() {
    let (engine, _guest) = start(Config::default());
    let taken = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let _holder = TcpListener::bind(taken).unwrap();
    let guest = SocketAddr::new(GUEST.into(), 80);
    let error = engine.forward(Forward::tcp(taken, guest)).unwrap_err();
    assert_eq!(error.to_string(), format!("tcp {taken} is already in use on the host"));
    let error = engine.forward(Forward::tcp("198.51.100.7:80".parse().unwrap(), guest)).unwrap_err();
    assert_eq!(error.to_string(), "198.51.100.7 is not an address of the host");
    let error = engine.forward(Forward::tcp(any(), "10.0.0.1:80".parse().unwrap())).unwrap_err();
    assert!(matches!(error, ForwardError::NotGuest { .. }), "{error}");
}
