//! State of an x86-64 processor. Names are those of the Intel SDM.

use serde::{Deserialize, Serialize};

/// A segment register with its hidden part (SDM vol. 3A §3.4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Segment {
    /// The visible selector.
    pub selector: u16,
    /// Base address.
    pub base: u64,
    /// Limit in bytes, granularity already applied.
    pub limit: u32,
    /// Access rights as in the second word of a descriptor shifted right by 8: type (0-3), S (4), DPL (5-6),
    /// P (7), AVL (12), L (13), D/B (14), G (15).
    pub rights: u16,
}

/// GDTR or IDTR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DescriptorTable {
    /// Linear address.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u16,
}

/// Index of a general register in [`X86State::gpr`], by its encoding.
#[expect(missing_docs, reason = "the names are the registers'")]
pub mod gpr {
    pub const RAX: usize = 0;
    pub const RCX: usize = 1;
    pub const RDX: usize = 2;
    pub const RBX: usize = 3;
    pub const RSP: usize = 4;
    pub const RBP: usize = 5;
    pub const RSI: usize = 6;
    pub const RDI: usize = 7;
}

/// Everything an engine needs to go on where another one stopped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct X86State {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub gpr: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// ES, CS, SS, DS, FS, GS, in the order of their encoding.
    pub segments: [Segment; 6],
    /// Local descriptor table register.
    pub ldtr: Segment,
    /// Task register.
    pub tr: Segment,
    /// Global descriptor table register.
    pub gdtr: DescriptorTable,
    /// Interrupt descriptor table register.
    pub idtr: DescriptorTable,
    /// Control register 0.
    pub cr0: u64,
    /// Control register 2.
    pub cr2: u64,
    /// Control register 3.
    pub cr3: u64,
    /// Control register 4.
    pub cr4: u64,
    /// Control register 8, the task priority.
    pub cr8: u64,
    /// DR0 to DR3, DR6, DR7.
    pub debug: [u64; 6],
    /// IA32_EFER.
    pub efer: u64,
    /// IA32_APIC_BASE.
    pub apic_base: u64,
    /// The other model-specific registers, as (index, value).
    pub msrs: Vec<(u32, u64)>,
    /// x87, MXCSR and XMM in the layout of FXSAVE64: 512 bytes (SDM vol. 1 §10.5.1).
    pub fxsave: Vec<u8>,
    /// The upper halves of YMM0 to YMM15, as the AVX component of XSAVE has them: 256 bytes, or none for zeros.
    #[serde(default)]
    pub upper: Vec<u8>,
    /// XCR0: the components of the extended state that are enabled.
    #[serde(default = "x87_only")]
    pub xcr0: u64,
    /// Stopped by HLT, waiting for an interrupt.
    pub halted: bool,
}

/// XCR0 after reset.
fn x87_only() -> u64 {
    1
}

impl X86State {
    /// The state after reset: real mode at f000:fff0 (SDM vol. 3A, table 10-1).
    pub fn after_reset() -> X86State {
        let data = Segment { selector: 0, base: 0, limit: 0xffff, rights: 0x93 };
        let mut segments = [data; 6];
        segments[1] = Segment { selector: 0xf000, base: 0xffff_0000, limit: 0xffff, rights: 0x9b };
        let mut fxsave = vec![0; 512];
        fxsave[..2].copy_from_slice(&0x37fu16.to_le_bytes());
        fxsave[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
        X86State {
            gpr: [0; 16],
            rip: 0xfff0,
            rflags: 2,
            segments,
            ldtr: Segment { limit: 0xffff, rights: 0x82, ..Segment::default() },
            tr: Segment { limit: 0xffff, rights: 0x8b, ..Segment::default() },
            gdtr: DescriptorTable { base: 0, limit: 0xffff },
            idtr: DescriptorTable { base: 0, limit: 0xffff },
            cr0: 0x6000_0010,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            cr8: 0,
            debug: [0, 0, 0, 0, 0xffff_0ff0, 0x400],
            efer: 0,
            apic_base: 0xfee0_0900,
            msrs: Vec::new(),
            fxsave,
            upper: vec![0; 256],
            xcr0: x87_only(),
            halted: false,
        }
    }

    /// The state in which the PVH protocol enters a kernel: 32-bit protected mode, flat, paging off, RBX pointing
    /// at the start info (Xen's `docs/misc/pvh.pandoc`).
    pub fn pvh(entry: u32, start_info: u32) -> X86State {
        let mut state = X86State::after_reset();
        let flat = Segment { selector: 0x10, base: 0, limit: u32::MAX, rights: 0xc093 };
        state.segments = [flat; 6];
        state.segments[1] = Segment { selector: 0x8, base: 0, limit: u32::MAX, rights: 0xc09b };
        state.tr = Segment { selector: 0x18, base: 0, limit: 0x67, rights: 0x8b };
        state.cr0 = 0x11; // PE, ET
        state.rip = u64::from(entry);
        state.gpr[gpr::RBX] = u64::from(start_info);
        state
    }
}
