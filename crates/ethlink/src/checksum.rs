//! The Internet checksum over several pieces. Spec: RFC 1071.

/// A sum in progress. Pieces may have any length.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sum {
    sum: u64,
    odd: bool,
}

impl Sum {
    /// Adds the bytes that follow those added so far.
    pub fn add(&mut self, bytes: &[u8]) {
        let part = sum_bytes(bytes);
        self.sum += u64::from(if self.odd { part.swap_bytes() } else { part });
        self.odd ^= bytes.len() % 2 == 1;
    }

    /// Returns the bytes to store.
    pub fn finish(self) -> [u8; 2] {
        (!fold(self.sum)).to_ne_bytes()
    }
}

/// One's complement addition does not depend on the width of its words: RFC 1071 §2 (C).
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

/// One's complement addition does not depend on the order of bytes, as long as they are stored as they were read:
/// RFC 1071 §2 (B).
fn fold(mut sum: u64) -> u16 {
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_sum_as_if_they_were_joined() {
        // The example of RFC 1071 §3: the words sum to ddf2.
        let bytes = [0, 1, 0xf2, 3, 0xf4, 0xf5, 0xf6, 0xf7];
        for cut in 0..=bytes.len() {
            let mut sum = Sum::default();
            sum.add(&bytes[..cut]);
            sum.add(&bytes[cut..]);
            assert_eq!(sum.finish(), (!0xddf2u16).to_be_bytes(), "cut at {cut}");
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
                let mut whole = Sum::default();
                whole.add(&bytes);
                assert_eq!(whole.finish(), (!(folded as u16)).to_be_bytes(), "{length} bytes");
            }
        }
    }
}
