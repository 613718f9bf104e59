//! ARP, DHCP, ICMP, UDP and the TCP refusals, byte by byte; and arbitrary frames, which must not harm.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod frames;

use std::net::{Ipv4Addr, SocketAddr};

use frames::*;
use proptest::prelude::*;
use vpnkit_stack::{
    Config, ConnectError, DatagramError, DropReason, Effect, Gso, Instant, Limits, Offload, Stack,
};
use vpnkit_wire::{checksum::checksum, ipv4, tcp, udp};

#[test]
fn arp_requests_for_gateway_and_host_are_answered_and_others_not() {
    let mut stack = stack();
    for (last, answered) in [(1, true), (2, true), (3, false), (9, false)] {
        let mut request = vec![0, 1, 8, 0, 6, 4, 0, 1];
        request.extend([&GUEST_MAC[..], &[192, 168, 65, 3, 0, 0, 0, 0, 0, 0, 192, 168, 65, last]].concat());
        let answers = exchange(&mut stack, &ethernet([0xff; 6], 0x0806, &request));
        let mut reply =
            [&GUEST_MAC[..], &GATEWAY_MAC, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2], &GATEWAY_MAC].concat();
        reply.extend([192, 168, 65, last]);
        reply.extend(GUEST_MAC);
        reply.extend([192, 168, 65, 3]);
        assert_eq!(answers, if answered { vec![reply] } else { vec![] }, "for {last}");
    }
}

/// The address leased and the options of a DHCP answer.
fn dhcp_of(frame: &[u8]) -> (Ipv4Addr, Vec<u8>) {
    let message = udp::parse(&frame[34..], None).unwrap().payload;
    assert_eq!(message[4..8], [0xde, 0xad, 0xbe, 0xef]);
    (Ipv4Addr::new(message[16], message[17], message[18], message[19]), message[240..].to_vec())
}

#[test]
fn a_lease_has_the_options_of_rfc_2132() {
    let config = Config {
        domain: "lan".into(),
        search: vec!["a.b".into()],
        hostname: "boat".into(),
        mtu: 65520,
        lease_seconds: 3600,
        ..Config::default()
    };
    let mut stack = Stack::new(config, 1).unwrap();
    let offers = exchange(&mut stack, &dhcp(GUEST_MAC, 1, &[]));
    let (address, options) = dhcp_of(&offers[0]);
    assert_eq!(address, GUEST);
    let expected = [
        &[53, 1, 2, 54, 4, 192, 168, 65, 1, 51, 4, 0, 0, 14, 16, 1, 4, 255, 255, 255, 0][..],
        &[28, 4, 192, 168, 65, 255, 3, 4, 192, 168, 65, 1, 6, 4, 192, 168, 65, 1],
        &[42, 4, 192, 168, 65, 1, 26, 2, 0xff, 0xf0],
        &[12, 4, b'b', b'o', b'a', b't', 15, 3, b'l', b'a', b'n', 119, 5, 1, b'a', 1, b'b', 0, 255],
    ];
    assert!(options.starts_with(&expected.concat()), "{options:?}");
    let acks = exchange(&mut stack, &dhcp(GUEST_MAC, 3, &[50, 4, 192, 168, 65, 3, 54, 4, 192, 168, 65, 1]));
    let (address, options) = dhcp_of(&acks[0]);
    assert_eq!((address, options[2]), (GUEST, 5));
}

#[test]
fn every_machine_has_its_own_address_and_keeps_it() {
    let mut stack = stack();
    let other = [2, 0, 0, 0, 0, 10];
    for _ in 0..2 {
        for (mac, last) in [(GUEST_MAC, 3), (other, 4)] {
            let (address, _) = dhcp_of(&exchange(&mut stack, &dhcp(mac, 1, &[]))[0]);
            assert_eq!(address, Ipv4Addr::new(192, 168, 65, last));
        }
    }
    let refused = exchange(&mut stack, &dhcp(other, 3, &[50, 4, 192, 168, 65, 3]));
    assert_eq!(dhcp_of(&refused[0]).1[2], 6, "somebody else's address is refused");
}

