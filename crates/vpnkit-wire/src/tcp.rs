//! TCP segments: sequence numbers, header, options. Spec: RFC 9293 §3.1, RFC 7323 §2, RFC 2018.

use std::net::IpAddr;
use std::ops::{Add, AddAssign, Sub};

use super::checksum::Checksum;
use super::ip::PROTOCOL_TCP;
use super::{ParseError, at_least, be16, be32};

/// Bytes of a header without options.
pub const HEADER_BYTES: usize = 20;
/// Bytes of the longest header.
pub const HEADER_BYTES_MAX: usize = 60;
/// No more data from the sender.
pub const FIN: u8 = 0x01;
/// Synchronise sequence numbers.
pub const SYN: u8 = 0x02;
/// Reset the connection.
pub const RST: u8 = 0x04;
/// Push.
pub const PSH: u8 = 0x08;
/// The acknowledgement field counts.
pub const ACK: u8 = 0x10;

/// A sequence number; compared modulo 2³².
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Seq(pub u32);

impl Seq {
    /// Distance from `earlier`; negative when `self` is the earlier one.
    pub fn since(self, earlier: Seq) -> i32 {
        self.0.wrapping_sub(earlier.0).cast_signed()
    }

    /// Whether `self` comes before `other`.
    pub fn before(self, other: Seq) -> bool {
        self.since(other) < 0
    }

    /// The later one.
    pub fn max(self, other: Seq) -> Seq {
        if self.before(other) { other } else { self }
    }
}

impl Add<u32> for Seq {
    type Output = Seq;
    fn add(self, bytes: u32) -> Seq {
        Seq(self.0.wrapping_add(bytes))
    }
}

impl Sub<u32> for Seq {
    type Output = Seq;
    fn sub(self, bytes: u32) -> Seq {
        Seq(self.0.wrapping_sub(bytes))
    }
}

impl AddAssign<u32> for Seq {
    fn add_assign(&mut self, bytes: u32) {
        *self = *self + bytes;
    }
}

/// A segment, seen in place.
#[derive(Debug, Clone, Copy)]
pub struct Segment<'a> {
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// Sequence number of the first byte, or of the SYN.
    pub seq: Seq,
    /// Next byte that the sender expects, if [`ACK`] is set.
    pub ack: Seq,
    /// FIN, SYN, RST, PSH, ACK; others are cut off.
    pub flags: u8,
    /// Window, not yet scaled.
    pub window: u16,
    /// Options, unparsed.
    pub options: &'a [u8],
    /// The data, or its beginning.
    pub payload: &'a [u8],
    /// Bytes of data after those.
    pub beyond: usize,
}

impl Segment<'_> {
    /// Whether all of `flags` are set.
    pub fn has(&self, flags: u8) -> bool {
        self.flags & flags == flags
    }

    /// Bytes of data.
    pub fn data_bytes(&self) -> u32 {
        (self.payload.len() + self.beyond) as u32
    }

    /// Sequence numbers that it takes: the data, and one each for SYN and FIN.
    pub fn len(&self) -> u32 {
        self.data_bytes() + u32::from(self.has(SYN)) + u32::from(self.has(FIN))
    }

    /// Whether it takes no sequence numbers.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Parses a segment. `verify` names the addresses when the checksum is to be verified.
///
/// # Errors
/// When a length or the checksum is wrong.
pub fn parse(bytes: &[u8], verify: Option<(IpAddr, IpAddr)>) -> Result<Segment<'_>, ParseError> {
    at_least(bytes, HEADER_BYTES)?;
    let header_bytes = usize::from(bytes[12] >> 4) * 4;
    if header_bytes < HEADER_BYTES || header_bytes > bytes.len() {
        return Err(ParseError::Length);
    }
    if let Some((src, dst)) = verify {
        let mut sum = Checksum::pseudo(src, dst, PROTOCOL_TCP, bytes.len());
        sum.add(bytes);
        if sum.finish() != 0 {
            return Err(ParseError::Checksum);
        }
    }
    Ok(Segment {
        src_port: be16(bytes, 0),
        dst_port: be16(bytes, 2),
        seq: Seq(be32(bytes, 4)),
        ack: Seq(be32(bytes, 8)),
        flags: bytes[13] & 0x1f,
        window: be16(bytes, 14),
        options: &bytes[HEADER_BYTES..header_bytes],
        payload: &bytes[header_bytes..],
        beyond: 0,
    })
}

