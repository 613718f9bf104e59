//! IPv4 headers. Spec: RFC 791.

use std::net::Ipv4Addr;

use super::checksum::checksum;
pub use super::ip::{PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP};
use super::{ParseError, address, at_least, be16, ip};

/// Bytes of a header without options; we send no other.
pub const HEADER_BYTES: usize = 20;

/// A packet or fragment, seen in place.
#[derive(Debug, Clone, Copy)]
pub struct Packet<'a> {
    /// Source address.
    pub src: Ipv4Addr,
    /// Destination address.
    pub dst: Ipv4Addr,
    /// What the payload is.
    pub protocol: u8,
    /// Hops left.
    pub ttl: u8,
    /// Whether routers may not fragment it.
    pub dont_fragment: bool,
    /// Whether other fragments follow this one.
    pub more_fragments: bool,
    /// Where the payload belongs in the whole datagram, in bytes.
    pub fragment_offset: usize,
    /// Which datagram a fragment belongs to.
    pub ident: u16,
    /// The header with its options, for quoting in ICMP errors.
    pub header: &'a [u8],
    /// The payload, or its beginning; link padding is cut off.
    pub payload: &'a [u8],
    /// Bytes of the payload after those.
    pub beyond: usize,
}

impl<'a> Packet<'a> {
    /// The packet, taken for a whole datagram.
    pub fn datagram(&self) -> ip::Packet<'a> {
        ip::Packet {
            src: self.src.into(),
            dst: self.dst.into(),
            protocol: self.protocol,
            ttl: self.ttl,
            dont_fragment: self.dont_fragment,
            header: self.header,
            payload: self.payload,
            beyond: self.beyond,
        }
    }

    /// Whether it is one piece of a larger datagram.
    pub fn is_fragment(&self) -> bool {
        self.more_fragments || self.fragment_offset != 0
    }
}

/// Parses a packet and verifies its header checksum. `bytes` may end in link padding.
///
/// # Errors
/// When the version, a length or the checksum is wrong.
pub fn parse(bytes: &[u8]) -> Result<Packet<'_>, ParseError> {
    parse_beginning(bytes, 0)
}

/// Parses a packet whose last `beyond` bytes are not at hand.
///
/// # Errors
/// As [`parse`]; the header has to be in `bytes`.
pub fn parse_beginning(bytes: &[u8], beyond: usize) -> Result<Packet<'_>, ParseError> {
    at_least(bytes, HEADER_BYTES)?;
    if bytes[0] >> 4 != 4 {
        return Err(ParseError::Protocol);
    }
    let header_bytes = usize::from(bytes[0] & 0xf) * 4;
    let total_bytes = usize::from(be16(bytes, 2));
    if header_bytes < HEADER_BYTES || total_bytes < header_bytes || total_bytes > bytes.len() + beyond {
        return Err(ParseError::Length);
    }
    at_least(bytes, header_bytes)?;
    if checksum(&bytes[..header_bytes]) != 0 {
        return Err(ParseError::Checksum);
    }
    let fragment = be16(bytes, 6);
    Ok(Packet {
        src: address(bytes, 12),
        dst: address(bytes, 16),
        protocol: bytes[9],
        ttl: bytes[8],
        dont_fragment: fragment & 0x4000 != 0,
        more_fragments: fragment & 0x2000 != 0,
        fragment_offset: usize::from(fragment & 0x1fff) * 8,
        ident: be16(bytes, 4),
        header: &bytes[..header_bytes],
        payload: &bytes[header_bytes..total_bytes.min(bytes.len())],
        beyond: total_bytes.saturating_sub(bytes.len()),
    })
}

/// A header to be written.
#[derive(Debug, Clone, Copy)]
pub struct Header {
    /// Source address.
    pub src: Ipv4Addr,
    /// Destination address.
    pub dst: Ipv4Addr,
    /// What the payload is.
    pub protocol: u8,
    /// Hops left.
    pub ttl: u8,
    /// Which datagram a fragment belongs to.
    pub ident: u16,
    /// Flags and offset as on the wire: 0x4000 is "don't fragment", 0x2000 "more fragments".
    pub fragment: u16,
    /// Bytes after the header; at most 65515.
    pub payload_bytes: usize,
}

impl Header {
    /// A header of a whole datagram that may not be fragmented.
    pub fn new(src: Ipv4Addr, dst: Ipv4Addr, protocol: u8, payload_bytes: usize) -> Self {
        Self { src, dst, protocol, ttl: 64, ident: 0, fragment: 0x4000, payload_bytes }
    }

    /// Writes the header with its checksum to the first 20 bytes of `out`, which has at least as many.
    pub fn emit(&self, out: &mut [u8]) {
        let total_bytes = (HEADER_BYTES + self.payload_bytes) as u16;
        out[0] = 0x45;
        out[1] = 0;
        out[2..4].copy_from_slice(&total_bytes.to_be_bytes());
        out[4..6].copy_from_slice(&self.ident.to_be_bytes());
        out[6..8].copy_from_slice(&self.fragment.to_be_bytes());
        out[8] = self.ttl;
        out[9] = self.protocol;
        out[10..12].fill(0);
        out[12..16].copy_from_slice(&self.src.octets());
        out[16..20].copy_from_slice(&self.dst.octets());
        let sum = checksum(&out[..HEADER_BYTES]);
        out[10..12].copy_from_slice(&sum.to_be_bytes());
    }
}
