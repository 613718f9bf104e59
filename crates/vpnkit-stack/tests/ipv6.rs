//! IPv6 byte by byte: neighbour discovery, router advertisements, DHCPv6, ICMPv6, TCP and UDP; and arbitrary packets,
//! which must not harm.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::IoSlice;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use proptest::prelude::*;
use vpnkit_stack::{
    Config, ConnectError, DatagramError, DropReason, Effect, FrameSink, Gso, Instant, Ipv6Network, Offload,
    Stack,
};
use vpnkit_wire::checksum::Checksum;
use vpnkit_wire::{icmpv6, ip, ipv6, ndp, tcp, udp};

const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
const GATEWAY_MAC: [u8; 6] = [0xf6, 0x16, 0x36, 0xbc, 0xf9, 0xc6];
const GUEST: Ipv6Addr = Ipv6Addr::new(0xfd76, 0x706e, 0x6b69, 0x7400, 0, 0, 0, 9);
const GATEWAY: Ipv6Addr = Ipv6Addr::new(0xfd76, 0x706e, 0x6b69, 0x7400, 0, 0, 0, 1);
const HOST: Ipv6Addr = Ipv6Addr::new(0xfd76, 0x706e, 0x6b69, 0x7400, 0, 0, 0, 2);
const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 9);
const ROUTER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0xf416, 0x36ff, 0xfebc, 0xf9c6);
const OUTSIDE: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const NOW: Instant = Instant(1_000_000);

#[derive(Default)]
struct Sink(Vec<(Offload, Vec<u8>)>);

impl FrameSink for Sink {
    fn send(&mut self, offload: Offload, parts: &[IoSlice<'_>]) -> bool {
        self.0.push((offload, parts.iter().flat_map(|part| part.iter().copied()).collect()));
        true
    }
}

fn stack() -> Stack {
    let config = Config { domain: "fleet.example".into(), ..Config::default() };
    Stack::new(config, 1).unwrap()
}

fn sent(stack: &mut Stack) -> Vec<Vec<u8>> {
    let mut sink = Sink::default();
    assert!(stack.transmit(NOW, &mut sink));
    stack.check();
    sink.0.into_iter().map(|(_, frame)| frame).collect()
}

fn exchange(stack: &mut Stack, frame: &[u8]) -> Vec<Vec<u8>> {
    stack.on_frame(NOW, Offload::NONE, frame, &mut ());
    sent(stack)
}

fn mac_of(dst: Ipv6Addr) -> [u8; 6] {
    if dst.is_multicast() { ndp::multicast_mac(dst).0 } else { GATEWAY_MAC }
}

fn packet((src, dst): (Ipv6Addr, Ipv6Addr), protocol: u8, hop_limit: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = [0; 40];
    let ip = ipv6::Header::new(src, dst, protocol, payload.len());
    ipv6::Header { hop_limit, ..ip }.emit(&mut header);
    [&mac_of(dst)[..], &GUEST_MAC, &[0x86, 0xdd], &header, payload].concat()
}

fn icmp(ends: (Ipv6Addr, Ipv6Addr), hop_limit: u8, what: (u8, u8, u32), body: &[u8]) -> Vec<u8> {
    let header = icmpv6::emit_header(ends, what, body);
    packet(ends, 58, hop_limit, &[&header[..], body].concat())
}

fn datagram((src, dst): (Ipv6Addr, Ipv6Addr), ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let header = udp::emit_header((src, ports.0), (dst, ports.1), payload);
    packet((src, dst), 17, 64, &[&header[..], payload].concat())
}

fn segment(dst: Ipv6Addr, port: u16, (seq, ack, flags): (u32, u32, u8), payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 60];
    let header = tcp::Header {
        src_port: 40000,
        dst_port: port,
        seq: tcp::Seq(seq),
        ack: tcp::Seq(ack),
        flags,
        window: 65535,
        options: &[],
    };
    let count = header.emit(&mut bytes);
    bytes.truncate(count);
    bytes.extend_from_slice(payload);
    let mut sum = Checksum::pseudo_v6(GUEST, dst, 6, bytes.len());
    sum.add(&bytes);
    bytes[16..18].copy_from_slice(&sum.finish().to_be_bytes());
    packet((GUEST, dst), 6, 64, &bytes)
}

