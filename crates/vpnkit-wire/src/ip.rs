//! What IPv4 and IPv6 have in common: a whole datagram between two addresses, and who hears of its fate.

use std::net::IpAddr;

use super::{ipv4, ipv6};

/// Protocol number of ICMP, over IPv4 only.
pub const PROTOCOL_ICMP: u8 = 1;
/// Protocol number of TCP.
pub const PROTOCOL_TCP: u8 = 6;
/// Protocol number of UDP.
pub const PROTOCOL_UDP: u8 = 17;
/// Protocol number of ICMPv6, over IPv6 only.
pub const PROTOCOL_ICMPV6: u8 = 58;

/// A whole datagram of either version, seen in place. Both addresses are of one family.
#[derive(Debug, Clone, Copy)]
pub struct Packet<'a> {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// What the payload is, after extension headers.
    pub protocol: u8,
    /// Hops left.
    pub ttl: u8,
    /// Whether routers may not fragment it: over IPv6 they never do, and the sender has not.
    pub dont_fragment: bool,
    /// The headers before the payload, for quoting in ICMP errors.
    pub header: &'a [u8],
    /// The payload, or its beginning.
    pub payload: &'a [u8],
    /// Bytes of the payload after those.
    pub beyond: usize,
}

/// Which piece of a larger datagram a fragment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Which datagram it belongs to; IPv4 has 16 bits of it.
    pub ident: u32,
    /// Where it belongs in the datagram, in bytes; a multiple of 8.
    pub offset: usize,
    /// Whether others follow.
    pub more: bool,
}

/// Everything before the payload of a packet.
#[derive(Debug, Clone, Copy)]
pub struct Head {
    bytes: [u8; ipv6::HEADER_BYTES + ipv6::FRAGMENT_BYTES],
    len: usize,
}

impl Head {
    /// The header of a packet with `payload_bytes`, or of one piece of a larger one. Both addresses are of one family.
    pub fn new(
        (src, dst): (IpAddr, IpAddr),
        protocol: u8,
        payload_bytes: usize,
        piece: Option<Piece>,
    ) -> Self {
        let mut bytes = [0; ipv6::HEADER_BYTES + ipv6::FRAGMENT_BYTES];
        let len = match (src, dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let mut header = ipv4::Header::new(src, dst, protocol, payload_bytes);
                if let Some(piece) = piece {
                    header.ident = piece.ident as u16;
                    header.fragment = (piece.offset / 8) as u16 | if piece.more { 0x2000 } else { 0 };
                }
                header.emit(&mut bytes);
                ipv4::HEADER_BYTES
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let extra = if piece.is_some() { ipv6::FRAGMENT_BYTES } else { 0 };
                let kind = if piece.is_some() { ipv6::FRAGMENT } else { protocol };
                ipv6::Header::new(src, dst, kind, extra + payload_bytes).emit(&mut bytes);
                if let Some(Piece { ident, offset, more }) = piece {
                    let fragment = ipv6::Fragment { ident, offset, more };
                    bytes[ipv6::HEADER_BYTES..].copy_from_slice(&ipv6::emit_fragment(protocol, fragment));
                }
                ipv6::HEADER_BYTES + extra
            }
            // There is no such packet; without a header nobody takes it for one.
            _ => 0,
        };
        Self { bytes, len }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Bytes of a header without options or extensions, in the family of `address`.
pub fn header_bytes(address: IpAddr) -> usize {
    if address.is_ipv4() { ipv4::HEADER_BYTES } else { ipv6::HEADER_BYTES }
}
