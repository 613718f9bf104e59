//! Code that all translations share: the way in, the ways out, and the calls of Rust functions.
//!
//! Within translated code the guest's registers are where [`super::frame::host_of`] says; R14 and R15 are free.
//! Around every call the whole state goes to the [`Cpu`] and comes back, so that what is called finds a processor
//! between two instructions.

use std::mem::offset_of;

use super::asm::{Asm, Mem, alu, cond, host};
use super::cold::second_entry;
use super::frame::{
    BASES, CPU, FLAGS, FRAME_BYTES, JUMPS, LINK, MXCSR, PAGE, REASON, RESUME, SCRATCH, SHARES, SITE, TLB,
    VECTORS, budget_of, cpu_at, gpr_offset, host_of, reason, spilled_at,
};
use super::helpers;
use super::state::Features;
use crate::cpu::Cpu;
use crate::cpu::seg;

/// Registers that a function saves for its caller, as the host's calling convention has it.
const SAVED: [u8; 6] = [3, 5, 12, 13, 14, 15];

/// What Rust code expects in MXCSR.
const MXCSR_DEFAULT: u32 = 0x1f80;

/// Offset of MXCSR in the FXSAVE image.
const FX_MXCSR: usize = 24;

/// Offset of XMM0 in the FXSAVE image.
const FX_XMM: usize = 160;

/// Addresses of the shared code.
#[derive(Debug, Default, Clone, Copy)]
pub struct Stubs {
    /// `extern "sysv64" fn(&mut Cpu, code) -> reason`
    pub enter: usize,
    /// Executes the instruction of the site whose number is in R14, then goes on where the site says or leaves.
    pub interpret: usize,
    /// At the site whose number is in R14 the budget is used up.
    pub look: usize,
    /// Goes to the code for the linear address in R14, which is not in the entry of the table that R15 has the address of.
    pub second: usize,
    /// Leaves: the code for the linear address in R14 is not known.
    pub miss: usize,
    /// Leaves through the link whose number is in R14.
    pub link: usize,
    /// Subroutine: puts the guest's XMM registers into the host's. R15 is then 1, or 0 if the guest must not use them
    /// now, or only with care.
    pub load_xmm: usize,
    /// The same with the upper halves of the YMM registers.
    pub load_ymm: usize,
}

fn mxcsr() -> usize {
    offset_of!(Cpu, fx) + FX_MXCSR
}

fn xmm(n: u8) -> usize {
    offset_of!(Cpu, fx) + FX_XMM + 16 * usize::from(n)
}

fn exchange(field: usize) -> usize {
    offset_of!(Cpu, jit) + field
}

macro_rules! exchange {
    ($field:ident) => {
        exchange(offset_of!(super::frame::Exchange, $field))
    };
}

/// Makes the shared code.
pub fn make(asm: &mut Asm, features: Features) -> Stubs {
    let mut stubs = Stubs::default();
    let align = |asm: &mut Asm| {
        while !asm.address().is_multiple_of(16) {
            asm.out.push(0xcc);
        }
        asm.address()
    };
    stubs.enter = align(asm);
    enter(asm, features);
    let leave = align(asm);
    let given = leave_code(asm);
    stubs.interpret = align(asm);
    call_helper(asm, features, helpers::interpret as *const () as usize, given);
    stubs.look = align(asm);
    call_helper(asm, features, helpers::look as *const () as usize, given);
    stubs.second = align(asm);
    let unknown = second_entry(asm);
    stubs.miss = align(asm);
    asm.land(unknown);
    miss(asm, leave);
    stubs.link = align(asm);
    link(asm, leave);
    stubs.load_xmm = align(asm);
    load_vectors(asm, false);
    stubs.load_ymm = align(asm);
    load_vectors(asm, true);
    stubs
}

/// Copies 64 bits through R14.
fn copy(asm: &mut Asm, to: Mem, from: Mem) {
    asm.load(host::R14, from);
    asm.store(to, host::R14);
}

/// The segment bases, from the processor in R15 to the frame.
fn take_bases(asm: &mut Asm) {
    for (n, number) in [seg::FS, seg::GS].into_iter().enumerate() {
        let from = cpu_at(host::R15, offset_of!(Cpu, seg_base) + 8 * number);
        copy(asm, Mem::frame(BASES.disp + 8 * n as i32), from);
    }
}

