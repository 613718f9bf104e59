//! What is not compared, and why: instructions that are skipped, results that the SDM leaves undefined.

use iced_x86::{Code, CpuidFeature, Instruction, Mnemonic, OpCodeOperandKind, RflagsBits};

use crate::forms::{Form, Instance, Prefix};
use crate::state::{Outcome, State, Undefined};

/// Why a form is not run on the host; `None` if it is.
pub fn skipped(form: Form) -> Option<&'static str> {
    let info = form.code.op_code();
    let kinds = || (0..info.op_count()).map(|n| info.op_kind(n));
    if info.cpl0() && !info.cpl3() {
        return Some("privileged: tested with the system");
    }
    if kinds().any(|kind| {
        use OpCodeOperandKind as O;
        matches!(kind, O::seg_reg | O::es | O::cs | O::ss | O::ds | O::fs | O::gs)
    }) {
        return Some("moves segment registers: the two processors have different descriptors");
    }
    if kinds().any(|kind| matches!(kind, OpCodeOperandKind::br16_1 | OpCodeOperandKind::br16_2)) {
        return Some("16-bit branch in 64-bit mode: vendors differ");
    }
    if matches!(form.code, Code::Call_rm16 | Code::Jmp_rm16 | Code::Retnw | Code::Retnw_imm16) {
        return Some("16-bit branch in 64-bit mode: vendors differ");
    }
    if format!("{:?}", form.code).ends_with("_0F0D") && !form.memory {
        return Some("prefetch of a register: #UD or nothing, vendors differ");
    }
    if info.fwait() {
        return Some("two instructions: WAIT and one that is tested by itself");
    }
    if form.code.is_call_far_indirect() || form.code.is_jmp_far_indirect() {
        return Some("far: loads CS; tested with the system");
    }
    if form.prefix == Prefix::Rep && matches!(form.code.mnemonic(), Mnemonic::Ret | Mnemonic::Nop) {
        return None;
    }
    by_mnemonic(form.code.mnemonic())
}

/// Extensions that this processor does not have: their instructions are #UD.
const ABSENT: &[CpuidFeature] = {
    use CpuidFeature as F;
    &[
        F::CET_SS,
        F::CLDEMOTE,
        F::CLFLUSHOPT,
        F::CLWB,
        F::CLZERO,
        F::D3NOW,
        F::D3NOWEXT,
        F::ENQCMD,
        F::GFNI,
        F::MCOMMIT,
        F::MOVDIR64B,
        F::MOVDIRI,
        F::MPX,
        F::PCOMMIT,
        F::PKU,
        F::PREFETCHITI,
        F::PTWRITE,
        F::RAO_INT,
        F::RDPRU,
        F::RTM,
        F::HLE_or_RTM,
        F::SERIALIZE,
        F::SEV_ES,
        F::SGX1,
        F::OSS,
        F::SMM,
        F::SMX,
        F::SSE4A,
        F::TSXLDTRK,
        F::UDBG,
        F::UINTR,
        F::WAITPKG,
        F::XSAVEC,
        F::XSAVES,
        F::AESKLE,
        F::KL,
        F::AMX_TILE,
        F::CENTAUR_AIS,
        F::PADLOCK_ACE,
        F::PADLOCK_PHE,
        F::PADLOCK_PMM,
        F::PADLOCK_RNG,
        F::PADLOCK_GMI,
        F::PADLOCK_UNDOC,
    ]
};

/// Whether it is intended that an instruction is not offered.
pub fn intentionally_absent(code: Code) -> bool {
    let odd = matches!(
        code,
        Code::Fstpnce_sti
            | Code::Reservednop_rm16_r16_0F18
            | Code::Reservednop_rm32_r32_0F18
            | Code::Reservednop_rm64_r64_0F18
    );
    let may_be_lacking =
        !std::arch::is_x86_feature_detected!("sha") && code.cpuid_features() == [CpuidFeature::SHA];
    let wide = |feature: &CpuidFeature| matches!(feature, CpuidFeature::XSAVE | CpuidFeature::XSAVEOPT);
    let without_xsave = !std::arch::is_x86_feature_detected!("avx") && code.cpuid_features().iter().any(wide);
    odd || may_be_lacking
        || without_xsave
        || code.cpuid_features().iter().any(|feature| ABSENT.contains(feature))
}

fn by_mnemonic(mnemonic: Mnemonic) -> Option<&'static str> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Syscall | M::Sysenter | M::Int | M::Int1 | M::Int3 | M::Into | M::Iret | M::Iretd | M::Iretq => {
            "enters or leaves the kernel: tested with the system"
        }
        M::Retf => "far: loads CS; tested with the system",
        M::Lss | M::Lfs | M::Lgs | M::Lds | M::Les => "loads segment registers",
        M::In | M::Out | M::Insb | M::Insw | M::Insd | M::Outsb | M::Outsw | M::Outsd => {
            "needs I/O permission: tested with the system"
        }
        M::Cli | M::Sti => "needs IOPL: tested with the system",
        M::Cpuid | M::Rdtsc | M::Rdtscp | M::Rdpmc | M::Rdpid | M::Rdrand | M::Rdseed | M::Xgetbv => {
            "answers differ by design"
        }
        M::Sgdt | M::Sidt | M::Sldt | M::Str | M::Smsw | M::Lar | M::Lsl | M::Verr | M::Verw => {
            "reads the host system's tables"
        }
        M::Rdfsbase | M::Rdgsbase | M::Wrfsbase | M::Wrgsbase => "the test's own thread needs its FS base",
        M::Ud0 | M::Ud1 | M::Ud2 => "undefined by definition; lengths of UD0 differ between vendors",
        M::Vmcall | M::Vmmcall | M::Vmfunc | M::Hlt | M::Monitor | M::Mwait | M::Monitorx | M::Mwaitx => {
            "belongs to the hypervisor"
        }
        M::Xsave | M::Xsave64 | M::Xsaveopt | M::Xsaveopt64 => {
            "processors differ in when a component counts as in use: tested in vector_state"
        }
        _ => return None,
    })
}

