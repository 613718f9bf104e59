//! Names: those of the network itself, and those that a resolver on loopback knows.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::thread;

use vpnkit::{Config, Resolvers, Update, Upstreams};

use crate::start;

const GATEWAY: [u8; 4] = [192, 168, 65, 1];
const A: u16 = 1;
const AAAA: u16 = 28;
const MX: u16 = 15;
const NXDOMAIN: u8 = 3;

fn query(id: u16, name: &str, qtype: u16) -> Vec<u8> {
    let mut out = id.to_be_bytes().to_vec();
    out.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        out.push(label.len() as u8);
        out.extend(label.as_bytes());
    }
    out.push(0);
    out.extend(qtype.to_be_bytes());
    out.extend([0, 1]);
    out
}

/// Turns a query into an answer with this code and these bytes at the end.
fn answer(query: &[u8], rcode: u8, extra: &[u8]) -> Vec<u8> {
    let mut out = query.to_vec();
    out[2] |= 0x80;
    out[3] = 0x80 | rcode;
    out.extend_from_slice(extra);
    out
}

/// A resolver that answers every query over UDP and TCP with `rcode` and `extra`; it truncates over UDP.
fn resolver(rcode: u8, extra: Vec<u8>) -> SocketAddr {
    let both = || {
        let tcp = TcpListener::bind("127.0.0.1:0").ok()?;
        Some((UdpSocket::bind(tcp.local_addr().ok()?).ok()?, tcp))
    };
    let (udp, tcp) = (0..100).find_map(|_| both()).expect("a port that is free for both");
    let address = udp.local_addr().unwrap();
    let long = extra.clone();
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((count, from)) = udp.recv_from(&mut buffer) {
            let mut out = answer(&buffer[..count], rcode, &extra);
            if out.len() > 512 {
                out.truncate(count);
                out[2] |= 2;
            }
            udp.send_to(&out, from).unwrap();
        }
    });
    thread::spawn(move || {
        for stream in tcp.incoming() {
            let mut stream = stream.unwrap();
            let mut length = [0; 2];
            stream.read_exact(&mut length).unwrap();
            let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut message).unwrap();
            let out = answer(&message, rcode, &long);
            stream.write_all(&[&(out.len() as u16).to_be_bytes()[..], &out].concat()).unwrap();
        }
    });
    address
}

fn config(resolvers: Vec<SocketAddr>) -> Config {
    Config { dns: Resolvers::Fixed(resolvers), hosts: None, ..Config::default() }
}

#[test]
fn the_code_of_the_resolver_reaches_the_guest() {
    let (_engine, mut guest) = start(config(vec![resolver(NXDOMAIN, Vec::new())]));
    let socket = guest.udp_socket(6000);
    let (out, _, port) = guest.ask(socket, (GATEWAY, 53), &query(0xbeef, "no.such.name", A));
    assert_eq!((port, &out[..2], out[3] & 0xf), (53, &[0xbe, 0xef][..], NXDOMAIN));
}

#[test]
fn a_resolver_that_is_down_is_skipped() {
    let down = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (_engine, mut guest) = start(config(vec![down, resolver(NXDOMAIN, Vec::new())]));
    let socket = guest.udp_socket(6000);
    let began = std::time::Instant::now();
    let (out, ..) = guest.ask(socket, (GATEWAY, 53), &query(1, "a.b", A));
    assert_eq!(out[3] & 0xf, NXDOMAIN);
    assert!(began.elapsed() < std::time::Duration::from_secs(1), "the refusal was not noticed");
}

