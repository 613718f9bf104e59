//! The block cache of one vCPU: decoded blocks, keyed by physical address and code size, and the ways to find the
//! next one fast.
//!
//! Blocks are found, from fast to slow, through the links of the block before, through a cache by linear address,
//! and by physical address. The first two hold only as long as one of the two [`Contexts`] is what it was when they
//! were noted: they change with the translation of addresses, with the mode and when blocks are freed. What was
//! found through a global translation outlives a change of address space, and each of the [`SPACES`] that a processor
//! keeps apart gets its own context back when it is entered again.
//!
//! A dropped block is marked dead and stays allocated until [`Blocks::bury`], which only the run loop calls, between
//! blocks: a block can drop itself. It then ends after the current instruction, because `limit` is cleared.

use std::cell::Cell;

use crate::cpu::CodeSize;
use crate::decode::lines::{ByAddress, CodeLines, lines};
use crate::jit::{Jit, Tiers};
use crate::op::Op;

/// Entries of the cache by linear address, a power of two.
const JUMPS: usize = 16384;

/// Bytes of blocks from which on the cache is emptied.
const BYTES_MAX: usize = 256 << 20;

/// Bytes of dropped blocks from which on they are freed, at the cost of all links.
const DROPPED_MAX: usize = 1 << 20;

/// How many address spaces a processor keeps apart.
pub const SPACES: usize = 8;

/// Low bits of [`Contexts`] that hold the mode; those above count.
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
    /// Index of the first op that must not be executed twice, for the lockstep of the tiers.
    pub alone: Option<u16>,
    /// Where control went last time, by linear address.
    links: [Cell<Link>; 2],
    /// Its code was written, or it had to go: it must not be entered again.
    dead: Cell<bool>,
    /// How often it was interpreted, until it is translated.
    pub heat: Cell<u32>,
    /// Where its translation is entered, and the generation of translations that it is of.
    pub code: Cell<(usize, u32)>,
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
    /// Allocated for as long as the link holds.
    pub block: *const Block,
}

/// What links and the cache by linear address depend on: counts of changes, above the mode.
#[derive(Debug, Clone, Copy)]
pub struct Contexts {
    /// For what was found through translations of this address space. Bit 63 is clear.
    local: u64,
    /// For what was found through global translations. Bit 63 is set.
    global: u64,
}

/// In [`Contexts::global`].
const GLOBAL: u64 = 1 << 63;

impl Contexts {
    /// The same for every mode, as (local, global): what the translations of fetches depend on.
    #[inline]
    pub fn counts(self) -> (u64, u64) {
        (self.local >> MODE_BITS, self.global >> MODE_BITS)
    }

    fn set_mode(&mut self, mode: u64) {
        self.local = self.local >> MODE_BITS << MODE_BITS | mode;
        self.global = self.global >> MODE_BITS << MODE_BITS | mode;
    }
}

impl Link {
    /// To a block, this once.
    pub fn once(block: *const Block) -> Link {
        Link { block, ..NO_LINK }
    }

    /// Whether the way to the block may be noted, for as long as it holds.
    #[inline(always)]
    pub fn holds(&self) -> bool {
        self.context != NO_LINK.context
    }

    /// Whether the block was found through a global translation.
    #[inline(always)]
    pub fn is_global(&self) -> bool {
        self.context & GLOBAL != 0
    }

    /// Whether it is about `linear` and still holds.
    #[inline(always)]
    fn fits(&self, linear: u64, contexts: Contexts) -> bool {
        self.linear == linear && (self.context == contexts.local || self.context == contexts.global)
    }
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

