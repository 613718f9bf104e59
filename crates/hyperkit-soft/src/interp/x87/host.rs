//! One x87 instruction on the host's unit, on the guest's state.
//!
//! The guest's image is loaded whole, masks included, the instruction runs, and the image is stored again with
//! instructions that do not wait: an exception that the guest unmasked stays pending in the image and never
//! reaches the host. So stack faults, unmasked results and status are the host's own, exactly.

use std::arch::asm;

use iced_x86::Code;

/// Runs an instruction: the FXSAVE image, and 16 bytes that hold its memory operand.
///
/// # Safety
/// `image` is 512 writable bytes aligned to 16 with a valid MXCSR and no unmasked x87 exception flag set;
/// `memory` is 16 writable bytes.
pub type Host = unsafe fn(image: *mut u8, memory: *mut u8);

/// The value of MXCSR that Rust code expects.
pub static MXCSR_DEFAULT: u32 = 0x1f80;

/// A [`Host`] for an instruction; RSI points at its memory operand.
macro_rules! host {
    ($text:expr) => {{
        unsafe fn run(image: *mut u8, memory: *mut u8) {
            // SAFETY: the caller's promise; every register of the unit is declared as overwritten, FNINIT leaves
            // the x87 stack empty and MXCSR is put back.
            unsafe {
                asm!(
                    "fxrstor64 [rdi]",
                    $text,
                    "fxsave64 [rdi]",
                    "fninit",
                    "ldmxcsr [rdx]",
                    inout("rdi") image => _, inout("rsi") memory => _, in("rdx") &raw const MXCSR_DEFAULT,
                    out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
                    out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
                    out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
                    out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
                    out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
                    out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
                    out("mm0") _, out("mm1") _, out("mm2") _, out("mm3") _,
                    out("mm4") _, out("mm5") _, out("mm6") _, out("mm7") _,
                );
            }
        }
        run as Host
    }};
}

/// The eight [`Host`]s of an instruction with ST(i) between `$before` and `$after`.
macro_rules! stack {
    ($before:literal, $after:literal) => {
        [
            host!(concat!($before, "st(0)", $after)),
            host!(concat!($before, "st(1)", $after)),
            host!(concat!($before, "st(2)", $after)),
            host!(concat!($before, "st(3)", $after)),
            host!(concat!($before, "st(4)", $after)),
            host!(concat!($before, "st(5)", $after)),
            host!(concat!($before, "st(6)", $after)),
            host!(concat!($before, "st(7)", $after)),
        ]
    };
}

/// An instruction without a memory operand and without ST(i).
pub fn plain(code: Code) -> Option<Host> {
    Some(match code {
        Code::Fchs => host!("fchs"),
        Code::Fabs => host!("fabs"),
        Code::Ftst => host!("ftst"),
        Code::Fxam => host!("fxam"),
        Code::Fld1 => host!("fld1"),
        Code::Fldl2t => host!("fldl2t"),
        Code::Fldl2e => host!("fldl2e"),
        Code::Fldpi => host!("fldpi"),
        Code::Fldlg2 => host!("fldlg2"),
        Code::Fldln2 => host!("fldln2"),
        Code::Fldz => host!("fldz"),
        Code::F2xm1 => host!("f2xm1"),
        Code::Fyl2x => host!("fyl2x"),
        Code::Fptan => host!("fptan"),
        Code::Fpatan => host!("fpatan"),
        Code::Fxtract => host!("fxtract"),
        Code::Fprem1 => host!("fprem1"),
        Code::Fdecstp => host!("fdecstp"),
        Code::Fincstp => host!("fincstp"),
        Code::Fprem => host!("fprem"),
        Code::Fyl2xp1 => host!("fyl2xp1"),
        Code::Fsqrt => host!("fsqrt"),
        Code::Fsincos => host!("fsincos"),
        Code::Frndint => host!("frndint"),
        Code::Fscale => host!("fscale"),
        Code::Fsin => host!("fsin"),
        Code::Fcos => host!("fcos"),
        Code::Fucompp => host!("fucompp"),
        Code::Fcompp => host!("fcompp"),
        _ => return None,
    })
}

