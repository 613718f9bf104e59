//! The state of one processor.

use std::sync::Arc;

use hyperkit_bus::Bus;
use hyperkit_hv::state::x86_64::{DescriptorTable, Segment};
use hyperkit_hv::{CpuModel, Tsc, X86State};
use hyperkit_mem::GuestRam;

use crate::attention::Attention;
use crate::flags::Flags;
use crate::mem::Tlb;
use crate::mmu::planes::Tlbs;
use crate::op::{FLAT, Op};
use crate::system::interrupts::{Interrupts, Processors};
use crate::system::mode::TLB_SUPERVISOR;
use crate::trap::Fault;

/// Segment registers by encoding.
#[expect(missing_docs, reason = "the names are the registers'")]
pub mod seg {
    pub const ES: usize = 0;
    pub const CS: usize = 1;
    pub const SS: usize = 2;
    pub const DS: usize = 3;
    pub const FS: usize = 4;
    pub const GS: usize = 5;
}

/// How instructions are decoded and addresses computed; part of the key of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum CodeSize {
    /// Real mode, virtual-8086 mode, or a 16-bit code segment.
    Bits16,
    /// A 32-bit code segment, in protected or compatibility mode.
    Bits32,
    /// 64-bit mode.
    Bits64,
}

/// The x87 and SSE state in the layout of FXSAVE64 (SDM vol. 1 §10.5.1): XMM0 at byte 160, MXCSR at 24.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub struct FxArea(pub [u8; 512]);

/// The upper halves of YMM0 to YMM15, 16 bytes each, as the AVX component of XSAVE has them (SDM vol. 1 §13.5.2).
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub struct UpperHalves(pub [u8; 256]);

/// One processor. Handlers get it with the op to run.
#[repr(C)]
pub struct Cpu {
    /// RAX … R15 by encoding, then [`crate::op::ZERO`] and [`crate::op::BLOCK`].
    pub regs: [u64; 18],
    /// RFLAGS.
    pub flags: Flags,
    /// The next instruction; up to date between blocks and after [`crate::op::Flow::Leave`]. Inside a block the
    /// current one is `regs[BLOCK] + op.at`.
    pub rip: u64,
    /// Bases by encoding, then 0 for [`FLAT`]: what [`Cpu::address`] adds. In 64-bit mode all but FS and GS are 0
    /// here, whatever the hidden part says.
    pub seg_base: [u64; 8],
    /// The TLB that loads and stores go through now; one of [`Cpu::tlbs`]. Set by [`Cpu::use_tlb`].
    pub tlb: *mut Tlb,
    /// Whose rights it has: those of the user, or of the supervisor with or without SMAP (`system::mode`).
    pub tlb_index: usize,
    /// All TLBs. Their translations of the current address space are reached through `tlb`.
    pub tlbs: Tlbs,
    /// How the code segment is decoded.
    pub code_size: CodeSize,
    /// Current privilege level, 0 to 3.
    pub cpl: u8,
    /// The next instruction is in the shadow of STI, MOV SS or POP SS: no interrupt is taken before it.
    pub shadow: bool,
    /// The exception that a [`crate::trap::Trap`] speaks of.
    pub fault: Option<Fault>,
    /// x87 and SSE registers.
    pub fx: FxArea,
    /// What the YMM registers have above the XMM registers in `fx`, at whose end it lies.
    pub upper: UpperHalves,
    /// Which of their instructions fault; [`Cpu::refresh_gate`] derives it from CR0 and CR4.
    pub gate: crate::interp::gate::Gate,

    /// ES, CS, SS, DS, FS, GS with hidden parts.
    pub segments: [Segment; 6],
    /// LDTR.
    pub ldtr: Segment,
    /// TR.
    pub tr: Segment,
    /// GDTR.
    pub gdtr: DescriptorTable,
    /// IDTR.
    pub idtr: DescriptorTable,
    /// CR0. Change it with the functions of [`crate::system`], which keep what is derived from it.
    pub cr0: u64,
    /// CR2.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// XCR0: which components of the extended state are enabled.
    pub xcr0: u64,
    /// DR0 to DR3, DR6, DR7.
    pub debug: [u64; 6],
    /// Data breakpoints that the current instruction has touched, as in DR6.
    pub debug_hits: u8,
    /// IA32_EFER.
    pub efer: u64,
    /// Model-specific registers that are plain storage, and the virtual clock.
    pub msr: crate::system::msr::Msrs,
    /// In HLT.
    pub halted: bool,

    /// Guest RAM.
    pub ram: Arc<GuestRam>,
    /// The board, while `run` is on the stack; null otherwise.
    pub bus: *const Bus,
    /// What others ask of this vCPU.
    pub attention: Arc<Attention>,
    /// Local APIC, timers and the way to the other vCPUs.
    pub interrupts: Interrupts,
    /// What the TLBs hold, and the TLB of instruction fetches.
    pub mmu: crate::mmu::tlb::Mmu,
    /// Decoded blocks.
    pub blocks: crate::decode::blocks::Blocks,
    /// What translated code is entered and left with.
    pub jit: crate::jit::Exchange,
    /// Both tiers run in step.
    pub lockstep: Option<Box<crate::lockstep::Lockstep>>,
    /// Instructions retired.
    pub retired: u64,
}

// SAFETY: `bus` is only set, and only followed, while `run` borrows the bus; a `Cpu` between runs holds null. `tlb`
// points into `tlbs`, which goes where the rest goes.
unsafe impl Send for Cpu {}

