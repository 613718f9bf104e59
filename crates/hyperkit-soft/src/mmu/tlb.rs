//! What the TLBs hold: filling, flushing, and the TLB of instruction fetches.

use std::ptr::NonNull;

use crate::cpu::Cpu;
use crate::mem::{TLB_ENTRIES, Tlb, TlbEntry, tlb_slot};
use crate::mmu::CodePage;

/// In [`TlbEntry::phys`]: the translation is global, CR3 writes keep it.
pub const GLOBAL: u64 = 1;
/// In [`TlbEntry::phys`]: part of a page larger than 4 KiB, which one INVLPG forgets whole.
pub const LARGE: u64 = 2;

/// Entries of the TLB of instruction fetches.
const FETCH_ENTRIES: usize = 256;

/// Slots filled since the last flush that are remembered one by one; past it a flush looks at all.
const REMEMBERED: usize = 256;

/// Bits of the filter of 2 MiB regions that hold large pages.
const FILTER_BITS: usize = 2048;

/// A translation for instruction fetches.
#[derive(Debug, Clone, Copy)]
struct FetchEntry {
    /// Linear address of the page, with bit 0 set at privilege level 3; all ones matches nothing.
    tag: u64,
    /// Flags as in [`TlbEntry::phys`].
    flags: u64,
    page: CodePage,
}

/// How many TLBs a processor has.
const TLBS: usize = 3;

/// The TLBs of one processor. They do not move, so that [`Cpu::tlb`] can point at one of them.
#[derive(Debug)]
pub struct Tlbs(NonNull<[Tlb; TLBS]>);

impl Tlbs {
    /// TLBs without translations.
    pub fn new() -> Tlbs {
        let all: Box<[Tlb]> = (0..TLBS).map(|_| Tlb::empty()).collect();
        Tlbs(NonNull::from(Box::leak(all)).cast())
    }

    /// A pointer to one of them: valid for as long as `self`, and for reading only while nobody has [`Tlbs::at`].
    #[inline]
    pub fn get(&self, number: usize) -> *mut Tlb {
        assert!(number < TLBS);
        // SAFETY: inside the array.
        unsafe { self.0.as_ptr().cast::<Tlb>().add(number) }
    }

    /// One of them.
    #[inline]
    pub fn at(&mut self, number: usize) -> &mut Tlb {
        // SAFETY: `get` gives a TLB of ours, which only `self` changes.
        unsafe { &mut *self.get(number) }
    }

    /// All of them.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Tlb> {
        // SAFETY: the array is ours, and borrowed for as long as the iterator.
        unsafe { self.0.as_mut() }.iter_mut()
    }
}

impl Default for Tlbs {
    fn default() -> Tlbs {
        Tlbs::new()
    }
}

impl Drop for Tlbs {
    fn drop(&mut self) {
        // SAFETY: `new` leaked a box of so many TLBs, and nobody else frees it.
        drop(unsafe {
            Box::from_raw(std::ptr::slice_from_raw_parts_mut(self.0.as_ptr().cast::<Tlb>(), TLBS))
        });
    }
}

/// Bookkeeping of the TLBs.
#[derive(Debug)]
pub struct Mmu {
    fetch: Box<[FetchEntry; FETCH_ENTRIES]>,
    /// Slots with translations that are not global, by TLB; `None` when they are too many to remember.
    local: [Option<Vec<u16>>; 3],
    /// 2 MiB regions (hashed) of which 4 KiB parts of large pages are in a TLB.
    large: Box<[u64; FILTER_BITS / 64]>,
    /// Pages (hashed) through which blocks may be linked: all that were fetched from since the last change that ended
    /// all links.
    fetched: Box<[u64; FILTER_BITS / 64]>,
    /// Whether parts of 1 GiB pages are in a TLB.
    huge: bool,
}

const NO_PAGE: CodePage = CodePage { phys: 0, page: 0, host: std::ptr::null(), global: false };