    /// The physical address.
    pub fn phys(self) -> u64 {
        self.0 >> 2
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
    /// See [`Block::alone`].
    pub alone: Option<u16>,
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
            alone: parts.alone,
            links: [const { Cell::new(NO_LINK) }; 2],
            dead: Cell::new(false),
            heat: Cell::new(0),
            code: Cell::new((0, 0)),
            key,
            spans: parts.spans,
            second_phys: parts.second_phys,
        }
    }

    /// What it is found by.
    pub fn key(&self) -> Key {
        self.key
    }

    /// The ops.
    #[inline(always)]
    pub fn ops(&self) -> &[Op] {
        &self.ops
    }

    /// Where control last went from here for `linear`, if that still holds.
    #[inline(always)]
    pub fn linked(&self, linear: u64, contexts: Contexts) -> Option<Link> {
        let (first, second) = (self.links[0].get(), self.links[1].get());
        if first.fits(linear, contexts) {
            return Some(first);
        }
        second.fits(linear, contexts).then_some(second)
    }

    /// Notes where control went from here.
    pub fn link(&self, slot: usize, link: Link) {
        self.links[slot & 1].set(link);
    }

    /// Whether it was dropped: a link that holds may still lead to it.
    #[inline(always)]
    pub fn is_dead(&self) -> bool {
        self.dead.get()
    }

    fn size(&self) -> usize {
        size_of::<Block>() + size_of::<Op>() * self.ops.len() + 64
    }
}

/// The block cache of one vCPU.
#[derive(Debug)]
pub struct Blocks {
    /// The run loop stops before an op at or past this address; cleared to leave the block after the current op.
    pub limit: *const Op,
    /// What links and the cache by linear address depend on.
    pub contexts: Contexts,
    /// The local context of each address space, without the mode.
    spaces: [u64; SPACES],
    /// Which of them is current.
    space: usize,
    /// The last context that was given out: none is used twice.
    last: u64,
    /// Blocks until the vCPU looks up unasked, for its timers. 0 makes it look up before the next block.
    pub countdown: u32,
    jumps: Box<[Link]>,
    by_key: ByAddress<Key, Box<Block>>,
    pages: ByAddress<usize, CodeLines>,
    #[expect(clippy::vec_box, reason = "blocks do not move: one of these may be running")]
    dropped: Vec<Box<Block>>,
    bare_pages: Vec<usize>,
    bytes: usize,
    dropped_bytes: usize,
    /// The translations.
    pub jit: Jit,
}

impl Default for Blocks {
    fn default() -> Blocks {
        Blocks {
            limit: std::ptr::null(),
            contexts: Contexts { local: 1 << MODE_BITS, global: GLOBAL | 1 << MODE_BITS },
            spaces: std::array::from_fn(|space| (space as u64 + 1) << MODE_BITS),
            space: 0,
            last: (SPACES as u64 + 1) << MODE_BITS,
            countdown: 0,
            jumps: vec![NO_LINK; JUMPS].into_boxed_slice(),
            by_key: ByAddress::default(),
            pages: ByAddress::default(),
            dropped: Vec::new(),
            bare_pages: Vec::new(),
            bytes: 0,
            dropped_bytes: 0,
            jit: Jit::new(Tiers::INTERPRETER),
        }
    }
}

fn jump_slot(linear: u64) -> usize {
    (linear ^ (linear >> 12)) as usize & (JUMPS - 1)
}

impl Blocks {
    /// Bytes `first..=last` (offsets in the page) of RAM page `page` were written: drops the blocks that overlap
    /// them. Safe to call from inside a block that is itself dropped.
    pub fn written(&mut self, page: usize, first: u64, last: u64) {
        let Some(code) = self.pages.get_mut(&page) else {
            self.bare_pages.push(page);
            self.limit = std::ptr::null();
            return;
        };
        if code.lines & lines(first, last) == 0 {
            return;
        }
        let hit = code.take(|block| block.overlaps(first, last));
        if code.blocks.is_empty() {
            self.pages.remove(&page);
            self.bare_pages.push(page);
        }
        for key in hit {
            self.remove(key);
        }
    }

    /// Whether [`Blocks::written`] would drop anything, or have the current block end.
    pub fn would_drop(&self, page: usize, first: u64, last: u64) -> bool {
        let Some(code) = self.pages.get(&page) else { return true };
        code.lines & lines(first, last) != 0 && code.blocks.iter().any(|block| block.overlaps(first, last))
    }

    /// What was found through translations of an address space, other than global ones, holds no more.
    pub fn space_changed(&mut self, space: usize) {
        self.jit.space_changed(space);
        self.last += 1 << MODE_BITS;
        self.spaces[space] = self.last;
        if space == self.space {
            self.enter_space(space);
        }
    }

    /// What was found through global translations holds no more.
    pub fn global_changed(&mut self) {
        self.jit.global_changed();
        self.contexts.global += 1 << MODE_BITS;
    }

