//! Page walks: 32-bit, PAE and 4-level paging. Spec: SDM vol. 3A §4.3 to §4.7.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use hyperkit_mem::GuestAddr;

use crate::cpu::Cpu;
use crate::mem::Access;
use crate::system::mode::{TLB_SMAP, TLB_USER};
use crate::system::{cr0, cr4, efer};

/// Width of physical addresses, as CPUID leaf 0x80000008 says.
pub const PHYS_BITS: u32 = 46;

/// Bits of paging-structure entries.
mod entry {
    pub const PRESENT: u64 = 1 << 0;
    pub const WRITE: u64 = 1 << 1;
    pub const USER: u64 = 1 << 2;
    pub const ACCESSED: u64 = 1 << 5;
    pub const DIRTY: u64 = 1 << 6;
    pub const SIZE: u64 = 1 << 7;
    pub const GLOBAL: u64 = 1 << 8;
    pub const NX: u64 = 1 << 63;
    /// Address field of a 64-bit entry.
    pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
}

/// Bits of a page fault's error code (SDM vol. 3A §4.7).
pub mod error {
    /// The page was present: a protection violation.
    pub const PRESENT: u16 = 1 << 0;
    /// It was a write.
    pub const WRITE: u16 = 1 << 1;
    /// At privilege level 3.
    pub const USER: u16 = 1 << 2;
    /// A reserved bit was set in an entry.
    pub const RESERVED: u16 = 1 << 3;
    /// It was an instruction fetch, where such are told apart.
    pub const FETCH: u16 = 1 << 4;
}

/// What a walk found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Translation {
    /// Physical address of the byte asked for.
    pub phys: u64,
    /// Whether a write at the same privilege needs no further walk: permitted, and D is set.
    pub writable: bool,
    /// CR3 writes keep it.
    pub global: bool,
    /// Size of the page.
    pub bytes: u64,
}

/// Why there is no translation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WalkError {
    /// A page fault with this error code.
    Page(u16),
    /// The linear address is not canonical.
    NotCanonical,
}

/// What the levels of a walk agree on, and the entries it used.
struct Walk {
    access: Access,
    index: usize,
    /// AND over the levels.
    write: bool,
    /// AND over the levels.
    user: bool,
    /// OR over the levels.
    no_execute: bool,
    /// Physical address, value and width of each entry, in the order of the walk.
    used: [(u64, u64); 4],
    count: usize,
    wide: bool,
}

impl Walk {
    fn new(access: Access, index: usize, wide: bool) -> Walk {
        Walk { access, index, write: true, user: true, no_execute: false, used: [(0, 0); 4], count: 0, wide }
    }

    fn take(&mut self, at: u64, value: u64) {
        self.write &= value & entry::WRITE != 0;
        self.user &= value & entry::USER != 0;
        self.no_execute |= value & entry::NX != 0;
        self.used[self.count] = (at, value);
        self.count += 1;
    }
}

/// What became of setting the A and D bits.
enum Marked {
    Done {
        dirty: bool,
    },
    /// Somebody changed an entry meanwhile: walk again.
    Raced,
}

impl Cpu {
    /// Translates, at the privilege of TLB `index`, and sets the A and D bits.
    pub fn walk(&mut self, linear: u64, access: Access, index: usize) -> Result<Translation, WalkError> {
        if !self.paging() {
            let phys = if self.long_mode() { linear } else { linear & 0xffff_ffff };
            return Ok(Translation { phys, writable: true, global: false, bytes: 4096 });
        }
        loop {
            let found = if self.cr4 & cr4::PAE == 0 {
                self.walk_32(linear & 0xffff_ffff, access, index)
            } else {
                self.walk_wide(linear, access, index)
            };
            if let Some(translation) = found? {
                return Ok(translation);
            }
        }
    }