#[test]
fn starving_the_dhcp_server_leaves_bound_leases_alone() {
    let mut stack = stack();
    exchange(&mut stack, &dhcp(GUEST_MAC, 3, &[50, 4, 192, 168, 65, 3]));
    for number in 0..1000u16 {
        let [high, low] = number.to_be_bytes();
        exchange(&mut stack, &dhcp([2, 1, 1, 1, high, low], 1, &[]));
    }
    let (address, _) = dhcp_of(&exchange(&mut stack, &dhcp(GUEST_MAC, 1, &[]))[0]);
    assert_eq!(address, GUEST);
}

fn echo(dst: Ipv4Addr) -> Vec<u8> {
    let mut message = vec![8, 0, 0, 0, 0x12, 0x34, 0, 7, b'h', b'i'];
    let sum = checksum(&message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    packet(GUEST, dst, 1, &message)
}

#[test]
fn pings_of_gateway_and_host_are_answered_here() {
    for address in [GATEWAY, HOST] {
        let answers = exchange(&mut stack(), &echo(address));
        let ip = ipv4::parse(&answers[0][14..]).unwrap();
        assert_eq!(
            (ip.src, ip.dst, ip.payload[0], &ip.payload[4..]),
            (address, GUEST, 0, &[0x12, 0x34, 0, 7, b'h', b'i'][..])
        );
        assert_eq!(checksum(ip.payload), 0);
    }
}

#[test]
fn keepalives_of_the_guest_are_answered_and_passed_on_once() {
    let mut stack = stack();
    exchange(&mut stack, &segment(OUTSIDE, 80, (100, 0, tcp::SYN), b""));
    let Some(Effect::TcpConnect { flow, .. }) = stack.pop_effect() else { panic!("no connection") };
    stack.tcp_connected(flow);
    let next = tcp_of(&sent(&mut stack)[0]).seq.0 + 1;
    exchange(&mut stack, &segment(OUTSIDE, 80, (101, next, tcp::ACK), b""));
    assert_eq!(stack.pop_effect(), None);
    // RFC 9293 §3.8.4: the byte before the next one, of which there is none.
    let answers = exchange(&mut stack, &segment(OUTSIDE, 80, (100, next, tcp::ACK), b""));
    assert_eq!((tcp_of(&answers[0]).ack.0, tcp_of(&answers[0]).flags), (101, tcp::ACK));
    assert_eq!(stack.pop_effect(), Some(Effect::TcpKeepalive(flow)));
    exchange(&mut stack, &segment(OUTSIDE, 80, (100, next, tcp::ACK), b""));
    assert_eq!(stack.pop_effect(), None);
}

#[test]
fn pings_of_others_are_passed_on_and_their_answers_back() {
    let mut stack = stack();
    assert!(exchange(&mut stack, &echo(OUTSIDE)).is_empty());
    let Some(Effect::PingSend { flow, to, hops, sequence, payload }) = stack.pop_effect() else {
        panic!("no ping")
    };
    assert_eq!((to, hops.ttl, sequence, &payload[..]), (std::net::IpAddr::V4(OUTSIDE), 63, 7, &b"hi"[..]));
    stack.ping_received(NOW, flow, OUTSIDE.into(), 7, b"hi");
    let answers = sent(&mut stack);
    let ip = ipv4::parse(&answers[0][14..]).unwrap();
    assert_eq!((ip.src, &ip.payload[4..]), (OUTSIDE, &[0x12, 0x34, 0, 7, b'h', b'i'][..]));
}

#[test]
fn one_port_of_the_guest_is_one_flow_whoever_it_talks_to() {
    let mut stack = stack();
    exchange(&mut stack, &datagram(OUTSIDE, (5000, 1), b"a"));
    exchange(&mut stack, &datagram(HOST, (5000, 2), b"b"));
    exchange(&mut stack, &datagram(OUTSIDE, (5001, 1), b"c"));
    let mut flows = Vec::new();
    while let Some(Effect::UdpSend { flow, to, .. }) = stack.pop_effect() {
        flows.push((flow, to));
    }
    assert_eq!(flows[0].0, flows[1].0);
    assert_ne!(flows[0].0, flows[2].0);
    assert_eq!(
        flows[1].1,
        SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 2),
        "the host's address means loopback"
    );
    // Anybody may answer.
    stack.udp_received(NOW, flows[0].0, (Ipv4Addr::new(8, 8, 8, 8), 99).into(), b"answer");
    let answers = sent(&mut stack);
    let ip = ipv4::parse(&answers[0][14..]).unwrap();
    let got = udp::parse(ip.payload, Some((ip.src.into(), ip.dst.into()))).unwrap();
    assert_eq!((ip.src.octets()[0], got.src_port, got.dst_port, got.payload), (8, 99, 5000, &b"answer"[..]));
}

