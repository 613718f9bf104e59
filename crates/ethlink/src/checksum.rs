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
        let mut words = bytes.chunks_exact(4);
        let mut sum: u64 = words.by_ref().map(|word| u64::from(ne_u32(word))).sum();
        let mut last = [0; 4];
        last[..words.remainder().len()].copy_from_slice(words.remainder());
        sum += u64::from(u32::from_ne_bytes(last));
        let part = fold(sum);
        self.sum += u64::from(if self.odd { part.swap_bytes() } else { part });
        self.odd ^= bytes.len() % 2 == 1;
    }

    /// Returns the bytes to store.
    pub fn finish(self) -> [u8; 2] {
        (!fold(self.sum)).to_ne_bytes()
    }
}

fn ne_u32(word: &[u8]) -> u32 {
    u32::from_ne_bytes([word[0], word[1], word[2], word[3]])
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
}
