//! One decoded instruction, in the form the interpreter runs.

use crate::cpu::Cpu;
use crate::trap::Trap;

/// What an op does. Runs with [`Cpu::regs`]`[BLOCK]` = RIP (an offset in the code segment) of the block's first byte.
///
/// `Err` means that an exception was raised with [`Cpu::raise`] and that the instruction had no effect that the
/// SDM does not allow a faulting instruction (repeated string instructions keep their progress).
pub type Handler = fn(&mut Cpu, &Op) -> Result<Flow, Trap>;

/// What to run after an op.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Flow {
    /// The next op of the block; past the last one, the instruction that follows the block.
    Next,
    /// [`Cpu::rip`] was set: leave the block. Every branch, and everything that changes the mode, the
    /// translation of addresses or what the next instruction means.
    Leave,
}

/// Number of the pseudo-register that is always 0, for an address without base or index.
pub const ZERO: u8 = 16;
/// Number of the pseudo-register that holds RIP of the current block's first byte: RIP-relative
/// addresses are `BLOCK + disp`, with the displacement adjusted when the op is made.
pub const BLOCK: u8 = 17;

/// `Op::seg` of an address that needs no segment base: a 64-bit address in a segment other than FS and GS.
pub const FLAT: u8 = 6;

/// `Op::addr_bits` of a 64-bit RIP-relative address whose displacement from the block's first byte is 2^31 or a
/// little more: `disp` is its low half.
pub const WIDE: u8 = 65;

/// A decoded instruction: 32 bytes, immutable once its block is published.
///
/// The memory operand, if there is one, is `base + (index << scale) + disp`, cut to `addr_bits`, plus the base
/// of `seg`; [`Cpu::address`] computes it.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Op {
    /// What it does.
    pub run: Handler,
    /// Immediate operand, sign-extended; for a relative branch its target minus RIP of the block; otherwise
    /// the handler's own.
    pub imm: u64,
    /// Displacement of the memory operand.
    pub disp: i32,
    /// Offset of the instruction from the block's first byte.
    pub at: u16,
    /// Length of the instruction in bytes, 1 to 15.
    pub len: u8,
    /// Base register of the memory operand: 0 to 15, [`ZERO`] or [`BLOCK`].
    pub base: u8,
    /// Index register of the memory operand: 0 to 15 or [`ZERO`].
    pub index: u8,
    /// log2 of the factor of the index.
    pub scale: u8,
    /// Segment of the memory operand, as encoded (ES 0 … GS 5), or [`FLAT`].
    pub seg: u8,
    /// Width of the address computation: 64, 32, 16, or [`WIDE`].
    pub addr_bits: u8,
    /// First register operand: its number; for byte registers the offset of the byte in [`Cpu::regs`]
    /// (AL 0, CL 8, … AH 1, CH 9).
    pub dst: u8,
    /// Second register operand, likewise.
    pub src: u8,
    /// Third operand or variant; the handler's own.
    pub aux: u8,
    /// Instructions that this op stands for: 1, or 2 when a compare and a branch were fused.
    pub count: u8,
}

const _: () = assert!(size_of::<Op>() == 32);
