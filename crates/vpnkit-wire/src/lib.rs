//! Bytes of the protocols of a network, from Ethernet to DNS: one file a protocol, `parse` and `emit`.
//!
//! Nothing here keeps state, or reads a clock, file, socket or randomness. Parsers take any bytes and never panic.
#![forbid(unsafe_code)]

pub mod arp;
pub mod checksum;
pub mod dhcp;
pub mod dhcpv6;
pub mod dns;
pub mod ethernet;
pub mod icmp;
pub mod icmpv6;
pub mod ip;
pub mod ipv4;
pub mod ipv6;
pub mod ndp;
pub mod ntp;
pub mod tcp;
pub mod udp;

/// Why bytes are not a packet of the protocol. The sender's fault: counted and dropped, never logged one by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each message documents its variant")]
pub enum ParseError {
    #[error("{len} bytes are too few, {need} are needed")]
    Short { len: usize, need: usize },
    #[error("a length field contradicts the bytes")]
    Length,
    #[error("the checksum is wrong")]
    Checksum,
    #[error("not this protocol or version")]
    Protocol,
}

/// Reads a big-endian `u16`; the caller has checked that `at + 2 <= bytes.len()`.
fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Reads a big-endian `u32`; the caller has checked that `at + 4 <= bytes.len()`.
fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Reads an IPv4 address; the caller has checked that `at + 4 <= bytes.len()`.
fn address(bytes: &[u8], at: usize) -> std::net::Ipv4Addr {
    std::net::Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3])
}

/// Errs unless `bytes` has at least `need` bytes.
fn at_least(bytes: &[u8], need: usize) -> Result<(), ParseError> {
    if bytes.len() < need { Err(ParseError::Short { len: bytes.len(), need }) } else { Ok(()) }
}
