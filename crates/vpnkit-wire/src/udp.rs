//! UDP datagrams. Spec: RFC 768.

use std::net::{IpAddr, SocketAddr};

use super::checksum::Checksum;
use super::ip::PROTOCOL_UDP;
use super::{ParseError, at_least, be16};

/// Bytes of a UDP header.
pub const HEADER_BYTES: usize = 8;

/// A datagram, seen in place.
#[derive(Debug, Clone, Copy)]
pub struct Datagram<'a> {
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// The payload.
    pub payload: &'a [u8],
}

/// Parses a datagram. `verify` names the addresses when the checksum is to be verified; over IPv4 a checksum
/// of zero is none, over IPv6 there has to be one (RFC 8200 §8.1).
///
/// # Errors
/// When a length or the checksum is wrong.
pub fn parse(bytes: &[u8], verify: Option<(IpAddr, IpAddr)>) -> Result<Datagram<'_>, ParseError> {
    at_least(bytes, HEADER_BYTES)?;
    let length = usize::from(be16(bytes, 4));
    if length < HEADER_BYTES || length > bytes.len() {
        return Err(ParseError::Length);
    }
    if let Some((src, dst)) = verify
        && (be16(bytes, 6) != 0 || src.is_ipv6())
    {
        let mut sum = Checksum::pseudo(src, dst, PROTOCOL_UDP, length);
        sum.add(&bytes[..length]);
        if sum.finish() != 0 {
            return Err(ParseError::Checksum);
        }
    }
    let payload = &bytes[HEADER_BYTES..length];
    Ok(Datagram { src_port: be16(bytes, 0), dst_port: be16(bytes, 2), payload })
}

/// Returns the header of a datagram, checksum included. `payload` has at most 65507 bytes.
pub fn emit_header(
    src: impl Into<SocketAddr>,
    dst: impl Into<SocketAddr>,
    payload: &[u8],
) -> [u8; HEADER_BYTES] {
    let (src, dst) = (src.into(), dst.into());
    let length = HEADER_BYTES + payload.len();
    let mut out = [0; HEADER_BYTES];
    out[..2].copy_from_slice(&src.port().to_be_bytes());
    out[2..4].copy_from_slice(&dst.port().to_be_bytes());
    out[4..6].copy_from_slice(&(length as u16).to_be_bytes());
    let mut sum = Checksum::pseudo(src.ip(), dst.ip(), PROTOCOL_UDP, length);
    sum.add(&out);
    sum.add(payload);
    // A sum of zero would say that there is none: RFC 768.
    let sum = if sum.finish() == 0 { 0xffff } else { sum.finish() };
    out[6..8].copy_from_slice(&sum.to_be_bytes());
    out
}
