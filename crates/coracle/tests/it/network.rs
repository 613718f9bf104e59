//! The guest's network: ports of the guest from the host, services of the host from the guest, names.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use crate::sh;

/// A port that was free a moment ago.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    listener.local_addr().expect("it is bound").port()
}

/// Asks until somebody answers with something.
fn http_get(port: u16) -> String {
    let deadline = Instant::now() + Duration::from_secs(120);
    while Instant::now() < deadline {
        if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) {
            stream.set_read_timeout(Some(Duration::from_secs(20))).expect("not zero");
            let mut reply = String::new();
            let asked = stream.write_all(b"GET /f HTTP/1.0\r\n\r\n");
            if asked.is_ok() && stream.read_to_string(&mut reply).is_ok() && !reply.is_empty() {
                return reply;
            }
        }
        std::thread::sleep(Duration::from_millis(300));
    }
    panic!("nobody answers on port {port}");
}

#[test]
fn a_server_in_the_guest_is_reached_through_a_published_port() {
    let port = free_port();
    let script = "mkdir /w; echo from-the-guest > /w/f; httpd -f -p 80 -h /w";
    let started = sh(&["-p", &format!("{port}:80")], script).start();
    let reply = http_get(port);
    assert!(reply.contains("from-the-guest"), "{reply}");
    drop(started);
}

#[test]
fn a_udp_port_is_forwarded() {
    let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    // busybox has no server over UDP. Netcat answers the first datagram with its input.
    let flags = ["--package", "netcat-openbsd", "-p", &format!("{port}:9000/udp")];
    let mut started = sh(&flags, "echo pong | nc.openbsd -u -l 9000").start();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    socket.connect(("127.0.0.1", port)).unwrap();
    let deadline = Instant::now() + Duration::from_secs(120);
    let mut reply = [0; 16];
    let n = loop {
        assert!(Instant::now() < deadline, "no datagram came back");
        assert!(started.child.try_wait().unwrap().is_none(), "the guest ended");
        std::thread::sleep(Duration::from_millis(100));
        let _ = socket.send(b"ping");
        if let Ok(n) = socket.recv(&mut reply) {
            break n;
        }
    };
    assert_eq!(&reply[..n], b"pong\n");
    drop(started);
}

#[test]
fn the_guest_reaches_services_of_the_host() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut got = String::new();
        stream.read_to_string(&mut got).unwrap();
        stream.write_all(b"answer").unwrap();
        got
    });
    let said = sh(&[], &format!("printf question | nc host.internal {port}")).done().good();
    assert_eq!(said, "answer");
    assert_eq!(server.join().unwrap(), "question");
}

#[test]
fn the_guest_reaches_services_of_the_host_over_ipv6() {
    let Ok(listener) = TcpListener::bind("[::1]:0") else {
        println!("SKIP the_guest_reaches_services_of_the_host_over_ipv6: this host has no ::1");
        return;
    };
    let port = listener.local_addr().unwrap().port();
    let server = std::thread::spawn(move || {
        let (mut stream, peer) = listener.accept().unwrap();
        let mut got = String::new();
        stream.read_to_string(&mut got).unwrap();
        stream.write_all(b"answer").unwrap();
        (got, peer.is_ipv6())
    });
    // The kernel makes its address of what the router tells, a second or two after the device is up.
    let attempt = format!("printf question | nc fd76:706e:6b69:7400::2 {port} 2> /dev/null && exit 0");
    let script = format!("for i in $(seq 100); do {attempt}; sleep 0.3; done; ip -6 address; exit 1");
    let said = sh(&[], &script).done().good();
    assert_eq!(said, "answer");
    assert_eq!(server.join().unwrap(), ("question".to_owned(), true));
}

#[test]
fn a_large_transfer_arrives_whole_both_ways() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let bytes: Vec<u8> = (0..4_000_000u32).map(|n| (n.wrapping_mul(2_246_822_519) >> 24) as u8).collect();
    let sent = bytes.clone();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut writer = stream.try_clone().unwrap();
        let writing = std::thread::spawn(move || {
            writer.write_all(&sent).unwrap();
            writer.shutdown(std::net::Shutdown::Write).unwrap();
        });
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        writing.join().unwrap();
        got
    });
    let done = sh(&[], &format!("nc 192.168.65.2 {port} > /tmp/f; nc -h 2>/dev/null; cat /tmp/f"))
        .done_with(Vec::new());
    assert!(done.stdout == bytes, "{} bytes of {} arrived: {}", done.stdout.len(), bytes.len(), done.stderr);
    drop(server);
}

#[test]
fn names_are_resolved_through_the_host() {
    let said = sh(&[], "nslookup gateway.internal; nslookup host.internal; nslookup localhost").done();
    let text = said.text();
    assert!(text.contains("192.168.65.1") && text.contains("192.168.65.2"), "{text} {}", said.stderr);
}

#[test]
fn the_gateway_answers_a_ping() {
    let said = sh(&[], "ping -c 2 -W 5 192.168.65.1").done().good();
    assert!(said.contains("2 packets received"), "{said}");
}

#[test]
fn a_closed_port_of_the_host_is_refused_not_timed_out() {
    let port = free_port();
    let done = sh(&[], &format!("nc -w 30 192.168.65.2 {port} </dev/null; echo $?")).done();
    assert!(done.stderr.contains("refused") || done.text().trim() == "1", "{} {}", done.text(), done.stderr);
}
