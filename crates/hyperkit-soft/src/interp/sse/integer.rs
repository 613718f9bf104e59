//! Instructions with two XMM operands and no side effect: the host's own instruction does each.
//!
//! Integer arithmetic, logic, shuffles without immediate, and the approximations, which raise no exception.

use std::arch::asm;
use std::arch::x86_64::__m128i;

use iced_x86::Mnemonic;

use super::registers::{from, source};
use crate::cpu::Cpu;
use crate::op::{Flow, Handler, Op};
use crate::trap::Trap;

/// An instruction that computes its first operand from both (and an immediate, where it has one).
pub trait Binary {
    /// The new value of the first operand.
    fn run(first: __m128i, second: __m128i, imm: u8) -> __m128i;
}

/// Runs `B`; the second operand is where `FROM` (see [`from`]) says.
pub fn binary<B: Binary, const FROM: u8>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.pass(cpu.gate.sse)?;
    let second = source::<FROM>(cpu, op)?;
    let value = B::run(cpu.xmm(op.dst), second, op.imm as u8);
    cpu.set_xmm(op.dst, value);
    Ok(Flow::Next)
}

/// Makes, of lines `SIZE: Mnemonic "instruction" …`, a type for each instruction and the function that finds the
/// handlers (second operand in a register, in memory) by mnemonic.
macro_rules! binaries {
    ($($size:ident: $($mnemonic:ident $text:literal),+;)+) => {
        $($(
            pub(super) struct $mnemonic;

            impl Binary for $mnemonic {
                #[inline(always)]
                fn run(first: __m128i, second: __m128i, _imm: u8) -> __m128i {
                    let mut value = first;
                    // SAFETY: works on its two registers only; the host has it, or `lower` had not made the op.
                    unsafe {
                        asm!(
                            concat!($text, " {value}, {second}"),
                            value = inout(xmm_reg) value,
                            second = in(xmm_reg) second,
                            options(pure, nomem, nostack, preserves_flags),
                        );
                    }
                    value
                }
            }
        )+)+

        /// The handlers of an instruction of this file: with a register, with memory.
        pub fn find(mnemonic: Mnemonic) -> Option<[Handler; 2]> {
            Some(match mnemonic {
                $($(Mnemonic::$mnemonic => {
                    [binary::<$mnemonic, { from::REGISTER }>, binary::<$mnemonic, { from::$size }>]
                })+)+
                _ => return None,
            })
        }
    };
}

binaries! {
    M16:
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
        Andps "andps", Andnps "andnps", Orps "orps", Xorps "xorps",
        Andpd "andpd", Andnpd "andnpd", Orpd "orpd", Xorpd "xorpd",
        Psllw "psllw", Pslld "pslld", Psllq "psllq", Psrlw "psrlw", Psrld "psrld", Psrlq "psrlq",
        Psraw "psraw", Psrad "psrad",
        Packsswb "packsswb", Packssdw "packssdw", Packuswb "packuswb",
        Punpcklbw "punpcklbw", Punpcklwd "punpcklwd", Punpckldq "punpckldq", Punpcklqdq "punpcklqdq",
        Punpckhbw "punpckhbw", Punpckhwd "punpckhwd", Punpckhdq "punpckhdq", Punpckhqdq "punpckhqdq",
        Unpcklps "unpcklps", Unpckhps "unpckhps", Unpcklpd "unpcklpd", Unpckhpd "unpckhpd",
        Rcpps "rcpps", Rsqrtps "rsqrtps",
        Movsldup "movsldup", Movshdup "movshdup",
        Pshufb "pshufb", Phaddw "phaddw", Phaddd "phaddd", Phaddsw "phaddsw",
        Phsubw "phsubw", Phsubd "phsubd", Phsubsw "phsubsw", Pmaddubsw "pmaddubsw",
        Psignb "psignb", Psignw "psignw", Psignd "psignd", Pmulhrsw "pmulhrsw",
        Pabsb "pabsb", Pabsw "pabsw", Pabsd "pabsd",
        Pmuldq "pmuldq", Pcmpeqq "pcmpeqq", Pcmpgtq "pcmpgtq", Packusdw "packusdw", Pmulld "pmulld",
        Phminposuw "phminposuw",
        Pminsb "pminsb", Pminsd "pminsd", Pminuw "pminuw", Pminud "pminud",
        Pmaxsb "pmaxsb", Pmaxsd "pmaxsd", Pmaxuw "pmaxuw", Pmaxud "pmaxud",
        Aesenc "aesenc", Aesenclast "aesenclast", Aesdec "aesdec", Aesdeclast "aesdeclast", Aesimc "aesimc",
        Sha1nexte "sha1nexte", Sha1msg1 "sha1msg1", Sha1msg2 "sha1msg2",
        Sha256msg1 "sha256msg1", Sha256msg2 "sha256msg2";
    M8:
        Cvtdq2pd "cvtdq2pd", Movddup "movddup",
        Pmovsxbw "pmovsxbw", Pmovsxwd "pmovsxwd", Pmovsxdq "pmovsxdq",
        Pmovzxbw "pmovzxbw", Pmovzxwd "pmovzxwd", Pmovzxdq "pmovzxdq";
    M4:
        Rcpss "rcpss", Rsqrtss "rsqrtss",
        Pmovsxbd "pmovsxbd", Pmovsxwq "pmovsxwq", Pmovzxbd "pmovzxbd", Pmovzxwq "pmovzxwq";
    M2:
        Pmovsxbq "pmovsxbq", Pmovzxbq "pmovzxbq";
}