#[test]
fn idle_udp_flows_end_and_too_many_make_way() {
    let limits = Limits { udp_flows: 10, ..Limits::default() };
    let mut stack = Stack::new(Config { limits, ..Config::default() }, 1).unwrap();
    for port in 0..100 {
        exchange(&mut stack, &datagram(OUTSIDE, (5000 + port, 1), b"a"));
        exchange(&mut stack, &datagram(OUTSIDE, (5000, 1), b"kept"));
    }
    let ports: Vec<_> = stack.flows().udp.iter().map(|flow| flow.guest.port()).collect();
    assert_eq!(ports.len(), 10);
    assert!(ports.contains(&5000), "the flow in use was not closed: {ports:?}");
    for seconds in 2..80 {
        stack.on_time(Instant(seconds * 1_000_000));
    }
    assert!(stack.flows().udp.is_empty());
    let closed =
        std::iter::from_fn(|| stack.pop_effect()).filter(|e| matches!(e, Effect::UdpClosed(_))).count();
    let opened = 100;
    assert_eq!(closed, opened);
}

#[test]
fn a_large_datagram_is_fragmented_and_put_together() {
    let mut stack = stack();
    exchange(&mut stack, &datagram(OUTSIDE, (5000, 1), b"a"));
    let Some(Effect::UdpSend { flow, .. }) = stack.pop_effect() else { panic!("no datagram") };
    let large: Vec<u8> = (0..9000u32).map(|at| (at * 7) as u8).collect();
    stack.udp_received(NOW, flow, (OUTSIDE, 1).into(), &large);
    let frames = sent(&mut stack);
    assert_eq!(frames.len(), 7);
    // What the stack cut, a stack puts together: the fragments, sent back to it from the guest.
    let mut other = self::stack();
    for frame in frames.iter().rev() {
        assert!(frame.len() <= 1514);
        let ip = ipv4::parse(&frame[14..]).unwrap();
        let flag = if ip.more_fragments { 0x2000 } else { 0 };
        let mut header = [0; 20];
        ipv4::Header {
            ident: ip.ident,
            fragment: (ip.fragment_offset / 8) as u16 | flag,
            ..ipv4::Header::new(GUEST, OUTSIDE, 17, ip.payload.len())
        }
        .emit(&mut header);
        let mut payload = ip.payload.to_vec();
        if ip.fragment_offset == 0 {
            payload[6..8].fill(0);
        }
        exchange(&mut other, &ethernet(GATEWAY_MAC, 0x0800, &[&header[..], &payload].concat()));
    }
    let Some(Effect::UdpSend { payload, .. }) = other.pop_effect() else { panic!("not put together") };
    assert!(payload == large);
}

#[test]
fn errors_of_datagrams_become_icmp_with_the_guests_addresses() {
    let mut stack = stack();
    exchange(&mut stack, &datagram(OUTSIDE, (5000, 7), b"a"));
    let Some(Effect::UdpSend { flow, to, .. }) = stack.pop_effect() else { panic!("no datagram") };
    let router = Ipv4Addr::new(9, 9, 9, 9);
    stack.udp_failed(flow, to, DatagramError { kind: 11, code: 0, mtu: 0, from: Some(router.into()) });
    let answers = sent(&mut stack);
    let ip = ipv4::parse(&answers[0][14..]).unwrap();
    assert_eq!((ip.src, ip.payload[0], ip.payload[1], checksum(ip.payload)), (router, 11, 0, 0));
    let quoted = ipv4::parse(&ip.payload[8..]).unwrap();
    assert_eq!((quoted.src, quoted.dst, &quoted.payload[..4]), (GUEST, OUTSIDE, &[0x13, 0x88, 0, 7][..]));
}

