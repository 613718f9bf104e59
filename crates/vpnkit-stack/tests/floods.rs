//! Floods, starvation and jumps of the clock: memory stays within what is said, and other flows live on.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod frames;

use std::net::Ipv4Addr;

use frames::*;
use vpnkit_stack::{Config, DropReason, Effect, Instant, Limits, Offload, Stack, TcpId};
use vpnkit_wire::ethernet::MacAddr;
use vpnkit_wire::{dns, tcp, udp};

const SECOND: u64 = 1_000_000;

/// Memory of this process, in bytes.
fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// The guest sends `data` on the flow of [`connect`], as its first bytes; they reach the host, acknowledged.
fn check_alive(stack: &mut Stack, now: Instant, flow: TcpId, next: u32, data: &[u8]) {
    while stack.pop_effect().is_some() {}
    let frame = segment(OUTSIDE, 80, (101, next, tcp::ACK | tcp::PSH), data);
    assert_eq!(stack.on_frame(now, Offload::NONE, &frame, &mut ()), None);
    assert_eq!(stack.pop_effect(), Some(Effect::TcpReceived(flow)));
    assert_eq!(stack.tcp_received(flow).0, data);
    stack.tcp_consumed(now, flow, data.len());
    let mut sink = Sink::default();
    assert!(stack.transmit(now, &mut sink));
    let acked =
        sink.0.iter().any(|(_, frame)| frame[23] == 6 && tcp_of(frame).ack.0 == 101 + data.len() as u32);
    assert!(acked, "no acknowledgement among {} frames", sink.0.len());
    stack.check();
}

#[test]
fn a_flood_of_syns_takes_bounded_memory_and_leaves_flows_alone() {
    let mut stack = stack();
    let (flow, next) = connect(&mut stack);
    let before = resident_bytes();
    let mut opened = 0;
    for number in 0..200_000u32 {
        let to = Ipv4Addr::from_bits(OUTSIDE.to_bits() + number % 7);
        stack.on_frame(
            NOW,
            Offload::NONE,
            &segment(to, 1000 + (number / 7) as u16, (number, 0, tcp::SYN), b""),
            &mut (),
        );
        while let Some(effect) = stack.pop_effect() {
            opened += usize::from(matches!(effect, Effect::TcpConnect { .. }));
        }
    }
    let limit = Limits::default().tcp_connecting;
    assert_eq!((opened, stack.flows().tcp.len()), (limit, limit + 1));
    assert_eq!(stack.counters().drops.of(DropReason::ConnectingLimit), 200_000 - limit as u64);
    // About 1 KiB each, as `Limits` says; other tests of this program share the memory.
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 32 << 20, "{grown} bytes for {limit} connections");
    check_alive(&mut stack, NOW, flow, next, b"still here");
}

#[test]
fn who_never_answers_keeps_nobody_out_for_long() {
    let limits = Limits { tcp_connecting: 50, ..Limits::default() };
    let mut stack = Stack::new(Config { limits, ..Config::default() }, 1).unwrap();
    let syn = |stack: &mut Stack, seconds: u64, port: u16| {
        let now = Instant(NOW.0 + seconds * SECOND);
        stack.on_frame(now, Offload::NONE, &segment(OUTSIDE, port, (100, 0, tcp::SYN), b""), &mut ());
        std::iter::from_fn(|| stack.pop_effect()).collect::<Vec<_>>()
    };
    let mut flows = Vec::new();
    for port in 1..=50 {
        match &syn(&mut stack, 0, port)[..] {
            [Effect::TcpConnect { flow, .. }] => flows.push(*flow),
            other => panic!("{other:?}"),
        }
    }
    // One of them succeeds: it is no longer in the way, nor to be given up.
    stack.tcp_connected(flows[0]);
    assert!(matches!(syn(&mut stack, 1, 100)[..], [Effect::TcpConnect { .. }]));
    assert!(syn(&mut stack, 1, 101).is_empty(), "the others have not had their time");
    let effects = syn(&mut stack, 4, 101);
    let [Effect::TcpClosed { flow, reset: true }, Effect::TcpConnect { to, .. }] = effects[..] else {
        panic!("{effects:?}")
    };
    assert_eq!((flow, to.port()), (flows[1], 101), "the one that waited longest makes way");
    stack.check();
}

