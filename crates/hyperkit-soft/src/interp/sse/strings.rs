//! PCMPESTRI, PCMPESTRM, PCMPISTRI, PCMPISTRM: one comparison on the host gives the bit for each element; lengths,
//! index, mask and flags follow from it here.
//!
//! Spec: SDM vol. 2 §4.1.

use std::arch::asm;
use std::arch::x86_64::__m128i;

use iced_x86::{Code, Mnemonic};

use super::registers::{bits, from, source, vector_of};
use crate::cpu::Cpu;
use crate::op::{Flow, Handler, Op};
use crate::trap::Trap;

/// Bit of the immediate: elements are words, not bytes.
const WORDS: u8 = 1;
/// Bit of the immediate: the index is that of the last element, or the mask has whole elements.
const WIDE: u8 = 0x40;

/// IntRes2 of the first operand (of `lengths[0]` elements) and the second.
type Compare = fn(__m128i, __m128i, lengths: [u32; 2]) -> u32;

fn compare<const IMM: u8>(first: __m128i, second: __m128i, lengths: [u32; 2]) -> u32 {
    let mask: __m128i;
    // SAFETY: works on its registers only; the host has it, or `lower` had not made the op.
    unsafe {
        asm!(
            "pcmpestrm {first}, {second}, {imm}",
            first = in(xmm_reg) first,
            second = in(xmm_reg) second,
            imm = const IMM,
            in("eax") lengths[0],
            in("edx") lengths[1],
            out("xmm0") mask,
            options(pure, nomem, nostack),
        );
    }
    bits(mask) as u32
}

macro_rules! row {
    ($first:literal) => {
        [
            compare::<{ $first }>,
            compare::<{ $first + 1 }>,
            compare::<{ $first + 2 }>,
            compare::<{ $first + 3 }>,
            compare::<{ $first + 4 }>,
            compare::<{ $first + 5 }>,
            compare::<{ $first + 6 }>,
            compare::<{ $first + 7 }>,
        ]
    };
}

/// By bits 0 to 5 of the immediate.
static COMPARES: [[Compare; 8]; 8] =
    [row!(0), row!(8), row!(16), row!(24), row!(32), row!(40), row!(48), row!(56)];

/// Elements before the first that is 0.
fn length(string: __m128i, elements: u32) -> u32 {
    let width = 128 / elements;
    let element = |n: &u32| bits(string) >> (n * width) & (u128::MAX >> (128 - width));
    (0..elements).find(|n| element(n) == 0).unwrap_or(elements)
}

/// The length that a register says: its absolute value, at most all elements.
fn explicit_length(register: u64, wide: bool, elements: u32) -> u32 {
    let signed = if wide { register as i64 } else { i64::from(register as i32) };
    signed.unsigned_abs().min(elements.into()) as u32
}

/// Where lengths come from and where the result goes.
const IMPLICIT: u8 = 0;
const IN_EAX: u8 = 1;
const IN_RAX: u8 = 2;

fn run<const LENGTHS: u8, const MASK: bool, const FROM: u8>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.pass(cpu.gate.sse)?;
    let second = source::<FROM>(cpu, op)?;
    let first = cpu.xmm(op.dst);
    let imm = op.imm as u8;
    let elements = if imm & WORDS != 0 { 8 } else { 16 };
    let lengths = match LENGTHS {
        IMPLICIT => [length(first, elements), length(second, elements)],
        _ => [0, 2].map(|register: usize| explicit_length(cpu.regs[register], LENGTHS == IN_RAX, elements)),
    };
    let found = COMPARES[usize::from(imm >> 3 & 7)][usize::from(imm & 7)](first, second, lengths);
    if MASK {
        cpu.set_xmm(0, vector_of(if imm & WIDE != 0 { widened(found, elements) } else { found.into() }));
    } else {
        let index = if imm & WIDE != 0 { 31 - found.leading_zeros().min(31) } else { found.trailing_zeros() };
        cpu.regs[1] = if found == 0 { elements } else { index }.into();
    }
    let flag = |set: bool, bit: u64| if set { bit } else { 0 };
    use crate::flags::bit::{CF, OF, SF, ZF};
    cpu.flags.set_arithmetic(
        flag(found != 0, CF)
            | flag(lengths[1] < elements, ZF)
            | flag(lengths[0] < elements, SF)
            | flag(found & 1 != 0, OF),
    );
    Ok(Flow::Next)
}

/// A mask with whole elements, of one with bits.
fn widened(mask: u32, elements: u32) -> u128 {
    let width = 128 / elements;
    let element = u128::MAX >> (128 - width);
    (0..elements).filter(|n| mask >> n & 1 != 0).fold(0, |whole, n| whole | element << (n * width))
}

/// The handlers of an instruction of this file: with registers, with memory.
pub fn find(code: Code) -> Option<[Handler; 2]> {
    use from::{M16_UNALIGNED, REGISTER};
    Some(match code.mnemonic() {
        Mnemonic::Pcmpistri => [run::<IMPLICIT, false, REGISTER>, run::<IMPLICIT, false, M16_UNALIGNED>],
        Mnemonic::Pcmpistrm => [run::<IMPLICIT, true, REGISTER>, run::<IMPLICIT, true, M16_UNALIGNED>],
        Mnemonic::Pcmpestri => [run::<IN_EAX, false, REGISTER>, run::<IN_EAX, false, M16_UNALIGNED>],
        Mnemonic::Pcmpestrm => [run::<IN_EAX, true, REGISTER>, run::<IN_EAX, true, M16_UNALIGNED>],
        Mnemonic::Pcmpestri64 => [run::<IN_RAX, false, REGISTER>, run::<IN_RAX, false, M16_UNALIGNED>],
        Mnemonic::Pcmpestrm64 => [run::<IN_RAX, true, REGISTER>, run::<IN_RAX, true, M16_UNALIGNED>],
        _ => return None,
    })
}
