//! Ethernet II frames, without the frame check sequence and without VLAN tags. Spec: RFC 894, IEEE 802.3.

use super::{ParseError, at_least, be16};

/// Bytes of an Ethernet header.
pub const HEADER_BYTES: usize = 14;
/// EtherType of IPv4.
pub const TYPE_IPV4: u16 = 0x0800;
/// EtherType of IPv6.
pub const TYPE_IPV6: u16 = 0x86dd;
/// EtherType of ARP.
pub const TYPE_ARP: u16 = 0x0806;

/// A hardware address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// The address of every station.
    pub const BROADCAST: MacAddr = MacAddr([0xff; 6]);

    /// Whether one station is meant: neither broadcast nor multicast, and not all zero.
    pub fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

impl std::fmt::Display for MacAddr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A frame, seen in place.
#[derive(Debug, Clone, Copy)]
pub struct Frame<'a> {
    /// Station that the frame is for.
    pub dst: MacAddr,
    /// Station that sent it.
    pub src: MacAddr,
    /// What the payload is.
    pub ethertype: u16,
    /// Everything after the header, padding included.
    pub payload: &'a [u8],
}

/// Splits a frame.
///
/// # Errors
/// When there are fewer bytes than a header has.
pub fn parse(frame: &[u8]) -> Result<Frame<'_>, ParseError> {
    at_least(frame, HEADER_BYTES)?;
    let (mut dst, mut src) = ([0; 6], [0; 6]);
    dst.copy_from_slice(&frame[..6]);
    src.copy_from_slice(&frame[6..12]);
    let (dst, src) = (MacAddr(dst), MacAddr(src));
    Ok(Frame { dst, src, ethertype: be16(frame, 12), payload: &frame[HEADER_BYTES..] })
}

/// Writes a header to the first 14 bytes of `out`, which has at least as many.
pub fn emit(out: &mut [u8], dst: MacAddr, src: MacAddr, ethertype: u16) {
    out[..6].copy_from_slice(&dst.0);
    out[6..12].copy_from_slice(&src.0);
    out[12..14].copy_from_slice(&ethertype.to_be_bytes());
}
