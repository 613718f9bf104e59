//! The parts of an op that are the same for every family: position, length, memory operand, register numbers.
//!
//! How a family uses it, in its `lower`:
//!
//! ```ignore
//! let mut op = operand::op(run, instruction, context); // at, len, count, memory operand if there is one
//! op.dst = operand::register(instruction.op0_register());
//! op.imm = operand::immediate(instruction, 2);
//! ```

use iced_x86::{Instruction, OpKind, Register};

use crate::cpu::{CodeSize, seg};
use crate::decode::Context;
use crate::op::{BLOCK, FLAT, Handler, Op, WIDE, ZERO};

/// An op with position, length and, if the instruction has a memory operand, its address; registers and
/// immediate are left 0 for the family to fill in.
///
/// The implicit memory operands of string instructions count: `base` is then RSI or RDI (RSI if it has both; the
/// destination of MOVS and CMPS is always ES:RDI), `seg` and `addr_bits` are as for any other. The 64-bit absolute
/// address of a `mov` to or from `moffs` does not fit `disp`; see [`absolute`].
pub fn op(run: Handler, instruction: &Instruction, context: &Context) -> Op {
    let mut op = Op {
        run,
        imm: 0,
        disp: 0,
        at: instruction.ip().wrapping_sub(context.block_rip) as u16,
        len: instruction.len() as u8,
        base: ZERO,
        index: ZERO,
        scale: 0,
        seg: FLAT,
        addr_bits: 64,
        dst: 0,
        src: 0,
        aux: 0,
        count: 1,
    };
    memory(&mut op, instruction, context);
    op
}

/// Fills in the memory operand of an instruction, if it has one.
pub fn memory(op: &mut Op, instruction: &Instruction, context: &Context) {
    let in_memory =
        (0..instruction.op_count()).map(|n| instruction.op_kind(n)).filter(|kind| is_memory(*kind));
    let Some(kind) = in_memory.max_by_key(|kind| is_source(*kind)) else { return };
    op.seg = segment(instruction, kind, context);
    match kind {
        OpKind::Memory => explicit(op, instruction, context),
        OpKind::MemorySegSI | OpKind::MemorySegESI | OpKind::MemorySegRSI => op.base = 6,
        _ => op.base = 7,
    }
    match kind {
        OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => op.addr_bits = 16,
        OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => op.addr_bits = 32,
        _ => {}
    }
}

/// The absolute address of a memory operand without base and index, whole; what `mov al, moffs64` needs.
pub fn absolute(instruction: &Instruction) -> u64 {
    instruction.memory_displacement64()
}

/// Number of a register within its class: RAX, EAX, AX 0 …, XMM0, MM0, ST0 0 …, ES 0 …, CR0 0 …; for byte registers
/// the offset of the byte in [`crate::cpu::Cpu::regs`] (AL 0, CL 8, … AH 1, CH 9, …).
pub fn register(register: Register) -> u8 {
    let number = register.number() as u8;
    if !register.is_gpr8() {
        return number;
    }
    match register {
        Register::AH => 1,
        Register::CH => 9,
        Register::DH => 17,
        Register::BH => 25,
        _ => register.full_register().number() as u8 * 8,
    }
}

/// The immediate operand number `n`, extended as the encoding says; bits above the operand's width are
/// unspecified.
pub fn immediate(instruction: &Instruction, n: u32) -> u64 {
    instruction.try_immediate(n).unwrap_or(0)
}

/// The target of a relative branch, minus RIP of the block.
pub fn branch(instruction: &Instruction, context: &Context) -> u64 {
    instruction.near_branch_target().wrapping_sub(context.block_rip)
}

/// Whether operand `n` is in memory.
pub fn is_memory_operand(instruction: &Instruction, n: u32) -> bool {
    n < instruction.op_count() && is_memory(instruction.op_kind(n))
}

fn is_memory(kind: OpKind) -> bool {
    matches!(
        kind,
        OpKind::Memory
            | OpKind::MemorySegSI
            | OpKind::MemorySegESI
            | OpKind::MemorySegRSI
            | OpKind::MemorySegDI
            | OpKind::MemorySegEDI
            | OpKind::MemorySegRDI
            | OpKind::MemoryESDI
            | OpKind::MemoryESEDI
            | OpKind::MemoryESRDI
    )
}

/// Whether a memory operand is the implicit `DS:RSI`.
fn is_source(kind: OpKind) -> bool {
    matches!(kind, OpKind::MemorySegSI | OpKind::MemorySegESI | OpKind::MemorySegRSI)
}

fn segment(instruction: &Instruction, kind: OpKind, context: &Context) -> u8 {
    let segment = match kind {
        OpKind::MemoryESDI | OpKind::MemoryESEDI | OpKind::MemoryESRDI => Register::ES,
        _ => instruction.memory_segment(),
    };
    let number = segment.number() as u8;
    let applies = context.code_size != CodeSize::Bits64 || usize::from(number) >= seg::FS;
    if applies { number } else { FLAT }
}

/// Base, index, scale, displacement and address width of a ModRM or moffs operand.
fn explicit(op: &mut Op, instruction: &Instruction, context: &Context) {
    let (base, index) = (instruction.memory_base(), instruction.memory_index());
    let displacement = instruction.memory_displacement64();
    op.addr_bits = match (base, index) {
        (Register::EIP, _) => 32,
        (Register::RIP, _) => 64,
        (Register::None, Register::None) => (instruction.memory_displ_size() * 8) as u8,
        (Register::None, only) | (only, _) => (only.size() * 8) as u8,
    };
    if base.is_ip() {
        let relative = displacement.wrapping_sub(context.block_rip);
        op.base = BLOCK;
        op.disp = relative as i32;
        if op.addr_bits == 64 && op.disp as i64 as u64 != relative {
            op.addr_bits = WIDE;
        }
        return;
    }
    op.disp = displacement as i32;
    op.scale = instruction.memory_index_scale().trailing_zeros() as u8;
    op.base = address_register(base);
    op.index = address_register(index);
}

fn address_register(register: Register) -> u8 {
    if register == Register::None { ZERO } else { register.number() as u8 }
}
