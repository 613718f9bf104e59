//! The multiplexer: bytes by the specification, and two sides of it under every order of events.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;

use proptest::prelude::*;
use vpnkit_forwarder::mux::frame::{MAGIC, PAYLOAD_BYTES_MAX};
use vpnkit_forwarder::mux::{
    Datagram, Destination, Event, Frame, FrameError, Multiplexer, MuxError, Side, StreamId, WINDOW_BYTES,
};

fn emitted(frame: &Frame) -> Vec<u8> {
    let mut out = Vec::new();
    frame.emit(&mut out);
    out
}

fn check(frame: Frame, bytes: &[u8]) {
    assert_eq!(emitted(&frame), bytes);
    assert_eq!(Frame::parse(bytes), Ok(Some((frame.clone(), bytes.len()))));
    for end in 0..bytes.len() {
        assert_eq!(Frame::parse(&bytes[..end]), Ok(None), "{frame:?}, the first {end} bytes");
    }
}

#[test]
fn frames_have_the_bytes_that_the_specification_says() {
    let id = StreamId(0x0403_0201);
    let tcp = Destination::Tcp("127.0.0.1:8080".parse().unwrap());
    check(
        Frame::Open { id, destination: tcp },
        &[17, 0, 1, 1, 2, 3, 4, 2, 1, 4, 0, 127, 0, 0, 1, 0x90, 0x1f],
    );
    let udp = Destination::Udp("[::2]:53".parse().unwrap());
    let mut bytes = vec![29, 0, 1, 1, 2, 3, 4, 2, 2, 16, 0];
    bytes.extend([0; 15]);
    bytes.extend([2, 53, 0]);
    check(Frame::Open { id, destination: udp }, &bytes);
    let unix = Destination::Unix(b"/tmp/s".to_vec());
    check(
        Frame::Open { id, destination: unix },
        &[17, 0, 1, 1, 2, 3, 4, 2, 3, 6, 0, b'/', b't', b'm', b'p', b'/', b's'],
    );
    check(Frame::Close(id), &[7, 0, 2, 1, 2, 3, 4]);
    check(Frame::Shutdown(id), &[7, 0, 3, 1, 2, 3, 4]);
    check(Frame::Data { id, payload: b"hi".to_vec() }, &[11, 0, 4, 1, 2, 3, 4, 2, 0, 0, 0, b'h', b'i']);
    check(Frame::Window { id, sequence: 65_536 }, &[15, 0, 5, 1, 2, 3, 4, 0, 0, 1, 0, 0, 0, 0, 0]);
}

#[test]
fn datagrams_have_the_bytes_that_the_specification_says() {
    let datagram = Datagram { peer: Some("10.0.0.1:53".parse().unwrap()), payload: b"abc".to_vec() };
    let bytes = [17, 0, 4, 0, 10, 0, 0, 1, 53, 0, 0, 0, 3, 0, b'a', b'b', b'c'];
    let mut out = Vec::new();
    assert!(datagram.emit(&mut out));
    assert_eq!(out, bytes);
    assert_eq!(Datagram::parse(&bytes), Ok(Some((datagram, bytes.len()))));
    let too_long = Datagram { peer: None, payload: vec![0; 65_530] };
    assert!(!too_long.emit(&mut Vec::new()));
}

#[test]
fn what_is_no_frame_is_refused() {
    let refused = |bytes: &[u8]| Frame::parse(bytes).unwrap_err();
    assert_eq!(refused(&[6, 0]), FrameError::Short(6));
    assert_eq!(refused(&[7, 0, 9, 0, 0, 0, 0]), FrameError::Command(9));
    assert_eq!(refused(&[7, 0, 5, 0, 0, 0, 0]), FrameError::Short(7));
    assert_eq!(refused(&[17, 0, 1, 0, 0, 0, 0, 1, 1, 4, 0, 1, 1, 1, 1, 0, 0]), FrameError::Dedicated);
    assert_eq!(refused(&[11, 0, 4, 0, 0, 0, 0, 1, 0, 1, 0]), FrameError::Payload(PAYLOAD_BYTES_MAX + 1));
    assert_eq!(refused(&[12, 0, 1, 0, 0, 0, 0, 2, 3, 255, 255, 0]), FrameError::Path(65_535));
    let mut mux = Multiplexer::new(Side::Host);
    assert_eq!(mux.receive(b"GET / HTTP/1.1", &mut Vec::new()), Err(FrameError::Magic.into()));
}

