//! Moves between XMM registers and memory or general registers.

use std::arch::asm;

use iced_x86::{Code, Mnemonic};

use super::registers::{bits, from, source, vector_of};
use crate::cpu::Cpu;
use crate::op::{Flow, Handler, Op};
use crate::trap::Trap;

const LOW: u128 = u64::MAX as u128;
const LOWEST: u128 = u32::MAX as u128;

/// The whole register: from a register or memory.
fn load<const FROM: u8>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.pass(cpu.gate.sse)?;
    let value = source::<FROM>(cpu, op)?;
    cpu.set_xmm(op.dst, value);
    Ok(Flow::Next)
}

fn store_16(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.pass(cpu.gate.sse)?;
    cpu.store(cpu.address(op), bits(cpu.xmm(op.src)))?;
    Ok(Flow::Next)
}

fn store_16_aligned(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.pass(cpu.gate.sse)?;
    cpu.store_aligned(op, bits(cpu.xmm(op.src)))?;
    Ok(Flow::Next)
}

fn store_8(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.pass(cpu.gate.sse)?;
    cpu.store(cpu.address(op), bits(cpu.xmm(op.src)) as u64)?;
    Ok(Flow::Next)
}

fn store_8_high(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.pass(cpu.gate.sse)?;
    cpu.store(cpu.address(op), (bits(cpu.xmm(op.src)) >> 64) as u64)?;
    Ok(Flow::Next)
}

fn store_4(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.pass(cpu.gate.sse)?;
    cpu.store(cpu.address(op), bits(cpu.xmm(op.src)) as u32)?;
    Ok(Flow::Next)
}

/// MOVQ between XMM registers: the upper half becomes 0.
fn low_8(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.pass(cpu.gate.sse)?;
    cpu.set_xmm(op.dst, vector_of(bits(cpu.xmm(op.src)) & LOW));
    Ok(Flow::Next)
}

/// Replaces what `mask` covers of the first operand, by the second moved left.
#[inline(always)]
fn merge<const FROM: u8>(cpu: &mut Cpu, op: &Op, mask: u128, left: u32) -> Result<Flow, Trap> {
    cpu.pass(cpu.gate.sse)?;
    let second = bits(source::<FROM>(cpu, op)?);
    let first = bits(cpu.xmm(op.dst));
    cpu.set_xmm(op.dst, vector_of((first & !mask) | ((second << left) & mask)));
    Ok(Flow::Next)
}

fn movss(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    merge::<{ from::REGISTER }>(cpu, op, LOWEST, 0)
}

fn movsd(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    merge::<{ from::REGISTER }>(cpu, op, LOW, 0)
}

fn load_low(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    merge::<{ from::M8 }>(cpu, op, LOW, 0)
}

fn load_high(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    merge::<{ from::M8 }>(cpu, op, !LOW, 64)
}

fn movlhps(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    merge::<{ from::REGISTER }>(cpu, op, !LOW, 64)
}

fn movhlps(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.pass(cpu.gate.sse)?;
    let (first, second) = (bits(cpu.xmm(op.dst)), bits(cpu.xmm(op.src)));
    cpu.set_xmm(op.dst, vector_of((first & !LOW) | (second >> 64)));
    Ok(Flow::Next)
}

fn from_gpr_4(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.pass(cpu.gate.sse)?;
    let value = cpu.regs[usize::from(op.src & 15)] as u32;
    cpu.set_xmm(op.dst, vector_of(value.into()));
    Ok(Flow::Next)
}

fn from_gpr_8(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.pass(cpu.gate.sse)?;
    let value = cpu.regs[usize::from(op.src & 15)];
    cpu.set_xmm(op.dst, vector_of(value.into()));
    Ok(Flow::Next)
}

fn to_gpr_4(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.pass(cpu.gate.sse)?;
    cpu.regs[usize::from(op.dst & 15)] = u64::from(bits(cpu.xmm(op.src)) as u32);
    Ok(Flow::Next)
}

fn to_gpr_8(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.pass(cpu.gate.sse)?;
    cpu.regs[usize::from(op.dst & 15)] = bits(cpu.xmm(op.src)) as u64;
    Ok(Flow::Next)
}

macro_rules! sign_mask {
    ($name:ident, $text:literal) => {
        fn $name(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
            cpu.pass(cpu.gate.sse)?;
            let mask: u32;
            // SAFETY: works on its two registers only.
            unsafe {
                asm!(
                    concat!($text, " {mask:e}, {vector}"),
                    mask = out(reg) mask,
                    vector = in(xmm_reg) cpu.xmm(op.src),
                    options(pure, nomem, nostack, preserves_flags),
                );
            }
            cpu.regs[usize::from(op.dst & 15)] = mask.into();
            Ok(Flow::Next)
        }
    };
}
sign_mask!(movmskps, "movmskps");
sign_mask!(movmskpd, "movmskpd");
sign_mask!(pmovmskb, "pmovmskb");

