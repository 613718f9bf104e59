//! Which translations are kept, and when they are forgotten. Spec: SDM vol. 3A §4.10.
//!
//! Paging-structure entries are not cached: every walk reads them. The translations of up to [`SPACES`] process-context
//! identifiers (PCIDs) are kept at a time; the one that was not current for longest gives way to a new one. Without
//! CR4.PCIDE there is one, number 0.

use crate::cpu::Cpu;
use crate::decode::blocks::SPACES;
use crate::mem::{TLB_ENTRIES, TlbEntry, tlb_slot};
use crate::mmu::fetch::{FetchTlb, Filter};

/// In [`TlbEntry::phys`]: the translation is global, CR3 writes keep it.
pub const GLOBAL: u64 = 1;
/// In [`TlbEntry::phys`]: part of a page larger than 4 KiB, which one INVLPG forgets whole.
pub const LARGE: u64 = 2;

/// Write permissions given out after which [`Mmu::writable`] is made anew.
const NOTED_MAX: u32 = 4096;

/// Bits of the filter of 1 GiB regions.
const HUGE_BITS: u64 = 256;

/// An address space whose translations are kept.
#[derive(Debug, Clone, Copy)]
struct Space {
    /// Its process-context identifier; `None`: nobody's.
    pcid: Option<u16>,
    /// When it was entered last, by [`Mmu::clock`].
    entered: u64,
}

/// Bookkeeping of the TLBs.
#[derive(Debug)]
pub struct Mmu {
    /// Translations of instruction fetches.
    pub fetch: FetchTlb,
    spaces: [Space; SPACES],
    clock: u64,
    /// 2 MiB regions of which 4 KiB parts of large pages are in a TLB, below and above the middle of the linear
    /// addresses.
    large: [Filter; 2],
    /// 1 GiB regions (hashed) of which parts of such pages are in a TLB.
    huge: [u64; (HUGE_BITS / 64) as usize],
    /// Numbers of the host's pages that some TLB has a write permission for, and perhaps others.
    writable: Filter,
    /// How many were added to it since it was made anew.
    noted: u32,
    /// [`hyperkit_mem::dirty::Dirty::rounds`] when write permissions were last taken away for it.
    pub rounds: u64,
}

impl Default for Mmu {
    fn default() -> Mmu {
        let mut spaces = [Space { pcid: None, entered: 0 }; SPACES];
        spaces[0].pcid = Some(0);
        Mmu {
            fetch: FetchTlb::default(),
            spaces,
            clock: 0,
            large: Default::default(),
            huge: Default::default(),
            writable: Filter::default(),
            noted: 0,
            rounds: 0,
        }
    }
}

fn half(linear: u64) -> usize {
    (linear >> 63) as usize
}

fn huge_bit(linear: u64) -> (usize, u64) {
    let bit = ((linear >> 30) ^ (linear >> 38)) % HUGE_BITS;
    ((bit / 64) as usize, 1 << (bit % 64))
}

impl Mmu {
    /// Remembers that a part of a page of `bytes` bytes is in a TLB.
    pub fn note_size(&mut self, linear: u64, bytes: u64) {
        if bytes > 4 << 20 {
            let (word, mask) = huge_bit(linear);
            self.huge[word] |= mask;
        } else if bytes > 4096 {
            self.large[half(linear)].insert(linear >> 21);
        }
    }

    fn holds_huge(&self, linear: u64) -> bool {
        let (word, mask) = huge_bit(linear);
        self.huge[word] & mask != 0
    }

    fn holds_large(&self, linear: u64) -> bool {
        // Pages of 4 MiB are noted by the half that was used.
        let region = linear >> 21;
        let filter = &self.large[half(linear)];
        filter.may_contain(region) || filter.may_contain(region ^ 1)
    }

    /// The space that keeps the translations of a PCID.
    fn find_space(&self, pcid: u16) -> Option<usize> {
        self.spaces.iter().position(|space| space.pcid == Some(pcid))
    }

    /// The space that was not entered for longest.
    fn oldest_space(&self) -> usize {
        let mut oldest = 0;
        for (number, space) in self.spaces.iter().enumerate() {
            if space.entered < self.spaces[oldest].entered {
                oldest = number;
            }
        }
        oldest
    }
}

impl Cpu {
    /// Goes over to the translations of a PCID, of which none are known at first.
    pub fn enter_pcid(&mut self, pcid: u16) {
        let known = self.mmu.find_space(pcid);
        let space = known.unwrap_or_else(|| self.mmu.oldest_space());
        self.mmu.clock += 1;
        self.mmu.spaces[space] = Space { pcid: Some(pcid), entered: self.mmu.clock };
        if space != self.tlbs.space() {
            self.tlbs.enter(space);
            self.blocks.enter_space(space);
            self.use_tlb(self.tlb_index);
        }
        if known.is_none() {
            self.flush_space(space);
        }
    }

