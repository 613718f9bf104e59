//! Seeded random numbers, biased to the edges.

/// SplitMix64.
#[derive(Debug, Clone)]
pub struct Random(pub u64);

/// Singles worth trying: zeros, ones, infinities, NaNs quiet and signalling, denormals, extremes, integers' limits.
const SINGLES: [u32; 20] = [
    0,
    0x8000_0000,
    0x3f80_0000,
    0xbf80_0000,
    0x7f80_0000,
    0xff80_0000,
    0x7fc0_0000,
    0xffc0_1234,
    0x7f80_0001,
    0xffa0_0000,
    1,
    0x8000_0001,
    0x007f_ffff,
    0x0080_0000,
    0x8080_0000,
    0x7f7f_ffff,
    0x4f00_0000,
    0xcf00_0000,
    0x5f00_0000,
    0x3f00_0000,
];
/// Doubles, likewise.
const DOUBLES: [u64; 20] = [
    0,
    1 << 63,
    0x3ff0_0000_0000_0000,
    0xbff0_0000_0000_0000,
    0x7ff0_0000_0000_0000,
    0xfff0_0000_0000_0000,
    0x7ff8_0000_0000_0000,
    0xfff8_0000_0000_1234,
    0x7ff0_0000_0000_0001,
    0xfff4_0000_0000_0000,
    1,
    0x8000_0000_0000_0001,
    0x000f_ffff_ffff_ffff,
    0x0010_0000_0000_0000,
    0x7fef_ffff_ffff_ffff,
    0x41e0_0000_0000_0000,
    0xc1e0_0000_0020_0000,
    0x43e0_0000_0000_0000,
    0x3810_0000_0000_0000,
    0x3fe0_0000_0000_0000,
];
/// Exponents of extended numbers, with sign.
const EXPONENTS: [u16; 16] = [
    0, 0x8000, 1, 0x3fff, 0xbfff, 0x4000, 0x7ffe, 0x7fff, 0xffff, 0x403e, 0xc03e, 0x3c00, 0x3f80, 0x43ff,
    0x401e, 0x3fbf,
];
/// Significands of extended numbers: with the pseudo and unnormal ones that no instruction makes.
const SIGNIFICANDS: [u64; 10] = [
    0,
    1 << 63,
    3 << 62,
    (1 << 63) | 1,
    1,
    u64::MAX,
    0xc90f_daa2_2168_c235,
    0x4000_0000_0000_0000,
    0x8000_0000_0000_0400,
    0xffff_ff00_0000_0000,
];

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// Once in `n`.
    pub fn once_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// 64 bits: integers small or at the edge of a width, numbers at the edges of their formats, or anything.
    pub fn value(&mut self) -> u64 {
        match self.below(10) {
            0 | 1 => {
                let edge = 1u64 << self.pick(&[0, 1, 3, 4, 5, 6, 7, 8, 15, 16, 31, 32, 63]);
                edge.wrapping_add(self.below(3)).wrapping_sub(1)
            }
            2 => (self.below(5) as i64 - 2) as u64,
            3 => self.below(70),
            4 => !0 << self.below(64),
            5 => self.pick(&DOUBLES),
            6 => u64::from(self.single()) << 32 | u64::from(self.single()),
            7 => (self.below(2000) as f64 / 8.0 - 100.0).to_bits(),
            _ => self.next(),
        }
    }

    fn single(&mut self) -> u32 {
        match self.below(3) {
            0 => (self.below(2000) as f32 / 8.0 - 100.0).to_bits(),
            1 => self.next() as u32,
            _ => self.pick(&SINGLES),
        }
    }

    pub fn vector(&mut self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.value().to_le_bytes());
        bytes[8..].copy_from_slice(&self.value().to_le_bytes());
        bytes
    }

    /// An extended number: a normal one of moderate size most often.
    pub fn extended(&mut self) -> [u8; 10] {
        let (exponent, significand) = match self.below(4) {
            0 => (self.pick(&EXPONENTS), self.pick(&SIGNIFICANDS)),
            1 => (self.next() as u16, self.next()),
            2 => (0x3fff + self.below(70) as u16, (1 << 63) | self.next() << self.below(64)),
            _ => ((0x3fe0 + self.below(64) as u16) | (self.below(2) as u16) << 15, (1 << 63) | self.next()),
        };
        let mut bytes = [0; 10];
        bytes[..8].copy_from_slice(&significand.to_le_bytes());
        bytes[8..].copy_from_slice(&exponent.to_le_bytes());
        bytes
    }
}