#[test]
fn segments_that_belong_to_nothing_are_reset() {
    // RFC 9293 §3.10.7.1
    let answers = exchange(&mut stack(), &segment(OUTSIDE, 80, (100, 555, tcp::ACK), b"x"));
    let reset = tcp_of(&answers[0]);
    assert_eq!((reset.flags, reset.seq.0), (tcp::RST, 555));
    let answers = exchange(&mut stack(), &segment(GATEWAY, 80, (100, 0, tcp::SYN), b""));
    let reset = tcp_of(&answers[0]);
    assert_eq!((reset.flags, reset.seq.0, reset.ack.0), (tcp::RST | tcp::ACK, 0, 101));
    assert!(exchange(&mut stack(), &segment(OUTSIDE, 80, (100, 0, tcp::RST), b"")).is_empty());
}

#[test]
fn nothing_is_answered_before_the_host_has_connected() {
    for (error, expected) in [
        (ConnectError::Refused, Some((6, 0))),
        (ConnectError::NetUnreachable, Some((1, 0))),
        (ConnectError::HostUnreachable, Some((1, 1))),
        (ConnectError::TimedOut, None),
    ] {
        let mut stack = stack();
        assert!(exchange(&mut stack, &segment(OUTSIDE, 80, (100, 0, tcp::SYN), b"")).is_empty());
        let Some(Effect::TcpConnect { flow, to }) = stack.pop_effect() else { panic!("no connection") };
        assert_eq!(to, SocketAddr::new(OUTSIDE.into(), 80));
        stack.tcp_connect_failed(flow, error);
        let answers = sent(&mut stack);
        let got = answers.first().map(|frame| (frame[23], if frame[23] == 1 { frame[35] } else { 0 }));
        assert_eq!(got, expected, "{error:?}");
        assert!(stack.flows().tcp.is_empty() && stack.pop_effect().is_none());
    }
}

#[test]
fn resets_count_only_at_the_exact_number() {
    // RFC 5961 §3.2
    let mut stack = stack();
    let (flow, next) = connect(&mut stack);
    let answers = exchange(&mut stack, &segment(OUTSIDE, 80, (150, 0, tcp::RST), b""));
    let challenge = tcp_of(&answers[0]);
    assert_eq!((challenge.flags, challenge.seq.0, challenge.ack.0), (tcp::ACK, next, 101));
    assert_eq!(stack.flows().tcp.len(), 1);
    assert!(exchange(&mut stack, &segment(OUTSIDE, 80, (101, 0, tcp::RST), b"")).is_empty());
    assert_eq!(stack.pop_effect(), Some(Effect::TcpClosed { flow, reset: true }));
}

#[test]
fn ack_of_unsent_data_is_answered_and_dropped() {
    // RFC 9293 §3.10.7.4, ESTABLISHED
    let mut stack = stack();
    let (_, next) = connect(&mut stack);
    let answers = exchange(&mut stack, &segment(OUTSIDE, 80, (101, next + 9999, tcp::ACK), b"ignored"));
    let answer = tcp_of(&answers[0]);
    assert_eq!((answer.flags, answer.seq.0, answer.ack.0), (tcp::ACK, next, 101));
    assert_eq!(stack.pop_effect(), None);
}

