//! What each unprivileged instruction does.

pub mod bmi;
pub mod gate;
pub mod int;
pub mod sse;
pub mod vex;
pub mod x87;

use iced_x86::Instruction;

use crate::decode::Context;
use crate::op::Op;

/// The op of an unprivileged instruction; `None` if no family here knows it.
pub fn lower(instruction: &Instruction, context: &Context) -> Option<Op> {
    int::lower(instruction, context)
        .or_else(|| sse::lower(instruction, context))
        .or_else(|| x87::lower(instruction, context))
        .or_else(|| bmi::lower(instruction, context))
        .or_else(|| vex::lower(instruction, context))
}
