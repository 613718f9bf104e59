//! Address translation: page walks, TLB fills and the slow paths of loads and stores.
//!
//! Not done: faults of stack accesses to non-canonical addresses are #GP(0), where the SDM says #SS(0); data-segment
//! limits outside 64-bit mode are not checked.

pub mod fetch;
pub mod planes;
pub mod tlb;
pub mod walk;

#[cfg(test)]
mod tests;

use hyperkit_mem::GuestAddr;

use crate::cpu::Cpu;
use crate::lockstep::journal::Phase;
use crate::mem::{Access, TlbEntry, Width, tlb_slot};
use crate::mmu::tlb::{GLOBAL, LARGE};
use crate::mmu::walk::{Translation, WalkError};
use crate::system::cr4;
use crate::system::mode::{TLB_SMAP, TLB_SUPERVISOR, TLB_USER};
use crate::trap::{Fault, Trap, vector};

/// Where instructions are fetched from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CodePage {
    /// Physical address of the page.
    pub phys: u64,
    /// Number of the page of RAM, for [`hyperkit_mem::watch::Watch`].
    pub page: usize,
    /// Its first byte in host memory.
    pub host: *const u8,
    /// Whether a write to CR3 keeps the translation.
    pub global: bool,
}

/// Where an address leads, for an access inside one page.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Physical address.
    pub phys: u64,
    /// Null for anything that is not RAM.
    pub host: *mut u8,
}

impl Cpu {
    /// The rest of [`Cpu::load`]: fills the TLB, crosses pages, reaches devices.
    #[cold]
    #[inline(never)]
    pub fn load_slow<T: Width>(&mut self, linear: u64) -> Result<T, Trap> {
        let mut bytes = [0; 16];
        let bytes = &mut bytes[..T::BYTES as usize];
        self.read_linear(linear, bytes)?;
        Ok(T::from_bytes(bytes))
    }

    /// The rest of [`Cpu::store`]: fills the TLB, crosses pages, reaches devices, drops decoded blocks.
    #[cold]
    #[inline(never)]
    pub fn store_slow<T: Width>(&mut self, linear: u64, value: T) -> Result<(), Trap> {
        let mut bytes = [0; 16];
        let bytes = &mut bytes[..T::BYTES as usize];
        value.to_bytes(bytes);
        self.write_linear(linear, bytes)
    }

    /// Reads bytes at a linear address, at the current privilege. At most 4096 of them.
    pub fn read_linear(&mut self, linear: u64, bytes: &mut [u8]) -> Result<(), Trap> {
        let (first, rest) = bytes.split_at_mut(in_first_page(linear, bytes.len()));
        let target = self.target(linear, Access::Read)?;
        if self.is_armed() {
            self.note_access(linear, (first.len() + rest.len()) as u64, false);
        }
        if !rest.is_empty() {
            let second = self.target(self.page_after(linear), Access::Read)?;
            self.read_target(second, rest);
        }
        self.read_target(target, first);
        Ok(())
    }

    /// Writes bytes at a linear address, at the current privilege: all of them or none. At most 4096.
    pub fn write_linear(&mut self, linear: u64, bytes: &[u8]) -> Result<(), Trap> {
        let (first, rest) = bytes.split_at(in_first_page(linear, bytes.len()));
        let target = self.target(linear, Access::Write)?;
        if self.is_armed() {
            self.note_access(linear, bytes.len() as u64, true);
        }
        if !rest.is_empty() {
            let second = self.target(self.page_after(linear), Access::Write)?;
            self.write_target(target, first);
            self.write_target(second, rest);
            return Ok(());
        }
        self.write_target(target, first);
        Ok(())
    }

    /// Raises the page fault that a write of `len` bytes would raise, and otherwise fills the TLB.
    pub fn probe_write(&mut self, linear: u64, len: u64) -> Result<(), Trap> {
        self.target(linear, Access::Write)?;
        if (linear & 0xfff) + len > 4096 {
            self.target(self.page_after(linear), Access::Write)?;
        }
        Ok(())
    }

    /// Translates the address of an instruction; raises the page fault of a fetch. Code outside RAM is refused
    /// with #GP: nothing we run executes from devices.
    pub fn fetch_page(&mut self, linear: u64) -> Result<CodePage, Trap> {
        let user = self.tlb_index == TLB_USER;
        if let Some(page) = self.mmu.fetch.find(linear, user, self.blocks.contexts) {
            return Ok(page);
        }
        let found = self.walk_or_fault(linear, Access::Fetch)?;
        let phys = found.phys & !0xfff;
        let in_ram = self.ram.span(GuestAddr(phys), 4096).zip(self.ram.page_index(GuestAddr(phys)));
        let Some((host, page)) = in_ram else { return Err(self.protection(0)) };
        let code = CodePage { phys, page, host: host.as_ptr(), global: found.global };
        self.mmu.note_size(linear, found.bytes);
        self.mmu.fetch.keep(linear, user, self.tlbs.space(), self.blocks.contexts, code);
        Ok(code)
    }