/// What a guest drops for lack of memory is sent again as soon as it says that it has some, however long that took.
#[test]
fn a_window_that_opens_after_many_timeouts_is_used_at_once() {
    for told in [0, 4000] {
        let mut stack = stack();
        let (flow, next) = connect(&mut stack);
        stack.tcp_buffer(flow, 3000).0.fill(7);
        stack.tcp_filled(flow, 3000);
        assert!(sent(&mut stack).len() > 1);
        let window = |window| segment_with_window(OUTSIDE, 80, (101, next, tcp::ACK), window, b"");
        exchange(&mut stack, &window(told));
        let (mut now, mut attempts) = (NOW, 0);
        while now < Instant(NOW.0 + 20_000_000) {
            now = stack.deadline().unwrap().max(now);
            stack.on_time(now);
            let mut sink = Sink::default();
            assert!(stack.transmit(now, &mut sink));
            attempts += sink.0.len();
        }
        assert!(attempts >= 4, "{attempts} attempts");
        stack.on_frame(now, Offload::NONE, &window(60_000), &mut ());
        let mut sink = Sink::default();
        assert!(stack.transmit(now, &mut sink));
        let (_, frame) = sink.0.first().expect("data for the window");
        let again = tcp_of(frame);
        assert_eq!((again.seq.0, again.payload.len()), (next, 536), "after a window of {told}");
    }
}

/// Sequence numbers, from `first` on and in segments, of what the guest is sent.
fn segments_of(frames: &[Vec<u8>], first: u32) -> Vec<(u32, usize)> {
    let of = |frame: &Vec<u8>| {
        let segment = tcp_of(frame);
        ((segment.seq.0 - first) / 536, segment.payload.len())
    };
    let tcp = |frame: &&Vec<u8>| frame[12..14] == [8, 0] && frame[23] == 6;
    frames.iter().filter(tcp).map(of).filter(|(_, len)| *len > 0).collect()
}

#[test]
fn holes_that_the_guest_tells_of_are_sent_again_at_once_and_nothing_else() {
    let options = |blocks: &[(u32, u32)], first: u32| {
        let ends = blocks.iter().flat_map(|(start, end)| [first + start * 536, first + end * 536]);
        [&[1, 1, 5, 2 + 8 * blocks.len() as u8][..], &ends.flat_map(u32::to_be_bytes).collect::<Vec<_>>()]
            .concat()
    };
    for knows in [true, false] {
        let mut stack = stack();
        let permitted: &[u8] = if knows { &[4, 2, 1, 1] } else { &[] };
        exchange(&mut stack, &segment_with_options(OUTSIDE, 80, (100, 0, tcp::SYN), permitted));
        let Some(Effect::TcpConnect { flow, .. }) = stack.pop_effect() else { panic!("no connection") };
        stack.tcp_connected(flow);
        let first = tcp_of(&sent(&mut stack)[0]).seq.0 + 1;
        exchange(&mut stack, &segment(OUTSIDE, 80, (101, first, tcp::ACK), b""));
        let bytes = 10 * 536;
        stack.tcp_buffer(flow, bytes).0.fill(7);
        stack.tcp_filled(flow, bytes);
        assert_eq!(segments_of(&sent(&mut stack), first).len(), 10);
        // The first, fourth and seventh are lost.
        let mut say = |acked: u32, blocks: &[(u32, u32)]| {
            let numbers = (101, first + acked * 536, tcp::ACK);
            let frame = segment_with_options(OUTSIDE, 80, numbers, &options(blocks, first));
            segments_of(&exchange(&mut stack, &frame), first)
        };
        assert_eq!(say(0, &[(1, 3)]), []);
        let (second, third) = (say(0, &[(4, 6), (1, 3)]), say(0, &[(7, 10), (4, 6), (1, 3)]));
        if !knows {
            assert_eq!(
                (second, third),
                (vec![], vec![(0, 536)]),
                "who did not say that it can is not believed"
            );
            continue;
        }
        assert_eq!(second, [(0, 536)], "lost: more than two segments came after it");
        assert_eq!(third, [(3, 536), (6, 536)]);
        // Late duplicates, and ranges that were never sent, or end before they begin.
        for blocks in [[(7, 10), (4, 6)], [(8, 12), (4, 6)], [(6, 5), (7, 10)]] {
            assert_eq!(say(0, &blocks), []);
        }
        assert_eq!(say(3, &[(7, 10), (4, 6)]), [], "the others are under way");
        assert_eq!(say(6, &[(7, 10)]), []);
        assert_eq!(say(10, &[]), []);
        stack.on_time(Instant(NOW.0 + 60_000_000));
        assert_eq!(segments_of(&sent(&mut stack), first), [], "nothing is left to be sent again");
    }
}

