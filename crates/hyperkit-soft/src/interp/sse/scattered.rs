//! What fits no table: single elements in and out, blends by XMM0, PTEST, CRC32, SHA256RNDS2.

use std::arch::asm;
use std::arch::x86_64::__m128i;

use iced_x86::{Code, Mnemonic};

use super::registers::{bits, from, source, vector_of};
use super::strings;
use crate::cpu::Cpu;
use crate::op::{Flow, Handler, Op};
use crate::trap::Trap;

/// The element of `width` bits that the immediate names (its upper bits do not count).
fn element(vector: u128, imm: u64, width: u32) -> u64 {
    let n = imm as u32 & (128 / width - 1);
    (vector >> (width * n)) as u64 & (u64::MAX >> (64 - width))
}

fn extract_to_gpr<const WIDTH: u32>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.pass(cpu.gate.sse)?;
    cpu.regs[usize::from(op.dst & 15)] = element(bits(cpu.xmm(op.src)), op.imm, WIDTH);
    Ok(Flow::Next)
}

fn extract_to_memory<const WIDTH: u32>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.pass(cpu.gate.sse)?;
    let (linear, value) = (cpu.address(op), element(bits(cpu.xmm(op.src)), op.imm, WIDTH));
    match WIDTH {
        8 => cpu.store(linear, value as u8)?,
        16 => cpu.store(linear, value as u16)?,
        32 => cpu.store(linear, value as u32)?,
        _ => cpu.store(linear, value)?,
    }
    Ok(Flow::Next)
}

fn insert<const WIDTH: u32, const MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.pass(cpu.gate.sse)?;
    let value: u64 = match (MEMORY, WIDTH) {
        (false, _) => cpu.regs[usize::from(op.src & 15)],
        (true, 8) => cpu.load::<u8>(cpu.address(op))?.into(),
        (true, 16) => cpu.load::<u16>(cpu.address(op))?.into(),
        (true, 32) => cpu.load::<u32>(cpu.address(op))?.into(),
        (true, _) => cpu.load::<u64>(cpu.address(op))?,
    };
    let shift = WIDTH * (op.imm as u32 & (128 / WIDTH - 1));
    let mask = u128::from(u64::MAX >> (64 - WIDTH)) << shift;
    let first = bits(cpu.xmm(op.dst));
    cpu.set_xmm(op.dst, vector_of((first & !mask) | (u128::from(value) << shift & mask)));
    Ok(Flow::Next)
}

/// An instruction with XMM0 as its third operand.
macro_rules! with_xmm0 {
    ($($name:ident $text:literal),+) => {$(
        fn $name<const FROM: u8>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
            cpu.pass(cpu.gate.sse)?;
            let second: __m128i = source::<FROM>(cpu, op)?;
            let mut value = cpu.xmm(op.dst);
            // SAFETY: works on its three registers only; the host has it, or `lower` had not made the op.
            unsafe {
                asm!(
                    concat!($text, " {value}, {second}, xmm0"),
                    value = inout(xmm_reg) value,
                    second = in(xmm_reg) second,
                    in("xmm0") cpu.xmm(0),
                    options(pure, nomem, nostack, preserves_flags),
                );
            }
            cpu.set_xmm(op.dst, value);
            Ok(Flow::Next)
        }
    )+};
}
with_xmm0!(
    pblendvb "pblendvb", blendvps "blendvps", blendvpd "blendvpd", sha256rnds2 "sha256rnds2"
);

fn ptest<const FROM: u8>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.pass(cpu.gate.sse)?;
    let second = bits(source::<FROM>(cpu, op)?);
    let first = bits(cpu.xmm(op.dst));
    cpu.flags.set_compared(second & !first == 0, false, second & first == 0);
    Ok(Flow::Next)
}