#[test]
fn machines_keep_their_addresses_while_others_take_all() {
    let mut stack = Stack::new(Config { prefix: 20, ..Config::default() }, 1).unwrap();
    let ask = |last: [u8; 4]| [&[50, 4][..], &last, &[54, 4, 192, 168, 65, 1]].concat();
    let own = ask([192, 168, 65, 3]);
    assert_eq!(exchange(&mut stack, &dhcp(GUEST_MAC, 3, &own)).len(), 1);
    let (flow, next) = connect(&mut stack);
    for number in 0..5000u16 {
        let [high, low] = number.to_be_bytes();
        let mac = [2, 1, 1, 1, high, low];
        stack.on_frame(NOW, Offload::NONE, &dhcp(mac, 1, &[]), &mut ());
        // A server that answers tells what to ask for; who floods asks for it.
        let offers = sent(&mut stack);
        if let Some(offer) = offers.first() {
            let message = udp::parse(&offer[34..], None).unwrap().payload;
            let address = [message[16], message[17], message[18], message[19]];
            assert_eq!(exchange(&mut stack, &dhcp(mac, 3, &ask(address))).len(), 1);
        }
    }
    let leases = stack.leases();
    // From 192.168.65.3 to 192.168.79.254.
    assert_eq!(leases.len(), 14 * 256 + 252);
    assert_eq!(stack.counters().drops.of(DropReason::NoAddress), 5000 - (leases.len() as u64 - 1));
    let answers = exchange(&mut stack, &dhcp(GUEST_MAC, 3, &own));
    let message = udp::parse(&answers[0][34..], None).unwrap().payload;
    assert_eq!((&message[16..20], message[242]), (&GUEST.octets()[..], 5), "the lease is renewed");
    check_alive(&mut stack, NOW, flow, next, b"still here");
}

#[test]
fn addresses_of_machines_that_left_make_way_for_new_ones() {
    let config = Config { guest_last: Some(Ipv4Addr::new(192, 168, 65, 6)), ..Config::default() };
    let mut stack = Stack::new(config, 1).unwrap();
    let machine = |number: u8| [2, 1, 1, 1, 1, number];
    // What a machine is told that looks for a server and asks for what that offers.
    let lease = |stack: &mut Stack, number: u8| {
        let offers = exchange(stack, &dhcp(machine(number), 1, &[]));
        let message = udp::parse(&offers.first()?[34..], None).unwrap().payload;
        let address = [message[16], message[17], message[18], message[19]];
        exchange(stack, &dhcp(machine(number), 3, &[&[50, 4][..], &address].concat()));
        Some(address[3])
    };
    stack.reserve(MacAddr(machine(9)), Ipv4Addr::new(192, 168, 65, 3));
    assert_eq!([1, 2, 3].map(|number| lease(&mut stack, number)), [Some(4), Some(5), Some(6)]);
    assert_eq!(lease(&mut stack, 7), None, "all are leased");
    stack.reserve(MacAddr(machine(8)), Ipv4Addr::new(192, 168, 65, 5));
    assert_eq!(lease(&mut stack, 8), None, "what a machine has is promised to no other");
    assert_eq!(lease(&mut stack, 2), Some(5));
    stack.on_departure(MacAddr(machine(2)));
    stack.on_departure(MacAddr(machine(1)));
    stack.on_departure(MacAddr(machine(9)));
    assert_eq!(lease(&mut stack, 2), Some(5), "it is back and finds its own");
    stack.on_departure(MacAddr(machine(2)));
    assert_eq!(lease(&mut stack, 10), Some(4), "of who has been gone longest");
    assert_eq!(lease(&mut stack, 11), Some(5));
    assert_eq!(lease(&mut stack, 12), None, "what was promised is kept, and who is there keeps its own");
    assert_eq!(lease(&mut stack, 9), Some(3));
}