#[test]
fn what_the_guest_had_and_gave_up_is_sent_again() {
    let mut stack = stack();
    exchange(&mut stack, &segment_with_options(OUTSIDE, 80, (100, 0, tcp::SYN), &[4, 2, 1, 1]));
    let Some(Effect::TcpConnect { flow, .. }) = stack.pop_effect() else { panic!("no connection") };
    stack.tcp_connected(flow);
    let first = tcp_of(&sent(&mut stack)[0]).seq.0 + 1;
    exchange(&mut stack, &segment(OUTSIDE, 80, (101, first, tcp::ACK), b""));
    stack.tcp_buffer(flow, 4 * 536).0.fill(7);
    stack.tcp_filled(flow, 4 * 536);
    sent(&mut stack);
    let ends = [first + 536, first + 4 * 536].map(u32::to_be_bytes).concat();
    let told =
        segment_with_options(OUTSIDE, 80, (101, first, tcp::ACK), &[&[1, 1, 5, 10][..], &ends].concat());
    for _ in 0..3 {
        exchange(&mut stack, &told);
    }
    // What is sent from here on; the first is that after three duplicates, which was not looked at.
    let mut seen = std::collections::BTreeSet::from([0]);
    let mut now = NOW;
    // The guest acknowledges one segment after the other, as if it had kept none.
    for acked in 0..4 {
        let frame = segment(OUTSIDE, 80, (101, first + acked * 536, tcp::ACK), b"");
        stack.on_frame(now, Offload::NONE, &frame, &mut ());
        // It was sent already, or is after some timer.
        for _ in 0..20 {
            if seen.contains(&acked) {
                break;
            }
            let mut sink = Sink::default();
            assert!(stack.transmit(now, &mut sink));
            let frames: Vec<_> = sink.0.into_iter().map(|(_, frame)| frame).collect();
            seen.extend(segments_of(&frames, first).into_iter().map(|(number, _)| number));
            now = stack.deadline().unwrap_or(now).max(now);
            stack.on_time(now);
        }
        assert!(seen.contains(&acked), "segment {acked} of {seen:?}");
    }
}

#[test]
fn data_leaves_in_super_frames_when_the_link_takes_them() {
    let mut stack = Stack::new(Config { offload: true, ..Config::default() }, 1).unwrap();
    let (flow, next) = connect(&mut stack);
    let bytes = vec![7; 50_000];
    let (first, second) = stack.tcp_buffer(flow, bytes.len());
    first.fill(7);
    second.fill(7);
    stack.tcp_filled(flow, bytes.len());
    let mut sink = Sink::default();
    assert!(stack.transmit(NOW, &mut sink));
    let (offload, frame) = &sink.0[0];
    assert_eq!((sink.0.len(), frame.len()), (1, 54 + 50_000));
    // A guest that names no segment size takes 536 bytes.
    assert_eq!(offload.gso, Gso::TcpV4 { mss: 536 });
    let partial = offload.needs_checksum.unwrap();
    assert_eq!((partial.start, partial.offset), (34, 16));
    let ip = ipv4::parse(&frame[14..]).unwrap();
    assert_eq!(tcp::parse(ip.payload, None).unwrap().seq.0, next);
    // The field holds the sum of the pseudo header: finishing it makes the checksum right.
    let mut whole = ip.payload.to_vec();
    let sum = checksum(&whole);
    whole[16..18].copy_from_slice(&sum.to_be_bytes());
    assert!(tcp::parse(&whole, Some((ip.src.into(), ip.dst.into()))).is_ok());
}

#[test]
fn a_flood_of_syns_is_bounded() {
    let limits = Limits { tcp_connecting: 50, ..Limits::default() };
    let mut stack = Stack::new(Config { limits, ..Config::default() }, 1).unwrap();
    for port in 1..2000 {
        exchange(&mut stack, &segment(OUTSIDE, port, (100, 0, tcp::SYN), b""));
    }
    assert_eq!(stack.flows().tcp.len(), 50);
    assert_eq!(stack.counters().drops.of(DropReason::ConnectingLimit), 1949);
}

