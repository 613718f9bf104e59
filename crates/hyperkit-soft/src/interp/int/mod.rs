//! The int family.

use iced_x86::Instruction;

use crate::decode::Context;
use crate::op::Op;

/// The op of an instruction of this family; `None` for any other.
pub fn lower(_instruction: &Instruction, _context: &Context) -> Option<Op> {
    None
}
