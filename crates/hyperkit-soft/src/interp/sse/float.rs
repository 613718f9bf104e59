//! Floating-point instructions: the host's own, under the guest's MXCSR.
//!
//! With the control bits at their default, the host's MXCSR is loaded with the guest's (its flags are allowed to
//! stay different afterwards). Otherwise the instruction runs with every exception masked, and the flags that it
//! set are compared with the guest's masks afterwards: an unmasked one is #XM, and nothing else changes.
//!
//! Spec: SDM vol. 1 §10.2.3, §11.5.

use std::arch::asm;
use std::arch::x86_64::__m128i;

use iced_x86::Mnemonic;

use super::registers::{bits, from, source};
use crate::cpu::Cpu;
use crate::op::{Flow, Handler, Op};
use crate::trap::{Trap, vector};

/// Bits of MXCSR that say how to compute: rounding, FTZ, DAZ; and the exception masks.
const CONTROL: u32 = 0xffc0;
/// The masks alone.
const MASKS: u32 = 0x1f80;
/// The exception flags.
const FLAGS: u32 = 0x3f;
/// IE, DE, ZE: found before computing.
const BEFORE: u32 = 0x7;
/// UE.
const UNDERFLOW: u32 = 0x10;
/// FTZ.
const FLUSH: u32 = 0x8000;
/// CR4.OSXMMEXCPT.
const CR4_OSXMMEXCPT: u64 = 1 << 10;

/// What the result consists of, to tell whether part of it is tiny.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lanes {
    /// Nothing that can underflow.
    Never,
    /// One single-precision number.
    Single,
    /// Four of them.
    Singles,
    /// Two of them, in the lower half.
    TwoSingles,
    /// One double-precision number.
    Double,
    /// Two of them.
    Doubles,
}

/// The computation: first and second operand, immediate, where MXCSR is. MXCSR is loaded from there, and stored
/// there afterwards.
pub type Compute = fn(__m128i, __m128i, u8, &mut u32) -> __m128i;

/// A floating-point instruction.
pub trait Float {
    /// What underflows.
    const LANES: Lanes;
    /// See [`Compute`].
    fn run(first: __m128i, second: __m128i, imm: u8, mxcsr: &mut u32) -> __m128i;
}

/// Runs `F`; the second operand is where `FROM` (see [`from`]) says.
pub fn float<F: Float, const FROM: u8>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.pass(cpu.gate.sse)?;
    let second = source::<FROM>(cpu, op)?;
    let value = compute::<F>(cpu, cpu.xmm(op.dst), second, op.imm as u8)?;
    cpu.set_xmm(op.dst, value);
    Ok(Flow::Next)
}

/// The result of `F` with the guest's MXCSR, or #XM (#UD if the system does not expect #XM).
#[inline(always)]
pub fn compute<F: Float>(cpu: &mut Cpu, first: __m128i, second: __m128i, imm: u8) -> Result<__m128i, Trap> {
    if *cpu.mxcsr() & CONTROL == MASKS {
        Ok(F::run(first, second, imm, cpu.mxcsr()))
    } else {
        with_care(cpu, [first, second], imm, F::run, F::LANES)
    }
}

#[cold]
fn with_care(
    cpu: &mut Cpu,
    operands: [__m128i; 2],
    imm: u8,
    run: Compute,
    lanes: Lanes,
) -> Result<__m128i, Trap> {
    let guest = *cpu.mxcsr();
    let mut mxcsr = (guest & CONTROL & !FLUSH) | MASKS;
    if guest & FLUSH != 0 && guest & (UNDERFLOW << 7) != 0 {
        mxcsr |= FLUSH; // FTZ acts only while underflow is masked
    }
    let value = run(operands[0], operands[1], imm, &mut mxcsr);
    let default: u32 = MASKS;
    // SAFETY: loads the value that Rust code expects, from 4 readable bytes.
    unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const default, options(nostack, readonly)) };

    let unmasked = !(guest >> 7) & FLAGS;
    let mut flags = mxcsr & FLAGS;
    if unmasked & UNDERFLOW != 0 && tiny(value, lanes) {
        flags |= UNDERFLOW; // an exact tiny result is reported only to those who unmasked it
    }
    if flags & unmasked & BEFORE != 0 {
        flags &= BEFORE;
    }
    *cpu.mxcsr() |= flags;
    if flags & unmasked == 0 {
        return Ok(value);
    }
    let expected = cpu.cr4 & CR4_OSXMMEXCPT != 0;
    Err(cpu.plain_fault(if expected { vector::XM } else { vector::UD }))
}

