//! Unprivileged integer instructions.

pub mod alu;
pub mod atomic;
pub mod bits;
pub mod branch;
pub mod cond;
pub mod fuse;
pub mod misc;
pub mod moves;
pub mod muldiv;
pub mod shift;
pub mod stack;
pub mod string;
pub mod width;

#[cfg(test)]
mod tests;

use iced_x86::Instruction;

use crate::decode::Context;
use crate::op::Op;

/// The op of an instruction of this family; `None` for any other.
pub fn lower(instruction: &Instruction, context: &Context) -> Option<Op> {
    moves::lower(instruction, context)
        .or_else(|| alu::lower(instruction, context))
        .or_else(|| branch::lower(instruction, context))
        .or_else(|| stack::lower(instruction, context))
        .or_else(|| string::lower(instruction, context))
        .or_else(|| shift::lower(instruction, context))
        .or_else(|| muldiv::lower(instruction, context))
        .or_else(|| bits::lower(instruction, context))
        .or_else(|| atomic::lower(instruction, context))
        .or_else(|| misc::lower(instruction, context))
}
