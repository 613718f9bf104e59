//! The Internet checksum: a one's complement sum, gathered over several pieces. Spec: RFC 1071.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A sum in progress. Pieces may have any length; an odd piece shifts those after it as if they were joined.
#[derive(Debug, Clone, Copy, Default)]
pub struct Checksum {
    sum: u64,
    odd: bool,
}

impl Checksum {
    /// Starts with the pseudo header of either version; both addresses are of one family.
    pub fn pseudo(src: IpAddr, dst: IpAddr, protocol: u8, length_bytes: usize) -> Self {
        match (src, dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => Self::pseudo_v4(src, dst, protocol, length_bytes),
            (IpAddr::V6(src), IpAddr::V6(dst)) => Self::pseudo_v6(src, dst, protocol, length_bytes),
            // No packet has such addresses; a sum of nothing matches none.
            _ => Self::default(),
        }
    }

    /// Starts with the pseudo header of everything over IPv6. `length_bytes` counts header and payload.
    ///
    /// Spec: RFC 8200 §8.1.
    pub fn pseudo_v6(src: Ipv6Addr, dst: Ipv6Addr, protocol: u8, length_bytes: usize) -> Self {
        let mut sum = Self::default();
        sum.add(&src.octets());
        sum.add(&dst.octets());
        sum.add(&(length_bytes as u32).to_be_bytes());
        sum.add(&[0, 0, 0, protocol]);
        sum
    }

    /// Starts with the pseudo header of TCP and UDP over IPv4. `length_bytes` counts header and payload.
    ///
    /// Spec: RFC 9293 §3.1, RFC 768.
    pub fn pseudo_v4(src: Ipv4Addr, dst: Ipv4Addr, protocol: u8, length_bytes: usize) -> Self {
        let [high, low] = (length_bytes as u16).to_be_bytes();
        let words = [src.octets(), dst.octets(), [0, protocol, high, low]];
        Self { sum: words.map(|word| u64::from(u32::from_ne_bytes(word))).iter().sum(), odd: false }
    }

    /// Adds the bytes that follow those added so far.
    pub fn add(&mut self, bytes: &[u8]) {
        let mut part = sum_bytes(bytes);
        if self.odd {
            part = part.swap_bytes();
        }
        self.sum += u64::from(part);
        self.odd ^= bytes.len() % 2 == 1;
    }

    /// Returns the folded sum, not complemented, in host order: what a partial checksum field holds.
    pub fn partial(self) -> u16 {
        u16::from_be(fold(self.sum))
    }

    /// Returns the checksum to store, in host order.
    pub fn finish(self) -> u16 {
        !self.partial()
    }
}

/// Returns the checksum of one piece, in host order.
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = Checksum::default();
    sum.add(bytes);
    sum.finish()
}

fn fold(mut sum: u64) -> u16 {
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Sums as native-endian words; the result of one's complement addition does not depend on the order of bytes
/// as long as it is stored the way it was read (RFC 1071 §2 (B)), nor on the width of the words (§2 (C)).
fn sum_bytes(bytes: &[u8]) -> u16 {
    let (blocks, rest) = bytes.as_chunks::<16>();
    let (mut wide, mut sum) = (0u128, 0u64);
    for block in blocks {
        let (added, carry) = wide.overflowing_add(u128::from_ne_bytes(*block));
        wide = added;
        sum += u64::from(carry);
    }
    for half in [wide as u64, (wide >> 64) as u64] {
        sum += (half & 0xffff_ffff) + (half >> 32);
    }
    let (words, rest) = rest.as_chunks::<4>();
    for word in words {
        sum += u64::from(u32::from_ne_bytes(*word));
    }
    let last = match *rest {
        [a, b, c] => [a, b, c, 0],
        [a, b] => [a, b, 0, 0],
        [a] => [a, 0, 0, 0],
        _ => [0; 4],
    };
    fold(sum + u64::from(u32::from_ne_bytes(last)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_rfc_1071_sums_as_it_says() {
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
    }

    #[test]
    fn pieces_sum_like_the_whole_wherever_they_are_cut() {
        let whole: Vec<u8> = (0..200u32).map(|n| (n * 37 + 11) as u8).collect();
        let expected = checksum(&whole);
        for cut in 0..whole.len() {
            let mut sum = Checksum::default();
            sum.add(&whole[..cut]);
            sum.add(&whole[cut..]);
            assert_eq!(sum.finish(), expected, "cut at {cut}");
        }
    }

    #[test]
    fn every_length_sums_as_its_words_of_16_bits_do() {
        let patterns: [fn(usize) -> u8; 3] =
            [|_| 0xff, |at| (at * 151 + 7) as u8, |at| 0xff - (at % 3) as u8];
        for byte in patterns {
            for length in 0..100 {
                let bytes: Vec<u8> = (0..length).map(byte).collect();
                let words = bytes
                    .chunks(2)
                    .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
                let sum: u32 = words.sum();
                let folded = (sum & 0xffff) + (sum >> 16);
                assert_eq!(checksum(&bytes), !(folded as u16), "{length} bytes");
            }
        }
    }

    #[test]
    fn a_pseudo_header_sums_as_its_bytes_do() {
        let (src, dst) = (Ipv4Addr::new(192, 168, 65, 3), Ipv4Addr::new(255, 254, 253, 252));
        let bytes = [192, 168, 65, 3, 255, 254, 253, 252, 0, 17, 0x12, 0x34];
        assert_eq!(Checksum::pseudo_v4(src, dst, 17, 0x1234).finish(), checksum(&bytes));
    }

    #[test]
    fn bytes_with_their_checksum_sum_to_zero() {
        let mut packet = vec![0x45, 0, 0, 20, 1, 2, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        let sum = checksum(&packet);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(checksum(&packet), 0);
    }
}
