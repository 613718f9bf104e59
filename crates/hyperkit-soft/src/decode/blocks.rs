//! The block cache of one vCPU: decoded blocks, keyed by physical address and code size, and the ways to find the
//! next one fast.
//!
//! Blocks are found, from fast to slow, through the links of the block before, through a cache by linear address,
//! and by physical address. The first two hold only as long as [`Blocks::context`] is what it was when they were
//! noted; it changes with the translation of addresses, with the mode and when blocks are dropped.
//!
//! A dropped block stays allocated until [`Blocks::bury`], which only the run loop calls, between blocks: a block
//! can drop itself. It then ends after the current instruction, because `limit` is cleared.

use std::cell::Cell;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::cpu::CodeSize;
use crate::op::Op;

/// Entries of the cache by linear address, a power of two.
const JUMPS: usize = 4096;

/// Bytes of blocks from which on the cache is emptied.
const BYTES_MAX: usize = 64 << 20;

/// Low bits of [`Blocks::context`] that hold the mode; those above count.
const MODE_BITS: u32 = 3;

/// A run of instructions, executed from the first on.
#[derive(Debug)]
pub struct Block {
    ops: Box<[Op]>,
    /// Instructions in it.
    pub count: u32,
    /// Length of the code in bytes.
    pub bytes: u32,
    /// Whether control that leaves it at its end can go on with the next block at once: the last instruction is
    /// not one that could have changed the mode.
    pub chains: bool,
    /// Whether it ends with a branch whose target varies.
    pub varies: bool,
    /// Where control went last time, by linear address.
    pub links: [Cell<Link>; 2],
    key: Key,
    /// The pages of RAM that the code lies on and, of each, the first and last byte.
    spans: Vec<Span>,
    /// Physical address of the second page, if the code crosses into one.
    pub second_phys: Option<u64>,
}

/// A block that was found at a linear address.
#[derive(Debug, Clone, Copy)]
pub struct Link {
    linear: u64,
    context: u64,
    block: *const Block,
}

const NO_LINK: Link = Link { linear: 0, context: u64::MAX, block: std::ptr::null() };

/// What a block is found by: physical address of the first byte and code size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key(u64);

impl Key {
    /// The key of a block at `phys`.
    pub fn new(phys: u64, code_size: CodeSize) -> Key {
        Key(phys << 2 | code_size as u64)
    }
}

/// Bytes of a page of RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Number of the page.
    pub page: usize,
    /// First byte, as an offset in the page.
    pub first: u64,
    /// Last byte.
    pub last: u64,
}

/// What a block is made from.
#[derive(Debug)]
pub struct Parts {
    /// At least one.
    pub ops: Vec<Op>,
    /// See [`Block::bytes`].
    pub bytes: u32,
    /// See [`Block::chains`].
    pub chains: bool,
    /// See [`Block::varies`].
    pub varies: bool,
    /// Where the code lies.
    pub spans: Vec<Span>,
    /// See [`Block::second_phys`].
    pub second_phys: Option<u64>,
}

impl Block {
    /// A block that is in no cache.
    pub fn new(key: Key, parts: Parts) -> Block {
        Block {
            count: parts.ops.iter().map(|op| u32::from(op.count)).sum(),
            ops: parts.ops.into_boxed_slice(),
            bytes: parts.bytes,
            chains: parts.chains,
            varies: parts.varies,
            links: [const { Cell::new(NO_LINK) }; 2],
            key,
            spans: parts.spans,
            second_phys: parts.second_phys,
        }
    }

    /// The ops.
    #[inline(always)]
    pub fn ops(&self) -> &[Op] {
        &self.ops
    }

    /// Where control last went from here for `linear`, if that still holds.
    #[inline(always)]
    pub fn linked(&self, linear: u64, context: u64) -> Option<*const Block> {
        let fits = |link: Link| link.linear == linear && link.context == context;
        let (first, second) = (self.links[0].get(), self.links[1].get());
        if fits(first) {
            return Some(first.block);
        }
        fits(second).then_some(second.block)
    }

    /// Notes that from here control went to `block` at `linear`.
    pub fn link(&self, slot: usize, linear: u64, context: u64, block: *const Block) {
        self.links[slot & 1].set(Link { linear, context, block });
    }

    fn size(&self) -> usize {
        size_of::<Block>() + size_of::<Op>() * self.ops.len() + 64
    }
}

/// A multiplicative hash, good enough for addresses.
#[derive(Debug, Default)]
struct AddressHasher(u64);

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

type ByAddress<K, V> = HashMap<K, V, BuildHasherDefault<AddressHasher>>;

/// What is decoded of one page of RAM.
#[derive(Debug, Default)]
struct CodeLines {
    /// Which 64-byte lines hold code.
    lines: u64,
    blocks: Vec<Key>,
}

/// The block cache of one vCPU.
#[derive(Debug)]
pub struct Blocks {
    /// The run loop stops before an op at or past this address; cleared to leave the block after the current op.
    pub limit: *const Op,
    /// What links and the cache by linear address depend on: a count of changes, above the mode.
    pub context: u64,
    /// Blocks until the vCPU looks up unasked, for its timers. 0 makes it look up before the next block.
    pub countdown: u32,
    jumps: Box<[Link]>,
    by_key: ByAddress<Key, Box<Block>>,
    pages: ByAddress<usize, CodeLines>,
    #[expect(clippy::vec_box, reason = "blocks do not move: one of these may be running")]
    dropped: Vec<Box<Block>>,
    bare_pages: Vec<usize>,
    bytes: usize,
}

