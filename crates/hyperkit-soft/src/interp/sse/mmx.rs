//! MMX: the host's own instructions on the guest's MMX registers, which are the significands of x87's.

use std::arch::asm;
use std::arch::x86_64::__m128i;

use iced_x86::{Code, Mnemonic};

use super::float::{Cvtdq2ps, Cvtpd2dq, Cvtps2dq, Cvttpd2dq, Cvttps2dq, Float, Lanes, compute};
use super::immediate::pick_words;
use super::integer::{Binary, Cvtdq2pd};
use super::registers::{bits, from, source, vector_of};
use crate::cpu::Cpu;
use crate::op::{Flow, Handler, Op};
use crate::trap::Trap;

/// Where the second operand is: the register [`Op::src`].
const REGISTER: u8 = 0;
/// The immediate.
const IMMEDIATE: u8 = 1;

/// An MMX instruction with two operands.
trait Mmx {
    /// The new value of the first operand.
    fn run(first: u64, second: u64, imm: u8) -> u64;
}

/// Runs `M`; the second operand is in a register, immediate, or `FROM` bytes of memory.
fn mmx<M: Mmx, const FROM: u8>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.pass_mmx()?;
    let in_memory = match FROM {
        REGISTER => 0,
        IMMEDIATE => op.imm & 0xff,
        4 => cpu.load::<u32>(cpu.address(op))?.into(),
        _ => cpu.load::<u64>(cpu.address(op))?,
    };
    cpu.enter_mmx();
    let second = if FROM == REGISTER { cpu.mm(op.src) } else { in_memory };
    let value = M::run(cpu.mm(op.dst), second, op.imm as u8);
    cpu.set_mm(op.dst, value);
    Ok(Flow::Next)
}

macro_rules! pairs {
    ($($size:literal: $($mnemonic:ident $text:literal),+;)+) => {
        $($(
            struct $mnemonic;

            impl Mmx for $mnemonic {
                fn run(first: u64, second: u64, _imm: u8) -> u64 {
                    let mut values = [first, second];
                    // SAFETY: reads and writes `values` only; every register of the x87 unit is declared as
                    // overwritten and EMMS leaves it empty. The host has the instruction, or `lower` had not made
                    // the op.
                    unsafe {
                        asm!(
                            "movq mm0, [{values}]",
                            "movq mm1, [{values} + 8]",
                            concat!($text, " mm0, mm1"),
                            "movq [{values}], mm0",
                            "emms",
                            values = in(reg) values.as_mut_ptr(),
                            out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
                            out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
                            out("mm0") _, out("mm1") _, out("mm2") _, out("mm3") _,
                            out("mm4") _, out("mm5") _, out("mm6") _, out("mm7") _,
                            options(nostack, preserves_flags),
                        );
                    }
                    values[0]
                }
            }
        )+)+

        /// The handlers of an instruction with two MMX operands: with a register, with memory.
        fn find_pair(mnemonic: Mnemonic) -> Option<[Handler; 2]> {
            Some(match mnemonic {
                $($(Mnemonic::$mnemonic => [mmx::<$mnemonic, REGISTER>, mmx::<$mnemonic, $size>],)+)+
                _ => return None,
            })
        }
    };
}

