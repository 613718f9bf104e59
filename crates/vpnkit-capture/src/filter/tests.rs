//! What filters let through.

use proptest::prelude::*;

use super::*;

/// Ethernet and IPv4 headers and the first bytes of TCP or UDP.
fn ipv4(protocol: u8, src: [u8; 4], dst: [u8; 4], ports: (u16, u16)) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    frame.extend([0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, protocol, 0, 0]);
    frame.extend(src);
    frame.extend(dst);
    frame.extend(ports.0.to_be_bytes());
    frame.extend(ports.1.to_be_bytes());
    frame.resize(60, 0);
    frame
}

fn ipv6(protocol: u8, ports: (u16, u16)) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x86, 0xdd];
    frame.extend([0x60, 0, 0, 0, 0, 28, 0, 64]);
    frame.extend("fd00::1".parse::<std::net::Ipv6Addr>().unwrap().octets());
    frame.extend("fd00::2".parse::<std::net::Ipv6Addr>().unwrap().octets());
    // A hop-by-hop header before the transport.
    frame.extend([protocol, 0, 0, 0, 0, 0, 0, 0]);
    frame.extend(ports.0.to_be_bytes());
    frame.extend(ports.1.to_be_bytes());
    frame
}

fn matches(expression: &str, frame: &[u8]) -> bool {
    expression.parse::<Filter>().unwrap().matches(frame)
}

fn check(frame: &[u8], yes: &[&str], no: &[&str]) {
    for expression in yes {
        assert!(matches(expression, frame), "`{expression}` should let it through");
    }
    for expression in no {
        assert!(!matches(expression, frame), "`{expression}` should not let it through");
    }
}

#[test]
fn a_tcp_segment_is_known_by_all_its_parts() {
    check(
        &ipv4(6, [192, 168, 65, 3], [10, 0, 0, 1], (40000, 80)),
        &[
            "",
            "tcp",
            "ip",
            "port 80",
            "tcp port 80",
            "dst port 80",
            "tcp src port 40000",
            "host 10.0.0.1",
            "src 192.168.65.3",
            "src host 192.168.65.3 and dst net 10.0.0.0/8",
            "net 0.0.0.0/0",
            "portrange 79-81",
            "port 443 or 80",
            "not udp",
            "! ( udp or arp )",
            "ether host 02:00:00:00:00:01",
            "ether src 2:0:0:0:0:2",
            "greater 60",
            "less 60",
        ],
        &[
            "udp",
            "ip6",
            "arp",
            "src port 80",
            "udp port 80",
            "src host 10.0.0.1",
            "dst net 192.168.0.0/16",
            "portrange 81-90",
            "broadcast",
            "multicast",
            "less 59",
            "greater 61",
            "host ::1",
        ],
    );
}

#[test]
fn ports_are_found_behind_extension_headers_of_ipv6() {
    check(
        &ipv6(17, (5353, 53)),
        &["ip6", "udp", "udp port 53", "net fd00::/8", "src fd00::1"],
        &["ip", "tcp", "icmp6", "dst fd00::1", "net fd01::/16"],
    );
}

#[test]
fn a_later_fragment_has_no_ports() {
    let mut frame = ipv4(17, [1, 2, 3, 4], [5, 6, 7, 8], (53, 53));
    frame[20] = 0x00;
    frame[21] = 0x10;
    check(&frame, &["udp", "host 1.2.3.4"], &["port 53"]);
}

#[test]
fn arp_is_known_by_the_addresses_it_speaks_of() {
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 2, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 2, 192, 168, 65, 3]);
    frame.extend([0, 0, 0, 0, 0, 0, 192, 168, 65, 1]);
    check(
        &frame,
        &["arp", "broadcast", "multicast", "src 192.168.65.3", "host 192.168.65.1"],
        &["ip", "tcp"],
    );
}

#[test]
fn and_and_or_go_from_the_left() {
    let frame = ipv4(6, [1, 2, 3, 4], [5, 6, 7, 8], (1, 2));
    // ((tcp or udp) and arp), where the usual precedence would say (tcp or (udp and arp)).
    assert!(!matches("tcp or udp and arp", &frame));
    assert!(matches("tcp or ( udp and arp )", &frame));
}

#[test]
fn what_is_wrong_is_named_with_its_column() {
    let refused = |expression: &str| expression.parse::<Filter>().unwrap_err().to_string();
    let what = "`host`, `net`, `port`, a protocol, `not` or `(`";
    assert_eq!(refused("tpc port 80"), format!("`tpc` at column 1 is not understood: expected {what}"));
    assert_eq!(refused("port http"), "`http` at column 6 is not understood: expected a port number");
    assert_eq!(refused("( tcp"), "`the end` at column 6 is not understood: expected `)`");
    assert_eq!(refused("tcp udp"), "`udp` at column 5 is not understood: expected `and`, `or` or the end");
    let network = "a network like 10.0.0.0/8";
    assert_eq!(refused("net 10/33"), format!("`10/33` at column 5 is not understood: expected {network}"));
    assert_eq!(
        refused("net 10.0.0.0/33"),
        format!("`10.0.0.0/33` at column 5 is not understood: expected {network}")
    );
    assert_eq!("not ".repeat(100).parse::<Filter>(), Err(FilterError::Deep));
    assert_eq!("a".repeat(5000).parse::<Filter>(), Err(FilterError::Long));
}

proptest! {
    #[test]
    fn no_frame_and_no_expression_panics(
        frame in proptest::collection::vec(any::<u8>(), 0..120),
        ethertype in prop_oneof![Just(0x0800u16), Just(0x86dd), Just(0x0806), any::<u16>()],
        words in proptest::collection::vec(
            prop_oneof![
                Just("tcp"), Just("port"), Just("80"), Just("host"), Just("::1"), Just("not"), Just("("), Just(")"),
                Just("and"), Just("or"), Just("ether"), Just("src"), Just("net"), Just("10.0.0.0/8"), Just("less"),
            ],
            0..12,
        ),
        noise in ".{0,40}",
    ) {
        let mut frame = frame;
        if let Some(place) = frame.get_mut(12..14) {
            place.copy_from_slice(&ethertype.to_be_bytes());
        }
        for text in [words.join(" "), noise] {
            if let Ok(filter) = text.parse::<Filter>() {
                let negated: Filter = format!("not ( {text} )").parse().unwrap_or_default();
                prop_assert!(filter.is_everything() || filter.matches(&frame) != negated.matches(&frame));
            }
        }
    }
}