/// Parses an answer as IPv6.
fn ip_of(frame: &[u8]) -> ipv6::Packet<'_> {
    assert_eq!((&frame[6..12], &frame[12..14]), (&GATEWAY_MAC[..], &[0x86, 0xdd][..]));
    ipv6::parse(&frame[14..]).unwrap()
}

/// Source, type, code and what follows the checksum, verified.
fn icmp_of(frame: &[u8]) -> (Ipv6Addr, u8, u8, u32, Vec<u8>) {
    let ip = ip_of(frame);
    let message = icmpv6::parse(ip.payload, ip.src, ip.dst).unwrap();
    (ip.src, message.kind, message.code, message.rest, message.payload.to_vec())
}

/// Lets the stack know the guest.
fn met() -> Stack {
    let mut stack = stack();
    exchange(&mut stack, &icmp((GUEST, GATEWAY), 64, (128, 0, 0), b""));
    stack
}

fn solicitation(src: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    let body = if src.is_unspecified() {
        target.octets().to_vec()
    } else {
        ndp::emit_solicitation(target, vpnkit_wire::ethernet::MacAddr(GUEST_MAC))
    };
    icmp((src, ndp::solicited_node(target)), 255, (135, 0, 0), &body)
}

#[test]
fn neighbours_are_answered_for_gateway_host_and_router_only() {
    let mut stack = stack();
    for (target, flags) in [
        (GATEWAY, Some(0xe000_0000)),
        (HOST, Some(0x6000_0000)),
        (ROUTER, Some(0xe000_0000)),
        (GUEST, None),
        (OUTSIDE, None),
    ] {
        let answers = exchange(&mut stack, &solicitation(LINK_LOCAL, target));
        let told: Vec<_> = answers.iter().map(|frame| icmp_of(frame)).collect();
        let body = [&target.octets()[..], &[2, 1], &GATEWAY_MAC].concat();
        let expected: Vec<_> = flags.map(|flags| (target, 136, 0, flags, body)).into_iter().collect();
        assert_eq!(told, expected, "for {target}");
    }
}

#[test]
fn an_address_of_ours_is_defended_before_all() {
    // RFC 4862 §5.4.4: somebody without an address wants the gateway's.
    let answers = exchange(&mut stack(), &solicitation(Ipv6Addr::UNSPECIFIED, GATEWAY));
    let ip = ip_of(&answers[0]);
    assert_eq!((ip.dst, ip.hop_limit), (ndp::ALL_NODES, 255));
    assert_eq!(answers[0][..6], [0x33, 0x33, 0, 0, 0, 1]);
    assert_eq!(icmp_of(&answers[0]).3, 0xa000_0000, "not an answer to anybody");
}

#[test]
fn discovery_from_beyond_the_link_is_dropped() {
    let mut stack = stack();
    let mut frame = solicitation(LINK_LOCAL, GATEWAY);
    frame[14 + 7] = 254;
    assert!(exchange(&mut stack, &frame).is_empty());
    assert_eq!(stack.counters().drops.of(DropReason::Malformed), 1);
}

#[test]
fn a_router_advertisement_has_prefix_mtu_server_and_domains() {
    let mut stack = stack();
    let answers = exchange(&mut stack, &icmp((LINK_LOCAL, ndp::ALL_ROUTERS), 255, (133, 0, 0), b""));
    let (src, kind, _, rest, body) = icmp_of(&answers[0]);
    assert_eq!((src, kind, ip_of(&answers[0]).dst), (ROUTER, 134, LINK_LOCAL));
    assert_eq!(rest, 64 << 24 | 0xc0 << 16 | 9000, "64 hops, M and O, 9000 seconds");
    let mut expected = vec![0; 8];
    expected.extend([&[1, 1][..], &GATEWAY_MAC, &[5, 1, 0, 0, 0, 0, 5, 0xdc], &[3, 4, 64, 0xc0]].concat());
    expected.extend([&2_592_000u32.to_be_bytes()[..], &604_800u32.to_be_bytes(), &[0; 4]].concat());
    expected.extend(Ipv6Network::default().network().octets());
    expected.extend([&[25, 3, 0, 0, 0, 0, 0x23, 0x28][..], &GATEWAY.octets()].concat());
    expected.extend([&[31, 3, 0, 0, 0, 0, 0x23, 0x28][..], b"\x05fleet\x07example\0\0"].concat());
    assert_eq!(body, expected);
    stack.set_default_route(false);
    let (.., rest, _) = icmp_of(&sent(&mut stack)[0]);
    assert_eq!(rest & 0xffff, 0, "no default route: told to all at once");
    // And from time to time.
    let due = stack.deadline().unwrap();
    stack.on_time(due);
    assert_eq!(ip_of(&sent(&mut stack)[0]).dst, ndp::ALL_NODES);
}

