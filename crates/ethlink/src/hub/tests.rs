//! Machines of every kind on one hub.

use std::io::{Read, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};

use super::*;

const ENGINE: Mac = [2, 0, 0, 0, 0, 0xfe];

fn frame(to: u8, from: u8, text: &[u8]) -> Vec<u8> {
    [&[2, 0, 0, 0, 0, to][..], &[2, 0, 0, 0, 0, from], &[0x88, 0xb5], text].concat()
}

fn hub() -> (tempdir::Folder, Hub) {
    (tempdir::Folder::new(), Hub::new(ENGINE, 1500).unwrap())
}

/// Folders that go with the test.
mod tempdir {
    use std::sync::atomic::{AtomicU32, Ordering};

    pub struct Folder(pub std::path::PathBuf);

    impl Folder {
        pub fn new() -> Self {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let name = format!("ethlink-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
            let path = std::env::temp_dir().join(name);
            std::fs::create_dir(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

/// Lets the hub work until `count` frames came for the engine.
fn collect(hub: &mut Hub, count: usize) -> Vec<Vec<u8>> {
    let (mut frames, began) = (Vec::new(), Instant::now());
    while frames.len() < count && began.elapsed() < Duration::from_secs(10) {
        hub.receive(&mut |_, frame| frames.push(frame.to_vec()));
        hub.flush();
    }
    frames
}

/// Lets the hub work until it has nothing to do.
fn settle(hub: &mut Hub) {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    while rustix::event::poll(&mut [PollFd::new(&*hub, PollFlags::IN)], Some(&now)) != Ok(0) {
        hub.receive(&mut |_, _| {});
        hub.flush();
    }
}

fn qemu(path: &Path, frame: &[u8]) -> UnixStream {
    let mut stream = UnixStream::connect(path).unwrap();
    let mut bytes = Vec::new();
    Framing::Be32.put(&mut bytes, &[frame]);
    stream.write_all(&bytes).unwrap();
    stream
}

fn read_frame(stream: &mut UnixStream) -> Vec<u8> {
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    let mut frame = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut frame).unwrap();
    frame
}

#[test]
fn machines_of_mixed_kinds_reach_the_engine_and_one_another() {
    let (folder, mut hub) = hub();
    let (stream, datagram) = (folder.0.join("stream"), folder.0.join("datagram"));
    hub.listen(Protocol::Qemu, &Address::Unix(stream.clone())).unwrap();
    hub.listen(Protocol::Datagram, &Address::Unix(datagram.clone())).unwrap();

    let mut first = qemu(&stream, &frame(0xfe, 1, b"of a stream"));
    assert_eq!(collect(&mut hub, 1), [frame(0xfe, 1, b"of a stream")]);

    let second = UnixDatagram::bind(folder.0.join("client")).unwrap();
    second.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    second.send_to(b"VFKT", &datagram).unwrap();
    second.send_to(&frame(0xfe, 2, b"of a datagram"), &datagram).unwrap();
    assert_eq!(collect(&mut hub, 1), [frame(0xfe, 2, b"of a datagram")]);

    second.send_to(&frame(1, 2, b"across"), &datagram).unwrap();
    collect(&mut hub, 0);
    settle(&mut hub);
    assert_eq!(read_frame(&mut first), frame(1, 2, b"across"));

    assert!(hub.send(&Vnet::WHOLE, &[&frame(2, 0xfe, b""), b"in ", b"parts"]));
    hub.flush();
    let mut buffer = [0; 100];
    let count = second.recv(&mut buffer).unwrap();
    assert_eq!(buffer[..count], frame(2, 0xfe, b"in parts"));
}

#[test]
fn a_machine_on_datagrams_comes_back_to_a_quiet_network() {
    let (folder, mut hub) = hub();
    let path = folder.0.join("datagram");
    hub.listen(Protocol::Datagram, &Address::Unix(path.clone())).unwrap();
    for (round, removed) in [(1, false), (2, true), (3, false)] {
        let own = folder.0.join(format!("client-{round}"));
        let client = UnixDatagram::bind(&own).unwrap();
        let began = Instant::now();
        // While the socket has another peer the kernel refuses: EPERM.
        while client.connect(&path).is_err() {
            assert!(began.elapsed() < Duration::from_secs(20), "round {round}: it cannot come back");
            hub.receive(&mut |_, _| {});
            std::thread::sleep(Duration::from_millis(20));
        }
        client.send(&frame(0xfe, 1, &[round])).unwrap();
        assert_eq!(collect(&mut hub, 1), [frame(0xfe, 1, &[round])]);
        if removed {
            std::fs::remove_file(&own).unwrap();
            // Without its path it is still there.
            std::thread::sleep(LOOK + Duration::from_millis(200));
            settle(&mut hub);
            assert!(UnixDatagram::unbound().unwrap().connect(&path).is_err(), "it was forgotten");
            client.send(&frame(0xfe, 1, b"still")).unwrap();
            assert_eq!(collect(&mut hub, 1), [frame(0xfe, 1, b"still")]);
        }
    }
}

#[test]
fn no_machine_speaks_for_the_engine_or_for_another() {
    let (folder, mut hub) = hub();
    let path = folder.0.join("stream");
    hub.listen(Protocol::Qemu, &Address::Unix(path.clone())).unwrap();
    let of = |last| std::net::Ipv4Addr::new(10, 0, 0, last);
    hub.set_addresses(Addresses { engine: vec![of(1).into()], ipv4: (of(1), 24), ipv6: None });
    // "I am …", to everybody.
    let arp = |from: u8, sender: u8| {
        let mac = [2, 0, 0, 0, 0, from];
        let head = [8, 6, 0, 1, 8, 0, 6, 4, 0, 2];
        [&[0xff; 6][..], &mac, &head, &mac, &[10, 0, 0, sender], &[0; 10]].concat()
    };
    let mut victim = qemu(&path, &arp(1, 5));
    assert_eq!(collect(&mut hub, 1), [arp(1, 5)]);
    let mut other = qemu(&path, &arp(2, 6));
    assert_eq!(collect(&mut hub, 1), [arp(2, 6)]);
    settle(&mut hub);
    assert_eq!(read_frame(&mut victim), arp(2, 6));

    let mut bytes = Vec::new();
    for frame in [arp(2, 1), arp(2, 5), frame(1, 1, b""), frame(1, 2, b"honest")] {
        Framing::Be32.put(&mut bytes, &[&frame]);
    }
    other.write_all(&bytes).unwrap();
    settle(&mut hub);
    assert_eq!(read_frame(&mut victim), frame(1, 2, b"honest"), "a forged frame came through");
    assert_eq!(hub.forged(), 3);
}

#[test]
fn what_is_for_all_or_a_group_reaches_the_engine_and_every_other_machine() {
    let (folder, mut hub) = hub();
    let path = folder.0.join("stream");
    hub.listen(Protocol::Qemu, &Address::Unix(path.clone())).unwrap();
    let mut first = qemu(&path, &frame(0xfe, 1, b""));
    collect(&mut hub, 1);
    let mut others = [qemu(&path, &frame(0xfe, 2, b"")), qemu(&path, &frame(0xfe, 3, b""))];
    collect(&mut hub, 2);
    // Everybody, a group of IPv4, a group of IPv6.
    for to in [[0xff; 6], [1, 0, 0x5e, 0, 0, 0xfb], [0x33, 0x33, 0, 0, 0, 0xfb]] {
        let frame = [&to[..], &[2, 0, 0, 0, 0, 1], &[0x88, 0xb5], b"hear"].concat();
        let mut bytes = Vec::new();
        Framing::Be32.put(&mut bytes, &[&frame]);
        first.write_all(&bytes).unwrap();
        assert_eq!(collect(&mut hub, 1), std::slice::from_ref(&frame));
        settle(&mut hub);
        for other in &mut others {
            assert_eq!(read_frame(other), frame);
        }
    }
    first.set_nonblocking(true).unwrap();
    assert!(first.read(&mut [0; 10]).is_err(), "its own frames came back");
}

#[test]
fn a_machine_that_comes_back_has_its_address_again() {
    let (folder, mut hub) = hub();
    let path = folder.0.join("stream");
    hub.listen(Protocol::Qemu, &Address::Unix(path.clone())).unwrap();
    for round in 0..5u8 {
        let stream = qemu(&path, &frame(0xfe, 1, &[round]));
        assert_eq!(collect(&mut hub, 1), [frame(0xfe, 1, &[round])]);
        drop(stream);
        settle(&mut hub);
        assert_eq!(hub.ports(), 0);
        assert_eq!(hub.take_departed(), [[2, 0, 0, 0, 0, 1]]);
    }
}

#[test]
fn a_machine_that_reads_nothing_stalls_nobody() {
    let (folder, mut hub) = hub();
    let path = folder.0.join("stream");
    hub.listen(Protocol::Qemu, &Address::Unix(path.clone())).unwrap();
    let _slow = qemu(&path, &frame(0xfe, 1, b""));
    collect(&mut hub, 1);
    let mut quick = qemu(&path, &frame(0xfe, 2, b""));
    collect(&mut hub, 1);
    let large = frame(1, 0xfe, &[7; 60_000]);
    for _ in 0..2000 {
        assert!(hub.send(&Vnet::WHOLE, &[&large]), "the engine would wait");
        hub.flush();
    }
    assert!(hub.dropped() > 0, "120 MB fit somewhere");
    assert!(hub.send(&Vnet::WHOLE, &[&frame(2, 0xfe, b"at once")]));
    hub.flush();
    assert_eq!(read_frame(&mut quick), frame(2, 0xfe, b"at once"));
}

#[test]
fn a_machine_alone_that_reads_nothing_is_waited_for() {
    let (folder, mut hub) = hub();
    let path = folder.0.join("stream");
    hub.listen(Protocol::Qemu, &Address::Unix(path.clone())).unwrap();
    let mut slow = qemu(&path, &frame(0xfe, 1, b""));
    collect(&mut hub, 1);
    let large = frame(1, 0xfe, &[7; 60_000]);
    let sent = (0..2000).take_while(|_| hub.send(&Vnet::WHOLE, &[&large])).count();
    assert!(sent < 2000 && hub.dropped() == 0, "{sent} sent, {} dropped", hub.dropped());
    for _ in 0..sent {
        assert_eq!(read_frame(&mut slow), large);
        settle(&mut hub);
    }
    assert!(hub.send(&Vnet::WHOLE, &[&large]));
}

#[test]
fn nonsense_ends_the_connection() {
    let (folder, mut hub) = hub();
    let path = folder.0.join("stream");
    hub.listen(Protocol::Qemu, &Address::Unix(path.clone())).unwrap();
    let mut stream = UnixStream::connect(&path).unwrap();
    stream.write_all(&[0xff; 100]).unwrap();
    settle(&mut hub);
    assert_eq!(stream.read(&mut [0; 10]).unwrap(), 0);
    assert_eq!(hub.ports(), 0);
}

#[test]
fn a_socket_that_somebody_listens_to_is_not_replaced() {
    let (folder, mut hub) = hub();
    let path = folder.0.join("stream");
    let other = std::os::unix::net::UnixListener::bind(&path).unwrap();
    assert!(hub.listen(Protocol::Qemu, &Address::Unix(path.clone())).is_err());
    drop(other);
    hub.listen(Protocol::Qemu, &Address::Unix(path)).unwrap();
}
