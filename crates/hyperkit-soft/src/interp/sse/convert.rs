//! Conversions between numbers in XMM registers and integers in general registers, and comparisons into RFLAGS.

use std::arch::asm;
use std::arch::x86_64::__m128i;

use iced_x86::Code;

use super::float::{Float, Lanes, compute};
use super::registers::{bits, from, source, vector_of};
use crate::cpu::Cpu;
use crate::flags::Flags;
use crate::op::{Flow, Handler, Op};
use crate::trap::Trap;

/// A conversion to an integer: the result is the low half of the value.
macro_rules! to_integer {
    ($name:ident, $text:expr) => {
        struct $name;

        impl Float for $name {
            const LANES: Lanes = Lanes::Never;

            #[inline(always)]
            fn run(_first: __m128i, second: __m128i, _imm: u8, mxcsr: &mut u32) -> __m128i {
                let integer: u64;
                // SAFETY: `mxcsr` has no reserved bit set and masks every exception; its control bits are the
                // default, or the caller restores that.
                unsafe {
                    asm!(
                        "ldmxcsr [{mxcsr}]",
                        $text,
                        "stmxcsr [{mxcsr}]",
                        integer = out(reg) integer,
                        second = in(xmm_reg) second,
                        mxcsr = in(reg) mxcsr,
                        options(nostack),
                    );
                }
                vector_of(integer.into())
            }
        }
    };
}
to_integer!(SingleTo32, "cvtss2si {integer:e}, {second}");
to_integer!(SingleTo64, "cvtss2si {integer:r}, {second}");
to_integer!(DoubleTo32, "cvtsd2si {integer:e}, {second}");
to_integer!(DoubleTo64, "cvtsd2si {integer:r}, {second}");
to_integer!(SingleTo32Truncated, "cvttss2si {integer:e}, {second}");
to_integer!(SingleTo64Truncated, "cvttss2si {integer:r}, {second}");
to_integer!(DoubleTo32Truncated, "cvttsd2si {integer:e}, {second}");
to_integer!(DoubleTo64Truncated, "cvttsd2si {integer:r}, {second}");

/// A conversion from an integer, which is the low half of the second operand.
macro_rules! from_integer {
    ($name:ident, $text:expr) => {
        struct $name;

        impl Float for $name {
            const LANES: Lanes = Lanes::Never;

            #[inline(always)]
            fn run(first: __m128i, second: __m128i, _imm: u8, mxcsr: &mut u32) -> __m128i {
                let mut value = first;
                // SAFETY: as in `to_integer`.
                unsafe {
                    asm!(
                        "ldmxcsr [{mxcsr}]",
                        $text,
                        "stmxcsr [{mxcsr}]",
                        value = inout(xmm_reg) value,
                        integer = in(reg) bits(second) as u64,
                        mxcsr = in(reg) mxcsr,
                        options(nostack),
                    );
                }
                value
            }
        }
    };
}
from_integer!(SingleFrom32, "cvtsi2ss {value}, {integer:e}");
from_integer!(SingleFrom64, "cvtsi2ss {value}, {integer:r}");
from_integer!(DoubleFrom32, "cvtsi2sd {value}, {integer:e}");
from_integer!(DoubleFrom64, "cvtsi2sd {value}, {integer:r}");

/// A comparison: bit 0 of the value is CF, bit 1 PF, bit 2 ZF.
macro_rules! comparison {
    ($name:ident, $text:expr) => {
        struct $name;

        impl Float for $name {
            const LANES: Lanes = Lanes::Never;

            #[inline(always)]
            fn run(first: __m128i, second: __m128i, _imm: u8, mxcsr: &mut u32) -> __m128i {
                let (below, unordered, equal): (u8, u8, u8);
                // SAFETY: as in `to_integer`.
                unsafe {
                    asm!(
                        "ldmxcsr [{mxcsr}]",
                        concat!($text, " {first}, {second}"),
                        "setc {below}",
                        "setp {unordered}",
                        "setz {equal}",
                        "stmxcsr [{mxcsr}]",
                        first = in(xmm_reg) first,
                        second = in(xmm_reg) second,
                        below = out(reg_byte) below,
                        unordered = out(reg_byte) unordered,
                        equal = out(reg_byte) equal,
                        mxcsr = in(reg) mxcsr,
                        options(nostack),
                    );
                }
                vector_of((below | unordered << 1 | equal << 2).into())
            }
        }
    };
}
comparison!(SingleOrdered, "comiss");
comparison!(SingleUnordered, "ucomiss");
comparison!(DoubleOrdered, "comisd");
comparison!(DoubleUnordered, "ucomisd");