fn dhcpv6(kind: u8, options: &[u8]) -> Vec<u8> {
    let message = [&[kind, 1, 2, 3][..], options].concat();
    let group = vpnkit_wire::dhcpv6::ALL_AGENTS;
    datagram((LINK_LOCAL, group), (546, 547), &message)
}

/// A client's identifier and its association 7.
fn client(name: u8) -> Vec<u8> {
    [&[0, 1, 0, 4, 0, 3, 0, name][..], &[0, 3, 0, 12, 0, 0, 0, 7], &[0; 8]].concat()
}

#[test]
fn dhcpv6_offers_and_leases_one_address_a_client() {
    let mut stack = stack();
    let server = [&[0, 2, 0, 10, 0, 3, 0, 1][..], &GATEWAY_MAC].concat();
    for (name, last) in [(1u8, 3u16), (2, 4), (1, 3)] {
        let asked = dhcpv6(1, &client(name));
        let frames = exchange(&mut stack, &asked);
        let offer = udp::parse(ip_of(&frames[0]).payload, Some((ROUTER.into(), LINK_LOCAL.into()))).unwrap();
        assert_eq!((offer.src_port, offer.dst_port, offer.payload[0]), (547, 546, 2));
        let request = dhcpv6(3, &[client(name), server.clone()].concat());
        let frames = exchange(&mut stack, &request);
        let reply = udp::parse(ip_of(&frames[0]).payload, None).unwrap().payload;
        assert_eq!(reply[..4], [7, 1, 2, 3]);
        let mut address = GATEWAY.segments();
        address[7] = last;
        let address = Ipv6Addr::from(address).octets();
        let has = |wanted: &[u8]| reply.windows(wanted.len()).any(|window| window == wanted);
        assert!(has(&[&[0, 5, 0, 24][..], &address].concat()), "{reply:?}");
        assert!(has(&server) && has(&[&[0, 23, 0, 16][..], &GATEWAY.octets()].concat()));
        assert!(has(b"\x05fleet\x07example\0"));
    }
}

#[test]
fn dhcpv6_tells_without_giving_and_ignores_what_is_for_others() {
    let mut stack = stack();
    let frames = exchange(&mut stack, &dhcpv6(11, &[0, 6, 0, 2, 0, 23]));
    let reply = udp::parse(ip_of(&frames[0]).payload, None).unwrap().payload;
    assert_eq!(reply[0], 7);
    assert!(!reply.windows(2).any(|window| window == [0, 5]), "no address: {reply:?}");
    let other = [0, 2, 0, 4, 9, 9, 9, 9];
    assert!(exchange(&mut stack, &dhcpv6(3, &[client(1), other.to_vec()].concat())).is_empty());
}

#[test]
fn a_flood_of_dhcpv6_clients_is_bounded() {
    let mut stack = stack();
    for number in 0..5000u16 {
        let [high, low] = number.to_be_bytes();
        let options = [&[0, 1, 0, 4, 0, 3, high, low][..], &[0, 3, 0, 12, 0, 0, 0, 7], &[0; 8]].concat();
        assert_eq!(exchange(&mut stack, &dhcpv6(1, &options)).len(), 1);
    }
}

#[test]
fn addresses_of_dhcpv6_clients_that_ask_no_more_make_way() {
    let mut stack = stack();
    let server = [&[0, 2, 0, 10, 0, 3, 0, 1][..], &GATEWAY_MAC].concat();
    // Whether a client that asks for an address at `now` gets one.
    let mut gets = |now: Instant, number: u16| {
        let [high, low] = number.to_be_bytes();
        let client = [&[0, 1, 0, 4, 0, 3, high, low][..], &[0, 3, 0, 12, 0, 0, 0, 7], &[0; 8]].concat();
        stack.on_frame(now, Offload::NONE, &dhcpv6(3, &[client, server.clone()].concat()), &mut ());
        let mut sink = Sink::default();
        assert!(stack.transmit(now, &mut sink));
        let replies = sink.0.iter().filter(|(_, frame)| frame[20] == 17 && frame[56..58] == [2, 34]);
        let reply = replies.map(|(_, frame)| frame).next().unwrap();
        reply.windows(4).any(|window| window == [0, 5, 0, 24])
    };
    let hour = Duration::from_secs(3600);
    for number in 0..1024 {
        assert!(gets(NOW, number), "client {number}");
    }
    assert!(!gets(NOW, 2000), "all are leased");
    assert!(gets(NOW + hour, 5), "one asks again");
    assert!(!gets(NOW + 23 * hour, 2001), "for a day");
    for number in 2000..3023 {
        assert!(gets(NOW + 24 * hour, number), "client {number}, of one that asked no more");
    }
    assert!(!gets(NOW + 24 * hour, 3023), "but not of the one that did");
}

