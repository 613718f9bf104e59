//! The TLBs of one processor: for the user and for the supervisor one for each address space that is kept apart, and
//! one that they share for the supervisor whom SMAP keeps from user pages, since what it sees is nearly all global.

use std::ptr::NonNull;

use crate::decode::blocks::SPACES;
use crate::mem::{TLB_ENTRIES, Tlb, TlbEntry};
use crate::mmu::tlb::GLOBAL;
use crate::system::mode::{TLB_SUPERVISOR, TLB_USER};

/// How many TLBs a processor has.
const PLANES: usize = 2 * SPACES + 1;

/// The last of them.
const SHARED: usize = PLANES - 1;

/// One bit for each slot of a TLB.
#[derive(Debug, Clone, Copy)]
struct Slots([u64; TLB_ENTRIES / 64]);

impl Slots {
    const NONE: Slots = Slots([0; TLB_ENTRIES / 64]);

    fn insert(&mut self, slot: usize) {
        self.0[slot / 64] |= 1 << (slot % 64);
    }

    fn contains(&self, slot: usize) -> bool {
        self.0[slot / 64] >> (slot % 64) & 1 != 0
    }

    /// The slots in it, which must not be changed meanwhile.
    fn iter(self) -> impl Iterator<Item = usize> {
        self.0.into_iter().enumerate().flat_map(|(word, bits)| {
            std::iter::successors(Some(bits), |bits| Some(bits & bits.wrapping_sub(1)))
                .take_while(|bits| *bits != 0)
                .map(move |bits| word * 64 + bits.trailing_zeros() as usize)
        })
    }
}

/// Which slots of a TLB may hold something.
#[derive(Debug, Clone, Copy)]
struct Used {
    /// With translations of one address space.
    local: Slots,
    /// With global translations.
    global: Slots,
}

/// The TLBs of one processor. They do not move, so that [`crate::cpu::Cpu::tlb`] can point at one of them.
#[derive(Debug)]
pub struct Tlbs {
    all: NonNull<Tlb>,
    used: Box<[Used; PLANES]>,
    space: usize,
}

/// The number of the TLB with the rights `index` (of `system::mode`) for an address space.
#[inline]
fn plane(index: usize, space: usize) -> usize {
    match index {
        TLB_USER => space,
        TLB_SUPERVISOR => SPACES + space,
        _ => SHARED,
    }
}

impl Default for Tlbs {
    /// TLBs without translations.
    fn default() -> Tlbs {
        let all: Box<[Tlb]> = (0..PLANES).map(|_| Tlb::empty()).collect();
        let used = Box::new([Used { local: Slots::NONE, global: Slots::NONE }; PLANES]);
        Tlbs { all: NonNull::from(Box::leak(all)).cast(), used, space: 0 }
    }
}

impl Tlbs {
    /// The TLB with the rights `index` for the current address space: valid for as long as `self`, and to be read only
    /// while nothing here changes it.
    #[inline]
    pub fn current(&self, index: usize) -> *mut Tlb {
        self.pointer(plane(index, self.space))
    }

    #[inline]
    fn pointer(&self, plane: usize) -> *mut Tlb {
        assert!(plane < PLANES);
        // SAFETY: inside the allocation of so many.
        unsafe { self.all.as_ptr().add(plane) }
    }

    fn at(&mut self, plane: usize) -> &mut Tlb {
        // SAFETY: `pointer` gives a TLB of ours, which only `self` changes.
        unsafe { &mut *self.pointer(plane) }
    }

    /// The address space that [`Tlbs::current`] goes by.
    pub fn space(&self) -> usize {
        self.space
    }

    /// Goes over to an address space. The shared TLB loses what was of the one before.
    pub fn enter(&mut self, space: usize) {
        self.space = space;
        self.clear_local(SHARED);
    }

    /// Enters a translation into the current TLB with the rights `index`.
    pub fn fill(&mut self, index: usize, slot: usize, entry: TlbEntry) {
        let plane = plane(index, self.space);
        let used = &mut self.used[plane];
        if entry.phys & GLOBAL != 0 {
            used.global.insert(slot)
        } else {
            used.local.insert(slot)
        }
        self.at(plane).entries[slot] = entry;
    }

    /// Takes the permission to write out of `slot` of the current TLB with the rights `index`: `nowhere` is the tag that
    /// matches nothing.
    pub fn forbid_writing(&mut self, index: usize, slot: usize, nowhere: u64) {
        let plane = plane(index, self.space);
        self.at(plane).entries[slot].write = nowhere;
    }

    fn clear_local(&mut self, plane: usize) {
        let local = std::mem::replace(&mut self.used[plane].local, Slots::NONE);
        let tlb = self.at(plane);
        for slot in local.iter() {
            if tlb.entries[slot].phys & GLOBAL == 0 {
                tlb.entries[slot] = TlbEntry::none(slot);
            }
        }
    }

    /// Forgets the translations of an address space that are not global.
    pub fn flush_space(&mut self, space: usize) {
        self.clear_local(plane(TLB_USER, space));
        self.clear_local(plane(TLB_SUPERVISOR, space));
        if space == self.space {
            self.clear_local(SHARED);
        }
    }

    /// Forgets everything.
    pub fn flush_all(&mut self) {
        self.each(|slot, entry| *entry = TlbEntry::none(slot));
        for used in self.used.iter_mut() {
            *used = Used { local: Slots::NONE, global: Slots::NONE };
        }
    }

    /// Forgets the translation in `slot` if it is of the page at `linear`: that of address space `space`, and with
    /// `global` the global ones, which are the same in all.
    pub fn flush_page(&mut self, linear: u64, slot: usize, space: usize, global: bool) {
        for number in 0..PLANES {
            let mine = number == SHARED && space == self.space || number < SHARED && number % SPACES == space;
            let used = &self.used[number];
            if !(mine && used.local.contains(slot) || global && used.global.contains(slot)) {
                continue;
            }
            let entry = &mut self.at(number).entries[slot];
            let affected = if entry.phys & GLOBAL != 0 { global } else { mine };
            if entry.read == linear & !0xfff && affected {
                *entry = TlbEntry::none(slot);
            }
        }
    }

    /// Shows every entry that may hold something, with its slot.
    pub fn each(&mut self, mut action: impl FnMut(usize, &mut TlbEntry)) {
        for plane in 0..PLANES {
            let used = self.used[plane];
            let tlb = self.at(plane);
            for slot in used.local.iter() {
                action(slot, &mut tlb.entries[slot]);
            }
            for slot in used.global.iter().filter(|slot| !used.local.contains(*slot)) {
                action(slot, &mut tlb.entries[slot]);
            }
        }
    }
}

impl Drop for Tlbs {
    fn drop(&mut self) {
        let all = std::ptr::slice_from_raw_parts_mut(self.all.as_ptr(), PLANES);
        // SAFETY: `default` leaked a box of so many TLBs, and nobody else frees it.
        drop(unsafe { Box::from_raw(all) });
    }
}