    /// PAE and 4-level paging. `None`: raced with another processor.
    fn walk_wide(
        &mut self,
        linear: u64,
        access: Access,
        index: usize,
    ) -> Result<Option<Translation>, WalkError> {
        let long = self.long_mode();
        if long && ((linear as i64) << 16 >> 16) as u64 != linear {
            return Err(WalkError::NotCanonical);
        }
        let linear = if long { linear } else { linear & 0xffff_ffff };
        let mut walk = Walk::new(access, index, true);
        let mut table = if long { self.cr3 & entry::ADDRESS } else { self.cr3 & 0xffff_ffe0 };
        let mut level = if long { 4 } else { 3 };
        loop {
            let shift = 12 + 9 * (level - 1);
            let at = table + (linear >> shift & 0x1ff) * 8;
            let value = self.read_entry(at);
            if value & entry::PRESENT == 0 {
                return Err(self.page_error(&walk, 0));
            }
            let pointer = !long && level == 3;
            let leaf = level == 1 || (value & entry::SIZE != 0 && level < 4 && !pointer);
            if value & self.reserved(level, leaf, pointer) != 0 {
                return Err(self.page_error(&walk, error::PRESENT | error::RESERVED));
            }
            if !pointer {
                walk.take(at, value);
            }
            if leaf {
                let bytes = 1u64 << shift;
                let base = value & entry::ADDRESS & !(bytes - 1);
                return self.finish(walk, base | linear & (bytes - 1), bytes);
            }
            table = value & entry::ADDRESS;
            level -= 1;
        }
    }

    /// Bits that must be 0 in an entry of a level (SDM vol. 3A, figure 4-11 and table 4-14 ff.).
    fn reserved(&self, level: u32, leaf: bool, pointer: bool) -> u64 {
        let address = entry::ADDRESS & !((1 << PHYS_BITS) - 1);
        if pointer {
            return 0xfff0_0000_0000_01e6 | address;
        }
        let mut mask = address;
        if self.efer & efer::NXE == 0 {
            mask |= entry::NX;
        }
        if !self.long_mode() {
            mask |= 0x7ff0_0000_0000_0000;
        }
        match (level, leaf) {
            (4, _) => mask | entry::SIZE,
            (3, true) => mask | 0x3fff_e000,
            (2, true) => mask | 0x001f_e000,
            _ => mask,
        }
    }

    /// 32-bit paging. `None`: raced with another processor.
    fn walk_32(
        &mut self,
        linear: u64,
        access: Access,
        index: usize,
    ) -> Result<Option<Translation>, WalkError> {
        let mut walk = Walk::new(access, index, false);
        let at = (self.cr3 & 0xffff_f000) + (linear >> 22) * 4;
        let directory = u64::from(self.read_entry_32(at));
        if directory & entry::PRESENT == 0 {
            return Err(self.page_error(&walk, 0));
        }
        if directory & entry::SIZE != 0 && self.cr4 & cr4::PSE != 0 {
            if directory & 1 << 21 != 0 {
                return Err(self.page_error(&walk, error::PRESENT | error::RESERVED));
            }
            walk.take(at, directory);
            let base = directory & 0xffc0_0000 | (directory >> 13 & 0xff) << 32; // PSE-36
            return self.finish(walk, base | linear & 0x3f_ffff, 4 << 20);
        }
        walk.take(at, directory);
        let at = (directory & 0xffff_f000) + (linear >> 12 & 0x3ff) * 4;
        let page = u64::from(self.read_entry_32(at));
        if page & entry::PRESENT == 0 {
            return Err(self.page_error(&walk, 0));
        }
        walk.take(at, page);
        self.finish(walk, page & 0xffff_f000 | linear & 0xfff, 4096)
    }

    /// Checks the rights that the levels add up to and sets the A and D bits.
    fn finish(&mut self, walk: Walk, phys: u64, bytes: u64) -> Result<Option<Translation>, WalkError> {
        let may_write = self.may_write(&walk);
        if !self.may_access(&walk) || (walk.access == Access::Write && !may_write) {
            return Err(self.page_error(&walk, error::PRESENT));
        }
        let leaf = walk.used[walk.count - 1].1;
        let global = leaf & entry::GLOBAL != 0 && self.cr4 & cr4::PGE != 0;
        match self.mark(&walk) {
            Marked::Raced => Ok(None),
            Marked::Done { dirty } => {
                Ok(Some(Translation { phys, writable: dirty && may_write, global, bytes }))
            }
        }
    }

