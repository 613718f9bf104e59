//! IPv6 headers and the extension headers that hosts send. Spec: RFC 8200.

use std::net::Ipv6Addr;

use super::{ParseError, at_least, be16, be32, ip};

/// Bytes of a header without extensions.
pub const HEADER_BYTES: usize = 40;
/// Bytes of a fragment header.
pub const FRAGMENT_BYTES: usize = 8;
/// Smallest MTU that a link may have: RFC 8200 §5.
pub const MTU_MIN: u16 = 1280;
/// Next header: options for every hop.
pub const HOP_BY_HOP: u8 = 0;
/// Next header: a routing header.
pub const ROUTING: u8 = 43;
/// Next header: a fragment.
pub const FRAGMENT: u8 = 44;
/// Next header: nothing follows.
pub const NONE: u8 = 59;
/// Next header: options for the destination.
pub const DESTINATION: u8 = 60;

/// Extension headers in one packet; RFC 8504 §5.3 lets hosts limit them.
const EXTENSIONS_MAX: usize = 8;

/// A piece of a larger datagram: RFC 8200 §4.5.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragment {
    /// Which datagram it belongs to.
    pub ident: u32,
    /// Where the payload belongs in the datagram, in bytes.
    pub offset: usize,
    /// Whether others follow this one.
    pub more: bool,
}

/// A packet or fragment, seen in place.
#[derive(Debug, Clone, Copy)]
pub struct Packet<'a> {
    /// Source address.
    pub src: Ipv6Addr,
    /// Destination address.
    pub dst: Ipv6Addr,
    /// What the payload is, after the extension headers.
    pub protocol: u8,
    /// Hops left.
    pub hop_limit: u8,
    /// Set when it is one piece of a larger datagram.
    pub fragment: Option<Fragment>,
    /// The header and its extensions, for quoting in ICMPv6 errors.
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
            ttl: self.hop_limit,
            dont_fragment: self.fragment.is_none(),
            header: self.header,
            payload: self.payload,
            beyond: self.beyond,
        }
    }
}

/// Parses a packet and steps over its extension headers. `bytes` may end in link padding. A fragment header that
/// stands for the whole datagram is skipped (RFC 6946).
///
/// # Errors
/// When the version or a length is wrong, there are too many extensions, or a routing header has segments left (those
/// that let a sender choose the way are refused: RFC 5095).
pub fn parse(bytes: &[u8]) -> Result<Packet<'_>, ParseError> {
    parse_beginning(bytes, 0)
}

/// Parses a packet whose last `beyond` bytes are not at hand.
///
/// # Errors
/// As [`parse`]; the headers have to be in `bytes`.
pub fn parse_beginning(bytes: &[u8], beyond: usize) -> Result<Packet<'_>, ParseError> {
    at_least(bytes, HEADER_BYTES)?;
    if bytes[0] >> 4 != 6 {
        return Err(ParseError::Protocol);
    }
    let end = HEADER_BYTES + usize::from(be16(bytes, 4));
    if end > bytes.len() + beyond {
        return Err(ParseError::Length);
    }
    let beyond = end.saturating_sub(bytes.len());
    let bytes = &bytes[..end - beyond];
    let (mut protocol, mut at, mut fragment) = (bytes[6], HEADER_BYTES, None);
    // A following fragment begins with what is in the middle of the datagram: nothing there is a header.
    let follows = |fragment: &Option<Fragment>| fragment.is_some_and(|piece| piece.offset != 0);
    for _ in 0..=EXTENSIONS_MAX {
        if follows(&fragment) || ![HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION].contains(&protocol) {
            return Ok(Packet {
                src: address(bytes, 8),
                dst: address(bytes, 24),
                protocol,
                hop_limit: bytes[7],
                fragment,
                header: &bytes[..at],
                payload: &bytes[at..],
                beyond,
            });
        }
        at_least(&bytes[at..], 8)?;
        let mut length = 8 + usize::from(bytes[at + 1]) * 8;
        match protocol {
            FRAGMENT => {
                length = FRAGMENT_BYTES;
                let word = be16(bytes, at + 2);
                let piece = Fragment {
                    ident: be32(bytes, at + 4),
                    offset: usize::from(word & 0xfff8),
                    more: word & 1 != 0,
                };
                if fragment.is_some() {
                    return Err(ParseError::Length);
                }
                fragment = (piece.more || piece.offset != 0).then_some(piece);
            }
            ROUTING if bytes[at + 3] != 0 => return Err(ParseError::Protocol),
            _ => {}
        }
        at_least(&bytes[at..], length)?;
        protocol = bytes[at];
        at += length;
    }
    Err(ParseError::Length)
}