    fn flush_space(&mut self, space: usize) {
        self.tlbs.flush_space(space);
        self.blocks.space_changed(space);
        self.mmu.fetch.space_changed(space);
    }

    /// Forgets the translations of a PCID that are not global.
    pub fn flush_pcid(&mut self, pcid: u16) {
        if let Some(space) = self.mmu.find_space(pcid) {
            self.flush_space(space);
        }
    }

    /// Forgets the translations of all PCIDs that are not global.
    pub fn flush_local(&mut self) {
        (0..SPACES).for_each(|space| self.flush_space(space));
    }

    /// Forgets all translations.
    pub fn flush_tlb(&mut self) {
        self.tlbs.flush_all();
        self.mmu.large.iter_mut().for_each(Filter::clear);
        self.mmu.huge.fill(0);
        for space in 0..SPACES {
            self.blocks.space_changed(space);
            self.mmu.fetch.space_changed(space);
        }
        self.blocks.global_changed();
        self.mmu.fetch.global_changed();
    }

    /// Forgets the translation of one page in the current address space, and a global one (INVLPG).
    pub fn flush_page(&mut self, linear: u64) {
        self.flush_page_of(linear, self.tlbs.space(), true);
    }

    /// Forgets the translation of one page for a PCID, unless it is global (INVPCID).
    pub fn flush_pcid_page(&mut self, linear: u64, pcid: u16) {
        if let Some(space) = self.mmu.find_space(pcid) {
            self.flush_page_of(linear, space, false);
        }
    }

    fn flush_page_of(&mut self, linear: u64, space: usize, global: bool) {
        let large = self.mmu.holds_large(linear) || self.mmu.holds_huge(linear);
        if large {
            self.flush_large(linear);
        }
        self.tlbs.flush_page(linear, tlb_slot(linear), space, global);
        if large || self.mmu.fetch.may_be_fetched(linear, space) {
            self.blocks.space_changed(space);
            self.mmu.fetch.space_changed(space);
        }
        if global && (large || self.mmu.fetch.may_be_fetched_globally(linear)) {
            self.blocks.global_changed();
            self.mmu.fetch.global_changed();
        }
    }

    /// Forgets the parts of large pages around an address, in all address spaces: of the 4 MiB (pages of that size exist
    /// too), or of the 1 GiB if that may be one page.
    fn flush_large(&mut self, linear: u64) {
        let shift = if self.mmu.holds_huge(linear) { 30 } else { 22 };
        self.tlbs.each(|slot, entry| {
            if entry.phys & LARGE != 0 && (entry.read ^ linear) >> shift == 0 {
                *entry = TlbEntry::none(slot);
            }
        });
    }

    /// Takes every write permission out of the TLBs: the next write to each page finds out whether it is watched.
    pub fn protect_all(&mut self) {
        self.tlbs.each(|slot, entry| entry.write = TlbEntry::none(slot).write);
    }

    /// Remembers that a TLB has a write permission for a page of RAM.
    pub fn note_writable(&mut self, host: *const u8) {
        self.mmu.writable.insert(host as u64 >> 12);
        self.mmu.noted += 1;
        if self.mmu.noted > NOTED_MAX {
            self.mmu.noted = 0;
            self.mmu.writable.clear();
            let writable = &mut self.mmu.writable;
            self.tlbs.each(|slot, entry| {
                if entry.write != TlbEntry::none(slot).write {
                    writable.insert(entry.host as u64 >> 12);
                }
            });
        }
    }

    /// Takes the write permission of a page of RAM out of every TLB of this processor.
    pub fn protect_page(&mut self, page: usize) {
        let Some(host) = self.ram.page_host(page) else { return };
        let host = host.as_ptr();
        if self.mmu.writable.may_contain(host as u64 >> 12) {
            self.tlbs.each(|slot, entry| {
                if entry.host == host {
                    entry.write = TlbEntry::none(slot).write;
                }
            });
        }
        self.ram.watch().stops_writing(page, self.interrupts.id);
    }

    /// Has the write permission of a page of RAM taken out of every TLB, of all processors: its blocks are about to be
    /// decoded. Whether all have done so; from then on every write to the page is noted.
    pub fn protect_code(&mut self, page: usize) -> bool {
        if self.blocks.has_code(page) {
            return true;
        }
        let mine = 1 << self.interrupts.id;
        self.ram.watch().add(page, self.interrupts.id);
        let writers = self.ram.watch().writers(page);
        if writers & mine != 0 {
            self.protect_page(page);
        }
        writers & !mine == 0 || self.others_protect(page, writers & !mine)
    }
}

const _: () = assert!(TLB_ENTRIES.is_multiple_of(64));