/// A connection whose peer has said hello.
fn greeted(side: Side) -> Multiplexer {
    let mut mux = Multiplexer::new(side);
    let mut hello = MAGIC.to_vec();
    // Bytes that nobody uses are skipped.
    hello.extend([2, 0, b'{', b'}']);
    mux.receive(&hello, &mut Vec::new()).unwrap();
    let length = mux.output().len();
    mux.sent(length);
    mux
}

fn destination() -> Destination {
    Destination::Tcp("192.168.65.3:80".parse().unwrap())
}

#[test]
fn nothing_is_sent_before_the_peer_allows_it() {
    let mut mux = greeted(Side::Host);
    let id = mux.open(destination()).unwrap();
    assert_eq!((id, mux.send(id, b"early")), (StreamId(0), 0));
    let mut events = Vec::new();
    mux.receive(&emitted(&Frame::Window { id, sequence: 3 }), &mut events).unwrap();
    assert_eq!(events, [Event::Writable(id)]);
    assert_eq!(mux.send(id, b"early"), 3);
    mux.receive(&emitted(&Frame::Window { id, sequence: 2 }), &mut events).unwrap();
    assert_eq!(mux.room(id), 0);
}

#[test]
fn a_side_closes_once_and_says_nothing_after_it() {
    let mut mux = greeted(Side::Host);
    let id = mux.open(destination()).unwrap();
    mux.receive(&emitted(&Frame::Window { id, sequence: 100 }), &mut Vec::new()).unwrap();
    mux.sent(mux.output().len());
    mux.close(id);
    mux.close(id);
    mux.shutdown(id);
    assert_eq!(mux.send(id, b"late"), 0);
    let mut events = Vec::new();
    // What was under way is dropped, and lets the peer send no more.
    mux.receive(&emitted(&Frame::Data { id, payload: vec![1; 60_000] }), &mut events).unwrap();
    mux.consumed(id, 60_000);
    mux.receive(&emitted(&Frame::Close(id)), &mut events).unwrap();
    mux.close(id);
    assert_eq!((mux.output(), events.len(), mux.n_streams()), (&emitted(&Frame::Close(id))[..], 0, 0));
    mux.receive(&emitted(&Frame::Close(id)), &mut events).unwrap();
    assert_eq!((mux.n_strays(), events.len()), (1, 0));
}

#[test]
fn a_peer_that_sends_more_than_allowed_is_given_up() {
    let mut mux = greeted(Side::Guest);
    let id = StreamId(0);
    mux.receive(&emitted(&Frame::Open { id, destination: destination() }), &mut Vec::new()).unwrap();
    let data = emitted(&Frame::Data { id, payload: vec![0; WINDOW_BYTES as usize] });
    mux.receive(&data, &mut Vec::new()).unwrap();
    let more = emitted(&Frame::Data { id, payload: vec![0] });
    assert_eq!(mux.receive(&more, &mut Vec::new()), Err(MuxError::Window(id)));
}

/// What a side does in the random test.
#[derive(Debug, Clone)]
enum Step {
    Open,
    Send { stream: usize, count: usize },
    Shutdown(usize),
    Close(usize),
    Deliver(usize),
    Consume,
}

fn step() -> impl Strategy<Value = (bool, Step)> {
    let stream = 0..6usize;
    let step = prop_oneof![
        Just(Step::Open),
        (stream.clone(), 1..100_000usize).prop_map(|(stream, count)| Step::Send { stream, count }),
        stream.clone().prop_map(Step::Shutdown),
        stream.prop_map(Step::Close),
        (1..80_000usize).prop_map(Step::Deliver),
        (1..80_000usize).prop_map(Step::Deliver),
        Just(Step::Consume),
    ];
    (any::<bool>(), step)
}

/// One side, with what it sent and got, by stream.
struct Party {
    mux: Multiplexer,
    open: Vec<StreamId>,
    sent: HashMap<StreamId, Vec<u8>>,
    got: HashMap<StreamId, Vec<u8>>,
    unread: Vec<(StreamId, usize)>,
    counter: u8,
}