fn into_gpr<F: Float, const FROM: u8>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.pass(cpu.gate.sse)?;
    let second = source::<FROM>(cpu, op)?;
    let value = compute::<F>(cpu, second, second, 0)?;
    cpu.regs[usize::from(op.dst & 15)] = bits(value) as u64;
    Ok(Flow::Next)
}

/// `FROM` is `REGISTER` for a general register.
fn from_gpr<F: Float, const FROM: u8>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.pass(cpu.gate.sse)?;
    let second = match FROM {
        from::REGISTER => vector_of(cpu.regs[usize::from(op.src & 15)].into()),
        _ => source::<FROM>(cpu, op)?,
    };
    let value = compute::<F>(cpu, cpu.xmm(op.dst), second, 0)?;
    cpu.set_xmm(op.dst, value);
    Ok(Flow::Next)
}

fn compare<F: Float, const FROM: u8>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.pass(cpu.gate.sse)?;
    let second = source::<FROM>(cpu, op)?;
    let found = bits(compute::<F>(cpu, cpu.xmm(op.dst), second, 0)?) as u8;
    cpu.flags.set_compared(found & 1 != 0, found & 2 != 0, found & 4 != 0);
    Ok(Flow::Next)
}

impl Flags {
    /// Sets CF, PF and ZF; OF, SF and AF become 0.
    #[inline(always)]
    pub(in crate::interp) fn set_compared(&mut self, cf: bool, pf: bool, zf: bool) {
        self.zero = u64::from(!zf);
        self.sign = u64::from(!pf);
        self.carries = if cf { 3 << 62 } else { 0 };
    }
}

/// The handlers of an instruction of this file: with a register, with memory.
pub fn find(code: Code) -> Option<[Handler; 2]> {
    use from::{M4, M8, REGISTER};
    Some(match code {
        Code::Cvtss2si_r32_xmmm32 => [into_gpr::<SingleTo32, REGISTER>, into_gpr::<SingleTo32, M4>],
        Code::Cvtss2si_r64_xmmm32 => [into_gpr::<SingleTo64, REGISTER>, into_gpr::<SingleTo64, M4>],
        Code::Cvtsd2si_r32_xmmm64 => [into_gpr::<DoubleTo32, REGISTER>, into_gpr::<DoubleTo32, M8>],
        Code::Cvtsd2si_r64_xmmm64 => [into_gpr::<DoubleTo64, REGISTER>, into_gpr::<DoubleTo64, M8>],
        Code::Cvttss2si_r32_xmmm32 => {
            [into_gpr::<SingleTo32Truncated, REGISTER>, into_gpr::<SingleTo32Truncated, M4>]
        }
        Code::Cvttss2si_r64_xmmm32 => {
            [into_gpr::<SingleTo64Truncated, REGISTER>, into_gpr::<SingleTo64Truncated, M4>]
        }
        Code::Cvttsd2si_r32_xmmm64 => {
            [into_gpr::<DoubleTo32Truncated, REGISTER>, into_gpr::<DoubleTo32Truncated, M8>]
        }
        Code::Cvttsd2si_r64_xmmm64 => {
            [into_gpr::<DoubleTo64Truncated, REGISTER>, into_gpr::<DoubleTo64Truncated, M8>]
        }
        Code::Cvtsi2ss_xmm_rm32 => [from_gpr::<SingleFrom32, REGISTER>, from_gpr::<SingleFrom32, M4>],
        Code::Cvtsi2ss_xmm_rm64 => [from_gpr::<SingleFrom64, REGISTER>, from_gpr::<SingleFrom64, M8>],
        Code::Cvtsi2sd_xmm_rm32 => [from_gpr::<DoubleFrom32, REGISTER>, from_gpr::<DoubleFrom32, M4>],
        Code::Cvtsi2sd_xmm_rm64 => [from_gpr::<DoubleFrom64, REGISTER>, from_gpr::<DoubleFrom64, M8>],
        Code::Comiss_xmm_xmmm32 => [compare::<SingleOrdered, REGISTER>, compare::<SingleOrdered, M4>],
        Code::Ucomiss_xmm_xmmm32 => [compare::<SingleUnordered, REGISTER>, compare::<SingleUnordered, M4>],
        Code::Comisd_xmm_xmmm64 => [compare::<DoubleOrdered, REGISTER>, compare::<DoubleOrdered, M8>],
        Code::Ucomisd_xmm_xmmm64 => [compare::<DoubleUnordered, REGISTER>, compare::<DoubleUnordered, M8>],
        _ => return None,
    })
}
