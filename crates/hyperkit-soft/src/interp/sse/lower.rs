//! From an instruction of this family to its op.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

use super::{convert, features, float, immediate, integer, mmx, moves, scattered, state};
use crate::decode::{Context, operand};
use crate::op::{Handler, Op};

/// The op of an instruction of this family; `None` for any other.
pub fn lower(instruction: &Instruction, context: &Context) -> Option<Op> {
    if !features::offered(instruction) {
        return None;
    }
    let (code, mnemonic) = (instruction.code(), instruction.mnemonic());
    let pair = if uses_mmx(instruction) {
        mmx::find(code)?
    } else if has_imm8(instruction) {
        scattered::find(code).or_else(|| immediate::find(mnemonic))?
    } else if matches!(code, Code::Cvtpi2ps_xmm_mmm64 | Code::Cvtpi2pd_xmm_mmm64) {
        mmx::find(code)?
    } else {
        moves::find(code)
            .or_else(|| scattered::find(code))
            .or_else(|| state::find(code))
            .or_else(|| convert::find(code))
            .or_else(|| float::find(mnemonic).filter(|_| has_xmm(instruction)))
            .or_else(|| integer::find(mnemonic))?
    };
    Some(fill(pair, instruction, context))
}

/// Makes the op: `pair` is the handlers with a register and with memory as the operand that may be either.
fn fill(pair: [Handler; 2], instruction: &Instruction, context: &Context) -> Op {
    let kinds = (0..instruction.op_count()).map(|i| instruction.op_kind(i));
    let memory = kinds.clone().any(|kind| kind == OpKind::Memory);
    let mut op = operand::op(pair[usize::from(memory)], instruction, context);
    let masked = matches!(instruction.mnemonic(), Mnemonic::Maskmovdqu | Mnemonic::Maskmovq);
    for (i, kind) in (0..).zip(kinds).skip(masked.into()) {
        match kind {
            OpKind::Register if i == u32::from(masked) => op.dst = number(instruction.op_register(i)),
            OpKind::Register if i == 1 + u32::from(masked) => op.src = number(instruction.op_register(i)),
            OpKind::Immediate8 => op.imm = instruction.immediate8().into(),
            _ => {}
        }
    }
    op
}

/// The register's encoding. (None of this family's takes a byte register without REX.)
fn number(register: Register) -> u8 {
    operand::register(register)
}

fn registers(instruction: &Instruction) -> impl Iterator<Item = Register> {
    (0..instruction.op_count().min(3))
        .filter(|i| instruction.op_kind(*i) == OpKind::Register)
        .map(|i| instruction.op_register(i))
}

fn uses_mmx(instruction: &Instruction) -> bool {
    registers(instruction).any(Register::is_mm)
}

fn has_xmm(instruction: &Instruction) -> bool {
    registers(instruction).any(Register::is_xmm)
}

fn has_imm8(instruction: &Instruction) -> bool {
    (0..instruction.op_count()).any(|i| instruction.op_kind(i) == OpKind::Immediate8)
}