/// Reads an address; the caller has checked that `at + 16 <= bytes.len()`.
pub(crate) fn address(bytes: &[u8], at: usize) -> Ipv6Addr {
    let mut octets = [0; 16];
    octets.copy_from_slice(&bytes[at..at + 16]);
    octets.into()
}

/// A header to be written.
#[derive(Debug, Clone, Copy)]
pub struct Header {
    /// Source address.
    pub src: Ipv6Addr,
    /// Destination address.
    pub dst: Ipv6Addr,
    /// What follows the header.
    pub protocol: u8,
    /// Hops left.
    pub hop_limit: u8,
    /// Bytes after the header; at most 65535.
    pub payload_bytes: usize,
}

impl Header {
    /// A header with the usual limit of hops.
    pub fn new(src: Ipv6Addr, dst: Ipv6Addr, protocol: u8, payload_bytes: usize) -> Self {
        Self { src, dst, protocol, hop_limit: 64, payload_bytes }
    }

    /// Writes the header to the first 40 bytes of `out`, which has at least as many.
    pub fn emit(&self, out: &mut [u8]) {
        out[..4].copy_from_slice(&[0x60, 0, 0, 0]);
        out[4..6].copy_from_slice(&(self.payload_bytes as u16).to_be_bytes());
        out[6] = self.protocol;
        out[7] = self.hop_limit;
        out[8..24].copy_from_slice(&self.src.octets());
        out[24..40].copy_from_slice(&self.dst.octets());
    }
}

/// Returns the fragment header of a piece of a datagram of `protocol`.
pub fn emit_fragment(protocol: u8, piece: Fragment) -> [u8; FRAGMENT_BYTES] {
    let mut out = [protocol, 0, 0, 0, 0, 0, 0, 0];
    out[2..4].copy_from_slice(&((piece.offset as u16 & 0xfff8) | u16::from(piece.more)).to_be_bytes());
    out[4..].copy_from_slice(&piece.ident.to_be_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const SRC: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 3);
    const DST: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

    fn packet(protocol: u8, rest: &[u8]) -> Vec<u8> {
        let mut out = vec![0; HEADER_BYTES];
        Header::new(SRC, DST, protocol, rest.len()).emit(&mut out);
        out.extend_from_slice(rest);
        out
    }

    #[test]
    fn a_header_written_is_read_back() {
        let mut bytes = packet(17, b"payload");
        bytes.extend([0; 5]);
        let parsed = parse(&bytes).unwrap();
        assert_eq!((parsed.src, parsed.dst, parsed.protocol, parsed.hop_limit), (SRC, DST, 17, 64));
        assert_eq!((parsed.payload, parsed.fragment), (&b"payload"[..], None));
    }

    #[test]
    fn extension_headers_are_stepped_over_and_quoted() {
        let options =
            [DESTINATION, 0, 1, 4, 0, 0, 0, 0, 17, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, b'x'];
        let bytes = packet(HOP_BY_HOP, &options);
        let parsed = parse(&bytes).unwrap();
        assert_eq!((parsed.protocol, parsed.payload, parsed.header.len()), (17, &b"x"[..], 64));
    }

    #[test]
    fn fragments_are_read_and_atomic_ones_are_whole() {
        let piece = Fragment { ident: 7, offset: 1232, more: true };
        let bytes = packet(FRAGMENT, &[&emit_fragment(DESTINATION, piece)[..], b"middle"].concat());
        let parsed = parse(&bytes).unwrap();
        assert_eq!(
            (parsed.fragment, parsed.protocol, parsed.payload),
            (Some(piece), DESTINATION, &b"middle"[..])
        );
        let whole = Fragment { ident: 7, offset: 0, more: false };
        let bytes = packet(FRAGMENT, &emit_fragment(17, whole));
        assert_eq!(parse(&bytes).unwrap().fragment, None);
    }

    #[test]
    fn chains_that_run_out_or_never_end_are_refused() {
        for rest in [&[17u8][..], &[17, 9, 0, 0, 0, 0, 0, 0]] {
            assert!(matches!(parse(&packet(DESTINATION, rest)), Err(ParseError::Short { .. })));
        }
        let endless = [DESTINATION, 0, 0, 0, 0, 0, 0, 0].repeat(20);
        assert_eq!(parse(&packet(DESTINATION, &endless)).unwrap_err(), ParseError::Length);
        let source_route = [17, 0, 0, 1, 0, 0, 0, 0];
        assert_eq!(parse(&packet(ROUTING, &source_route)).unwrap_err(), ParseError::Protocol);
    }
}