#[test]
fn echoes_are_answered_or_passed_on() {
    let mut stack = stack();
    for (dst, from) in [(GATEWAY, GATEWAY), (HOST, HOST), (ROUTER, ROUTER), (ndp::ALL_NODES, GATEWAY)] {
        let answers = exchange(&mut stack, &icmp((GUEST, dst), 1, (128, 0, 0x1234_0007), b"hi"));
        assert_eq!(icmp_of(&answers[0]), (from, 129, 0, 0x1234_0007, b"hi".to_vec()));
    }
    assert!(exchange(&mut stack, &icmp((GUEST, OUTSIDE), 64, (128, 0, 0x1234_0007), b"hi")).is_empty());
    let Some(Effect::PingSend { flow, to, hops, sequence, .. }) = stack.pop_effect() else {
        panic!("no ping")
    };
    assert_eq!((to, hops.ttl, sequence), (IpAddr::V6(OUTSIDE), 63, 7));
    stack.ping_received(NOW, flow, OUTSIDE.into(), 7, b"hi");
    assert_eq!(icmp_of(&sent(&mut stack)[0]), (OUTSIDE, 129, 0, 0x1234_0007, b"hi".to_vec()));
    stack.ping_unsent(flow, OUTSIDE.into(), 7, ConnectError::NetUnreachable);
    let (from, kind, code, _, quoted) = icmp_of(&sent(&mut stack)[0]);
    assert_eq!((from, kind, code), (GATEWAY, 1, 0), "no route");
    assert_eq!((quoted[6], &quoted[24..40], quoted[40]), (58, &OUTSIDE.octets()[..], 128));
}

#[test]
fn datagrams_go_to_the_host_and_outside_and_come_back() {
    let mut stack = stack();
    exchange(&mut stack, &datagram((GUEST, HOST), (5000, 53), b"a"));
    exchange(&mut stack, &datagram((GUEST, OUTSIDE), (5000, 1), b"b"));
    let mut flows = Vec::new();
    while let Some(Effect::UdpSend { flow, to, .. }) = stack.pop_effect() {
        flows.push((flow, to));
    }
    assert_eq!(flows[0].1, SocketAddr::new(Ipv6Addr::LOCALHOST.into(), 53));
    assert_eq!((flows[1].0, flows[1].1), (flows[0].0, SocketAddr::new(OUTSIDE.into(), 1)));
    stack.udp_received(NOW, flows[0].0, (Ipv6Addr::LOCALHOST, 53).into(), b"answer");
    let frames = sent(&mut stack);
    let ip = ip_of(&frames[0]);
    let got = udp::parse(ip.payload, Some((HOST.into(), GUEST.into()))).unwrap();
    assert_eq!((ip.src, got.src_port, got.dst_port, got.payload), (HOST, 53, 5000, &b"answer"[..]));
}

#[test]
fn a_datagram_without_checksum_is_dropped() {
    // RFC 8200 §8.1.
    let mut stack = stack();
    let mut frame = datagram((GUEST, OUTSIDE), (5000, 1), b"b");
    frame[14 + 40 + 6..14 + 40 + 8].fill(0);
    exchange(&mut stack, &frame);
    assert_eq!((stack.pop_effect(), stack.counters().drops.of(DropReason::Malformed)), (None, 1));
}