/// An instruction on ST(0) and ST(i), by i.
pub fn indexed(code: Code) -> Option<[Host; 8]> {
    Some(match code {
        Code::Fadd_st0_sti => stack!("fadd st, ", ""),
        Code::Fmul_st0_sti => stack!("fmul st, ", ""),
        Code::Fsub_st0_sti => stack!("fsub st, ", ""),
        Code::Fsubr_st0_sti => stack!("fsubr st, ", ""),
        Code::Fdiv_st0_sti => stack!("fdiv st, ", ""),
        Code::Fdivr_st0_sti => stack!("fdivr st, ", ""),
        Code::Fadd_sti_st0 => stack!("fadd ", ", st"),
        Code::Fmul_sti_st0 => stack!("fmul ", ", st"),
        Code::Fsub_sti_st0 => stack!("fsub ", ", st"),
        Code::Fsubr_sti_st0 => stack!("fsubr ", ", st"),
        Code::Fdiv_sti_st0 => stack!("fdiv ", ", st"),
        Code::Fdivr_sti_st0 => stack!("fdivr ", ", st"),
        Code::Faddp_sti_st0 => stack!("faddp ", ", st"),
        Code::Fmulp_sti_st0 => stack!("fmulp ", ", st"),
        Code::Fsubp_sti_st0 => stack!("fsubp ", ", st"),
        Code::Fsubrp_sti_st0 => stack!("fsubrp ", ", st"),
        Code::Fdivp_sti_st0 => stack!("fdivp ", ", st"),
        Code::Fdivrp_sti_st0 => stack!("fdivrp ", ", st"),
        Code::Fcom_st0_sti | Code::Fcom_st0_sti_DCD0 => stack!("fcom ", ""),
        Code::Fcomp_st0_sti | Code::Fcomp_st0_sti_DCD8 | Code::Fcomp_st0_sti_DED0 => stack!("fcomp ", ""),
        Code::Fucom_st0_sti => stack!("fucom ", ""),
        Code::Fucomp_st0_sti => stack!("fucomp ", ""),
        Code::Fld_sti => stack!("fld ", ""),
        Code::Fst_sti => stack!("fst ", ""),
        Code::Fstp_sti | Code::Fstp_sti_DFD0 | Code::Fstp_sti_DFD8 => stack!("fstp ", ""),
        Code::Fxch_st0_sti | Code::Fxch_st0_sti_DDC8 | Code::Fxch_st0_sti_DFC8 => stack!("fxch ", ""),
        Code::Ffree_sti => stack!("ffree ", ""),
        Code::Ffreep_sti => stack!("ffree ", "\nffree st(0)\nfincstp"),
        _ => return None,
    })
}

/// A comparison of ST(0) and ST(i) into RFLAGS, by i: leaves CF, PF and ZF in the first bytes of its memory.
pub fn comparing(code: Code) -> Option<[Host; 8]> {
    Some(match code {
        Code::Fcomi_st0_sti => stack!("fcomi st, ", "\nsetc [rsi]\nsetp [rsi + 1]\nsetz [rsi + 2]"),
        Code::Fcomip_st0_sti => stack!("fcomip st, ", "\nsetc [rsi]\nsetp [rsi + 1]\nsetz [rsi + 2]"),
        Code::Fucomi_st0_sti => stack!("fucomi st, ", "\nsetc [rsi]\nsetp [rsi + 1]\nsetz [rsi + 2]"),
        Code::Fucomip_st0_sti => stack!("fucomip st, ", "\nsetc [rsi]\nsetp [rsi + 1]\nsetz [rsi + 2]"),
        _ => return None,
    })
}

/// A conditional move from ST(i), by i: takes the arithmetic flags from its memory.
pub fn conditional(code: Code) -> Option<[Host; 8]> {
    Some(match code {
        Code::Fcmovb_st0_sti => stack!("push [rsi]\npopfq\nfcmovb st, ", ""),
        Code::Fcmove_st0_sti => stack!("push [rsi]\npopfq\nfcmove st, ", ""),
        Code::Fcmovbe_st0_sti => stack!("push [rsi]\npopfq\nfcmovbe st, ", ""),
        Code::Fcmovu_st0_sti => stack!("push [rsi]\npopfq\nfcmovu st, ", ""),
        Code::Fcmovnb_st0_sti => stack!("push [rsi]\npopfq\nfcmovnb st, ", ""),
        Code::Fcmovne_st0_sti => stack!("push [rsi]\npopfq\nfcmovne st, ", ""),
        Code::Fcmovnbe_st0_sti => stack!("push [rsi]\npopfq\nfcmovnbe st, ", ""),
        Code::Fcmovnu_st0_sti => stack!("push [rsi]\npopfq\nfcmovnu st, ", ""),
        _ => return None,
    })
}

