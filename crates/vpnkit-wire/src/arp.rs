//! ARP for IPv4 over Ethernet. Spec: RFC 826.

use std::net::Ipv4Addr;

use super::ethernet::MacAddr;
use super::{ParseError, address, at_least, be16};

/// Bytes of an ARP packet for IPv4 over Ethernet.
pub const PACKET_BYTES: usize = 28;

/// What a packet asks or says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Who has the target address?
    Request,
    /// The sender has the sender address.
    Reply,
}

/// An ARP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// Question or answer.
    pub operation: Operation,
    /// The sender's hardware address.
    pub sender_mac: MacAddr,
    /// The sender's protocol address; 0.0.0.0 in a probe (RFC 5227).
    pub sender: Ipv4Addr,
    /// The target's hardware address, if known.
    pub target_mac: MacAddr,
    /// The target's protocol address.
    pub target: Ipv4Addr,
}

/// Parses an ARP packet.
///
/// # Errors
/// When it is short, or not for IPv4 over Ethernet.
pub fn parse(bytes: &[u8]) -> Result<Packet, ParseError> {
    at_least(bytes, PACKET_BYTES)?;
    if bytes[..6] != [0, 1, 8, 0, 6, 4] {
        return Err(ParseError::Protocol);
    }
    let operation = match be16(bytes, 6) {
        1 => Operation::Request,
        2 => Operation::Reply,
        _ => return Err(ParseError::Protocol),
    };
    let (mut sender_mac, mut target_mac) = ([0; 6], [0; 6]);
    sender_mac.copy_from_slice(&bytes[8..14]);
    target_mac.copy_from_slice(&bytes[18..24]);
    Ok(Packet {
        operation,
        sender_mac: MacAddr(sender_mac),
        sender: address(bytes, 14),
        target_mac: MacAddr(target_mac),
        target: address(bytes, 24),
    })
}

/// Returns the bytes of `packet`.
pub fn emit(packet: &Packet) -> [u8; PACKET_BYTES] {
    let mut out = [0; PACKET_BYTES];
    out[..6].copy_from_slice(&[0, 1, 8, 0, 6, 4]);
    out[7] = match packet.operation {
        Operation::Request => 1,
        Operation::Reply => 2,
    };
    out[8..14].copy_from_slice(&packet.sender_mac.0);
    out[14..18].copy_from_slice(&packet.sender.octets());
    out[18..24].copy_from_slice(&packet.target_mac.0);
    out[24..28].copy_from_slice(&packet.target.octets());
    out
}
