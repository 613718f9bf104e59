//! Every parser of the network's protocols by itself: what it makes of any bytes, and what is made from that again.
//!
//! The first byte chooses the protocol.
#![no_main]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use libfuzzer_sys::fuzz_target;
use vpnkit_wire::{arp, dhcp, dhcpv6, dns, ethernet, icmp, icmpv6, ipv4, ipv6, ndp, ntp, tcp, udp};

const V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 3);

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    match kind % 9 {
        0 => names(bytes),
        1 => answers(bytes),
        2 => dhcp(bytes),
        3 => dhcpv6(bytes),
        4 => discovery(bytes),
        5 => {
            let _ =
                (ethernet::parse(bytes), arp::parse(bytes), icmp::parse(bytes), icmp::may_be_answered(bytes));
            let _ = (udp::parse(bytes, None), icmp::parse_verified(bytes));
        }
        6 => packets(bytes),
        7 => {
            if let Ok(segment) = tcp::parse(bytes, None) {
                assert!(segment.len() as usize <= bytes.len() + 2);
                tcp::parse_syn_options(segment.options);
            }
        }
        _ => time(bytes),
    }
});

fn names(bytes: &[u8]) {
    let Ok(query) = dns::parse(bytes) else { return };
    let addresses = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(V6)];
    for mut reply in [dns::answer(bytes, &query, &addresses, 1), dns::reply(bytes, dns::SERVFAIL)] {
        assert_eq!(reply[..2], bytes[..2]);
        assert!(dns::question(&reply).is_some(), "the question is repeated");
        dns::truncate(&mut reply, 512);
        assert!(reply.len() <= 512 || reply.len() <= bytes.len());
    }
}

fn answers(bytes: &[u8]) {
    dns::addresses(bytes);
    dns::question(bytes);
    if bytes.len() >= dns::HEADER_BYTES {
        let mut cut = bytes.to_vec();
        dns::truncate(&mut cut, 512);
        dns::is_truncated(&cut);
    }
    if let Ok(name) = std::str::from_utf8(bytes)
        && let Some(query) = dns::query(7, name, dns::TYPE_A)
    {
        assert!(dns::parse(&query).is_ok_and(|query| query.id == 7), "a query of our own is one");
    }
}

fn dhcp(bytes: &[u8]) {
    let Ok(request) = dhcp::parse(bytes) else { return };
    let with = dhcp::Parameters {
        server: Ipv4Addr::LOCALHOST,
        mask: Ipv4Addr::BROADCAST,
        broadcast: Ipv4Addr::BROADCAST,
        mtu: 1500,
        lease_seconds: 1,
        domain: "lan".into(),
        search: vec!["a.b".into()],
        hostname: "boat".into(),
    };
    let answer = dhcp::emit(&request, dhcp::MessageType::Ack, Ipv4Addr::LOCALHOST, &with);
    assert_eq!(answer[4..8], bytes[4..8], "the transaction is repeated");
}

fn dhcpv6(bytes: &[u8]) {
    let Ok(request) = dhcpv6::parse(bytes) else { return };
    let answer = dhcpv6::Answer {
        kind: dhcpv6::MessageType::Reply,
        server: &[0, 3, 0, 1],
        association: request.association.map(|asked| (asked.ident, Ok(V6))),
        status: None,
        rapid_commit: request.rapid_commit,
        lease_seconds: 1,
        dns: V6,
        search: &[],
    };
    let answer = dhcpv6::emit(&request, &answer);
    assert_eq!(answer[1..4], bytes[1..4], "the transaction is repeated");
    assert!(answer.len() <= bytes.len() + 256);
}

fn discovery(bytes: &[u8]) {
    icmpv6::may_be_answered(bytes);
    // Most bytes have no valid checksum: one is put in.
    let mut bytes = bytes.to_vec();
    if bytes.len() >= 4 {
        bytes[2..4].fill(0);
        let mut sum = vpnkit_wire::checksum::Checksum::pseudo_v6(V6, V6, 58, bytes.len());
        sum.add(&bytes);
        bytes[2..4].copy_from_slice(&sum.finish().to_be_bytes());
    }
    if let Ok(message) = icmpv6::parse(&bytes, V6, V6) {
        let _ = ndp::parse_neighbour(&message);
    }
}

fn time(bytes: &[u8]) {
    let at = std::time::UNIX_EPOCH;
    if let Some(answer) = ntp::answer(bytes, at, at) {
        assert_eq!(answer[24..32], bytes[40..48], "the client's time is repeated");
        assert_eq!(
            ntp::answer(&answer, at, at),
            None,
            "an answer is not answered: two servers would never end"
        );
    }
}

fn packets(bytes: &[u8]) {
    if let Ok(packet) = ipv6::parse(bytes) {
        assert!(packet.datagram().payload.len() <= bytes.len());
    }
    if let Ok(packet) = ipv4::parse(bytes) {
        assert!(packet.datagram().payload.len() <= bytes.len());
    }
}