impl Party {
    fn new(side: Side) -> Self {
        Self {
            mux: Multiplexer::new(side),
            open: Vec::new(),
            sent: HashMap::new(),
            got: HashMap::new(),
            unread: Vec::new(),
            counter: 0,
        }
    }

    fn act(&mut self, step: &Step) {
        let pick = |stream: usize| self.open.get(stream).copied();
        match *step {
            Step::Open => self.open.extend(self.mux.open(destination())),
            Step::Send { stream, count } => {
                let Some(id) = pick(stream) else { return };
                let bytes: Vec<u8> = (0..count).map(|n| self.counter.wrapping_add(n as u8)).collect();
                let done = self.mux.send(id, &bytes);
                self.counter = self.counter.wrapping_add(17);
                self.sent.entry(id).or_default().extend(&bytes[..done]);
            }
            Step::Shutdown(stream) => {
                if let Some(id) = pick(stream) {
                    self.mux.shutdown(id);
                }
            }
            Step::Close(stream) => {
                if let Some(id) = pick(stream) {
                    self.mux.close(id);
                    self.open.retain(|open| *open != id);
                }
            }
            Step::Consume => {
                for (id, count) in self.unread.drain(..) {
                    self.mux.consumed(id, count);
                }
            }
            Step::Deliver(_) => {}
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        let mut events = Vec::new();
        self.mux.receive(bytes, &mut events).unwrap();
        for event in events {
            match event {
                Event::Opened(id, _) => {
                    self.open.push(id);
                    self.got.remove(&id);
                    self.sent.remove(&id);
                }
                Event::Data(id, bytes) => {
                    self.unread.push((id, bytes.len()));
                    self.got.entry(id).or_default().extend(bytes);
                }
                Event::Writable(_) | Event::Shutdown(_) | Event::Closed(_) => {}
            }
        }
    }
}

fn deliver(from: &mut Party, to: &mut Party, count: usize) {
    let count = count.min(from.mux.output().len());
    let bytes = from.mux.output()[..count].to_vec();
    from.mux.sent(count);
    to.take(&bytes);
}

proptest! {
    #[test]
    fn two_sides_never_disagree(steps in proptest::collection::vec(step(), 1..120)) {
        let (mut host, mut guest) = (Party::new(Side::Host), Party::new(Side::Guest));
        for (first, step) in &steps {
            let (actor, other) = if *first { (&mut host, &mut guest) } else { (&mut guest, &mut host) };
            match step {
                Step::Deliver(count) => deliver(actor, other, *count),
                step => actor.act(step),
            }
        }
        for _ in 0..4 {
            deliver(&mut host, &mut guest, usize::MAX);
            deliver(&mut guest, &mut host, usize::MAX);
        }
        for (sender, receiver) in [(&host, &guest), (&guest, &host)] {
            for (id, got) in &receiver.got {
                let sent = sender.sent.get(id).cloned().unwrap_or_default();
                prop_assert!(sent.starts_with(got), "{id:?}: {} bytes came of {}", got.len(), sent.len());
                if receiver.open.contains(id) {
                    prop_assert_eq!(sent.len(), got.len());
                }
            }
        }
        // When all is closed, nothing is left.
        for party in [&mut host, &mut guest] {
            for id in std::mem::take(&mut party.open) {
                party.mux.close(id);
            }
        }
        for _ in 0..4 {
            deliver(&mut host, &mut guest, usize::MAX);
            for id in std::mem::take(&mut guest.open) {
                guest.mux.close(id);
            }
            deliver(&mut guest, &mut host, usize::MAX);
            for id in std::mem::take(&mut host.open) {
                host.mux.close(id);
            }
        }
        prop_assert_eq!((host.mux.n_streams(), guest.mux.n_streams()), (0, 0));
        prop_assert_eq!((host.mux.n_strays(), guest.mux.n_strays()), (0, 0));
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let mut mux = greeted(Side::Host);
        let id = mux.open(destination()).unwrap();
        mux.close(id);
        let _ = mux.receive(&bytes, &mut Vec::new());
        let _ = Datagram::parse(&bytes);
    }
}