impl std::fmt::Debug for Cpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cpu")
            .field("rip", &format_args!("{:#x}", self.rip))
            .field("code_size", &self.code_size)
            .field("cpl", &self.cpl)
            .field("fault", &self.fault)
            .finish_non_exhaustive()
    }
}

const _: () =
    assert!(std::mem::offset_of!(Cpu, upper) == std::mem::offset_of!(Cpu, fx) + size_of::<FxArea>());

impl Cpu {
    /// A processor after reset, alone in its machine.
    pub fn new(ram: Arc<GuestRam>) -> Box<Cpu> {
        Cpu::member(ram, Processors::new(CpuModel { vcpus: 1, tsc: Tsc::of_host() }), 0)
    }

    /// Processor `id` of a machine, after reset; all but number 0 wait for start-up.
    pub fn member(ram: Arc<GuestRam>, processors: Arc<Processors>, id: u32) -> Box<Cpu> {
        let attention = Arc::clone(&processors.attention[id as usize]);
        let tlbs = Tlbs::default();
        let mut cpu = Box::new(Cpu {
            regs: [0; 18],
            flags: Flags::default(),
            rip: 0,
            seg_base: [0; 8],
            tlb: tlbs.current(TLB_SUPERVISOR),
            tlb_index: TLB_SUPERVISOR,
            tlbs,
            code_size: CodeSize::Bits16,
            cpl: 0,
            shadow: false,
            fault: None,
            fx: FxArea([0; 512]),
            upper: UpperHalves([0; 256]),
            gate: crate::interp::gate::Gate::default(),
            segments: [Segment::default(); 6],
            ldtr: Segment::default(),
            tr: Segment::default(),
            gdtr: DescriptorTable::default(),
            idtr: DescriptorTable::default(),
            cr0: 0,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            xcr0: 1,
            debug: [0; 6],
            debug_hits: 0,
            efer: 0,
            msr: crate::system::msr::Msrs::default(),
            halted: false,
            ram,
            bus: std::ptr::null(),
            attention,
            interrupts: Interrupts::new(id, processors),
            mmu: crate::mmu::tlb::Mmu::default(),
            blocks: crate::decode::blocks::Blocks::default(),
            jit: crate::jit::Exchange::default(),
            lockstep: None,
            retired: 0,
        });
        cpu.take_state(&X86State::after_reset());
        cpu
    }

    /// A processor for tests of instructions: 64-bit mode at privilege level 0, flat segments, paging off with
    /// linear addresses taken as physical (which no real processor allows), SSE and x87 on, an empty board.
    ///
    /// `code_size` may be set to anything afterwards; it holds until something reloads CS or a control register.
    #[doc(hidden)]
    pub fn for_tests(ram: Arc<GuestRam>) -> Box<Cpu> {
        static BOARD: std::sync::LazyLock<Bus> = std::sync::LazyLock::new(Bus::default);
        let mut cpu = Cpu::new(ram);
        let mut state = X86State::pvh(0, 0);
        state.cr0 = 0x33; // PE, MP, ET, NE
        state.cr4 = 0x600; // OSFXSR, OSXMMEXCPT
        state.efer = crate::system::efer::LME | crate::system::efer::LMA | crate::system::efer::SCE;
        state.segments[seg::CS].rights = 0xa09b;
        cpu.take_state(&state);
        cpu.bus = &raw const *BOARD;
        cpu
    }

    /// Chooses which tiers run; what was translated is forgotten.
    pub fn set_tiers(&mut self, tiers: crate::jit::Tiers) {
        self.blocks.jit = crate::jit::Jit::new(tiers);
        self.blocks.clear();
    }

    /// The board. Also where the count of instructions is told to others: often enough for them, and rarely enough
    /// for us.
    #[inline]
    pub fn bus(&self) -> &Bus {
        assert!(!self.bus.is_null(), "the bus is set for as long as `run` is on the stack");
        self.attention.publish_retired(self.retired);
        // SAFETY: not null, so `run` is on the stack and the bus it borrows is alive.
        unsafe { &*self.bus }
    }

    /// The linear address of an op's memory operand.
    #[inline(always)]
    pub fn address(&self, op: &Op) -> u64 {
        let offset = self.offset(op);
        if op.seg == FLAT { offset } else { self.segmented(op, offset) }
    }

    /// The effective address (without the segment base) of an op's memory operand, as LEA gives it before it is
    /// cut to the operand size.
    #[inline(always)]
    pub fn offset(&self, op: &Op) -> u64 {
        let sum = self
            .reg(op.base)
            .wrapping_add(self.reg(op.index) << (op.scale & 3))
            .wrapping_add(op.disp as i64 as u64);
        if op.addr_bits == 64 {
            sum
        } else if op.addr_bits == 32 {
            sum & 0xffff_ffff
        } else if op.addr_bits == 16 {
            sum & 0xffff
        } else {
            sum.wrapping_add(1 << 32)
        }
    }

    /// The linear address of an offset in segment `seg`, an encoding or [`FLAT`].
    pub fn linear_of(&self, seg: u8, offset: u64) -> u64 {
        let linear = self.seg_base[usize::from(seg) & 7].wrapping_add(offset);
        if self.code_size == CodeSize::Bits64 { linear } else { linear & 0xffff_ffff }
    }

    /// Adds the segment base; outside 64-bit mode linear addresses have 32 bits.
    #[inline]
    fn segmented(&self, op: &Op, offset: u64) -> u64 {
        self.linear_of(op.seg, offset)
    }

    /// RIP of the instruction after `op`.
    #[inline(always)]
    pub fn next_rip(&self, op: &Op) -> u64 {
        self.regs[usize::from(crate::op::BLOCK)].wrapping_add(u64::from(op.at) + u64::from(op.len))
    }
}