    /// Whether reads or fetches are allowed (SDM vol. 3A §4.6.1).
    fn may_access(&self, walk: &Walk) -> bool {
        let fetch = walk.access == Access::Fetch;
        if fetch && walk.no_execute {
            return false;
        }
        if walk.index == TLB_USER {
            return walk.user;
        }
        if fetch { !walk.user || self.cr4 & cr4::SMEP == 0 } else { !walk.user || walk.index != TLB_SMAP }
    }

    fn may_write(&self, walk: &Walk) -> bool {
        walk.write || (walk.index != TLB_USER && self.cr0 & cr0::WP == 0)
    }

    fn page_error(&self, walk: &Walk, cause: u16) -> WalkError {
        let mut code = cause;
        if walk.access == Access::Write {
            code |= error::WRITE;
        }
        if walk.index == TLB_USER {
            code |= error::USER;
        }
        let told_apart =
            self.cr4 & cr4::SMEP != 0 || (self.cr4 & cr4::PAE != 0 && self.efer & efer::NXE != 0);
        if walk.access == Access::Fetch && told_apart {
            code |= error::FETCH;
        }
        WalkError::Page(code)
    }

    /// Sets A in every entry used and D in the last one if it is a write.
    fn mark(&self, walk: &Walk) -> Marked {
        let mut dirty = false;
        for (number, &(at, value)) in walk.used[..walk.count].iter().enumerate() {
            let mut wanted = value | entry::ACCESSED;
            if number == walk.count - 1 {
                if walk.access == Access::Write {
                    wanted |= entry::DIRTY;
                }
                dirty = wanted & entry::DIRTY != 0;
            }
            if wanted != value && !self.exchange_entry(at, value, wanted, walk.wide) {
                return Marked::Raced;
            }
        }
        Marked::Done { dirty }
    }

    fn read_entry(&self, at: u64) -> u64 {
        match self.ram.span(GuestAddr(at), 8) {
            // SAFETY: `span` checked the bounds, entries are 8-byte aligned, atomics may be shared with the guest.
            Some(host) => unsafe { AtomicU64::from_ptr(host.as_ptr().cast()) }.load(Ordering::Acquire),
            None => u64::MAX,
        }
    }

    fn read_entry_32(&self, at: u64) -> u32 {
        match self.ram.span(GuestAddr(at), 4) {
            // SAFETY: `span` checked the bounds, entries are 4-byte aligned, atomics may be shared with the guest.
            Some(host) => unsafe { AtomicU32::from_ptr(host.as_ptr().cast()) }.load(Ordering::Acquire),
            None => u32::MAX,
        }
    }

    /// Replaces an entry if it still is `old`. Entries outside RAM take no bits.
    fn exchange_entry(&self, at: u64, old: u64, new: u64, wide: bool) -> bool {
        let Some(host) = self.ram.span(GuestAddr(at), if wide { 8 } else { 4 }) else { return true };
        let (success, failure) = (Ordering::AcqRel, Ordering::Relaxed);
        let done = if wide {
            // SAFETY: as in `read_entry`.
            let cell = unsafe { AtomicU64::from_ptr(host.as_ptr().cast()) };
            cell.compare_exchange(old, new, success, failure).is_ok()
        } else {
            // SAFETY: as in `read_entry_32`.
            let cell = unsafe { AtomicU32::from_ptr(host.as_ptr().cast()) };
            cell.compare_exchange(old as u32, new as u32, success, failure).is_ok()
        };
        if done {
            if let Some(lockstep) = &self.lockstep {
                let walks = &lockstep.journal.walks;
                walks.set(walks.get().saturating_add(1));
            }
            self.ram.mark_written(GuestAddr(at), 8);
        }
        done
    }
}
