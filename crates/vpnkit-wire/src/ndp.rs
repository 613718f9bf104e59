//! Neighbour discovery: who has an IPv6 address, and what a router tells about its network. Spec: RFC 4861, RFC 8106.

use std::net::Ipv6Addr;

use super::ethernet::MacAddr;
use super::icmp::Message;
use super::ipv6::address;
use super::{ParseError, at_least};

/// ICMPv6 type of a router solicitation.
pub const ROUTER_SOLICITATION: u8 = 133;
/// ICMPv6 type of a router advertisement.
pub const ROUTER_ADVERTISEMENT: u8 = 134;
/// ICMPv6 type of a neighbour solicitation.
pub const NEIGHBOUR_SOLICITATION: u8 = 135;
/// ICMPv6 type of a neighbour advertisement.
pub const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
/// Hop limit of every message: a router between would have made it less (RFC 4861 §3.1).
pub const HOP_LIMIT: u8 = 255;
/// Every station.
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// Every router.
pub const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);

const SOURCE_LINK_LAYER: u8 = 1;
const TARGET_LINK_LAYER: u8 = 2;
const PREFIX: u8 = 3;
const MTU: u8 = 5;
const RDNSS: u8 = 25;
const DNSSL: u8 = 31;

/// Flag of an advertisement: sent by a router.
const FROM_ROUTER: u32 = 1 << 31;
/// Flag of an advertisement: answers a question.
const SOLICITED: u32 = 1 << 30;
/// Flag of an advertisement: what was known before is void.
const OVERRIDE: u32 = 1 << 29;

/// The multicast address that stations with this address listen to: RFC 4291 §2.7.1.
pub fn solicited_node(of: Ipv6Addr) -> Ipv6Addr {
    let bits = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 0).to_bits() | (of.to_bits() & 0x00ff_ffff);
    Ipv6Addr::from_bits(bits)
}

/// The hardware address of a multicast address: RFC 2464 §7.
pub fn multicast_mac(of: Ipv6Addr) -> MacAddr {
    let [.., a, b, c, d] = of.octets();
    MacAddr([0x33, 0x33, a, b, c, d])
}

/// A question for, or a word about, an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    /// The address in question.
    pub target: Ipv6Addr,
    /// The hardware address in the option that fits the message.
    pub mac: Option<MacAddr>,
}

/// Reads a neighbour solicitation or advertisement.
///
/// # Errors
/// When it is short, an option has no length, or the target is a multicast address (RFC 4861 §7.1).
pub fn parse_neighbour(message: &Message<'_>) -> Result<Neighbour, ParseError> {
    at_least(message.payload, 16)?;
    let target = address(message.payload, 0);
    if target.is_multicast() {
        return Err(ParseError::Protocol);
    }
    let wanted = if message.kind == NEIGHBOUR_SOLICITATION { SOURCE_LINK_LAYER } else { TARGET_LINK_LAYER };
    Ok(Neighbour { target, mac: find_mac(&message.payload[16..], wanted)? })
}

/// Looks for a hardware address among options.
fn find_mac(options: &[u8], wanted: u8) -> Result<Option<MacAddr>, ParseError> {
    let (mut rest, mut found) = (options, None);
    while let [kind, words, ..] = rest {
        let length = usize::from(*words) * 8;
        if length == 0 {
            return Err(ParseError::Length);
        }
        at_least(rest, length)?;
        if *kind == wanted && length == 8 {
            let mut mac = [0; 6];
            mac.copy_from_slice(&rest[2..8]);
            found = Some(MacAddr(mac));
        }
        rest = &rest[length..];
    }
    Ok(found)
}

/// Returns the body, after the ICMPv6 header, of a solicitation of `target` by a station with `mac`.
pub fn emit_solicitation(target: Ipv6Addr, mac: MacAddr) -> Vec<u8> {
    let mut out = target.octets().to_vec();
    link_layer(&mut out, SOURCE_LINK_LAYER, mac);
    out
}

/// Returns the four bytes after the checksum, and the body, of an advertisement of `target`.
pub fn emit_advertisement(
    target: Ipv6Addr,
    mac: MacAddr,
    is_router: bool,
    solicited: bool,
) -> (u32, Vec<u8>) {
    let mut out = target.octets().to_vec();
    link_layer(&mut out, TARGET_LINK_LAYER, mac);
    let flag = |set: bool, flag: u32| if set { flag } else { 0 };
    (flag(is_router, FROM_ROUTER) | flag(solicited, SOLICITED) | OVERRIDE, out)
}

