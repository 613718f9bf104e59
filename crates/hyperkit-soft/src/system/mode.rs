//! Control register bits, and what follows from them: code size, segment bases, which TLB applies.

use crate::cpu::{CodeSize, Cpu, seg};
use crate::flags::bit;

/// Bits of CR0 (SDM vol. 3A §2.5).
#[expect(missing_docs, reason = "the names are the SDM's")]
pub mod cr0 {
    pub const PE: u64 = 1 << 0;
    pub const MP: u64 = 1 << 1;
    pub const EM: u64 = 1 << 2;
    pub const TS: u64 = 1 << 3;
    pub const ET: u64 = 1 << 4;
    pub const NE: u64 = 1 << 5;
    pub const WP: u64 = 1 << 16;
    pub const AM: u64 = 1 << 18;
    pub const NW: u64 = 1 << 29;
    pub const CD: u64 = 1 << 30;
    pub const PG: u64 = 1 << 31;
}

/// Bits of CR4 (SDM vol. 3A §2.5).
#[expect(missing_docs, reason = "the names are the SDM's")]
pub mod cr4 {
    pub const TSD: u64 = 1 << 2;
    pub const DE: u64 = 1 << 3;
    pub const PSE: u64 = 1 << 4;
    pub const PAE: u64 = 1 << 5;
    pub const MCE: u64 = 1 << 6;
    pub const PGE: u64 = 1 << 7;
    pub const PCE: u64 = 1 << 8;
    pub const OSFXSR: u64 = 1 << 9;
    pub const OSXMMEXCPT: u64 = 1 << 10;
    pub const FSGSBASE: u64 = 1 << 16;
    pub const PCIDE: u64 = 1 << 17;
    pub const OSXSAVE: u64 = 1 << 18;
    pub const SMEP: u64 = 1 << 20;
    pub const SMAP: u64 = 1 << 21;
}

/// Bits of IA32_EFER (SDM vol. 4, table 2-2).
#[expect(missing_docs, reason = "the names are the SDM's")]
pub mod efer {
    pub const SCE: u64 = 1 << 0;
    pub const LME: u64 = 1 << 8;
    pub const LMA: u64 = 1 << 10;
    pub const NXE: u64 = 1 << 11;
}

/// [`Cpu::tlb_index`] at privilege level 3.
pub const TLB_USER: usize = 0;
/// [`Cpu::tlb_index`] of a supervisor whom SMAP keeps from user pages.
pub const TLB_SMAP: usize = 1;
/// [`Cpu::tlb_index`] of a supervisor who may access user pages.
pub const TLB_SUPERVISOR: usize = 2;

/// Rights bits of [`hyperkit_hv::state::x86_64::Segment`] that decide the code size.
const RIGHTS_LONG: u16 = 1 << 13;
const RIGHTS_BIG: u16 = 1 << 14;

impl Cpu {
    /// Whether paging is on.
    #[inline]
    pub fn paging(&self) -> bool {
        self.cr0 & cr0::PG != 0
    }

    /// Whether this is protected mode, virtual-8086 mode excluded.
    #[inline]
    pub fn protected(&self) -> bool {
        self.cr0 & cr0::PE != 0 && self.flags.rest & bit::VM == 0
    }

    /// Whether IA-32e mode is active: 64-bit or compatibility mode.
    #[inline]
    pub fn long_mode(&self) -> bool {
        self.efer & efer::LMA != 0
    }

    /// Computes what is derived from CR0, CR4, EFER, the segments, the privilege level and RFLAGS.AC.
    pub fn refresh(&mut self) {
        let cs = self.segments[seg::CS].rights;
        self.code_size = if self.long_mode() && cs & RIGHTS_LONG != 0 {
            CodeSize::Bits64
        } else if cs & RIGHTS_BIG != 0 {
            CodeSize::Bits32
        } else {
            CodeSize::Bits16
        };
        self.refresh_bases();
        self.refresh_privilege();
        self.refresh_gate();
    }

    /// Computes the segment bases that addresses use.
    pub fn refresh_bases(&mut self) {
        let flat = self.code_size == CodeSize::Bits64;
        for (number, segment) in self.segments.iter().enumerate() {
            self.seg_base[number] = if flat && number < seg::FS { 0 } else { segment.base };
        }
    }

    /// Chooses the TLB after a change of the privilege level, CR4.SMAP or RFLAGS.AC.
    #[inline]
    pub fn refresh_privilege(&mut self) {
        let index = if self.cpl == 3 {
            TLB_USER
        } else if self.cr4 & cr4::SMAP != 0 && self.flags.rest & bit::AC == 0 {
            TLB_SMAP
        } else {
            TLB_SUPERVISOR
        };
        self.use_tlb(index);
    }

    /// Has loads and stores go through a TLB: one of the three above.
    #[inline]
    pub fn use_tlb(&mut self, index: usize) {
        self.tlb_index = index;
        self.tlb = self.tlbs.current(index);
    }
}