fn enter(asm: &mut Asm, features: Features) {
    for register in SAVED {
        push(asm, register);
    }
    asm.alu_imm(true, alu::SUB, host::RSP, FRAME_BYTES);
    asm.store(CPU, host::RDI);
    asm.store(SCRATCH, host::RSI);
    asm.mov(host::R15, host::RDI);
    copy(asm, FLAGS, cpu_at(host::R15, exchange!(flags)));
    copy(asm, PAGE, cpu_at(host::R15, exchange!(page)));
    for share in 0..SHARES as u8 {
        asm.reg_mem(true, &[0xc7], 0, budget_of(share)); // mov qword
        asm.bytes(&(helpers::BUDGET as i32).to_le_bytes());
    }
    copy(asm, JUMPS, cpu_at(host::R15, exchange!(jumps)));
    copy(asm, TLB, cpu_at(host::R15, offset_of!(Cpu, tlb)));
    if features.gs_base {
        asm.write_gs_base(host::R14);
    }
    take_bases(asm);
    asm.store_imm32(VECTORS, 0);
    asm.store_imm32(MXCSR, MXCSR_DEFAULT);
    take_registers(asm);
    asm.load(host::R14, cpu_at(host::R15, offset_of!(Cpu, rip)));
    asm.jmp_mem(SCRATCH);
}

/// The guest's registers, from the processor in R15.
fn take_registers(asm: &mut Asm) {
    for n in 0..16 {
        let from = cpu_at(host::R15, gpr_offset(n));
        match host_of(n) {
            Some(register) => asm.load(register, from),
            None => copy(asm, spilled_at(n), from),
        }
    }
}

/// All of the guest's registers, to the processor, whose address is in R15 afterwards.
fn give_registers(asm: &mut Asm) {
    asm.load(host::R15, CPU);
    for n in 0..16 {
        let to = cpu_at(host::R15, gpr_offset(n));
        match host_of(n) {
            Some(register) => asm.store(to, register),
            None => copy(asm, to, spilled_at(n)),
        }
    }
    asm.alu_mem_imm(false, alu::CMP, VECTORS, 1);
    let skip = asm.jcc(cond::B, 0);
    let lower = asm.jcc(cond::E, 0);
    for n in 0..16 {
        vector_half(asm, EXTRACT, n);
    }
    asm.bytes(&[0xc5, 0xf8, 0x77]); // vzeroupper
    asm.land(lower);
    // stmxcsr
    asm.reg_mem(false, &[0x0f, 0xae], 3, cpu_at(host::R15, mxcsr()));
    for n in 0..16 {
        asm.reg_mem(false, &[0x0f, 0x29], n, cpu_at(host::R15, xmm(n)));
    }
    // ldmxcsr
    asm.reg_mem(false, &[0x0f, 0xae], 2, MXCSR);
    asm.land(skip);
}

/// An instruction between the upper half of YMM register `n` and its place in the processor in R15: map 3 of VEX, with 1 as
/// its immediate operand.
fn vector_half(asm: &mut Asm, opcode: u8, n: u8) {
    let from = opcode == INSERT;
    let vvvv = if from { !n & 15 } else { 15 };
    asm.bytes(&[0xc4, (!(n >> 3) & 1) << 7 | 0x43, vvvv << 3 | 5, opcode]);
    asm.modrm(n, cpu_at(host::R15, offset_of!(Cpu, upper) + 16 * usize::from(n)));
    asm.out.push(1);
}

/// Opcode of VINSERTF128.
const INSERT: u8 = 0x18;
/// Opcode of VEXTRACTF128.
const EXTRACT: u8 = 0x19;

/// The upper halves of the YMM registers, from the processor in R15.
fn take_upper(asm: &mut Asm) {
    for n in 0..16 {
        vector_half(asm, INSERT, n);
    }
}

/// MXCSR and the XMM registers, from the processor in R15.
fn take_xmm(asm: &mut Asm) {
    asm.reg_mem(false, &[0x0f, 0xae], 2, cpu_at(host::R15, mxcsr()));
    for n in 0..16 {
        asm.reg_mem(false, &[0x0f, 0x28], n, cpu_at(host::R15, xmm(n)));
    }
}

