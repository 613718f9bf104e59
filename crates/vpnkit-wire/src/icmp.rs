//! ICMP for IPv4: echo, and the errors that quote a packet. Spec: RFC 792, RFC 1122 §3.2.2.

use super::checksum::{Checksum, checksum};
use super::{ParseError, at_least, be16, be32};

/// Bytes of an ICMP header.
pub const HEADER_BYTES: usize = 8;
/// Type of an echo reply.
pub const ECHO_REPLY: u8 = 0;
/// Type of "destination unreachable".
pub const UNREACHABLE: u8 = 3;
/// Type of an echo request.
pub const ECHO_REQUEST: u8 = 8;
/// Type of "time exceeded".
pub const TIME_EXCEEDED: u8 = 11;
/// Code of [`UNREACHABLE`]: no route to the network.
pub const CODE_NET: u8 = 0;
/// Code of [`UNREACHABLE`]: the host does not answer.
pub const CODE_HOST: u8 = 1;
/// Code of [`UNREACHABLE`]: the protocol is not spoken.
pub const CODE_PROTOCOL: u8 = 2;
/// Code of [`UNREACHABLE`]: nobody listens on the port.
pub const CODE_PORT: u8 = 3;
/// Code of [`UNREACHABLE`]: the packet is too big and may not be fragmented.
pub const CODE_TOO_BIG: u8 = 4;
/// Code of [`UNREACHABLE`]: forbidden by a policy.
pub const CODE_PROHIBITED: u8 = 13;

/// An ICMP message, seen in place.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    /// Its type.
    pub kind: u8,
    /// Its code.
    pub code: u8,
    /// The four bytes after the checksum: identifier and sequence number of an echo.
    pub rest: u32,
    /// What follows the header.
    pub payload: &'a [u8],
}

impl Message<'_> {
    /// Identifier of an echo.
    pub fn ident(&self) -> u16 {
        (self.rest >> 16) as u16
    }

    /// Sequence number of an echo.
    pub fn sequence(&self) -> u16 {
        self.rest as u16
    }
}

/// Parses a message and verifies its checksum.
///
/// # Errors
/// When it is short or the checksum is wrong.
pub fn parse(bytes: &[u8]) -> Result<Message<'_>, ParseError> {
    at_least(bytes, HEADER_BYTES)?;
    if checksum(bytes) != 0 {
        return Err(ParseError::Checksum);
    }
    parse_verified(bytes)
}

/// Parses a message whose checksum somebody else has verified, of ICMP or ICMPv6.
///
/// # Errors
/// When it is short.
pub fn parse_verified(bytes: &[u8]) -> Result<Message<'_>, ParseError> {
    at_least(bytes, HEADER_BYTES)?;
    Ok(Message { kind: bytes[0], code: bytes[1], rest: be32(bytes, 4), payload: &bytes[HEADER_BYTES..] })
}

/// Returns the header, with the checksum over it and `payload`.
pub fn emit_header(kind: u8, code: u8, rest: u32, payload: &[u8]) -> [u8; HEADER_BYTES] {
    let mut out = [0; HEADER_BYTES];
    out[0] = kind;
    out[1] = code;
    out[4..8].copy_from_slice(&rest.to_be_bytes());
    let mut sum = Checksum::default();
    sum.add(&out);
    sum.add(payload);
    out[2..4].copy_from_slice(&sum.finish().to_be_bytes());
    out
}

/// Returns whether an ICMP error may be sent about a packet with this ICMP payload: never about another error.
///
/// Spec: RFC 1122 §3.2.2.
pub fn may_be_answered(icmp: &[u8]) -> bool {
    icmp.len() >= 2 && matches!(be16(icmp, 0) >> 8, 0 | 8 | 13 | 14)
}
