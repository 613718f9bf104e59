//! The TLB of instruction fetches, and what is known about the pages that links between blocks go through.
//!
//! An entry holds for as long as the context (see [`Contexts`]) that it was made in, as links do.

use crate::decode::blocks::{Contexts, SPACES};
use crate::mmu::CodePage;

/// Entries of the TLB of instruction fetches, a power of two.
const ENTRIES: usize = 2048;

/// Bits of a [`Filter`].
const FILTER_BITS: usize = 16384;

/// A set of numbers that may seem to hold more than it does.
#[derive(Debug, Clone)]
pub struct Filter(Box<[u64; FILTER_BITS / 64]>);

impl Default for Filter {
    fn default() -> Filter {
        Filter(Box::new([0; FILTER_BITS / 64]))
    }
}

impl Filter {
    fn bit(number: u64) -> (usize, u64) {
        let bit = (number ^ (number >> 14)) as usize & (FILTER_BITS - 1);
        (bit / 64, 1 << (bit % 64))
    }

    /// Adds a number.
    pub fn insert(&mut self, number: u64) {
        let (word, mask) = Filter::bit(number);
        self.0[word] |= mask;
    }

    /// Whether a number may have been added.
    pub fn may_contain(&self, number: u64) -> bool {
        let (word, mask) = Filter::bit(number);
        self.0[word] & mask != 0
    }

    /// Takes everything out.
    pub fn clear(&mut self) {
        self.0.fill(0);
    }
}

/// A translation for instruction fetches.
#[derive(Debug, Clone, Copy)]
struct Entry {
    /// Linear address of the page, with bit 0 set at privilege level 3; all ones matches nothing.
    tag: u64,
    /// The count of the context that it holds in: the global one for a global translation.
    context: u64,
    page: CodePage,
}

/// The TLB of instruction fetches.
#[derive(Debug)]
pub struct FetchTlb {
    entries: Box<[Entry; ENTRIES]>,
    /// Pages that were fetched from through translations of each address space since its context began.
    local: [Filter; SPACES],
    /// Pages that were fetched from through global translations since their context began, below and above the middle of
    /// the linear addresses: what a program unmaps is not mistaken for a page of its kernel.
    global: [Filter; 2],
}

const NO_PAGE: CodePage = CodePage { phys: 0, page: 0, host: std::ptr::null(), global: false };

impl Default for FetchTlb {
    fn default() -> FetchTlb {
        FetchTlb {
            entries: Box::new([Entry { tag: u64::MAX, context: 0, page: NO_PAGE }; ENTRIES]),
            local: Default::default(),
            global: Default::default(),
        }
    }
}

fn half(linear: u64) -> usize {
    (linear >> 63) as usize
}

fn slot(linear: u64) -> usize {
    (linear >> 12) as usize & (ENTRIES - 1)
}

impl FetchTlb {
    /// The translation of `linear`, if it is known.
    #[inline]
    pub fn find(&self, linear: u64, user: bool, contexts: Contexts) -> Option<CodePage> {
        let entry = &self.entries[slot(linear)];
        let (local, global) = contexts.counts();
        let holds = entry.context == local || entry.context == global;
        (entry.tag == (linear & !0xfff | u64::from(user)) && holds).then_some(entry.page)
    }

    /// Keeps a translation of the address space number `space`.
    pub fn keep(&mut self, linear: u64, user: bool, space: usize, contexts: Contexts, page: CodePage) {
        let (local, global) = contexts.counts();
        let context = if page.global { global } else { local };
        let tag = linear & !0xfff | u64::from(user);
        self.entries[slot(linear)] = Entry { tag, context, page };
        let filter = if page.global { &mut self.global[half(linear)] } else { &mut self.local[space] };
        filter.insert(linear >> 12);
    }

    /// Whether a page may have been fetched from through a translation of an address space.
    pub fn may_be_fetched(&self, linear: u64, space: usize) -> bool {
        self.local[space].may_contain(linear >> 12)
    }

    /// Whether a page may have been fetched from through a global translation.
    pub fn may_be_fetched_globally(&self, linear: u64) -> bool {
        self.global[half(linear)].may_contain(linear >> 12)
    }

    /// The context of an address space began anew.
    pub fn space_changed(&mut self, space: usize) {
        self.local[space].clear();
    }

    /// The global context began anew.
    pub fn global_changed(&mut self) {
        self.global.iter_mut().for_each(Filter::clear);
    }
}
