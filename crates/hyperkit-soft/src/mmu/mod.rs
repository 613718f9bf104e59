//! Address translation: page walks, TLB fills and the slow paths of loads and stores.

use crate::cpu::Cpu;
use crate::mem::{Access, Width};
use crate::trap::Trap;

/// Where instructions are fetched from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CodePage {
    /// Physical address of the page.
    pub phys: u64,
    /// Number of the page of RAM, for [`hyperkit_mem::watch::Watch`].
    pub page: usize,
    /// Its first byte in host memory.
    pub host: *const u8,
}

impl Cpu {
    /// The rest of [`Cpu::load`]: fills the TLB, crosses pages, reaches devices.
    #[cold]
    pub fn load_slow<T: Width>(&mut self, _linear: u64) -> Result<T, Trap> {
        Err(self.undefined())
    }

    /// The rest of [`Cpu::store`]: fills the TLB, crosses pages, reaches devices, drops decoded blocks.
    #[cold]
    pub fn store_slow<T: Width>(&mut self, _linear: u64, _value: T) -> Result<(), Trap> {
        Err(self.undefined())
    }

    /// Raises the page fault that a write of `len` bytes would raise, and otherwise fills the TLB.
    pub fn probe_write(&mut self, _linear: u64, _len: u64) -> Result<(), Trap> {
        Err(self.undefined())
    }

    /// Translates the address of an instruction; raises the page fault of a fetch. Code outside RAM is refused
    /// with #GP: nothing we run executes from devices.
    pub fn fetch_page(&mut self, _linear: u64) -> Result<CodePage, Trap> {
        Err(self.undefined())
    }

    /// Physical address of a linear one, at the current privilege.
    pub fn translate(&mut self, _linear: u64, _access: Access) -> Result<u64, Trap> {
        Err(self.undefined())
    }

    /// Forgets translations: all, or all but global ones.
    pub fn flush_tlb(&mut self, _keep_global: bool) {}

    /// Forgets the translation of one page, global or not (INVLPG).
    pub fn flush_page(&mut self, _linear: u64) {}

    /// Takes the write permission of a page of RAM out of every TLB: its blocks are about to be decoded.
    pub fn protect_code(&mut self, _page: usize) {}
}
