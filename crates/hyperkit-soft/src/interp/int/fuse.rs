//! Pairs of instructions that are executed as one op.

use iced_x86::Instruction;

use crate::op::Op;

/// Makes `last`, the op of `before`, stand for the pair of `before` and the next instruction, if there is a handler
/// for the two. A fault of the pair is a fault of its first.
pub fn fuse(last: &mut Op, before: &Instruction, next: &Op, instruction: &Instruction) -> bool {
    let _ = (last, before, next, instruction);
    false
}