/// What the SDM leaves undefined after an instruction that ended as `after` says.
pub fn undefined(instruction: &Instruction, before: &State, after: &State) -> Undefined {
    let mut undefined = Undefined { rflags: rflags(instruction.rflags_undefined()), ..Undefined::default() };
    let destination = || 1u16 << instruction.op0_register().full_register().number();
    match instruction.mnemonic() {
        Mnemonic::Fcomi | Mnemonic::Fcomip | Mnemonic::Fucomi | Mnemonic::Fucomip => {
            undefined.fsw = 0x200; // C1: the SDM clears it, AMD's processors do not
        }
        Mnemonic::Bsf | Mnemonic::Bsr if after.rflags & 0x40 != 0 => undefined.gpr = destination(),
        Mnemonic::Shl
        | Mnemonic::Shr
        | Mnemonic::Sar
        | Mnemonic::Rol
        | Mnemonic::Ror
        | Mnemonic::Rcl
        | Mnemonic::Rcr => {
            undefined.rflags &= after_shift(instruction, before);
        }
        Mnemonic::Shld | Mnemonic::Shrd => {
            let (size, count) = (operand_bits(instruction), count(instruction, before));
            if count == 0 {
                undefined.rflags = 0;
            } else if count > size {
                undefined.rflags = ARITHMETIC;
                undefined.gpr = if instruction.op0_register().is_gpr() { destination() } else { 0 };
            }
        }
        _ => {}
    }
    let unmasked = !(before.mxcsr() >> 7) & after.mxcsr() & 0x18;
    if matches!(after.outcome, Outcome::Fault { vector: 19, .. }) && unmasked != 0 {
        // Whether the result would be inexact with an unbounded exponent is not worth finding out.
        undefined.mxcsr = 0x20;
    }
    undefined
}

/// What memory holds that is undefined or that processors differ in by design is copied from ours to the host's, so
/// that it compares.
pub fn even_out(built: &Instance, before: &State, host: &mut [u8], ours: &[u8]) {
    let Some(address) = built.address else { return };
    let at = (address - crate::BASE) as usize;
    let is_double = matches!(built.instruction.mnemonic(), Mnemonic::Shld | Mnemonic::Shrd);
    if is_double && count(&built.instruction, before) > operand_bits(&built.instruction) {
        host[at..at + 2].copy_from_slice(&ours[at..at + 2]);
    }
    let pointers = match built.instruction.code() {
        // FOP, FIP, FDP; MXCSR_MASK.
        Code::Fxsave_m512byte | Code::Fxsave64_m512byte => [6..24, 28..32],
        Code::Fnstenv_m14byte | Code::Fnsave_m94byte => [6..14, 0..0],
        Code::Fnstenv_m28byte | Code::Fnsave_m108byte => [12..28, 0..0],
        _ => return,
    };
    for range in pointers {
        host[at + range.start..at + range.end].copy_from_slice(&ours[at + range.start..at + range.end]);
    }
}

/// The flags that are undefined after an instruction, if `before` were before it.
pub fn undefined_after(instruction: &Instruction, before: u64) -> u64 {
    use Mnemonic as M;
    let may_shift_by_0 = matches!(
        instruction.mnemonic(),
        M::Shl | M::Sal | M::Shr | M::Sar | M::Rol | M::Ror | M::Rcl | M::Rcr
    );
    let defined = if may_shift_by_0 {
        0
    } else {
        rflags(instruction.rflags_written() | instruction.rflags_cleared() | instruction.rflags_set())
    };
    (before & !defined) | rflags(instruction.rflags_undefined())
}

const OF: u64 = 1 << 11;
const AF: u64 = 1 << 4;
const CF: u64 = 1;
const ARITHMETIC: u64 = 0x8d5;

/// The flags that a shift or rotation may leave undefined, given its count.
fn after_shift(instruction: &Instruction, before: &State) -> u64 {
    let (size, count) = (operand_bits(instruction), count(instruction, before));
    let is_shift = matches!(instruction.mnemonic(), Mnemonic::Shl | Mnemonic::Shr | Mnemonic::Sar);
    match (count, is_shift) {
        (0, _) => 0,
        (1, true) => AF,
        (1, false) => 0,
        (_, true) if count >= size && instruction.mnemonic() != Mnemonic::Sar => OF | AF | CF,
        (_, true) => OF | AF,
        (_, false) => OF,
    }
}

/// Width of the first operand.
fn operand_bits(instruction: &Instruction) -> u32 {
    let register = instruction.op0_register();
    8 * if register.is_gpr() { register.size() } else { instruction.memory_size().size() } as u32
}

/// The masked shift count, from the last operand.
fn count(instruction: &Instruction, before: &State) -> u32 {
    let last = instruction.op_count() - 1;
    let raw = instruction.try_immediate(last).unwrap_or(before.gpr[1]) as u32;
    raw & if operand_bits(instruction) == 64 { 0x3f } else { 0x1f }
}

/// From the decoder's numbering of flags to RFLAGS.
pub fn rflags(bits: u32) -> u64 {
    let table = [
        (RflagsBits::OF, OF),
        (RflagsBits::SF, 1 << 7),
        (RflagsBits::ZF, 1 << 6),
        (RflagsBits::AF, AF),
        (RflagsBits::CF, CF),
        (RflagsBits::PF, 1 << 2),
    ];
    table.iter().filter(|(theirs, _)| bits & theirs != 0).map(|(_, ours)| ours).sum()
}
