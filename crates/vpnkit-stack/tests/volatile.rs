//! Frames in a guest's memory: what of them is copied, and that they mean what they mean elsewhere.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod frames;

use frames::lent::Lent;
use frames::*;
use proptest::prelude::*;
use vpnkit_stack::{Config, Counters, Data, Effect, Frame, Offload, Sockets, Stack, TcpId};
use vpnkit_wire::ipv6;
use vpnkit_wire::tcp::{ACK, FIN, SYN};

/// From a link that damages nothing, as memory does not.
const TRUSTED: Offload = Offload { verified: true, ..Offload::NONE };
/// Bytes of the headers at most, and of what is copied of a large segment.
const HEAD_BYTES: usize = 14 + 60 + 60;
/// Bytes before the data of a segment without options.
const HEADERS: usize = 14 + 20 + 20;

/// A socket that takes so many bytes at once, and what it was offered: where in the frame, and how much.
struct Socket {
    takes: usize,
    offered: Option<(usize, usize)>,
}

impl Sockets for Socket {
    fn write(&mut self, _flow: TcpId, data: Data<'_>) -> usize {
        self.offered = match data {
            Data::Volatile { start, bytes, .. } => Some((start, bytes)),
            Data::Here(_) => None,
        };
        self.takes.min(data.len())
    }
}

fn pattern(count: usize) -> Vec<u8> {
    (0..count as u32).map(|at| (at.wrapping_mul(0x9e37_79b9) >> 24) as u8).collect()
}

#[test]
fn data_of_a_large_segment_is_offered_where_it_lies() {
    let (mut stack, data) = (stack(), pattern(60_000));
    let (_, next) = connect(&mut stack);
    let frame = segment(OUTSIDE, 80, (101, next, ACK), &data);
    let lent = Lent::new(&frame);
    let mut socket = Socket { takes: usize::MAX, offered: None };
    assert_eq!(stack.on_frame(NOW, TRUSTED, Frame::Volatile(&lent), &mut socket), None);
    assert_eq!(socket.offered, Some((HEADERS, data.len())));
    assert_eq!(lent.copied(), HEAD_BYTES, "nothing but headers is copied");
    let counters = stack.counters();
    assert_eq!((counters.straight_bytes, counters.copied_bytes), (60_000, HEAD_BYTES as u64));
    assert_eq!(counters.bytes_in - 54 * 2, frame.len() as u64);
    assert!(stack.pop_effect().is_none(), "nothing waits");
}

#[test]
fn what_a_socket_does_not_take_waits_in_a_copy() {
    let (mut stack, data) = (stack(), pattern(40_000));
    let (flow, next) = connect(&mut stack);
    let frame = segment(OUTSIDE, 80, (101, next, ACK), &data);
    let lent = Lent::new(&frame);
    let mut socket = Socket { takes: 10_000, offered: None };
    stack.on_frame(NOW, TRUSTED, Frame::Volatile(&lent), &mut socket);
    assert_eq!(lent.copied(), HEAD_BYTES + 30_000);
    let (first, second) = stack.tcp_received(flow);
    assert!([first, second].concat() == data[10_000..], "the rest is not what was sent");
    // Behind what waits nothing can go straight.
    let late = segment(OUTSIDE, 80, (40_101, next, ACK), &data[..5000]);
    socket.offered = None;
    stack.on_frame(NOW, TRUSTED, Frame::Volatile(&Lent::new(&late)), &mut socket);
    assert_eq!((socket.offered, stack.counters().straight_bytes), (None, 10_000));
    let (first, second) = stack.tcp_received(flow);
    assert!([first, second].concat() == [&data[10_000..], &data[..5000]].concat());
}

#[test]
fn a_segment_that_repeats_some_data_offers_the_rest() {
    let (mut stack, data) = (stack(), pattern(20_000));
    let (_, next) = connect(&mut stack);
    let mut socket = Socket { takes: usize::MAX, offered: None };
    for (seq, part) in [(101, &data[..9000]), (5101, &data[5000..])] {
        let frame = segment(OUTSIDE, 80, (seq, next, ACK | FIN), part);
        stack.on_frame(NOW, TRUSTED, Frame::Volatile(&Lent::new(&frame)), &mut socket);
        if seq == 101 {
            assert_eq!(socket.offered, Some((HEADERS, 9000)));
        }
    }
    assert_eq!(socket.offered, Some((HEADERS, 9000)), "its end had come");
}

