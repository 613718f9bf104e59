//! The parts of an op that are the same for every family: position, length, memory operand.

use iced_x86::Instruction;

use crate::decode::Context;
use crate::op::{BLOCK, FLAT, Handler, Op, ZERO};

/// An op with position, length and, if the instruction has a memory operand, its address; registers and
/// immediate are left 0 for the family to fill in.
pub fn op(run: Handler, instruction: &Instruction, context: &Context) -> Op {
    let at = instruction.ip().wrapping_sub(context.block_rip) as u16;
    let len = instruction.len() as u8;
    let _ = BLOCK;
    Op {
        run,
        imm: 0,
        disp: 0,
        at,
        len,
        base: ZERO,
        index: ZERO,
        scale: 0,
        seg: FLAT,
        addr_bits: 64,
        dst: 0,
        src: 0,
        aux: 0,
        count: 1,
    }
}