/// An instruction that reads memory, and how many bytes.
pub fn loading(code: Code) -> Option<(Host, u8)> {
    Some(match code {
        Code::Fadd_m32fp => (host!("fadd dword ptr [rsi]"), 4),
        Code::Fmul_m32fp => (host!("fmul dword ptr [rsi]"), 4),
        Code::Fcom_m32fp => (host!("fcom dword ptr [rsi]"), 4),
        Code::Fcomp_m32fp => (host!("fcomp dword ptr [rsi]"), 4),
        Code::Fsub_m32fp => (host!("fsub dword ptr [rsi]"), 4),
        Code::Fsubr_m32fp => (host!("fsubr dword ptr [rsi]"), 4),
        Code::Fdiv_m32fp => (host!("fdiv dword ptr [rsi]"), 4),
        Code::Fdivr_m32fp => (host!("fdivr dword ptr [rsi]"), 4),
        Code::Fadd_m64fp => (host!("fadd qword ptr [rsi]"), 8),
        Code::Fmul_m64fp => (host!("fmul qword ptr [rsi]"), 8),
        Code::Fcom_m64fp => (host!("fcom qword ptr [rsi]"), 8),
        Code::Fcomp_m64fp => (host!("fcomp qword ptr [rsi]"), 8),
        Code::Fsub_m64fp => (host!("fsub qword ptr [rsi]"), 8),
        Code::Fsubr_m64fp => (host!("fsubr qword ptr [rsi]"), 8),
        Code::Fdiv_m64fp => (host!("fdiv qword ptr [rsi]"), 8),
        Code::Fdivr_m64fp => (host!("fdivr qword ptr [rsi]"), 8),
        Code::Fiadd_m32int => (host!("fiadd dword ptr [rsi]"), 4),
        Code::Fimul_m32int => (host!("fimul dword ptr [rsi]"), 4),
        Code::Ficom_m32int => (host!("ficom dword ptr [rsi]"), 4),
        Code::Ficomp_m32int => (host!("ficomp dword ptr [rsi]"), 4),
        Code::Fisub_m32int => (host!("fisub dword ptr [rsi]"), 4),
        Code::Fisubr_m32int => (host!("fisubr dword ptr [rsi]"), 4),
        Code::Fidiv_m32int => (host!("fidiv dword ptr [rsi]"), 4),
        Code::Fidivr_m32int => (host!("fidivr dword ptr [rsi]"), 4),
        Code::Fiadd_m16int => (host!("fiadd word ptr [rsi]"), 2),
        Code::Fimul_m16int => (host!("fimul word ptr [rsi]"), 2),
        Code::Ficom_m16int => (host!("ficom word ptr [rsi]"), 2),
        Code::Ficomp_m16int => (host!("ficomp word ptr [rsi]"), 2),
        Code::Fisub_m16int => (host!("fisub word ptr [rsi]"), 2),
        Code::Fisubr_m16int => (host!("fisubr word ptr [rsi]"), 2),
        Code::Fidiv_m16int => (host!("fidiv word ptr [rsi]"), 2),
        Code::Fidivr_m16int => (host!("fidivr word ptr [rsi]"), 2),
        Code::Fld_m32fp => (host!("fld dword ptr [rsi]"), 4),
        Code::Fld_m64fp => (host!("fld qword ptr [rsi]"), 8),
        Code::Fld_m80fp => (host!("fld tbyte ptr [rsi]"), 10),
        Code::Fild_m16int => (host!("fild word ptr [rsi]"), 2),
        Code::Fild_m32int => (host!("fild dword ptr [rsi]"), 4),
        Code::Fild_m64int => (host!("fild qword ptr [rsi]"), 8),
        Code::Fbld_m80bcd => (host!("fbld tbyte ptr [rsi]"), 10),
        _ => return None,
    })
}

/// An instruction that writes memory, and how many bytes.
pub fn storing(code: Code) -> Option<(Host, u8)> {
    Some(match code {
        Code::Fst_m32fp => (host!("fst dword ptr [rsi]"), 4),
        Code::Fstp_m32fp => (host!("fstp dword ptr [rsi]"), 4),
        Code::Fst_m64fp => (host!("fst qword ptr [rsi]"), 8),
        Code::Fstp_m64fp => (host!("fstp qword ptr [rsi]"), 8),
        Code::Fstp_m80fp => (host!("fstp tbyte ptr [rsi]"), 10),
        Code::Fist_m16int => (host!("fist word ptr [rsi]"), 2),
        Code::Fistp_m16int => (host!("fistp word ptr [rsi]"), 2),
        Code::Fist_m32int => (host!("fist dword ptr [rsi]"), 4),
        Code::Fistp_m32int => (host!("fistp dword ptr [rsi]"), 4),
        Code::Fistp_m64int => (host!("fistp qword ptr [rsi]"), 8),
        Code::Fisttp_m16int => (host!("fisttp word ptr [rsi]"), 2),
        Code::Fisttp_m32int => (host!("fisttp dword ptr [rsi]"), 4),
        Code::Fisttp_m64int => (host!("fisttp qword ptr [rsi]"), 8),
        Code::Fbstp_m80bcd => (host!("fbstp tbyte ptr [rsi]"), 10),
        _ => return None,
    })
}