#[test]
fn dns_queries_without_end_are_answered_or_refused() {
    let mut stack = stack();
    let (flow, next) = connect(&mut stack);
    let query = [&[0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, b'a', 0, 0, 1, 0, 1][..]].concat();
    let limit = Limits::default().dns_queries as u64;
    let (mut asked, mut refused) = (0, 0);
    for number in 0..10_000u16 {
        stack.on_frame(NOW, Offload::NONE, &datagram(GATEWAY, (2000 + number, 53), &query), &mut ());
        while let Some(effect) = stack.pop_effect() {
            asked += u64::from(matches!(effect, Effect::DnsQuery { .. }));
        }
        let mut sink = Sink::default();
        assert!(stack.transmit(NOW, &mut sink));
        let is_refusal = |frame: &Vec<u8>| frame[42 + 3] & 0xf == dns::SERVFAIL;
        refused += sink.0.iter().filter(|(_, frame)| is_refusal(frame)).count() as u64;
    }
    assert_eq!((asked, refused), (limit, 10_000 - limit));
    assert_eq!(stack.counters().drops.of(DropReason::DnsLimit), 10_000 - limit);
    check_alive(&mut stack, NOW, flow, next, b"still here");
}

#[test]
fn a_host_that_slept_goes_on_where_it_was() {
    let mut stack = stack();
    let own = [50, 4, 192, 168, 65, 3, 54, 4, 192, 168, 65, 1];
    exchange(&mut stack, &dhcp(GUEST_MAC, 3, &own));
    let (flow, next) = connect(&mut stack);
    stack.tcp_buffer(flow, 300).0.fill(7);
    stack.tcp_filled(flow, 300);
    assert_eq!(sent(&mut stack).len(), 1);
    exchange(&mut stack, &datagram(OUTSIDE, (5000, 7), b"before"));
    let query = [0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, b'a', 0, 0, 1, 0, 1];
    exchange(&mut stack, &datagram(GATEWAY, (2000, 53), &query));
    // Eight hours, in which nobody called.
    let now = Instant(NOW.0 + 8 * 3600 * SECOND);
    stack.on_time(now);
    let mut sink = Sink::default();
    assert!(stack.transmit(now, &mut sink));
    let frames: Vec<_> = sink.0.into_iter().map(|(_, frame)| frame).collect();
    let of = |protocol: u8| frames.iter().filter(move |frame| frame[23] == protocol).collect::<Vec<_>>();
    assert_eq!(of(17).len(), 1, "the query is answered: nobody knew");
    let [again] = of(6)[..] else { panic!("{} segments", of(6).len()) };
    assert_eq!(
        (tcp_of(again).seq.0, tcp_of(again).payload.len()),
        (next, 300),
        "what was under way is sent again"
    );
    let closed =
        std::iter::from_fn(|| stack.pop_effect()).filter(|e| matches!(e, Effect::UdpClosed(_))).count();
    assert_eq!(closed, 1, "an idle UDP flow ends");
    check_alive(&mut stack, now, flow, next + 300, b"good morning");
    stack.on_frame(now, Offload::NONE, &datagram(OUTSIDE, (5000, 7), b"after"), &mut ());
    assert!(matches!(stack.pop_effect(), Some(Effect::UdpSend { .. })), "and begins anew");
    assert_eq!(stack.leases(), [(GUEST, MacAddr(GUEST_MAC))]);
}

#[test]
fn all_connections_to_a_machine_begin_when_it_is_found() {
    let limits = Limits { tcp_connecting: 2, ..Limits::default() };
    let mut stack = Stack::new(Config { limits, ..Config::default() }, 1).unwrap();
    for port in 0..10 {
        assert!(stack.tcp_open(NOW, (OUTSIDE, 4000 + port).into(), (GUEST, 80).into()).is_some());
    }
    let requests = sent(&mut stack);
    assert_eq!((requests.len(), &requests[0][12..14]), (1, &[8, 6][..]), "only who has the address");
    let reply = [&[0, 1, 8, 0, 6, 4, 0, 2][..], &GUEST_MAC, &GUEST.octets(), &GATEWAY_MAC, &GATEWAY.octets()];
    let syns = exchange(&mut stack, &ethernet(GATEWAY_MAC, 0x0806, &reply.concat()));
    let ports: Vec<u16> = syns.iter().map(|frame| tcp_of(frame).src_port).collect();
    assert_eq!(ports, (4000..4010).collect::<Vec<u16>>());
}