pairs! {
    8:
        Paddb "paddb", Paddw "paddw", Paddd "paddd", Paddq "paddq",
        Psubb "psubb", Psubw "psubw", Psubd "psubd", Psubq "psubq",
        Paddsb "paddsb", Paddsw "paddsw", Paddusb "paddusb", Paddusw "paddusw",
        Psubsb "psubsb", Psubsw "psubsw", Psubusb "psubusb", Psubusw "psubusw",
        Pmullw "pmullw", Pmulhw "pmulhw", Pmulhuw "pmulhuw", Pmuludq "pmuludq", Pmaddwd "pmaddwd",
        Psadbw "psadbw", Pavgb "pavgb", Pavgw "pavgw",
        Pminub "pminub", Pminsw "pminsw", Pmaxub "pmaxub", Pmaxsw "pmaxsw",
        Pcmpeqb "pcmpeqb", Pcmpeqw "pcmpeqw", Pcmpeqd "pcmpeqd",
        Pcmpgtb "pcmpgtb", Pcmpgtw "pcmpgtw", Pcmpgtd "pcmpgtd",
        Pand "pand", Pandn "pandn", Por "por", Pxor "pxor",
        Psllw "psllw", Pslld "pslld", Psllq "psllq", Psrlw "psrlw", Psrld "psrld", Psrlq "psrlq",
        Psraw "psraw", Psrad "psrad",
        Packsswb "packsswb", Packssdw "packssdw", Packuswb "packuswb",
        Punpckhbw "punpckhbw", Punpckhwd "punpckhwd", Punpckhdq "punpckhdq",
        Pshufb "pshufb", Phaddw "phaddw", Phaddd "phaddd", Phaddsw "phaddsw",
        Phsubw "phsubw", Phsubd "phsubd", Phsubsw "phsubsw", Pmaddubsw "pmaddubsw",
        Psignb "psignb", Psignw "psignw", Psignd "psignd", Pmulhrsw "pmulhrsw",
        Pabsb "pabsb", Pabsw "pabsw", Pabsd "pabsd";
    4:
        Punpcklbw "punpcklbw", Punpcklwd "punpcklwd", Punpckldq "punpckldq";
}

struct Pshufw;
impl Mmx for Pshufw {
    fn run(_first: u64, second: u64, imm: u8) -> u64 {
        pick_words(second, imm)
    }
}

struct Palignr;
impl Mmx for Palignr {
    fn run(first: u64, second: u64, imm: u8) -> u64 {
        let whole = u128::from(first) << 64 | u128::from(second);
        whole.checked_shr(8 * u32::from(imm)).unwrap_or(0) as u64
    }
}

/// MOVD and MOVQ into an MMX register; from memory if `FROM` is not `REGISTER`.
fn move_in<const FROM: u8>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.pass_mmx()?;
    let value = match FROM {
        REGISTER => 0,
        4 => cpu.load::<u32>(cpu.address(op))?.into(),
        _ => cpu.load::<u64>(cpu.address(op))?,
    };
    cpu.enter_mmx();
    let value = if FROM == REGISTER { cpu.mm(op.src) } else { value };
    cpu.set_mm(op.dst, value);
    Ok(Flow::Next)
}

/// MOVD and MOVQ from a general register.
fn from_gpr<const BYTES: u8>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.pass_mmx()?;
    cpu.enter_mmx();
    let value = cpu.regs[usize::from(op.src & 15)];
    cpu.set_mm(op.dst, if BYTES == 4 { u64::from(value as u32) } else { value });
    Ok(Flow::Next)
}

/// MOVD and MOVQ to a general register.
fn to_gpr<const BYTES: u8>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.pass_mmx()?;
    cpu.enter_mmx();
    let value = cpu.mm(op.src);
    cpu.regs[usize::from(op.dst & 15)] = if BYTES == 4 { u64::from(value as u32) } else { value };
    Ok(Flow::Next)
}

/// MOVD, MOVQ and MOVNTQ to memory.
fn move_out<const BYTES: u8>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.pass_mmx()?;
    let before = cpu.fx;
    cpu.enter_mmx();
    let (linear, value) = (cpu.address(op), cpu.mm(op.src));
    let stored = if BYTES == 4 { cpu.store(linear, value as u32) } else { cpu.store(linear, value) };
    stored.map(|()| Flow::Next).inspect_err(|_| cpu.fx = before)
}

fn pmovmskb(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.pass_mmx()?;
    cpu.enter_mmx();
    let bytes = cpu.mm(op.src).to_le_bytes();
    let mask = (0..).zip(bytes).fold(0, |mask, (n, byte)| mask | u64::from(byte >> 7) << n);
    cpu.regs[usize::from(op.dst & 15)] = mask;
    Ok(Flow::Next)
}