fn movnti_4(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.store(cpu.address(op), cpu.regs[usize::from(op.src & 15)] as u32)?;
    Ok(Flow::Next)
}

fn movnti_8(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.store(cpu.address(op), cpu.regs[usize::from(op.src & 15)])?;
    Ok(Flow::Next)
}

/// Stores the bytes of the first operand whose byte in the second has its top bit set.
fn maskmovdqu(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.pass(cpu.gate.sse)?;
    let (bytes, mask) = (bits(cpu.xmm(op.dst)).to_le_bytes(), bits(cpu.xmm(op.src)).to_le_bytes());
    cpu.store_masked(cpu.address(op), &bytes, &mask)?;
    Ok(Flow::Next)
}

impl Cpu {
    /// Stores the bytes whose mask has its top bit set; faults before the first is stored.
    pub(in crate::interp) fn store_masked(
        &mut self,
        linear: u64,
        bytes: &[u8],
        mask: &[u8],
    ) -> Result<(), Trap> {
        let chosen = |i: &usize| mask[*i] & 0x80 != 0;
        for i in (0..bytes.len()).filter(chosen) {
            self.probe_write(linear.wrapping_add(i as u64), 1)?;
        }
        for i in (0..bytes.len()).filter(chosen) {
            self.store(linear.wrapping_add(i as u64), bytes[i])?;
        }
        Ok(())
    }
}

/// The handlers of a move, with registers and with memory, where the mnemonic alone does not tell loads from stores.
pub fn find(code: Code) -> Option<[Handler; 2]> {
    use from::{M4, M8, M16, M16_UNALIGNED, REGISTER};
    let copy: Handler = load::<REGISTER>;
    Some(match code {
        Code::Movups_xmm_xmmm128 | Code::Movupd_xmm_xmmm128 | Code::Movdqu_xmm_xmmm128 => {
            [copy, load::<M16_UNALIGNED>]
        }
        Code::Lddqu_xmm_m128 => [copy, load::<M16_UNALIGNED>],
        Code::Movaps_xmm_xmmm128 | Code::Movapd_xmm_xmmm128 | Code::Movdqa_xmm_xmmm128 => [copy, load::<M16>],
        Code::Movntdqa_xmm_m128 => [copy, load::<M16>],
        Code::Movups_xmmm128_xmm | Code::Movupd_xmmm128_xmm | Code::Movdqu_xmmm128_xmm => [copy, store_16],
        Code::Movaps_xmmm128_xmm | Code::Movapd_xmmm128_xmm | Code::Movdqa_xmmm128_xmm => {
            [copy, store_16_aligned]
        }
        Code::Movntps_m128_xmm | Code::Movntpd_m128_xmm | Code::Movntdq_m128_xmm => [copy, store_16_aligned],
        Code::Movss_xmm_xmmm32 => [movss, load::<M4>],
        Code::Movss_xmmm32_xmm => [movss, store_4],
        Code::Movsd_xmm_xmmm64 => [movsd, load::<M8>],
        Code::Movsd_xmmm64_xmm => [movsd, store_8],
        Code::Movq_xmm_xmmm64 => [low_8, load::<M8>],
        Code::Movq_xmmm64_xmm => [low_8, store_8],
        Code::Movhlps_xmm_xmm => [movhlps, movhlps],
        Code::Movlhps_xmm_xmm => [movlhps, movlhps],
        Code::Movlps_xmm_m64 | Code::Movlpd_xmm_m64 => [load_low, load_low],
        Code::Movhps_xmm_m64 | Code::Movhpd_xmm_m64 => [load_high, load_high],
        Code::Movlps_m64_xmm | Code::Movlpd_m64_xmm => [store_8, store_8],
        Code::Movhps_m64_xmm | Code::Movhpd_m64_xmm => [store_8_high, store_8_high],
        Code::Movd_xmm_rm32 => [from_gpr_4, load::<M4>],
        Code::Movq_xmm_rm64 => [from_gpr_8, load::<M8>],
        Code::Movd_rm32_xmm => [to_gpr_4, store_4],
        Code::Movq_rm64_xmm => [to_gpr_8, store_8],
        Code::Pmovmskb_r32_xmm | Code::Pmovmskb_r64_xmm => [pmovmskb, pmovmskb],
        Code::Movnti_m32_r32 => [movnti_4, movnti_4],
        Code::Movnti_m64_r64 => [movnti_8, movnti_8],
        _ if code.mnemonic() == Mnemonic::Movmskps => [movmskps, movmskps],
        _ if code.mnemonic() == Mnemonic::Movmskpd => [movmskpd, movmskpd],
        _ if code.mnemonic() == Mnemonic::Maskmovdqu => [maskmovdqu, maskmovdqu],
        _ => return None,
    })
}