    /// Physical address of a linear one, at the current privilege.
    pub fn translate(&mut self, linear: u64, access: Access) -> Result<u64, Trap> {
        self.walk_or_fault(linear, access).map(|found| found.phys)
    }

    /// Runs `action` with the rights of implicit supervisor accesses (descriptor tables, TSS, stacks of handlers),
    /// which SMAP keeps from user pages whatever RFLAGS.AC says.
    pub fn as_supervisor<R>(&mut self, action: impl FnOnce(&mut Cpu) -> R) -> R {
        let before = self.tlb_index;
        self.use_tlb(if self.cr4 & cr4::SMAP != 0 { TLB_SMAP } else { TLB_SUPERVISOR });
        let result = action(self);
        self.use_tlb(before);
        result
    }

    fn walk_or_fault(&mut self, linear: u64, access: Access) -> Result<Translation, Trap> {
        match self.walk(linear, access, self.tlb_index) {
            Ok(found) => Ok(found),
            Err(WalkError::NotCanonical) => Err(self.protection(0)),
            Err(WalkError::Page(code)) => {
                self.cr2 = if self.long_mode() { linear } else { linear & 0xffff_ffff };
                Err(self.raise(Fault { vector: vector::PF, error: Some(code), after: false }))
            }
        }
    }

    /// Where a data access at `linear` leads; fills the TLB if it is RAM.
    fn target(&mut self, linear: u64, access: Access) -> Result<Target, Trap> {
        let entry = self.tlb_entry(linear);
        let known = if access == Access::Write { entry.write } else { entry.read };
        let within = (linear & 0xfff) as usize;
        if known == linear & !0xfff {
            let phys = (entry.phys & !0xfff) | within as u64;
            return Ok(Target { phys, host: entry.host.wrapping_add(within) });
        }
        let found = self.walk_or_fault(linear, access)?;
        let page = found.phys & !0xfff;
        let Some(host) = self.ram.span(GuestAddr(page), 4096) else {
            if self.lockstep_refuses_device() {
                return Err(self.protection(0));
            }
            return Ok(Target { phys: found.phys, host: std::ptr::null_mut() });
        };
        if access == Access::Write
            && let Some(journal) = self.journal()
        {
            journal.open(linear, host.as_ptr());
        }
        self.fill(linear & !0xfff, &found, host.as_ptr(), access);
        Ok(Target { phys: found.phys, host: host.as_ptr().wrapping_add(within) })
    }

    fn fill(&mut self, linear: u64, found: &Translation, host: *mut u8, access: Access) {
        if self.has_breakpoint(linear) {
            return;
        }
        let slot = tlb_slot(linear);
        let phys = found.phys & !0xfff;
        let free = found.writable
            && self.lockstep_opens(linear)
            && self.ram.page_index(GuestAddr(phys)).is_some_and(|page| self.is_free_to_write(page, access));
        let write = if free { linear } else { TlbEntry::none(slot).write };
        let entry = TlbEntry { read: linear, write, host, phys: phys | flags_of(found) };
        self.tlbs.fill(self.tlb_index, slot, entry);
        if free {
            self.note_writable(host);
        }
        self.mmu.note_size(linear, found.bytes);
    }

    /// Whether writes to a page of RAM need no further look from now on. A write is recorded, if such are.
    fn is_free_to_write(&self, page: usize, access: Access) -> bool {
        if access == Access::Write {
            self.ram.dirty().mark(page);
        }
        self.ram.dirty().knows(page) && self.ram.watch().may_write(page, self.interrupts.id)
    }

    fn page_after(&self, linear: u64) -> u64 {
        let next = (linear & !0xfff).wrapping_add(4096);
        if self.long_mode() { next } else { next & 0xffff_ffff }
    }

    fn read_target(&mut self, target: Target, bytes: &mut [u8]) {
        if target.host.is_null() {
            self.device_read(target.phys, bytes);
            return;
        }
        // SAFETY: `target` found `host` in a page of RAM, and the caller split the access at the page's end.
        unsafe { copy_in(target.host, bytes) };
    }

    fn write_target(&mut self, target: Target, bytes: &[u8]) {
        if target.host.is_null() {
            self.device_write(target.phys, bytes);
            return;
        }
        if let Some(journal) = self.journal() {
            journal.will_write(target.host, bytes.len());
        }
        // SAFETY: as in `read_target`; a write was asked for when the target was found.
        unsafe { copy_out(target.host, bytes) };
        self.has_written(target.phys, bytes.len() as u64);
    }