#[test]
fn what_is_no_message_after_the_answer_of_another_resolver_harms_nobody() {
    // What it cuts is good enough an answer not to wait for the other one.
    let good = resolver(0, vec![0; 600]);
    let late = UdpSocket::bind("127.0.0.1:0").unwrap();
    let servers = format!("nameserver 127.0.0.1#{}\n", good.port())
        + &format!("nameserver 127.0.0.1#{}\n", late.local_addr().unwrap().port());
    let (engine, mut guest) = start(config(Vec::new()));
    engine.update(Update::Resolvers(Upstreams::parse(&servers).unwrap()));
    let socket = guest.udp_socket(6000);
    guest.ask(socket, (GATEWAY, 53), &query(1, "a.b", A));
    let mut asked = [0; 512];
    let (_, from) = late.recv_from(&mut asked).unwrap();
    for length in 0..12 {
        late.send_to(&asked[..length], from).unwrap();
    }
    let (out, ..) = guest.ask(socket, (GATEWAY, 53), &query(2, "a.b", A));
    assert_eq!(out[..2], [0, 2]);
}

#[test]
fn without_any_resolver_the_query_fails() {
    let (_engine, mut guest) = start(config(Vec::new()));
    let socket = guest.udp_socket(6000);
    let (out, ..) = guest.ask(socket, (GATEWAY, 53), &query(1, "a.b", A));
    assert_eq!(out[3] & 0xf, 2);
}

#[test]
fn own_names_have_addresses_of_both_kinds() {
    let (_engine, mut guest) = start(config(Vec::new()));
    let socket = guest.udp_socket(6000);
    for (name, last) in [("host.internal", 2), ("gateway.internal", 1), ("HOST.Internal", 2)] {
        let (out, ..) = guest.ask(socket, (GATEWAY, 53), &query(1, name, A));
        assert_eq!(out[out.len() - 4..], [192, 168, 65, last], "{name}");
        let (out, ..) = guest.ask(socket, (GATEWAY, 53), &query(2, name, AAAA));
        let v6 = [0xfd, 0x76, 0x70, 0x6e, 0x6b, 0x69, 0x74, 0, 0, 0, 0, 0, 0, 0, 0, last];
        assert_eq!(out[out.len() - 16..], v6, "{name}");
        let (out, ..) = guest.ask(socket, (GATEWAY, 53), &query(3, name, MX));
        assert_eq!((out[3] & 0xf, out[7]), (0, 0), "{name} has no such records and no error");
    }
}

#[test]
fn names_of_the_hosts_file_are_answered() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("hosts");
    std::fs::write(&path, "10.1.2.3 box.example box # a comment\n127.0.1.1 myself\n").unwrap();
    let (_engine, mut guest) = start(Config { hosts: Some(path), ..config(Vec::new()) });
    let socket = guest.udp_socket(6000);
    for (name, address) in
        [("box.example", [10, 1, 2, 3]), ("Box", [10, 1, 2, 3]), ("myself", [192, 168, 65, 2])]
    {
        let (out, ..) = guest.ask(socket, (GATEWAY, 53), &query(1, name, A));
        assert_eq!(out[out.len() - 4..], address, "{name}");
    }
}

#[test]
fn a_long_answer_is_truncated_over_udp_and_whole_over_tcp() {
    let extra: Vec<u8> = (0..3000u32).map(|byte| byte as u8).collect();
    let (_engine, mut guest) = start(config(vec![resolver(0, extra.clone())]));
    let socket = guest.udp_socket(6000);
    let (out, ..) = guest.ask(socket, (GATEWAY, 53), &query(1, "a.b", A));
    assert_eq!(out[2] & 2, 2, "truncated");
    let connection = guest.connect(GATEWAY, 53, 50_000);
    let asked: Vec<_> = [query(7, "a.b", A), query(8, "host.internal", A)]
        .iter()
        .flat_map(|query| [&(query.len() as u16).to_be_bytes()[..], query].concat())
        .collect();
    let out = guest.exchange(connection, &asked);
    let (own, from_resolver) = out.split_at(2 + usize::from(u16::from_be_bytes([out[0], out[1]])));
    assert_eq!((own[2..4].to_vec(), own[own.len() - 4..].to_vec()), (vec![0, 8], vec![192, 168, 65, 2]));
    assert_eq!(from_resolver[2..4], [0, 7]);
    assert!(from_resolver.ends_with(&extra));
}
