//! Deltas between trees: versions of a directory that differ in a few entries.
//!
//! Only one run of bytes may differ, which is what a commit does to a directory. Spec: gitformat-pack(5), "Deltified
//! representation".

use std::collections::VecDeque;

/// Most deltas between a tree and one that is whole. Packs are put together twice, so that there may be twice as many;
/// git itself makes up to 50.
const DEPTH_MAX: u32 = 24;

/// A delta that inserts no more than this is good enough to look no further, in bytes.
const GOOD_BYTES: usize = 64;

/// Most trees to make deltas against.
const TREES_MAX: usize = 512;

/// And most bytes of them; a tree of more than half of that is left alone.
const WINDOW_BYTES: usize = 16 << 20;

/// Largest tree of which deltas are made, in bytes.
pub(crate) const TREE_BYTES_MAX: usize = WINDOW_BYTES / 2;

/// What is compared at once, in bytes.
const BLOCK_BYTES: usize = 256;

struct Known {
    offset: u64,
    depth: u32,
    bytes: Vec<u8>,
}

/// The trees last written into a pack.
#[derive(Default)]
pub(crate) struct Window {
    trees: VecDeque<Known>,
    bytes: usize,
}

/// A delta against what is at an offset of the same pack.
pub(crate) struct Delta {
    pub base: u64,
    pub instructions: Vec<u8>,
    depth: u32,
}

/// Where two texts begin and end alike: how many bytes.
fn common(base: &[u8], target: &[u8]) -> (usize, usize) {
    // By the block first, which is much faster than by the byte.
    let blocks = base.chunks_exact(BLOCK_BYTES).zip(target.chunks_exact(BLOCK_BYTES));
    let same = blocks.take_while(|(a, b)| a == b).count() * BLOCK_BYTES;
    let prefix = same + base[same..].iter().zip(&target[same..]).take_while(|(a, b)| a == b).count();
    let (base, target) = (&base[prefix..], &target[prefix..]);
    let blocks = base.rchunks_exact(BLOCK_BYTES).zip(target.rchunks_exact(BLOCK_BYTES));
    let same = blocks.take_while(|(a, b)| a == b).count() * BLOCK_BYTES;
    let ends = base[..base.len() - same].iter().rev().zip(target[..target.len() - same].iter().rev());
    (prefix, same + ends.take_while(|(a, b)| a == b).count())
}

impl Window {
    /// The best delta of a tree, if there is one that is worth it.
    pub fn delta(&self, target: &[u8]) -> Option<Delta> {
        let mut best: Option<(usize, &Known, (usize, usize))> = None;
        for known in self.trees.iter().rev().filter(|known| known.depth < DEPTH_MAX) {
            let found = common(&known.bytes, target);
            let inserted = target.len() - found.0 - found.1;
            // The longer the chain already is, the less: as git has it, so that one too long gives way to a new one.
            if inserted * 2 * DEPTH_MAX as usize > target.len() * (DEPTH_MAX - known.depth) as usize {
                continue;
            }
            if best.as_ref().is_none_or(|(least, ..)| inserted < *least) {
                best = Some((inserted, known, found));
                if inserted <= GOOD_BYTES {
                    break;
                }
            }
        }
        let (inserted, known, (prefix, suffix)) = best?;
        let mut out = Vec::with_capacity(inserted + inserted / 100 + 64);
        size(&mut out, known.bytes.len());
        size(&mut out, target.len());
        copy(&mut out, 0, prefix);
        for part in target[prefix..target.len() - suffix].chunks(127) {
            out.push(u8::try_from(part.len()).expect("at most 127"));
            out.extend_from_slice(part);
        }
        copy(&mut out, known.bytes.len() - suffix, suffix);
        (out.len() < target.len()).then_some(Delta {
            base: known.offset,
            instructions: out,
            depth: known.depth + 1,
        })
    }

    /// Remembers a tree that was written at an offset: whole, or as this delta.
    pub fn add(&mut self, offset: u64, delta: Option<&Delta>, bytes: Vec<u8>) {
        self.bytes += bytes.len();
        self.trees.push_back(Known { offset, depth: delta.map_or(0, |delta| delta.depth), bytes });
        while self.trees.len() > TREES_MAX || self.bytes > WINDOW_BYTES {
            let Some(gone) = self.trees.pop_front() else { return };
            self.bytes -= gone.bytes.len();
        }
    }
}