/// Whether one of the numbers is denormal.
fn tiny(value: __m128i, lanes: Lanes) -> bool {
    let value = bits(value);
    let single = |i: u32| f32::from_bits((value >> (32 * i)) as u32).is_subnormal();
    let double = |i: u32| f64::from_bits((value >> (64 * i)) as u64).is_subnormal();
    match lanes {
        Lanes::Never => false,
        Lanes::Single => single(0),
        Lanes::Singles => (0..4).any(single),
        Lanes::TwoSingles => (0..2).any(single),
        Lanes::Double => double(0),
        Lanes::Doubles => (0..2).any(double),
    }
}

/// Defines a type for an instruction on two XMM registers, between loading and storing MXCSR.
macro_rules! instruction {
    ($name:ident, $lanes:ident, $text:expr) => {
        pub(super) struct $name;

        impl Float for $name {
            const LANES: Lanes = Lanes::$lanes;

            #[inline(always)]
            fn run(first: __m128i, second: __m128i, _imm: u8, mxcsr: &mut u32) -> __m128i {
                let mut value = first;
                // SAFETY: `mxcsr` has no reserved bit set and masks every exception; its control bits are the
                // default, or the caller restores that.
                unsafe {
                    asm!(
                        "ldmxcsr [{mxcsr}]",
                        concat!($text, " {value}, {second}"),
                        "stmxcsr [{mxcsr}]",
                        value = inout(xmm_reg) value,
                        second = in(xmm_reg) second,
                        mxcsr = in(reg) mxcsr,
                        options(nostack),
                    );
                }
                value
            }
        }
    };
}

/// Makes the types and `find` of lines `SIZE Lanes: Mnemonic "instruction" …`.
macro_rules! floats {
    ($($size:ident $lanes:ident: $($mnemonic:ident $text:literal),+;)+) => {
        $($(instruction!($mnemonic, $lanes, $text);)+)+

        /// The handlers of an instruction of this file: with a register, with memory.
        pub fn find(mnemonic: Mnemonic) -> Option<[Handler; 2]> {
            Some(match mnemonic {
                $($(Mnemonic::$mnemonic => {
                    [float::<$mnemonic, { from::REGISTER }>, float::<$mnemonic, { from::$size }>]
                })+)+
                _ => return None,
            })
        }
    };
}

floats! {
    M16 Singles:
        Addps "addps", Subps "subps", Mulps "mulps", Divps "divps",
        Addsubps "addsubps", Haddps "haddps", Hsubps "hsubps";
    M16 Doubles:
        Addpd "addpd", Subpd "subpd", Mulpd "mulpd", Divpd "divpd",
        Addsubpd "addsubpd", Haddpd "haddpd", Hsubpd "hsubpd";
    M4 Single: Addss "addss", Subss "subss", Mulss "mulss", Divss "divss";
    M8 Double: Addsd "addsd", Subsd "subsd", Mulsd "mulsd", Divsd "divsd";
    M16 Never:
        Minps "minps", Maxps "maxps", Sqrtps "sqrtps", Minpd "minpd", Maxpd "maxpd", Sqrtpd "sqrtpd",
        Cvtdq2ps "cvtdq2ps", Cvtps2dq "cvtps2dq", Cvttps2dq "cvttps2dq", Cvtpd2dq "cvtpd2dq", Cvttpd2dq "cvttpd2dq";
    M4 Never: Minss "minss", Maxss "maxss", Sqrtss "sqrtss", Cvtss2sd "cvtss2sd";
    M8 Never: Minsd "minsd", Maxsd "maxsd", Sqrtsd "sqrtsd", Cvtps2pd "cvtps2pd";
    M16 TwoSingles: Cvtpd2ps "cvtpd2ps";
    M8 Single: Cvtsd2ss "cvtsd2ss";
}