impl Default for Blocks {
    fn default() -> Blocks {
        Blocks {
            limit: std::ptr::null(),
            context: 1 << MODE_BITS,
            countdown: 0,
            jumps: vec![NO_LINK; JUMPS].into_boxed_slice(),
            by_key: ByAddress::default(),
            pages: ByAddress::default(),
            dropped: Vec::new(),
            bare_pages: Vec::new(),
            bytes: 0,
        }
    }
}

fn jump_slot(linear: u64) -> usize {
    (linear ^ (linear >> 12)) as usize & (JUMPS - 1)
}

/// The 64-byte lines that bytes `first..=last` of a page touch.
fn lines(first: u64, last: u64) -> u64 {
    let (first, last) = (first / 64, (last / 64).min(63));
    if first > last { 0 } else { (u64::MAX >> (63 - (last - first))) << first }
}

impl Blocks {
    /// Bytes `first..=last` (offsets in the page) of RAM page `page` were written: drops the blocks that overlap
    /// them. Safe to call from inside a block that is itself dropped.
    pub fn written(&mut self, page: usize, first: u64, last: u64) {
        let Some(code) = self.pages.get(&page) else {
            self.bare_pages.push(page);
            self.limit = std::ptr::null();
            return;
        };
        if code.lines & lines(first, last) == 0 {
            return;
        }
        let hit = |span: &Span| span.page == page && span.first <= last && first <= span.last;
        let keys: Vec<Key> = code.blocks.clone();
        let hit: Vec<Key> = keys
            .into_iter()
            .filter(|key| self.by_key.get(key).is_some_and(|block| block.spans.iter().any(hit)))
            .collect();
        for key in hit {
            self.remove(key);
        }
    }

    /// Linear addresses may mean other pages than before: forgets what is keyed by them.
    pub fn translations_changed(&mut self) {
        self.context += 1 << MODE_BITS;
    }

    /// Makes the vCPU look up before the next block.
    #[inline]
    pub fn look_up_soon(&mut self) {
        self.countdown = 0;
        self.limit = std::ptr::null();
    }

    /// Notes the mode that the next blocks run in.
    #[inline]
    pub fn set_mode(&mut self, user: bool, code_size: CodeSize) {
        let mode = u64::from(user) << 2 | code_size as u64;
        self.context = self.context >> MODE_BITS << MODE_BITS | mode;
    }

    /// The block last found at a linear address, if that still holds.
    #[inline(always)]
    pub fn find_jump(&self, linear: u64) -> Option<*const Block> {
        // SAFETY: `jump_slot` is below `JUMPS`, the length.
        let entry = unsafe { self.jumps.get_unchecked(jump_slot(linear)) };
        (entry.linear == linear && entry.context == self.context).then_some(entry.block)
    }

    /// Notes that `block` was found at a linear address.
    pub fn keep_jump(&mut self, linear: u64, block: *const Block) {
        self.jumps[jump_slot(linear)] = Link { linear, context: self.context, block };
    }

    /// The block with a key.
    pub fn find(&self, key: Key) -> Option<&Block> {
        self.by_key.get(&key).map(|block| &**block)
    }

    /// Takes in a block; the caller has seen to it that its pages are watched.
    pub fn insert(&mut self, block: Block) -> *const Block {
        if self.bytes + block.size() > BYTES_MAX {
            self.clear();
        }
        self.remove(block.key);
        self.bytes += block.size();
        for span in &block.spans {
            let code = self.pages.entry(span.page).or_default();
            code.lines |= lines(span.first, span.last);
            code.blocks.push(block.key);
        }
        let block = self.by_key.entry(block.key).insert_entry(Box::new(block)).into_mut();
        &raw const **block
    }

    /// Whether anything of a page of RAM is decoded.
    pub fn has_code(&self, page: usize) -> bool {
        self.pages.contains_key(&page)
    }

    /// Drops all blocks.
    pub fn clear(&mut self) {
        for key in self.by_key.keys().copied().collect::<Vec<_>>() {
            self.remove(key);
        }
    }

    /// Frees the dropped blocks. No pointer to a block from before may be followed afterwards, except through
    /// `linked` and `find_jump`, which know better.
    ///
    /// Returns the pages of RAM that have lost their last block and need no longer be watched.
    pub fn bury(&mut self) -> Vec<usize> {
        self.dropped.clear();
        if self.bare_pages.is_empty() {
            return Vec::new();
        }
        let mut pages = std::mem::take(&mut self.bare_pages);
        pages.retain(|page| !self.pages.contains_key(page));
        pages
    }

    /// Whether `bury` has something to do.
    #[inline]
    pub fn has_dropped(&self) -> bool {
        !self.dropped.is_empty() || !self.bare_pages.is_empty()
    }

    fn remove(&mut self, key: Key) {
        let Some(block) = self.by_key.remove(&key) else { return };
        self.bytes -= block.size();
        for span in &block.spans {
            self.forget(span.page, key);
        }
        self.dropped.push(block);
        self.translations_changed();
        self.limit = std::ptr::null();
    }

    /// Takes a block that is no longer in `by_key` out of the list of a page.
    fn forget(&mut self, page: usize, key: Key) {
        let Some(code) = self.pages.get_mut(&page) else { return };
        code.blocks.retain(|other| *other != key);
        let spans = code.blocks.iter().filter_map(|key| self.by_key.get(key)).flat_map(|block| &block.spans);
        code.lines =
            spans.filter(|span| span.page == page).fold(0, |all, span| all | lines(span.first, span.last));
        if code.blocks.is_empty() {
            self.pages.remove(&page);
            self.bare_pages.push(page);
        }
    }
}