const NO_FETCH: FetchEntry = FetchEntry { tag: u64::MAX, flags: 0, page: NO_PAGE };

impl Default for Mmu {
    fn default() -> Mmu {
        Mmu {
            fetch: Box::new([NO_FETCH; FETCH_ENTRIES]),
            local: [Some(Vec::new()), Some(Vec::new()), Some(Vec::new())],
            large: Box::new([0; FILTER_BITS / 64]),
            fetched: Box::new([0; FILTER_BITS / 64]),
            huge: false,
        }
    }
}

fn fetch_slot(linear: u64) -> usize {
    (linear >> 12) as usize & (FETCH_ENTRIES - 1)
}

fn region_bit(linear: u64) -> (usize, u64) {
    let bit = ((linear >> 21) ^ (linear >> 32)) as usize & (FILTER_BITS - 1);
    (bit / 64, 1 << (bit % 64))
}

fn page_bit(linear: u64) -> (usize, u64) {
    let bit = ((linear >> 12) ^ (linear >> 23)) as usize & (FILTER_BITS - 1);
    (bit / 64, 1 << (bit % 64))
}

impl Mmu {
    /// Remembers that a part of a page of `bytes` bytes is in a TLB.
    pub fn note_size(&mut self, linear: u64, bytes: u64) {
        if bytes > 4096 {
            let (word, mask) = region_bit(linear);
            self.large[word] |= mask;
            self.huge |= bytes > 4 << 20;
        }
    }

    /// Remembers that slot `slot` of TLB `index` holds a translation that a CR3 write forgets.
    pub fn note_local(&mut self, index: usize, slot: usize) {
        if let Some(slots) = &mut self.local[index] {
            if slots.len() < REMEMBERED {
                slots.push(slot as u16);
            } else {
                self.local[index] = None;
            }
        }
    }

    /// The fetch translation of `linear`, if it is known.
    #[inline]
    pub fn find_fetch(&self, linear: u64, user: bool) -> Option<CodePage> {
        let entry = &self.fetch[fetch_slot(linear)];
        (entry.tag == (linear & !0xfff | u64::from(user))).then_some(entry.page)
    }

    /// Keeps a fetch translation.
    pub fn keep_fetch(&mut self, linear: u64, user: bool, flags: u64, page: CodePage) {
        let tag = linear & !0xfff | u64::from(user);
        self.fetch[fetch_slot(linear)] = FetchEntry { tag, flags, page };
        let (word, mask) = page_bit(linear);
        self.fetched[word] |= mask;
    }

    fn flush_fetch(&mut self, keep_global: bool) {
        for entry in self.fetch.iter_mut() {
            if !keep_global || entry.flags & GLOBAL == 0 {
                entry.tag = u64::MAX;
            }
        }
    }

    fn may_be_fetched(&self, linear: u64) -> bool {
        let (word, mask) = page_bit(linear);
        self.fetched[word] & mask != 0
    }

    /// All links were ended: only what the TLB holds can lead to new ones without a walk.
    fn forget_fetched(&mut self) {
        self.fetched.fill(0);
        for entry in self.fetch.iter().filter(|entry| entry.tag != u64::MAX) {
            let (word, mask) = page_bit(entry.tag);
            self.fetched[word] |= mask;
        }
    }

    fn holds_large(&self, linear: u64) -> bool {
        let (word, mask) = region_bit(linear);
        self.large[word] & mask != 0
    }
}

fn is_empty(entry: &TlbEntry) -> bool {
    entry.host.is_null()
}

fn flush_local(tlb: &mut Tlb, local: &mut Option<Vec<u16>>) {
    match local {
        Some(slots) => {
            for slot in slots.drain(..) {
                let slot = usize::from(slot);
                if tlb.entries[slot].phys & GLOBAL == 0 {
                    tlb.entries[slot] = TlbEntry::none(slot);
                }
            }
        }
        None => {
            for (slot, entry) in tlb.entries.iter_mut().enumerate() {
                if entry.phys & GLOBAL == 0 {
                    *entry = TlbEntry::none(slot);
                }
            }
            *local = Some(Vec::with_capacity(REMEMBERED));
        }
    }
}