    /// Drops what was decoded from `len` bytes at a physical address inside one page of RAM: they were written.
    pub fn has_written(&mut self, phys: u64, len: u64) {
        let Some(page) = self.ram.page_index(GuestAddr(phys)) else { return };
        if self.ram.watch().contains(page) {
            let first = phys & 0xfff;
            if self.journal().is_some_and(|journal| journal.phase == Phase::Interpreter) {
                // The block is to be translated yet; it ends here all the same.
                if self.blocks.would_drop(page, first, first + len - 1) {
                    self.blocks.limit = std::ptr::null();
                }
                return;
            }
            self.blocks.written(page, first, first + len - 1);
            self.ram.watch().written_by(page, self.interrupts.id);
        }
    }

    /// Where a write of `len` bytes leads, for atomic instructions; `None` unless it is one page of RAM. Whoever writes
    /// there says so with [`Cpu::has_written`].
    pub fn place_to_write(&mut self, linear: u64, len: u64) -> Result<Option<Target>, Trap> {
        let target = self.target(linear, Access::Write)?;
        if (linear & 0xfff) + len > 4096 {
            self.target(self.page_after(linear), Access::Write)?;
            return Ok(None);
        }
        if self.is_armed() {
            self.note_access(linear, len, true);
        }
        if !target.host.is_null()
            && let Some(journal) = self.journal()
        {
            journal.will_write(target.host, len as usize);
        }
        Ok((!target.host.is_null()).then_some(target))
    }

    /// Reads what is not RAM.
    fn device_read(&mut self, phys: u64, bytes: &mut [u8]) {
        if self.apic_read(phys, bytes) {
            return;
        }
        for (number, part) in bytes.chunks_mut(8).enumerate() {
            self.bus().mmio_read(phys + number as u64 * 8, part);
        }
    }

    /// Writes what is not RAM.
    fn device_write(&mut self, phys: u64, bytes: &[u8]) {
        if self.apic_write(phys, bytes) {
            return;
        }
        for (number, part) in bytes.chunks(8).enumerate() {
            self.bus().mmio_write(phys + number as u64 * 8, part);
        }
    }
}

fn flags_of(found: &Translation) -> u64 {
    (if found.global { GLOBAL } else { 0 }) | (if found.bytes > 4096 { LARGE } else { 0 })
}

fn in_first_page(linear: u64, len: usize) -> usize {
    len.min(4096 - (linear & 0xfff) as usize)
}

/// Copies from RAM in one access where the width allows it, so that aligned values are never torn.
///
/// # Safety
/// `bytes.len()` bytes at `host` are mapped.
unsafe fn copy_in(host: *const u8, bytes: &mut [u8]) {
    match bytes.len() {
        // SAFETY: the caller's promise, for each width.
        1 => bytes.copy_from_slice(&unsafe { host.read_volatile() }.to_le_bytes()),
        // SAFETY: as above.
        2 => bytes.copy_from_slice(&unsafe { host.cast::<u16>().read_unaligned() }.to_le_bytes()),
        // SAFETY: as above.
        4 => bytes.copy_from_slice(&unsafe { host.cast::<u32>().read_unaligned() }.to_le_bytes()),
        // SAFETY: as above.
        8 => bytes.copy_from_slice(&unsafe { host.cast::<u64>().read_unaligned() }.to_le_bytes()),
        // SAFETY: as above; `bytes` is not guest memory.
        len => unsafe { std::ptr::copy_nonoverlapping(host, bytes.as_mut_ptr(), len) },
    }
}

/// Copies to RAM in one access where the width allows it.
///
/// # Safety
/// `bytes.len()` bytes at `host` are mapped.
unsafe fn copy_out(host: *mut u8, bytes: &[u8]) {
    match *bytes {
        // SAFETY: the caller's promise, for each width.
        [a] => unsafe { host.write_volatile(a) },
        // SAFETY: as above.
        [a, b] => unsafe { host.cast::<u16>().write_unaligned(u16::from_ne_bytes([a, b])) },
        // SAFETY: as above.
        [a, b, c, d] => unsafe { host.cast::<u32>().write_unaligned(u32::from_ne_bytes([a, b, c, d])) },
        [a, b, c, d, e, f, g, h] => {
            let value = u64::from_ne_bytes([a, b, c, d, e, f, g, h]);
            // SAFETY: as above.
            unsafe { host.cast::<u64>().write_unaligned(value) }
        }
        // SAFETY: as above; `bytes` is not guest memory.
        _ => unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), host, bytes.len()) },
    }
}