fn size(out: &mut Vec<u8>, mut n: usize) {
    while n > 0x7f {
        out.push((n & 0x7f) as u8 | 0x80);
        n >>= 7;
    }
    out.push((n & 0x7f) as u8);
}

/// Instructions that copy `count` bytes from `offset` of the base, each at most 0xffffff.
fn copy(out: &mut Vec<u8>, mut offset: usize, mut count: usize) {
    while count > 0 {
        let now = count.min(0xff_ffff);
        let at = out.len();
        out.push(0x80);
        for (bit, byte) in offset.to_le_bytes().into_iter().take(4).enumerate() {
            if byte != 0 {
                out[at] |= 1 << bit;
                out.push(byte);
            }
        }
        for (bit, byte) in now.to_le_bytes().into_iter().take(3).enumerate() {
            if byte != 0 {
                out[at] |= 1 << (4 + bit);
                out.push(byte);
            }
        }
        offset += now;
        count -= now;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    /// What git's patch-delta.c does.
    fn apply(base: &[u8], mut delta: &[u8]) -> Vec<u8> {
        let mut byte = || {
            let (first, rest) = delta.split_first().unwrap();
            delta = rest;
            *first
        };
        let size = |byte: &mut dyn FnMut() -> u8| {
            let (mut n, mut shift) = (0_usize, 0);
            loop {
                let next = byte();
                n |= usize::from(next & 0x7f) << shift;
                shift += 7;
                if next & 0x80 == 0 {
                    return n;
                }
            }
        };
        assert_eq!(size(&mut byte), base.len());
        let total = size(&mut byte);
        let mut out = Vec::new();
        while out.len() < total {
            let what = byte();
            if what & 0x80 == 0 {
                assert_ne!(what, 0);
                out.extend((0..what).map(|_| byte()));
                continue;
            }
            let mut number = |bits: std::ops::Range<u32>| {
                let first = bits.start;
                bits.filter(|bit| what & (1 << bit) != 0)
                    .map(|bit| usize::from(byte()) << (8 * (bit - first)))
                    .sum::<usize>()
            };
            let offset = number(0..4);
            let count = match number(4..7) {
                0 => 0x1_0000,
                count => count,
            };
            out.extend_from_slice(&base[offset..offset + count]);
        }
        assert!(delta.is_empty());
        out
    }

    #[test]
    fn what_a_delta_says_is_what_it_was_made_of() {
        let bytes = |n: usize, seed: usize| -> Vec<u8> {
            (0..n).map(|at| (at.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 7) as u8).collect()
        };
        let base = bytes(300_000, 0);
        let change = |at: usize, removed: usize, inserted: &[u8]| {
            [&base[..at], inserted, &base[at + removed..]].concat()
        };
        for target in [
            base.clone(),
            change(0, 20, &bytes(20, 1)),
            change(150_000, 20, &bytes(20, 1)),
            change(299_980, 20, &bytes(20, 1)),
            change(70_000, 0, &bytes(1000, 2)),
            change(65_536, 65_536, &[]),
            change(0, 299_000, &[]),
        ] {
            let mut window = Window::default();
            window.add(12, None, base.clone());
            let delta = window.delta(&target).unwrap();
            assert_eq!(delta.base, 12);
            assert!(delta.instructions.len() < 1100, "{}", delta.instructions.len());
            assert!(apply(&base, &delta.instructions) == target);
        }
        let mut window = Window::default();
        window.add(12, None, base);
        assert!(window.delta(&bytes(300_000, 77)).is_none());
        assert!(window.delta(b"").is_none());
    }

    #[test]
    fn chains_and_memory_are_bounded() {
        let mut window = Window::default();
        let mut tree = vec![7; 1 << 20];
        let mut depths = Vec::new();
        for n in 0..100_u8 {
            tree[usize::from(n) * 1000] = n;
            let delta = window.delta(&tree);
            depths.push(delta.as_ref().map_or(0, |delta| delta.depth));
            window.add(u64::from(n), delta.as_ref(), tree.clone());
            assert!(window.bytes <= WINDOW_BYTES && window.trees.len() <= TREES_MAX);
        }
        assert_eq!(depths.iter().max(), Some(&DEPTH_MAX));
    }
}
