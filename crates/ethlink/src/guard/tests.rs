//! What machines may say, and what not.

use super::*;

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const ROUTER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
const A: Mac = [2, 0, 0, 0, 0, 1];
const B: Mac = [2, 0, 0, 0, 0, 2];

fn guard() -> Guard {
    let engine = vec![GATEWAY.into(), Ipv4Addr::new(10, 0, 0, 2).into(), GATEWAY6.into(), ROUTER.into()];
    Guard::new(Addresses { engine, ipv4: (GATEWAY, 24), ipv6: Some(GATEWAY6) })
}

fn of(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, last)
}

fn of6(last: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last)
}

fn ethernet(from: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&[0xff; 6][..], &from, &ethertype.to_be_bytes(), payload].concat()
}

fn arp(from: Mac, mac: Mac, sender: Ipv4Addr) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, 2];
    ethernet(from, TYPE_ARP, &[&head[..], &mac, &sender.octets(), &[0; 6], &[10, 0, 0, 9]].concat())
}

fn udp_of(ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    [&ports.0.to_be_bytes()[..], &ports.1.to_be_bytes(), &[0; 4], payload].concat()
}

fn ipv4(from: Mac, src: Ipv4Addr, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let mut header = [0; 20];
    (header[0], header[9]) = (0x45, UDP);
    header[12..16].copy_from_slice(&src.octets());
    ethernet(from, TYPE_IPV4, &[&header[..], &udp_of(ports, payload)].concat())
}

fn ipv6(from: Mac, src: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = [0; 40];
    (header[0], header[6]) = (0x60, next);
    header[8..24].copy_from_slice(&src.octets());
    ethernet(from, TYPE_IPV6, &[&header[..], payload].concat())
}

fn icmpv6(kind: u8, target: Ipv6Addr) -> Vec<u8> {
    [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &target.octets()].concat()
}

#[test]
fn nobody_speaks_for_the_engine() {
    let mut guard = guard();
    assert!(!guard.allows(1, &arp(A, A, GATEWAY)), "it says to be the gateway");
    assert!(!guard.allows(1, &ipv4(A, of(2), (1, 2), b"")), "it says to be the host");
    assert!(!guard.allows(1, &ipv6(A, ROUTER, UDP, &udp_of((1, 2), b""))));
    assert!(!guard.allows(1, &ipv6(A, of6(7), ICMPV6, &icmpv6(NEIGHBOUR_ADVERTISEMENT, GATEWAY6))));
}

#[test]
fn an_address_belongs_to_who_used_it_first_until_that_is_gone() {
    let mut guard = guard();
    assert!(guard.allows(1, &arp(A, A, of(5))));
    assert!(guard.allows(1, &ipv6(A, of6(5), UDP, &udp_of((1, 2), b""))));
    for theirs in [
        arp(B, B, of(5)),
        ipv4(B, of(5), (1, 2), b""),
        ipv6(B, of6(5), UDP, &udp_of((1, 2), b"")),
        ipv6(B, of6(6), ICMPV6, &icmpv6(NEIGHBOUR_ADVERTISEMENT, of6(5))),
    ] {
        assert!(!guard.allows(2, &theirs), "{theirs:02x?}");
        assert!(guard.allows(1, &ipv4(A, of(5), (1, 2), b"")), "the owner goes on");
    }
    assert!(!guard.allows(2, &arp(B, A, of(6))), "of another's hardware address");
    guard.forget(1);
    assert!(guard.allows(2, &arp(B, B, of(5))));
}

#[test]
fn nobody_routes_or_leases_but_the_engine() {
    let mut guard = guard();
    assert!(!guard.allows(1, &ipv4(A, of(5), BOOTP, b"")));
    assert!(guard.allows(1, &ipv4(A, Ipv4Addr::UNSPECIFIED, (BOOTP.1, BOOTP.0), b"")), "a client");
    assert!(!guard.allows(1, &ipv6(A, of6(5), UDP, &udp_of(DHCPV6, b""))));
    for kind in [ROUTER_ADVERTISEMENT, REDIRECT] {
        let message = icmpv6(kind, of6(5));
        assert!(!guard.allows(1, &ipv6(A, of6(5), ICMPV6, &message)));
        // Behind destination options and a first fragment's header.
        let hidden = [&[44, 0, 0, 0, 0, 0, 0, 0, ICMPV6, 0, 0, 1, 0, 0, 0, 0][..], &message].concat();
        assert!(!guard.allows(1, &ipv6(A, of6(5), 60, &hidden)));
    }
    let solicitation = icmpv6(133, of6(5));
    assert!(guard.allows(1, &ipv6(A, of6(5), ICMPV6, &solicitation)));
}

#[test]
fn a_tag_hides_nothing() {
    let mut guard = guard();
    let mut frame = arp(A, A, GATEWAY);
    for _ in 0..6 {
        frame.splice(12..12, [0x81, 0, 0, 0]);
        assert!(!guard.allows(1, &frame), "{frame:02x?}");
    }
}

#[test]
fn a_lease_is_the_clients_whoever_used_the_address_before() {
    let mut guard = guard();
    assert!(guard.allows(2, &arp(B, B, of(5))));
    let mut reply = [0; 240];
    reply[BOOTP_YIADDR..BOOTP_YIADDR + 4].copy_from_slice(&of(5).octets());
    reply[BOOTP_CHADDR..BOOTP_CHADDR + 6].copy_from_slice(&A);
    let frame = ipv4([2, 0, 0, 0, 0, 0xfe], GATEWAY, BOOTP, &reply);
    guard.learn_lease(&frame, |mac| (mac == A).then_some(1));
    assert!(guard.allows(1, &arp(A, A, of(5))));
    assert!(!guard.allows(2, &arp(B, B, of(5))));
}

#[test]
fn others_addresses_and_other_protocols_are_left_alone() {
    let mut guard = guard();
    for port in [1, 2] {
        assert!(guard.allows(port, &ipv4(A, Ipv4Addr::new(172, 16, 0, 1), (1, 2), b"")), "it may route");
        assert!(guard.allows(port, &ethernet(A, 0x88b5, b"anything")));
        assert!(
            guard.allows(port, &ipv6(A, Ipv6Addr::UNSPECIFIED, ICMPV6, &icmpv6(135, of6(5)))),
            "detection"
        );
        assert!(guard.allows(port, &arp(A, A, Ipv4Addr::UNSPECIFIED)), "a probe");
    }
}

#[test]
fn frames_cut_anywhere_are_no_trouble() {
    let mut guard = guard();
    let frames = [arp(A, A, of(5)), ipv4(A, of(5), BOOTP, &[0; 300]), ipv6(A, of6(5), 60, &[0; 64])];
    for frame in &frames {
        for end in 0..frame.len() {
            guard.allows(1, &frame[..end]);
            guard.learn_lease(&frame[..end], |_| Some(1));
        }
    }
}

#[test]
fn one_port_cannot_fill_the_table() {
    let mut guard = guard();
    for number in 0..5000 {
        guard.allows(1, &ipv6(A, of6(number), UDP, &udp_of((1, 2), b"")));
    }
    assert!(guard.owners.len() <= PORT_ADDRESSES_MAX);
}