#[test]
fn large_datagrams_cross_in_fragments_both_ways() {
    let mut stack = stack();
    let payload: Vec<u8> = (0..4000u32).map(|n| (n * 7) as u8).collect();
    let whole = datagram((GUEST, OUTSIDE), (5000, 1), &payload);
    for (offset, end) in [(2400, 4008), (0, 1200), (1200, 2400)] {
        let piece = ipv6::Fragment { ident: 5, offset, more: end < 4008 };
        let body = [&ipv6::emit_fragment(17, piece)[..], &whole[54 + offset..54 + end]].concat();
        exchange(&mut stack, &packet((GUEST, OUTSIDE), ipv6::FRAGMENT, 64, &body));
    }
    let Some(Effect::UdpSend { flow, payload: passed, hops, .. }) = stack.pop_effect() else {
        panic!("lost")
    };
    assert!(passed == payload && !hops.dont_fragment);
    stack.udp_received(NOW, flow, (OUTSIDE, 1).into(), &payload);
    let mut got = Vec::new();
    for frame in sent(&mut stack) {
        assert!(frame.len() <= 1514);
        let ip = ip_of(&frame);
        let piece = ip.fragment.unwrap();
        assert_eq!((ip.protocol, piece.offset), (17, got.len()));
        got.extend_from_slice(ip.payload);
    }
    assert_eq!(udp::parse(&got, Some((OUTSIDE.into(), GUEST.into()))).unwrap().payload, payload);
}

#[test]
fn errors_of_the_path_reach_the_guest() {
    let mut stack = stack();
    exchange(&mut stack, &datagram((GUEST, OUTSIDE), (5000, 1), b"b"));
    let Some(Effect::UdpSend { flow, to, hops, .. }) = stack.pop_effect() else { panic!("lost") };
    assert!(hops.dont_fragment);
    let router: IpAddr = "2001:db8::99".parse().unwrap();
    stack.udp_failed(flow, to, DatagramError { kind: 2, code: 0, mtu: 1400, from: Some(router) });
    let (from, kind, _, mtu, quoted) = icmp_of(&sent(&mut stack)[0]);
    assert_eq!((IpAddr::V6(from), kind, mtu, &quoted[40..44]), (router, 2, 1400, &[0x13, 0x88, 0, 1][..]));
    // What the host's own loopback says comes from the host.
    stack.udp_failed(
        flow,
        (Ipv6Addr::LOCALHOST, 7).into(),
        DatagramError { kind: 1, code: 4, mtu: 0, from: Some(Ipv6Addr::LOCALHOST.into()) },
    );
    assert_eq!(icmp_of(&sent(&mut stack)[0]).0, HOST);
    let expired = exchange(
        &mut stack,
        &packet((GUEST, OUTSIDE), 17, 1, &datagram((GUEST, OUTSIDE), (5000, 1), b"b")[54..]),
    );
    assert_eq!(icmp_of(&expired[0]).1, 3, "time exceeded");
    let unknown = exchange(&mut stack, &packet((GUEST, OUTSIDE), 200, 64, &[0; 8]));
    let (_, kind, code, pointer, _) = icmp_of(&unknown[0]);
    assert_eq!((kind, code, pointer), (4, 1, 6), "the next header is not known, and where that is said");
    let group: Ipv6Addr = ndp::ALL_NODES;
    assert!(exchange(&mut stack, &packet((GUEST, group), 200, 64, &[0; 8])).is_empty());
}

#[test]
fn connections_open_with_the_mss_of_the_family_and_send_super_frames() {
    let config = Config { offload: true, ..Config::default() };
    let mut stack = Stack::new(config, 1).unwrap();
    exchange(&mut stack, &segment(HOST, 80, (100, 0, tcp::SYN), b""));
    let Some(Effect::TcpConnect { flow, to }) = stack.pop_effect() else { panic!("no connection") };
    assert_eq!(to, SocketAddr::new(Ipv6Addr::LOCALHOST.into(), 80));
    stack.tcp_connected(flow);
    let mut sink = Sink::default();
    stack.transmit(NOW, &mut sink);
    let answer = tcp::parse(ip_of(&sink.0[0].1).payload, None).unwrap();
    assert_eq!(tcp::parse_syn_options(answer.options).mss, Some(1440));
    let next = answer.seq.0 + 1;
    exchange(&mut stack, &segment(HOST, 80, (101, next, tcp::ACK), b""));
    let room = stack.tcp_room(flow).min(5000);
    let (first, _) = stack.tcp_buffer(flow, room);
    let count = first.len();
    stack.tcp_filled(flow, count);
    let mut sink = Sink::default();
    stack.transmit(NOW, &mut sink);
    assert!(matches!(sink.0[0].0.gso, Gso::TcpV6 { mss: 536 }), "{:?}", sink.0[0].0);
    let partial = sink.0[0].0.needs_checksum.unwrap();
    assert_eq!((partial.start, partial.offset), (54, 16));
}