/// What a router tells.
#[derive(Debug, Clone)]
pub struct Router<'a> {
    /// Its hardware address.
    pub mac: MacAddr,
    /// Seconds that it is a default router; 0 if it is none.
    pub lifetime_seconds: u16,
    /// The prefix, of 64 bits, from which stations make addresses.
    pub prefix: Ipv6Addr,
    /// Seconds that addresses of the prefix are valid.
    pub valid_seconds: u32,
    /// Seconds that new connections may use them.
    pub preferred_seconds: u32,
    /// Largest packet of the link.
    pub mtu: u16,
    /// Name server.
    pub dns: Ipv6Addr,
    /// Seconds that the name server and the domains hold.
    pub dns_seconds: u32,
    /// Domains to search.
    pub search: &'a [String],
}

/// Returns the four bytes after the checksum, and the body, of a router advertisement. Addresses and more are also to
/// be had by DHCPv6: the flags M and O are set. Spec: RFC 4861 §4.2, RFC 8106 §5.
pub fn emit_router(router: &Router<'_>) -> (u32, Vec<u8>) {
    let rest = 64 << 24 | 0xc0 << 16 | u32::from(router.lifetime_seconds);
    // Reachable time and retransmission timer: as the station likes.
    let mut out = vec![0; 8];
    link_layer(&mut out, SOURCE_LINK_LAYER, router.mac);
    out.extend_from_slice(&[MTU, 1, 0, 0]);
    out.extend_from_slice(&u32::from(router.mtu).to_be_bytes());
    // On link, and for autonomous configuration.
    out.extend_from_slice(&[PREFIX, 4, 64, 0xc0]);
    out.extend_from_slice(&router.valid_seconds.to_be_bytes());
    out.extend_from_slice(&router.preferred_seconds.to_be_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&router.prefix.octets());
    out.extend_from_slice(&[RDNSS, 3, 0, 0]);
    out.extend_from_slice(&router.dns_seconds.to_be_bytes());
    out.extend_from_slice(&router.dns.octets());
    let mut names = super::dhcp::search_list(router.search);
    names.resize(names.len().next_multiple_of(8), 0);
    // The length counts words of 8 bytes in one.
    if !names.is_empty() && names.len() <= 254 * 8 {
        out.extend_from_slice(&[DNSSL, (1 + names.len() / 8) as u8, 0, 0]);
        out.extend_from_slice(&router.dns_seconds.to_be_bytes());
        out.extend_from_slice(&names);
    }
    (rest, out)
}

fn link_layer(out: &mut Vec<u8>, kind: u8, mac: MacAddr) {
    out.extend_from_slice(&[kind, 1]);
    out.extend_from_slice(&mac.0);
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0x12, 0x3456);
    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 9]);

    fn message(kind: u8, payload: &[u8]) -> Message<'_> {
        Message { kind, code: 0, rest: 0, payload }
    }

    #[test]
    fn groups_of_an_address_are_those_of_the_specification() {
        assert_eq!(solicited_node(TARGET).to_string(), "ff02::1:ff12:3456");
        assert_eq!(multicast_mac(solicited_node(TARGET)), MacAddr([0x33, 0x33, 0xff, 0x12, 0x34, 0x56]));
    }

    #[test]
    fn what_is_asked_and_said_is_read_back() {
        let body = emit_solicitation(TARGET, MAC);
        let read = parse_neighbour(&message(NEIGHBOUR_SOLICITATION, &body)).unwrap();
        assert_eq!(read, Neighbour { target: TARGET, mac: Some(MAC) });
        let (flags, body) = emit_advertisement(TARGET, MAC, true, false);
        let read = parse_neighbour(&message(NEIGHBOUR_ADVERTISEMENT, &body)).unwrap();
        assert_eq!((read.mac, flags), (Some(MAC), 0xa000_0000));
    }

    #[test]
    fn options_without_length_are_refused() {
        let body = [&TARGET.octets()[..], &[1, 0, 0, 0]].concat();
        assert_eq!(parse_neighbour(&message(NEIGHBOUR_SOLICITATION, &body)), Err(ParseError::Length));
        let body = [&TARGET.octets()[..], &[1, 2, 0, 0]].concat();
        assert!(parse_neighbour(&message(NEIGHBOUR_SOLICITATION, &body)).is_err());
    }
}