#[test]
fn frames_of_others_and_with_foreign_addresses_are_dropped() {
    let mut stack = stack();
    let mut other = datagram(OUTSIDE, (1, 2), b"a");
    other[5] ^= 1;
    let spoofed = packet(Ipv4Addr::new(10, 0, 0, 1), OUTSIDE, 17, &[0; 8]);
    let as_gateway = packet(GATEWAY, OUTSIDE, 17, &[0; 8]);
    for frame in [other, spoofed, as_gateway] {
        assert!(exchange(&mut stack, &frame).is_empty());
    }
    let drops = stack.counters().drops;
    let counted = [DropReason::OtherDestination, DropReason::ForgedSource].map(|reason| drops.of(reason));
    assert_eq!((counted, stack.pop_effect()), ([1, 2], None));
}

#[test]
fn damaged_packets_are_dropped() {
    let mut stack = stack();
    for at in [20, 40, 44] {
        let mut frame = datagram(OUTSIDE, (1, 2), b"abcdef");
        frame[at] ^= 0x10;
        stack.on_frame(NOW, Offload::NONE, &frame, &mut ());
    }
    assert_eq!((stack.counters().drops.of(DropReason::Malformed), stack.pop_effect()), (3, None));
}

/// A valid frame of some protocol.
fn valid_frame() -> impl Strategy<Value = Vec<u8>> {
    let address =
        prop_oneof![Just(GATEWAY), Just(HOST), Just(OUTSIDE), any::<u32>().prop_map(Ipv4Addr::from_bits)];
    let bytes = proptest::collection::vec(any::<u8>(), 0..600);
    let port = prop_oneof![Just(53u16), Just(67), Just(80), any::<u16>()];
    prop_oneof![
        (address.clone(), port.clone(), any::<(u32, u32, u8)>(), bytes.clone())
            .prop_map(|(dst, port, head, payload)| segment(dst, port, head, &payload)),
        (address.clone(), (port.clone(), port), bytes.clone())
            .prop_map(|(dst, ports, payload)| datagram(dst, ports, &payload)),
        (any::<u8>(), bytes.clone()).prop_map(|(kind, options)| dhcp(GUEST_MAC, kind, &options)),
        address.prop_map(echo),
        bytes.prop_map(|payload| ethernet([0xff; 6], 0x0806, &payload)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_never_panic(frames in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 1..20)) {
        let mut stack = stack();
        for frame in frames {
            exchange(&mut stack, &frame);
        }
    }

    #[test]
    fn damaged_frames_on_a_trusted_link_never_panic(
        frames in proptest::collection::vec((valid_frame(), any::<prop::sample::Index>(), any::<u8>()), 1..60),
        offload: bool,
    ) {
        let mut stack = Stack::new(Config { offload, ..Config::default() }, 1).unwrap();
        let (flow, _) = connect(&mut stack);
        for (number, (mut frame, at, byte)) in frames.into_iter().enumerate() {
            // The IPv4 header keeps its checksum: damage to it is dropped early.
            let at = at.index(frame.len());
            if !(14..34).contains(&at) {
                frame[at] ^= byte;
            }
            let now = Instant(1_000_000 + number as u64 * 300_000);
            stack.on_frame(now, Offload::NONE, &frame, &mut ());
            stack.on_time(now);
            let room = stack.tcp_room(flow).min(100);
            let (first, second) = stack.tcp_buffer(flow, room);
            let count = first.len() + second.len();
            stack.tcp_filled(flow, count);
            stack.tcp_consumed(now, flow, usize::from(byte));
            while let Some(effect) = stack.pop_effect() {
                if let Effect::TcpConnect { flow, .. } = effect {
                    stack.tcp_connected(flow);
                }
            }
            assert!(stack.transmit(now, &mut Sink::default()));
            stack.check();
        }
    }
}
