//! Where on a page of RAM decoded blocks lie, and maps from addresses.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::decode::blocks::{Key, Span};

/// A multiplicative hash, good enough for addresses.
#[derive(Debug, Default)]
pub struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, value: u64) {
        let mixed = (self.0.rotate_left(5) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 32);
    }

    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }
}

/// A map from addresses, and from what is made of them.
pub type ByAddress<K, V> = HashMap<K, V, BuildHasherDefault<AddressHasher>>;

/// What is decoded of one page of RAM.
#[derive(Debug, Default)]
pub struct CodeLines {
    /// Which 64-byte lines hold code.
    pub lines: u64,
    /// Blocks of which a part lies on it.
    pub blocks: Vec<CodeBlock>,
}

/// A block of which a part lies on a page.
#[derive(Debug, Clone, Copy)]
pub struct CodeBlock {
    /// The block.
    pub key: Key,
    /// First and last byte of the part, as offsets in the page.
    first: u16,
    last: u16,
}

impl CodeBlock {
    /// Whether any of bytes `first..=last` of the page is its.
    pub fn overlaps(&self, first: u64, last: u64) -> bool {
        u64::from(self.first) <= last && first <= u64::from(self.last)
    }
}

impl CodeLines {
    /// Takes in the part of a block that lies on the page.
    pub fn insert(&mut self, key: Key, span: &Span) {
        self.lines |= lines(span.first, span.last);
        self.blocks.push(CodeBlock { key, first: span.first as u16, last: span.last as u16 });
    }

    /// Takes out the blocks that `is_hit` chooses; their keys.
    pub fn take(&mut self, is_hit: impl Fn(&CodeBlock) -> bool) -> Vec<Key> {
        let mut taken = Vec::new();
        self.lines = 0;
        self.blocks.retain(|block| {
            let hit = is_hit(block);
            if hit {
                taken.push(block.key);
            } else {
                self.lines |= lines(block.first.into(), block.last.into());
            }
            !hit
        });
        taken
    }
}

/// The 64-byte lines that bytes `first..=last` of a page touch.
pub fn lines(first: u64, last: u64) -> u64 {
    let (first, last) = (first / 64, (last / 64).min(63));
    if first > last { 0 } else { (u64::MAX >> (63 - (last - first))) << first }
}