impl Cpu {
    /// Forgets translations: all, or all but global ones.
    pub fn flush_tlb(&mut self, keep_global: bool) {
        for (tlb, local) in self.tlbs.iter_mut().zip(&mut self.mmu.local) {
            if keep_global {
                flush_local(tlb, local);
            } else {
                *tlb = Tlb::empty();
                *local = Some(Vec::new());
            }
        }
        if !keep_global {
            self.mmu.large.fill(0);
            self.mmu.huge = false;
        }
        self.mmu.flush_fetch(keep_global);
        self.blocks.translations_changed(keep_global);
        if !keep_global {
            self.mmu.forget_fetched();
        }
    }

    /// Forgets the translation of one page, global or not (INVLPG).
    pub fn flush_page(&mut self, linear: u64) {
        if self.mmu.huge {
            self.flush_tlb(false);
            return;
        }
        let large = self.mmu.holds_large(linear);
        if large {
            self.flush_region(linear & !((1 << 21) - 1));
        }
        let slot = tlb_slot(linear);
        for tlb in self.tlbs.iter_mut() {
            let entry = &mut tlb.entries[slot];
            if entry.read == linear & !0xfff {
                *entry = TlbEntry::none(slot);
            }
        }
        let slot = fetch_slot(linear);
        if self.mmu.fetch[slot].tag & !1 == linear & !0xfff {
            self.mmu.fetch[slot] = NO_FETCH;
        }
        if large || self.mmu.may_be_fetched(linear) {
            self.blocks.translations_changed(false);
            self.mmu.forget_fetched();
        }
    }

    /// Forgets the parts of large pages in the 4 MiB around a 2 MiB region (4 MiB pages exist too).
    fn flush_region(&mut self, region: u64) {
        let hit = |entry: &TlbEntry| {
            !is_empty(entry) && entry.phys & LARGE != 0 && (entry.read ^ region) >> 22 == 0
        };
        for tlb in self.tlbs.iter_mut() {
            for (slot, entry) in tlb.entries.iter_mut().enumerate() {
                if hit(entry) {
                    *entry = TlbEntry::none(slot);
                }
            }
        }
        for entry in self.mmu.fetch.iter_mut() {
            if entry.flags & LARGE != 0 && (entry.tag ^ region) >> 22 == 0 {
                *entry = NO_FETCH;
            }
        }
    }

    /// Takes every write permission out of the TLBs: the next write to each page finds out whether it is watched.
    pub fn protect_all(&mut self) {
        for tlb in self.tlbs.iter_mut() {
            for (slot, entry) in tlb.entries.iter_mut().enumerate() {
                entry.write = TlbEntry::none(slot).write;
            }
        }
    }

    /// Takes the write permission of a page of RAM out of every TLB, of all processors: its blocks are about to be
    /// decoded. The page is watched already.
    pub fn protect_code(&mut self, page: usize) {
        self.call_meeting();
        let Some(host) = self.mmu_host_of(page) else { return };
        for tlb in self.tlbs.iter_mut() {
            for (slot, entry) in tlb.entries.iter_mut().enumerate() {
                if entry.host == host {
                    entry.write = TlbEntry::none(slot).write;
                }
            }
        }
    }

    /// The host address of a page of RAM by its number.
    fn mmu_host_of(&self, page: usize) -> Option<*mut u8> {
        let mut number = page as u64;
        for region in self.ram.regions() {
            let pages = region.bytes / 4096;
            if number < pages {
                let at = hyperkit_mem::GuestAddr(region.start.0 + number * 4096);
                return self.ram.span(at, 4096).map(|host| host.as_ptr());
            }
            number -= pages;
        }
        None
    }
}

const _: () = assert!(TLB_ENTRIES <= u16::MAX as usize);