    /// Goes over to an address space, where what was noted in it holds again.
    pub fn enter_space(&mut self, space: usize) {
        let mode = self.contexts.local & ((1 << MODE_BITS) - 1);
        self.jit.enter_space(space);
        self.space = space;
        self.contexts.local = self.spaces[space] | mode;
    }

    fn all_changed(&mut self) {
        (0..SPACES).for_each(|space| self.space_changed(space));
        self.global_changed();
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
        self.contexts.set_mode(mode);
    }

    /// The block last found at a linear address, if that still holds.
    #[inline(always)]
    pub fn find_jump(&self, linear: u64) -> Option<Link> {
        // SAFETY: `jump_slot` is below `JUMPS`, the length.
        let entry = unsafe { self.jumps.get_unchecked(jump_slot(linear)) };
        entry.fits(linear, self.contexts).then_some(*entry)
    }

    /// Notes that `block` was found at a linear address, through a global translation or not.
    pub fn keep_jump(&mut self, linear: u64, block: *const Block, global: bool) -> Link {
        let context = if global { self.contexts.global } else { self.contexts.local };
        let link = Link { linear, context, block };
        self.jumps[jump_slot(linear)] = link;
        link
    }

    /// The block with a key, which may have been found at `linear` before.
    pub fn find(&self, key: Key, linear: u64) -> Option<&Block> {
        let hint = &self.jumps[jump_slot(linear)];
        if hint.linear == linear && !hint.block.is_null() {
            // SAFETY: `bury` empties `jumps` when it frees blocks.
            let block = unsafe { &*hint.block };
            if block.key == key && !block.is_dead() {
                return Some(block);
            }
        }
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
            self.pages.entry(span.page).or_default().insert(block.key, span);
        }
        let block = self.by_key.entry(block.key).insert_entry(Box::new(block)).into_mut();
        &raw const **block
    }

    /// Takes in a block that is executed once, and frees it with the dropped ones.
    pub fn lend(&mut self, block: Block) -> *const Block {
        block.dead.set(true);
        block.heat.set(u32::MAX);
        self.dropped_bytes += block.size();
        self.dropped.push(Box::new(block));
        self.dropped.last().map_or(std::ptr::null(), |block| &raw const **block)
    }

    /// Whether anything of a page of RAM is decoded.
    pub fn has_code(&self, page: usize) -> bool {
        self.pages.contains_key(&page)
    }

    /// Drops all blocks.
    pub fn clear(&mut self) {
        self.jit.clear();
        for (_, block) in self.by_key.drain() {
            block.dead.set(true);
            self.dropped_bytes += block.size();
            self.dropped.push(block);
        }
        self.bare_pages.extend(self.pages.drain().map(|(page, _)| page));
        self.bytes = 0;
        self.limit = std::ptr::null();
    }

    /// Frees the dropped blocks if they are many. No pointer to a block from before may be followed afterwards,
    /// except through `linked` and `find_jump`, which know better.
    ///
    /// Returns the pages of RAM that have lost their last block and need no longer be watched.
    pub fn bury(&mut self) -> Vec<usize> {
        if self.dropped_bytes > DROPPED_MAX {
            self.all_changed();
            self.jumps.fill(NO_LINK);
            self.dropped.clear();
            self.dropped_bytes = 0;
        }
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
        self.dropped_bytes > DROPPED_MAX || !self.bare_pages.is_empty()
    }

    fn remove(&mut self, key: Key) {
        let Some(block) = self.by_key.remove(&key) else { return };
        for other in self.jit.remove(key) {
            if let Some(block) = self.by_key.get(&other) {
                block.code.set((0, 0));
                block.heat.set(0);
            }
        }
        self.bytes -= block.size();
        for span in &block.spans {
            self.forget(span.page, key);
        }
        block.dead.set(true);
        self.dropped_bytes += block.size();
        self.dropped.push(block);
        self.limit = std::ptr::null();
    }

    /// Takes a block that is no longer in `by_key` out of the list of a page, if it is there.
    fn forget(&mut self, page: usize, key: Key) {
        let Some(code) = self.pages.get_mut(&page) else { return };
        if !code.take(|block| block.key == key).is_empty() && code.blocks.is_empty() {
            self.pages.remove(&page);
            self.bare_pages.push(page);
        }
    }
}
