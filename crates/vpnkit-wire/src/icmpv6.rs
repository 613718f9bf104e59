//! ICMPv6: echo, and the errors that quote a packet. Spec: RFC 4443.

use std::net::Ipv6Addr;

use super::checksum::Checksum;
use super::icmp::Message;
use super::ip::PROTOCOL_ICMPV6;
use super::{ParseError, at_least, be32};

/// Bytes of a header, of echoes and errors with the four bytes after the checksum.
pub const HEADER_BYTES: usize = 8;
/// Type of "destination unreachable".
pub const UNREACHABLE: u8 = 1;
/// Type of "packet too big".
pub const TOO_BIG: u8 = 2;
/// Type of "time exceeded".
pub const TIME_EXCEEDED: u8 = 3;
/// Type of "parameter problem".
pub const PARAMETER_PROBLEM: u8 = 4;
/// Type of an echo request.
pub const ECHO_REQUEST: u8 = 128;
/// Type of an echo reply.
pub const ECHO_REPLY: u8 = 129;
/// Code of [`UNREACHABLE`]: no route to the destination.
pub const CODE_NO_ROUTE: u8 = 0;
/// Code of [`UNREACHABLE`]: forbidden by a policy.
pub const CODE_PROHIBITED: u8 = 1;
/// Code of [`UNREACHABLE`]: the host does not answer.
pub const CODE_ADDRESS: u8 = 3;
/// Code of [`UNREACHABLE`]: nobody listens on the port.
pub const CODE_PORT: u8 = 4;
/// Code of [`PARAMETER_PROBLEM`]: a next header that is not known.
pub const CODE_NEXT_HEADER: u8 = 1;

/// Parses a message and verifies its checksum.
///
/// # Errors
/// When it is short or the checksum is wrong.
pub fn parse(bytes: &[u8], src: Ipv6Addr, dst: Ipv6Addr) -> Result<Message<'_>, ParseError> {
    at_least(bytes, HEADER_BYTES)?;
    let mut sum = Checksum::pseudo_v6(src, dst, PROTOCOL_ICMPV6, bytes.len());
    sum.add(bytes);
    if sum.finish() != 0 {
        return Err(ParseError::Checksum);
    }
    Ok(Message { kind: bytes[0], code: bytes[1], rest: be32(bytes, 4), payload: &bytes[HEADER_BYTES..] })
}

/// Returns the header, with the checksum over the pseudo header, it and `payload`.
pub fn emit_header(
    (src, dst): (Ipv6Addr, Ipv6Addr),
    (kind, code, rest): (u8, u8, u32),
    payload: &[u8],
) -> [u8; HEADER_BYTES] {
    let mut out = [0; HEADER_BYTES];
    out[0] = kind;
    out[1] = code;
    out[4..8].copy_from_slice(&rest.to_be_bytes());
    let mut sum = Checksum::pseudo_v6(src, dst, PROTOCOL_ICMPV6, HEADER_BYTES + payload.len());
    sum.add(&out);
    sum.add(payload);
    out[2..4].copy_from_slice(&sum.finish().to_be_bytes());
    out
}

/// Returns whether an error may be sent about a packet with this ICMPv6 payload: never about another error, nor about
/// a redirect. Spec: RFC 4443 §2.4 (e).
pub fn may_be_answered(icmp: &[u8]) -> bool {
    icmp.first().is_some_and(|kind| *kind >= 128 && *kind != 137)
}
