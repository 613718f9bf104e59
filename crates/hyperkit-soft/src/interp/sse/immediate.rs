//! Instructions with an immediate byte, which the host's would need at compile time: shuffles and shifts are done
//! here, the rest through a table with one host instruction per value.

use std::arch::asm;
use std::arch::x86_64::__m128i;

use iced_x86::Mnemonic;

use super::float::{Compute, Float, Lanes, float};
use super::integer::{Binary, binary};
use super::registers::{bits, from, vector_of};
use crate::op::Handler;

/// Calls `$make!(N)` for 0 to 15 and makes an array of the results.
macro_rules! sixteen {
    ($make:ident, $high:literal) => {
        [
            $make!($high),
            $make!($high + 1),
            $make!($high + 2),
            $make!($high + 3),
            $make!($high + 4),
            $make!($high + 5),
            $make!($high + 6),
            $make!($high + 7),
            $make!($high + 8),
            $make!($high + 9),
            $make!($high + 10),
            $make!($high + 11),
            $make!($high + 12),
            $make!($high + 13),
            $make!($high + 14),
            $make!($high + 15),
        ]
    };
}

fn lanes_32(vector: __m128i) -> [u32; 4] {
    let bits = bits(vector);
    std::array::from_fn(|i| (bits >> (32 * i)) as u32)
}

fn from_lanes_32(lanes: [u32; 4]) -> __m128i {
    vector_of(lanes.iter().rev().fold(0, |bits, lane| bits << 32 | u128::from(*lane)))
}

/// The 16-bit word of `from` that bits `2 * i` and up of `imm` name.
fn word(from: u64, imm: u8, i: u32) -> u64 {
    (from >> (16 * u32::from(imm >> (2 * i) & 3)) & 0xffff) << (16 * i)
}

/// Four words picked from `from`: PSHUFW, and the halves of PSHUFLW and PSHUFHW.
pub(super) fn pick_words(from: u64, imm: u8) -> u64 {
    word(from, imm, 0) | word(from, imm, 1) | word(from, imm, 2) | word(from, imm, 3)
}

/// Defines a type for an instruction done here.
macro_rules! here {
    ($($name:ident: |$first:ident, $second:ident, $imm:ident| $value:expr;)+) => {$(
        struct $name;

        impl Binary for $name {
            #[inline(always)]
            fn run($first: __m128i, $second: __m128i, $imm: u8) -> __m128i {
                $value
            }
        }
    )+};
}