#[test]
fn refusals_are_resets_or_icmp() {
    for (error, kind) in [
        (ConnectError::Refused, None),
        (ConnectError::NetUnreachable, Some((1, 0))),
        (ConnectError::HostUnreachable, Some((1, 3))),
        (ConnectError::Prohibited, Some((1, 1))),
    ] {
        let mut stack = met();
        exchange(&mut stack, &segment(OUTSIDE, 80, (100, 0, tcp::SYN), b""));
        let Some(Effect::TcpConnect { flow, .. }) = stack.pop_effect() else { panic!("no connection") };
        stack.tcp_connect_failed(flow, error);
        let frames = sent(&mut stack);
        match kind {
            Some(kind) => assert_eq!((icmp_of(&frames[0]).1, icmp_of(&frames[0]).2), kind),
            None => {
                let ip = ip_of(&frames[0]);
                let reset = tcp::parse(ip.payload, Some((OUTSIDE.into(), GUEST.into()))).unwrap();
                assert!(reset.has(tcp::RST) && reset.ack.0 == 101);
            }
        }
    }
}

#[test]
fn addresses_of_others_are_no_senders() {
    let mut stack = stack();
    for src in [GATEWAY, HOST, ROUTER, OUTSIDE, Ipv6Addr::LOCALHOST, ndp::ALL_NODES] {
        exchange(&mut stack, &datagram((src, OUTSIDE), (5000, 1), b"b"));
    }
    assert_eq!((stack.pop_effect(), stack.counters().drops.of(DropReason::ForgedSource)), (None, 6));
}

#[test]
fn special_addresses_lead_nowhere() {
    let mut stack = stack();
    // Loopback, also as IPv4's; links of the host; groups.
    for dst in ["::1", "::", "::ffff:127.0.0.1", "::7f00:1", "fe80::5", "fec0::1", "ff05::2"] {
        exchange(&mut stack, &segment(dst.parse().unwrap(), 80, (100, 0, tcp::SYN), b""));
        exchange(&mut stack, &datagram((GUEST, dst.parse().unwrap()), (5000, 1), b"b"));
        assert_eq!(stack.pop_effect(), None, "{dst}");
    }
    exchange(&mut stack, &datagram((GUEST, "64:ff9b::1.2.3.4".parse().unwrap()), (5000, 1), b"b"));
    assert!(stack.pop_effect().is_some(), "NAT64 of the host's network");
}

#[test]
fn without_ipv6_nothing_is_answered() {
    let mut stack = Stack::new(Config { ipv6: None, ..Config::default() }, 1).unwrap();
    assert!(exchange(&mut stack, &solicitation(LINK_LOCAL, GATEWAY)).is_empty());
    stack.announce();
    assert!(sent(&mut stack).is_empty());
    let small = Stack::new(Config { mtu: 576, ..Config::default() }, 1).unwrap();
    assert_eq!(small.config().ipv6, None, "RFC 8200 §5: no IPv6 below 1280 bytes");
}

proptest! {
    #[test]
    fn arbitrary_packets_do_no_harm(
        protocols in proptest::collection::vec((any::<u8>(), any::<u8>(), proptest::collection::vec(any::<u8>(), 0..200)), 1..20),
    ) {
        let mut stack = met();
        for (pick, hop_limit, payload) in protocols {
            let protocol = [0, 6, 17, 43, 44, 58, 60, pick][usize::from(pick) % 8];
            let dst = [GATEWAY, HOST, OUTSIDE, ndp::ALL_NODES, ROUTER, ndp::solicited_node(GATEWAY)][usize::from(hop_limit) % 6];
            let frame = if protocol == 58 && payload.len() >= 8 {
                let rest = u32::from_be_bytes([payload[4], payload[5], payload[6], payload[7]]);
                icmp((GUEST, dst), 255, (payload[0] | 128, payload[1] & 1, rest), &payload[8..])
            } else {
                packet((GUEST, dst), protocol, hop_limit, &payload)
            };
            exchange(&mut stack, &frame);
            prop_assert!(ip::header_bytes(GUEST.into()) == 40);
        }
    }
}