fn pextrw(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.pass_mmx()?;
    cpu.enter_mmx();
    cpu.regs[usize::from(op.dst & 15)] = cpu.mm(op.src) >> (16 * (op.imm & 3)) & 0xffff;
    Ok(Flow::Next)
}

fn pinsrw<const MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.pass_mmx()?;
    let word =
        if MEMORY { cpu.load::<u16>(cpu.address(op))? } else { cpu.regs[usize::from(op.src & 15)] as u16 };
    cpu.enter_mmx();
    let shift = 16 * (op.imm & 3);
    let value = (cpu.mm(op.dst) & !(0xffff << shift)) | u64::from(word) << shift;
    cpu.set_mm(op.dst, value);
    Ok(Flow::Next)
}

fn maskmovq(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.pass_mmx()?;
    let before = cpu.fx;
    cpu.enter_mmx();
    let (bytes, mask) = (cpu.mm(op.dst).to_le_bytes(), cpu.mm(op.src).to_le_bytes());
    let stored = cpu.store_masked(cpu.address(op), &bytes, &mask);
    stored.map(|()| Flow::Next).inspect_err(|_| cpu.fx = before)
}

fn movq2dq(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.pass(cpu.gate.sse)?;
    cpu.pass_mmx()?;
    cpu.enter_mmx();
    cpu.set_xmm(op.dst, vector_of(cpu.mm(op.src).into()));
    Ok(Flow::Next)
}

fn movdq2q(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.pass(cpu.gate.sse)?;
    cpu.pass_mmx()?;
    cpu.enter_mmx();
    cpu.set_mm(op.dst, bits(cpu.xmm(op.src)) as u64);
    Ok(Flow::Next)
}

/// CVTPI2PS and CVTPI2PD: two integers in an MMX register or memory to numbers. Of memory they leave the x87 state
/// alone.
fn convert_in<F: Float, const FROM: u8>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.pass(cpu.gate.sse)?;
    let integers = if FROM == REGISTER {
        cpu.pass_mmx()?;
        cpu.enter_mmx();
        cpu.mm(op.src)
    } else {
        cpu.load::<u64>(cpu.address(op))?
    };
    let first = cpu.xmm(op.dst);
    let value = compute::<F>(cpu, first, vector_of(integers.into()), 0)?;
    cpu.set_xmm(op.dst, value);
    Ok(Flow::Next)
}

/// CVTDQ2PS of two integers; the upper half stays.
struct Cvtpi2ps;
impl Float for Cvtpi2ps {
    const LANES: Lanes = Lanes::Never;

    fn run(first: __m128i, second: __m128i, imm: u8, mxcsr: &mut u32) -> __m128i {
        let low = bits(Cvtdq2ps::run(first, second, imm, mxcsr)) as u64;
        vector_of(bits(first) >> 64 << 64 | u128::from(low))
    }
}

/// CVTDQ2PD, which raises nothing.
struct Cvtpi2pd;
impl Float for Cvtpi2pd {
    const LANES: Lanes = Lanes::Never;

    fn run(_first: __m128i, second: __m128i, _imm: u8, _mxcsr: &mut u32) -> __m128i {
        Cvtdq2pd::run(second, second, 0)
    }
}

/// CVT(T)PS2PI and CVT(T)PD2PI: as the conversions to integers in an XMM register, of which they keep the lower half.
/// `FROM` is as for [`source`].
fn convert_out<F: Float, const FROM: u8>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.pass(cpu.gate.sse)?;
    cpu.pass_mmx()?;
    let second = source::<FROM>(cpu, op)?;
    cpu.enter_mmx(); // also when #XM follows, as processors do
    let value = compute::<F>(cpu, second, second, 0)?;
    cpu.set_mm(op.dst, bits(value) as u64);
    Ok(Flow::Next)
}