/// Leaves; the result is where to go for it with the registers given back and the processor in R15.
fn leave_code(asm: &mut Asm) -> usize {
    give_registers(asm);
    let given = asm.address();
    copy(asm, cpu_at(host::R15, exchange!(flags)), FLAGS);
    copy(asm, cpu_at(host::R15, exchange!(page)), PAGE);
    asm.load(host::R14, budget_of(0));
    for share in 1..SHARES as u8 {
        asm.alu_mem(true, alu::ADD, host::R14, budget_of(share));
    }
    asm.store(cpu_at(host::R15, exchange!(budget)), host::R14);
    asm.load32(host::R14, LINK);
    asm.store32(cpu_at(host::R15, exchange!(link)), host::R14);
    asm.load32(host::RAX, REASON);
    asm.alu_imm(true, alu::ADD, host::RSP, FRAME_BYTES);
    for register in SAVED.into_iter().rev() {
        pop(asm, register);
    }
    asm.out.push(0xc3);
    given
}

/// Calls `helper(cpu, frame)` for the site in R14. It returns 0 to go on, else the reason to leave.
fn call_helper(asm: &mut Asm, features: Features, helper: usize, given: usize) {
    asm.store32(SITE, host::R14);
    give_registers(asm);
    asm.mov(host::RDI, host::R15);
    asm.mov(host::RSI, host::RSP);
    asm.mov_imm64(host::RAX, helper as u64);
    asm.bytes(&[0xff, 0xd0]); // call rax
    asm.load(host::R15, CPU);
    asm.reg_reg(false, &[0x85], host::RAX, host::RAX); // test eax, eax
    let leaves = asm.jcc(cond::NE, 0);
    if features.gs_base {
        asm.load(host::R14, TLB);
        asm.write_gs_base(host::R14);
    }
    asm.alu_mem_imm(false, alu::CMP, VECTORS, 1);
    let skip = asm.jcc(cond::B, 0);
    take_xmm(asm);
    asm.alu_mem_imm(false, alu::CMP, VECTORS, 1);
    let lower = asm.jcc(cond::E, 0);
    take_upper(asm);
    asm.land(lower);
    asm.land(skip);
    take_registers(asm);
    asm.jmp_mem(RESUME);
    asm.land(leaves);
    asm.store32(REASON, host::RAX);
    asm.jmp(given);
}

fn miss(asm: &mut Asm, leave: usize) {
    asm.load(host::R15, CPU);
    asm.store(cpu_at(host::R15, offset_of!(Cpu, rip)), host::R14);
    asm.store_imm32(REASON, reason::MISS);
    asm.jmp(leave);
}

fn link(asm: &mut Asm, leave: usize) {
    asm.store32(LINK, host::R14);
    asm.store_imm32(REASON, reason::LINK);
    asm.jmp(leave);
}

/// Called with a return address on the stack, so that the frame is 8 bytes further up. With `upper` the YMM registers are
/// loaded, of which the lower halves may be there.
fn load_vectors(asm: &mut Asm, upper: bool) {
    let vectors = Mem::frame(VECTORS.disp + 8);
    let done = |asm: &mut Asm, result: u32| {
        asm.mov_imm32(host::R15, result);
        asm.out.push(0xc3);
    };
    asm.load(host::R15, Mem::frame(CPU.disp + 8));
    let field = if upper {
        offset_of!(crate::interp::gate::Gate, avx)
    } else {
        offset_of!(crate::interp::gate::Gate, sse)
    };
    let gate = cpu_at(host::R15, offset_of!(Cpu, gate) + field);
    asm.reg_mem(false, &[0x80], alu::CMP, gate); // cmp byte [gate], 0
    asm.out.push(0);
    let gated = asm.jcc(cond::NE, 0);
    asm.alu_mem_imm(false, alu::CMP, vectors, 1);
    let have_lower = asm.jcc(cond::E, 0);
    // With an exception unmasked the host would get it: those instructions are left to the interpreter.
    asm.load32(host::R14, cpu_at(host::R15, mxcsr()));
    asm.alu_imm(false, alu::AND, host::R14, MXCSR_DEFAULT as i32);
    asm.alu_imm(false, alu::CMP, host::R14, MXCSR_DEFAULT as i32);
    let unmasked = asm.jcc(cond::NE, 0);
    take_xmm(asm);
    asm.land(have_lower);
    if upper {
        take_upper(asm);
    }
    asm.store_imm32(vectors, if upper { 2 } else { 1 });
    done(asm, 1);
    asm.land(gated);
    asm.land(unmasked);
    done(asm, 0);
}

fn push(asm: &mut Asm, register: u8) {
    if register >= 8 {
        asm.out.push(0x41);
    }
    asm.out.push(0x50 | register & 7);
}

fn pop(asm: &mut Asm, register: u8) {
    if register >= 8 {
        asm.out.push(0x41);
    }
    asm.out.push(0x58 | register & 7);
}
