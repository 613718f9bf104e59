//! What translated code has in memory: its frame on the host's stack, and what it exchanges with the processor's
//! state when it is entered and left.

use std::mem::offset_of;

use super::asm::{Mem, host};
use super::lookup::JumpTable;
use crate::cpu::Cpu;
use crate::mem::Tlb;

/// Blocks are divided into so many shares, each with a budget of its own. A counter in memory is ready again only when
/// the host has forwarded its last store, after some 5 to 7 cycles: short blocks that follow one another would wait for it.
pub const SHARES: usize = 4;

/// Windows that a trace can have, see [`super::windows`].
pub const WINDOWS: usize = 6;

/// The frame, at RSP while translated code runs.
#[derive(Debug)]
#[repr(C)]
pub struct Frame {
    /// The arithmetic flags, where they are not in RFLAGS of the host, as [`super::flags::pack`] has them.
    pub flags: u64,
    /// The TLB that applies.
    pub tlb: *mut Tlb,
    /// RIP of the page that the current block begins in.
    pub page: u64,
    /// Instructions left before a look around, for each share of the blocks; negative: it is due.
    pub budgets: [i64; SHARES],
    /// The table of where indirect jumps lead, for the current privilege.
    pub jumps: *const JumpTable,
    /// The guest's registers that are not in host registers, [`SPILLED_GUEST`].
    pub spilled: [u64; 3],
    /// Host addresses of the current trace's windows; 0 for one that is not to be used.
    pub windows: [usize; WINDOWS],
    /// The processor.
    pub cpu: *mut Cpu,
    /// Bases of FS and GS.
    pub bases: [u64; 2],
    /// Where the processor's code goes on after a call of ours.
    pub resume: usize,
    /// For the time of a few instructions.
    pub scratch: [u64; 2],
    /// Whether the guest's XMM registers and MXCSR are in the host's (1), or the whole of its YMM registers (2).
    pub vectors: u32,
    /// The site that a call is made for.
    pub site: u32,
    /// Why the code is left, see [`reason`].
    pub reason: u32,
    /// The link that it is left through.
    pub link: u32,
    /// MXCSR as Rust code expects it.
    pub mxcsr: u32,
    /// Fills up so that RSP is a multiple of 16 in translated code.
    pub fill: [u32; 3],
}

/// What is loaded into the frame and taken out of it.
#[derive(Debug, Default, Clone, Copy)]
#[repr(C)]
pub struct Exchange {
    /// [`Frame::flags`]
    pub flags: u64,
    /// [`Frame::page`]
    pub page: u64,
    /// What is left of [`Frame::budgets`], all together.
    pub budget: i64,
    /// [`Frame::jumps`], as an address.
    pub jumps: usize,
    /// [`Frame::link`]
    pub link: u32,
    /// RIP of the instruction that raised the exception, with [`reason::FAULT`].
    pub fault: u64,
}

/// Why translated code was left: the value that `enter` returns.
pub mod reason {
    /// Something may want attention; RIP is that of the next instruction.
    pub const LOOK: u32 = 1;
    /// An exception was raised.
    pub const FAULT: u32 = 2;
    /// There is no translation at RIP, or the way to it is not known.
    pub const MISS: u32 = 3;
    /// Through a link that leads nowhere yet.
    pub const LINK: u32 = 4;
}

/// Bytes of the frame that the entry makes room for: with six saved registers and the return address, RSP
/// becomes a multiple of 16.
pub const FRAME_BYTES: i32 = size_of::<Frame>() as i32;

const _: () = assert!(size_of::<Frame>() % 16 == 8);

macro_rules! places {
    ($($name:ident = $($field:tt).+;)*) => {$(
        #[doc = concat!("`", stringify!($($field).+), "`")]
        pub const $name: Mem = Mem::frame(offset_of!(Frame, $($field).+) as i32);
    )*};
}

places! {
    FLAGS = flags;
    CPU = cpu;
    TLB = tlb;
    PAGE = page;
    BUDGETS = budgets;
    WINDOW = windows;
    JUMPS = jumps;
    SPILLED = spilled;
    BASES = bases;
    RESUME = resume;
    SCRATCH = scratch;
    VECTORS = vectors;
    SITE = site;
    REASON = reason;
    LINK = link;
    MXCSR = mxcsr;
}

/// A place of the processor's state, `cpu` being in a register.
pub const fn cpu_at(register: u8, offset: usize) -> Mem {
    Mem::at(register, offset as i32)
}

/// Offset of general register `n`.
pub const fn gpr_offset(n: u8) -> usize {
    offset_of!(Cpu, regs) + 8 * n as usize
}

/// The budget of a share of the blocks.
pub const fn budget_of(share: u8) -> Mem {
    Mem::frame(BUDGETS.disp + 8 * share as i32)
}

/// The host address of a window.
pub const fn window_of(slot: u8) -> Mem {
    Mem::frame(WINDOW.disp + 8 * slot as i32)
}

/// The guest's registers that are in the frame: the least used.
pub const SPILLED_GUEST: [u8; 3] = [9, 10, 11];

/// Where the frame has a guest register that is not in a host register, between translations.
pub const fn spilled_at(n: u8) -> Mem {
    let [first, second, _] = SPILLED_GUEST;
    let place = if n == first {
        0
    } else if n == second {
        1
    } else {
        2
    };
    Mem::frame(SPILLED.disp + 8 * place)
}

/// The host register that holds a guest register between translations; `None` for those in the frame, in whose place R13, R14 and R15 are. RSP is in
/// the host's R13; R14 and R15 of the host are free for every instruction to use.
pub const fn host_of(guest: u8) -> Option<u8> {
    let [first, second, third] = SPILLED_GUEST;
    match guest {
        4 => Some(host::R13),
        n if n == first || n == second || n == third => None,
        13 => Some(first),
        14 => Some(second),
        15 => Some(third),
        n => Some(n),
    }
}