/// Options of a SYN that we understand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SynOptions {
    /// Largest segment that the sender takes, in bytes.
    pub mss: Option<u16>,
    /// Shift of its windows, at most 14.
    pub window_scale: Option<u8>,
    /// Whether it understands selective acknowledgements.
    pub sack_permitted: bool,
}

/// Reads the options of a SYN; what is malformed ends the list.
pub fn parse_syn_options(options: &[u8]) -> SynOptions {
    let mut found = SynOptions::default();
    for (kind, value) in Options(options) {
        match (kind, value) {
            (2, [high, low]) => found.mss = Some(u16::from_be_bytes([*high, *low])),
            (3, [shift]) => found.window_scale = Some((*shift).min(14)),
            (4, []) => found.sack_permitted = true,
            _ => {}
        }
    }
    found
}

/// The ranges, start and end, that a segment says to have arrived beyond its acknowledgement; any numbers may be said.
///
/// Spec: RFC 2018 §3.
pub fn sack_blocks(options: &[u8]) -> impl Iterator<Item = (Seq, Seq)> + '_ {
    let values = Options(options).filter(|(kind, _)| *kind == 5).map(|(_, value)| value);
    values.flat_map(|value| value.as_chunks::<8>().0).map(|block| (Seq(be32(block, 0)), Seq(be32(block, 4))))
}

/// Kinds and values of options; what is malformed ends the list.
struct Options<'a>(&'a [u8]);

impl<'a> Iterator for Options<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        while let Some((1, after)) = self.0.split_first() {
            self.0 = after;
        }
        let (&kind, after) = self.0.split_first()?;
        let length = usize::from(*after.first()?);
        if kind == 0 || length < 2 || length > self.0.len() {
            self.0 = &[];
            return None;
        }
        let (option, rest) = self.0.split_at(length);
        self.0 = rest;
        Some((kind, &option[2..]))
    }
}

/// A header to be written.
#[derive(Debug, Clone, Copy)]
pub struct Header<'a> {
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// Sequence number.
    pub seq: Seq,
    /// Acknowledgement number, written as it is.
    pub ack: Seq,
    /// Flags.
    pub flags: u8,
    /// Window, already scaled.
    pub window: u16,
    /// Options, padded to a multiple of four, at most 40 bytes.
    pub options: &'a [u8],
}

impl Header<'_> {
    /// Writes the header with a checksum field of zero and returns its length; `out` has at least 60 bytes.
    pub fn emit(&self, out: &mut [u8]) -> usize {
        let header_bytes = HEADER_BYTES + self.options.len();
        out[..2].copy_from_slice(&self.src_port.to_be_bytes());
        out[2..4].copy_from_slice(&self.dst_port.to_be_bytes());
        out[4..8].copy_from_slice(&self.seq.0.to_be_bytes());
        out[8..12].copy_from_slice(&self.ack.0.to_be_bytes());
        out[12] = ((header_bytes / 4) as u8) << 4;
        out[13] = self.flags;
        out[14..16].copy_from_slice(&self.window.to_be_bytes());
        out[16..20].fill(0);
        out[HEADER_BYTES..header_bytes].copy_from_slice(self.options);
        header_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequence_numbers_compare_across_the_wrap() {
        assert!(Seq(u32::MAX).before(Seq(3)));
        assert!(!Seq(3).before(Seq(u32::MAX)));
        assert_eq!(Seq(3).since(Seq(u32::MAX)), 4);
    }

    #[test]
    fn options_of_a_linux_syn_are_read() {
        let options = [2, 4, 5, 0xb4, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7];
        let expected = SynOptions { mss: Some(1460), window_scale: Some(7), sack_permitted: true };
        assert_eq!(parse_syn_options(&options), expected);
    }

    #[test]
    fn options_that_contradict_themselves_end_the_list() {
        for options in [&[2u8][..], &[2, 0], &[2, 1, 0], &[2, 40, 1], &[3, 2, 3, 3, 7]] {
            let found = parse_syn_options(options);
            assert_eq!(found.mss, None, "{options:?}");
        }
    }

    #[test]
    fn selective_acknowledgements_are_read() {
        let options = [1, 1, 5, 18, 0, 0, 0, 1, 0, 0, 0, 2, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];
        let blocks: Vec<_> = sack_blocks(&options).collect();
        assert_eq!(blocks, [(Seq(1), Seq(2)), (Seq(u32::MAX), Seq(0))]);
        assert_eq!(sack_blocks(&options[..18]).count(), 0, "cut off");
        assert_eq!(sack_blocks(&[5, 9, 0, 0, 0, 1, 0, 0, 0]).count(), 0, "half a block");
    }
}