#[test]
fn without_a_checksum_to_trust_everything_is_copied_and_verified() {
    let (mut stack, data) = (stack(), pattern(20_000));
    let (_, next) = connect(&mut stack);
    let mut frame = segment(OUTSIDE, 80, (101, next, ACK), &data);
    frame[10_000] ^= 1;
    let lent = Lent::new(&frame);
    let dropped = stack.on_frame(NOW, Offload::NONE, Frame::Volatile(&lent), &mut ());
    assert_eq!((dropped, lent.copied()), (Some(vpnkit_stack::DropReason::Malformed), frame.len()));
}

/// A frame of some protocol, right but for bytes that are changed in its first 60.
fn frame() -> impl Strategy<Value = Vec<u8>> {
    let data = (0..9000usize).prop_map(pattern);
    let flags = prop_oneof![Just(ACK), Just(SYN), Just(ACK | FIN), any::<u8>()];
    let whole = prop_oneof![
        (0..9000u32, flags, data.clone()).prop_map(|(seq, flags, data)| segment(
            OUTSIDE,
            80,
            (101 + seq, 1, flags),
            &data
        )),
        (data.clone(), any::<u16>()).prop_map(|(data, port)| datagram(OUTSIDE, (port, 7), &data)),
        data.prop_map(|data| {
            let mut header = vec![0; 40];
            let (guest, peer) = ("fd00::9".parse().unwrap(), "2001:db8::1".parse().unwrap());
            ipv6::Header::new(guest, peer, 6, 20 + data.len()).emit(&mut header);
            let segment = segment(OUTSIDE, 80, (100, 0, SYN), &data).split_off(34);
            ethernet(GATEWAY_MAC, 0x86dd, &[header, segment].concat())
        }),
    ];
    (whole, proptest::collection::vec((0..60usize, any::<u8>()), 0..3), 0..50usize, any::<bool>()).prop_map(
        |(mut frame, changes, odd, longer)| {
            for (at, byte) in changes {
                // The IPv4 header's checksum, made right again, lets the change through.
                let at = at.min(frame.len() - 1);
                frame[at] ^= byte;
            }
            let length = if longer { frame.len() + odd } else { frame.len().saturating_sub(odd) };
            frame.resize(length.max(14), 0);
            mend(&mut frame);
            frame
        },
    )
}

/// Makes the checksum of an IPv4 header right.
fn mend(frame: &mut [u8]) {
    let end = 14 + usize::from(frame.get(14).map_or(0, |first| first & 0xf)) * 4;
    if frame[12..14] == [8, 0] && end >= 34 && frame.len() >= end {
        frame[24..26].fill(0);
        let sum = vpnkit_wire::checksum::checksum(&frame[14..end]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
    }
}

/// Everything that a frame comes to: why it was dropped, effects, data for the socket, frames, counters.
fn outcome(stack: &mut Stack, frame: Frame<'_>) -> impl PartialEq + std::fmt::Debug + use<> {
    let dropped = stack.on_frame(NOW, TRUSTED, frame, &mut Socket { takes: 3000, offered: None });
    let (mut effects, mut data) = (Vec::new(), Vec::new());
    while let Some(effect) = stack.pop_effect() {
        match effect {
            Effect::TcpConnect { flow, .. } => stack.tcp_connected(flow),
            Effect::TcpReceived(flow) => {
                let (first, second) = stack.tcp_received(flow);
                data.extend([first, second].concat());
                let count = first.len() + second.len();
                stack.tcp_consumed(NOW, flow, count);
            }
            _ => {}
        }
        effects.push(effect);
    }
    let mut sink = Sink::default();
    stack.transmit(NOW, &mut sink);
    stack.check();
    let counters = Counters { copied_bytes: 0, ..stack.counters() };
    (dropped, effects, data, sink.0, stack.flows(), counters)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn frames_mean_the_same_wherever_they_lie(frames in proptest::collection::vec(frame(), 1..30)) {
        let [mut one, mut other] = [1, 1].map(|seed| Stack::new(Config::default(), seed).unwrap());
        let (_, next) = connect(&mut one);
        prop_assert_eq!(connect(&mut other).1, next);
        for frame in std::iter::once(segment(OUTSIDE, 80, (101, 1, ACK), &pattern(5000))).chain(frames) {
            let mut frame = frame;
            if frame.get(23) == Some(&6) && frame.len() > 46 && frame[42..46] == [0, 0, 0, 1] {
                // Acknowledges what the stack sent.
                frame[42..46].copy_from_slice(&next.to_be_bytes());
            }
            let whole = outcome(&mut one, Frame::from(&frame));
            prop_assert_eq!(whole, outcome(&mut other, Frame::Volatile(&Lent::new(&frame))));
        }
        prop_assert!(other.counters().straight_bytes >= 3000);
    }
}