here! {
    Pshufd: |_first, second, imm| {
        let lanes = lanes_32(second);
        from_lanes_32(std::array::from_fn(|i| lanes[usize::from(imm >> (2 * i) & 3)]))
    };
    Pshuflw: |_first, second, imm| {
        let bits = bits(second);
        vector_of(bits >> 64 << 64 | u128::from(pick_words(bits as u64, imm)))
    };
    Pshufhw: |_first, second, imm| {
        let bits = bits(second);
        vector_of(u128::from(bits as u64) | u128::from(pick_words((bits >> 64) as u64, imm)) << 64)
    };
    Shufps: |first, second, imm| {
        let (first, second) = (lanes_32(first), lanes_32(second));
        let pick = |i: u8| usize::from(imm >> (2 * i) & 3);
        from_lanes_32([first[pick(0)], first[pick(1)], second[pick(2)], second[pick(3)]])
    };
    Shufpd: |first, second, imm| {
        let half = |from: __m128i, high: bool| u128::from((bits(from) >> if high { 64 } else { 0 }) as u64);
        vector_of(half(first, imm & 1 != 0) | half(second, imm & 2 != 0) << 64)
    };
    Pslldq: |first, _second, imm| vector_of(bits(first).checked_shl(8 * u32::from(imm)).unwrap_or(0));
    Psrldq: |first, _second, imm| vector_of(bits(first).checked_shr(8 * u32::from(imm)).unwrap_or(0));
    Palignr: |first, second, imm| {
        let shift = 8 * u32::from(imm);
        vector_of(match shift {
            0 => bits(second),
            1..128 => bits(second) >> shift | bits(first) << (128 - shift),
            _ => bits(first).checked_shr(shift - 128).unwrap_or(0),
        })
    };
    Blendps: |first, second, imm| blend(first, second, imm, 32);
    Blendpd: |first, second, imm| blend(first, second, imm, 64);
    Pblendw: |first, second, imm| blend(first, second, imm, 16);
    InsertpsRegister: |first, second, imm| {
        insert_single(first, lanes_32(second)[usize::from(imm >> 6)], imm)
    };
    InsertpsMemory: |first, second, imm| insert_single(first, lanes_32(second)[0], imm);
    Aeskeygenassist: |_first, second, imm| {
        let value: __m128i;
        // SAFETY: works on its two registers only; the host has it, or `lower` had not made the op.
        unsafe {
            asm!(
                "aeskeygenassist {value}, {second}, 0",
                value = out(xmm_reg) value,
                second = in(xmm_reg) second,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        // The immediate is only ever combined by XOR, into the two rotated words.
        vector_of(bits(value) ^ (u128::from(imm) << 32 | u128::from(imm) << 96))
    };
}

/// Lanes of `width` bits: of `second` where `imm` has a 1, else of `first`.
#[inline(always)]
fn blend(first: __m128i, second: __m128i, imm: u8, width: u32) -> __m128i {
    let lane = u128::MAX >> (128 - width);
    let mask = (0..128 / width).filter(|i| imm >> i & 1 != 0).fold(0, |mask, i| mask | lane << (width * i));
    vector_of((bits(first) & !mask) | (bits(second) & mask))
}

fn insert_single(first: __m128i, single: u32, imm: u8) -> __m128i {
    let mut lanes = lanes_32(first);
    lanes[usize::from(imm >> 4 & 3)] = single;
    from_lanes_32(std::array::from_fn(|i| if imm >> i & 1 != 0 { 0 } else { lanes[i] }))
}

/// Shifts by an immediate are shifts by a register that holds it.
macro_rules! shift {
    ($($name:ident $text:literal),+) => {$(
        struct $name;

        impl Binary for $name {
            #[inline(always)]
            fn run(first: __m128i, _second: __m128i, imm: u8) -> __m128i {
                let mut value = first;
                // SAFETY: works on its two registers only.
                unsafe {
                    asm!(
                        concat!($text, " {value}, {count}"),
                        value = inout(xmm_reg) value,
                        count = in(xmm_reg) vector_of(imm.into()),
                        options(pure, nomem, nostack, preserves_flags),
                    );
                }
                value
            }
        }
    )+};
}
shift!(
    Psllw "psllw", Pslld "pslld", Psllq "psllq", Psrlw "psrlw", Psrld "psrld", Psrlq "psrlq",
    Psraw "psraw", Psrad "psrad"
);

/// An integer instruction, once per value of the immediate.
macro_rules! by_table {
    ($name:ident $text:literal, |$imm:ident| $index:expr, $($high:literal)+) => {
        struct $name;

        impl $name {
            fn with<const IMM: u8>(first: __m128i, second: __m128i) -> __m128i {
                let mut value = first;
                // SAFETY: works on its two registers only; the host has it, or `lower` had not made the op.
                unsafe {
                    asm!(
                        concat!($text, " {value}, {second}, {imm}"),
                        value = inout(xmm_reg) value,
                        second = in(xmm_reg) second,
                        imm = const IMM,
                        options(pure, nomem, nostack, preserves_flags),
                    );
                }
                value
            }
        }

        impl Binary for $name {
            fn run(first: __m128i, second: __m128i, $imm: u8) -> __m128i {
                macro_rules! with { ($n:expr) => { $name::with::<{ $n }> }; }
                static TABLE: &[[fn(__m128i, __m128i) -> __m128i; 16]] = &[$(sixteen!(with, $high)),+];
                let index = usize::from($index);
                TABLE[index >> 4][index & 15](first, second)
            }
        }
    };
}
by_table!(Pclmulqdq "pclmulqdq", |imm| (imm & 1) | (imm >> 4 & 1) << 4, 0 16);
by_table!(Mpsadbw "mpsadbw", |imm| imm & 7, 0);
by_table!(Sha1rnds4 "sha1rnds4", |imm| imm & 3, 0);

/// A floating-point instruction, once per value of the immediate.
macro_rules! float_by_table {
    ($name:ident $lanes:ident $text:literal, |$imm:ident| $index:expr, $($high:literal)+) => {
        struct $name;

        impl $name {
            fn with<const IMM: u8>(first: __m128i, second: __m128i, _imm: u8, mxcsr: &mut u32) -> __m128i {
                let mut value = first;
                // SAFETY: `mxcsr` has no reserved bit set and masks every exception; its control bits are the
                // default, or the caller restores that. The host has the instruction, or `lower` had not made
                // the op.
                unsafe {
                    asm!(
                        "ldmxcsr [{mxcsr}]",
                        concat!($text, " {value}, {second}, {imm}"),
                        "stmxcsr [{mxcsr}]",
                        value = inout(xmm_reg) value,
                        second = in(xmm_reg) second,
                        imm = const IMM,
                        mxcsr = in(reg) mxcsr,
                        options(nostack),
                    );
                }
                value
            }
        }

        impl Float for $name {
            const LANES: Lanes = Lanes::$lanes;

            fn run(first: __m128i, second: __m128i, $imm: u8, mxcsr: &mut u32) -> __m128i {
                macro_rules! with { ($n:expr) => { $name::with::<{ $n }> }; }
                static TABLE: &[[Compute; 16]] = &[$(sixteen!(with, $high)),+];
                let index = usize::from($index);
                TABLE[index >> 4][index & 15](first, second, $imm, mxcsr)
            }
        }
    };
}
float_by_table!(Cmpps Never "cmpps", |imm| imm & 7, 0);
float_by_table!(Cmppd Never "cmppd", |imm| imm & 7, 0);
float_by_table!(Cmpss Never "cmpss", |imm| imm & 7, 0);
float_by_table!(Cmpsd Never "cmpsd", |imm| imm & 7, 0);
float_by_table!(Roundps Never "roundps", |imm| imm & 15, 0);
float_by_table!(Roundpd Never "roundpd", |imm| imm & 15, 0);
float_by_table!(Roundss Never "roundss", |imm| imm & 15, 0);
float_by_table!(Roundsd Never "roundsd", |imm| imm & 15, 0);
float_by_table!(Dppd Doubles "dppd", |imm| imm & 0x33, 0 16 32 48);
float_by_table!(
    Dpps Singles "dpps", |imm| imm, 0 16 32 48 64 80 96 112 128 144 160 176 192 208 224 240
);

/// The handlers of an instruction with an immediate: with a register, with memory.
pub fn find(mnemonic: Mnemonic) -> Option<[Handler; 2]> {
    macro_rules! pick {
        ($($run:ident $size:ident: $($mnemonic:ident),+;)+) => {
            match mnemonic {
                $($(Mnemonic::$mnemonic => {
                    [$run::<$mnemonic, { from::REGISTER }>, $run::<$mnemonic, { from::$size }>]
                })+)+
                Mnemonic::Insertps => {
                    [binary::<InsertpsRegister, { from::REGISTER }>, binary::<InsertpsMemory, { from::M4 }>]
                }
                _ => return None,
            }
        };
    }
    Some(pick! {
        binary M16:
            Pshufd, Pshuflw, Pshufhw, Shufps, Shufpd, Palignr, Blendps, Blendpd, Pblendw, Aeskeygenassist,
            Pclmulqdq, Mpsadbw, Sha1rnds4, Pslldq, Psrldq, Psllw, Pslld, Psllq, Psrlw, Psrld, Psrlq, Psraw, Psrad;
        float M16: Cmpps, Cmppd, Roundps, Roundpd, Dpps, Dppd;
        float M4: Cmpss, Roundss;
        float M8: Cmpsd, Roundsd;
    })
}