/// CRC32 (Castagnoli) of one operand.
macro_rules! crc32 {
    ($($name:ident $in_memory:ident $int:ty, $class:ident, $text:literal;)+) => {$(
        fn $name(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
            let register = if size_of::<$int>() == 1 {
                // A byte register is named by its offset: AL 0, AH 1, CL 8 …
                cpu.regs[usize::from(op.src >> 3 & 15)] >> (8 * (op.src & 7))
            } else {
                cpu.regs[usize::from(op.src & 15)]
            };
            let operand = register as $int;
            let mut value = cpu.regs[usize::from(op.dst & 15)];
            // SAFETY: works on its two registers only; the host has it, or `lower` had not made the op.
            unsafe {
                asm!(
                    $text,
                    value = inout(reg) value,
                    operand = in($class) operand,
                    options(pure, nomem, nostack, preserves_flags),
                );
            }
            cpu.regs[usize::from(op.dst & 15)] = value;
            Ok(Flow::Next)
        }

        fn $in_memory(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
            let operand = cpu.load::<$int>(cpu.address(op))?;
            let mut value = cpu.regs[usize::from(op.dst & 15)];
            // SAFETY: as above.
            unsafe {
                asm!(
                    $text,
                    value = inout(reg) value,
                    operand = in($class) operand,
                    options(pure, nomem, nostack, preserves_flags),
                );
            }
            cpu.regs[usize::from(op.dst & 15)] = value;
            Ok(Flow::Next)
        }
    )+};
}
crc32! {
    crc32_8 crc32_m8 u8, reg_byte, "crc32 {value:e}, {operand}";
    crc32_16 crc32_m16 u16, reg, "crc32 {value:e}, {operand:x}";
    crc32_32 crc32_m32 u32, reg, "crc32 {value:e}, {operand:e}";
    crc32_64 crc32_m64 u64, reg, "crc32 {value:r}, {operand:r}";
}

/// The handlers of an instruction of this file: with registers, with memory.
pub fn find(code: Code) -> Option<[Handler; 2]> {
    use from::{M16, REGISTER};
    Some(match code {
        Code::Pextrw_r32_xmm_imm8 | Code::Pextrw_r64_xmm_imm8 => [extract_to_gpr::<16>; 2],
        Code::Pextrb_r32m8_xmm_imm8 | Code::Pextrb_r64m8_xmm_imm8 => {
            [extract_to_gpr::<8>, extract_to_memory::<8>]
        }
        Code::Pextrw_r32m16_xmm_imm8 | Code::Pextrw_r64m16_xmm_imm8 => {
            [extract_to_gpr::<16>, extract_to_memory::<16>]
        }
        Code::Pextrd_rm32_xmm_imm8 | Code::Extractps_rm32_xmm_imm8 | Code::Extractps_r64m32_xmm_imm8 => {
            [extract_to_gpr::<32>, extract_to_memory::<32>]
        }
        Code::Pextrq_rm64_xmm_imm8 => [extract_to_gpr::<64>, extract_to_memory::<64>],
        Code::Pinsrb_xmm_r32m8_imm8 | Code::Pinsrb_xmm_r64m8_imm8 => [insert::<8, false>, insert::<8, true>],
        Code::Pinsrw_xmm_r32m16_imm8 | Code::Pinsrw_xmm_r64m16_imm8 => {
            [insert::<16, false>, insert::<16, true>]
        }
        Code::Pinsrd_xmm_rm32_imm8 => [insert::<32, false>, insert::<32, true>],
        Code::Pinsrq_xmm_rm64_imm8 => [insert::<64, false>, insert::<64, true>],
        Code::Crc32_r32_rm8 | Code::Crc32_r64_rm8 => [crc32_8, crc32_m8],
        Code::Crc32_r32_rm16 => [crc32_16, crc32_m16],
        Code::Crc32_r32_rm32 => [crc32_32, crc32_m32],
        Code::Crc32_r64_rm64 => [crc32_64, crc32_m64],
        _ => match code.mnemonic() {
            Mnemonic::Pblendvb => [pblendvb::<REGISTER>, pblendvb::<M16>],
            Mnemonic::Blendvps => [blendvps::<REGISTER>, blendvps::<M16>],
            Mnemonic::Blendvpd => [blendvpd::<REGISTER>, blendvpd::<M16>],
            Mnemonic::Sha256rnds2 => [sha256rnds2::<REGISTER>, sha256rnds2::<M16>],
            Mnemonic::Ptest => [ptest::<REGISTER>, ptest::<M16>],
            _ => return strings::find(code),
        },
    })
}