/// A conversion of the two singles in the lower half.
macro_rules! of_two {
    ($($name:ident $of_four:ident),+) => {$(
        struct $name;
        impl Float for $name {
            const LANES: Lanes = Lanes::Never;

            fn run(first: __m128i, second: __m128i, imm: u8, mxcsr: &mut u32) -> __m128i {
                $of_four::run(first, vector_of((bits(second) as u64).into()), imm, mxcsr)
            }
        }
    )+};
}
of_two!(Cvtps2pi Cvtps2dq, Cvttps2pi Cvttps2dq);

/// The handlers of an instruction with an MMX operand: with registers, with memory.
pub fn find(code: Code) -> Option<[Handler; 2]> {
    use from::{M8, M16};
    const XMM: u8 = from::REGISTER;
    Some(match code {
        Code::Movd_mm_rm32 => [from_gpr::<4>, move_in::<4>],
        Code::Movq_mm_rm64 => [from_gpr::<8>, move_in::<8>],
        Code::Movq_mm_mmm64 => [move_in::<REGISTER>, move_in::<8>],
        Code::Movq_mmm64_mm => [move_in::<REGISTER>, move_out::<8>],
        Code::Movd_rm32_mm => [to_gpr::<4>, move_out::<4>],
        Code::Movq_rm64_mm => [to_gpr::<8>, move_out::<8>],
        Code::Movntq_m64_mm => [move_out::<8>, move_out::<8>],
        Code::Movq2dq_xmm_mm => [movq2dq, movq2dq],
        Code::Movdq2q_mm_xmm => [movdq2q, movdq2q],
        Code::Cvtpi2ps_xmm_mmm64 => [convert_in::<Cvtpi2ps, REGISTER>, convert_in::<Cvtpi2ps, 8>],
        Code::Cvtpi2pd_xmm_mmm64 => [convert_in::<Cvtpi2pd, REGISTER>, convert_in::<Cvtpi2pd, 8>],
        Code::Cvtps2pi_mm_xmmm64 => [convert_out::<Cvtps2pi, XMM>, convert_out::<Cvtps2pi, M8>],
        Code::Cvttps2pi_mm_xmmm64 => [convert_out::<Cvttps2pi, XMM>, convert_out::<Cvttps2pi, M8>],
        Code::Cvtpd2pi_mm_xmmm128 => [convert_out::<Cvtpd2dq, XMM>, convert_out::<Cvtpd2dq, M16>],
        Code::Cvttpd2pi_mm_xmmm128 => [convert_out::<Cvttpd2dq, XMM>, convert_out::<Cvttpd2dq, M16>],
        Code::Pshufw_mm_mmm64_imm8 => [mmx::<Pshufw, REGISTER>, mmx::<Pshufw, 8>],
        Code::Palignr_mm_mmm64_imm8 => [mmx::<Palignr, REGISTER>, mmx::<Palignr, 8>],
        Code::Psllw_mm_imm8 => [mmx::<Psllw, IMMEDIATE>; 2],
        Code::Pslld_mm_imm8 => [mmx::<Pslld, IMMEDIATE>; 2],
        Code::Psllq_mm_imm8 => [mmx::<Psllq, IMMEDIATE>; 2],
        Code::Psrlw_mm_imm8 => [mmx::<Psrlw, IMMEDIATE>; 2],
        Code::Psrld_mm_imm8 => [mmx::<Psrld, IMMEDIATE>; 2],
        Code::Psrlq_mm_imm8 => [mmx::<Psrlq, IMMEDIATE>; 2],
        Code::Psraw_mm_imm8 => [mmx::<Psraw, IMMEDIATE>; 2],
        Code::Psrad_mm_imm8 => [mmx::<Psrad, IMMEDIATE>; 2],
        _ => match code.mnemonic() {
            Mnemonic::Pmovmskb => [pmovmskb, pmovmskb],
            Mnemonic::Pextrw => [pextrw, pextrw],
            Mnemonic::Pinsrw => [pinsrw::<false>, pinsrw::<true>],
            Mnemonic::Maskmovq => [maskmovq, maskmovq],
            mnemonic => find_pair(mnemonic)?,
        },
    })
}
