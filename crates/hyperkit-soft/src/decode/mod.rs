//! From bytes to ops to blocks.

pub mod blocks;
pub mod build;
pub mod lines;
pub mod operand;
#[cfg(test)]
mod tests;

use iced_x86::Instruction;

use crate::cpu::CodeSize;
use crate::op::Op;

/// What lowering an instruction may depend on besides the instruction.
#[derive(Debug, Clone, Copy)]
pub struct Context {
    /// RIP of the block's first byte.
    pub block_rip: u64,
    /// How the code segment is decoded.
    pub code_size: CodeSize,
}

/// Makes an op from an instruction: asks each family in turn; what none knows is #UD.
pub fn lower(instruction: &Instruction, context: &Context) -> Op {
    crate::interp::lower(instruction, context).unwrap_or_else(|| lower_system(instruction, context))
}

/// Makes an op from an instruction that is in none of the unprivileged families.
pub fn lower_system(instruction: &Instruction, context: &Context) -> Op {
    crate::system::lower(instruction, context)
        .unwrap_or_else(|| operand::op(crate::system::undefined, instruction, context))
}
