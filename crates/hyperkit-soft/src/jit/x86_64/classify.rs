//! Which instructions are translated by encoding them again, and what they do with the flags.

use iced_x86::{CpuidFeature, EncodingKind, Instruction, Mnemonic as M, OpKind, Register};

use super::flags::{ALL, CF};

/// What an instruction needs of the flags, and what it leaves of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlagUse {
    /// Flags that must be in RFLAGS before it.
    pub reads: u32,
    /// What becomes of them.
    pub writes: Writes,
}

/// See [`FlagUse`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writes {
    /// They stay.
    Nothing,
    /// Each of them is overwritten (or undefined), for whatever operands.
    All,
    /// Some are, or some operands leave them: all must be in RFLAGS before.
    Some,
}

/// What an instruction does with the flags.
pub fn flag_use(instruction: &Instruction) -> FlagUse {
    let reads = instruction.rflags_read() & ALL;
    let modified = instruction.rflags_modified() & ALL;
    let by_cl = instruction.op_count() > 0
        && instruction.op_kind(instruction.op_count() - 1) == OpKind::Register
        && instruction.op_register(instruction.op_count() - 1) == Register::CL;
    let shifts = matches!(instruction.mnemonic(), M::Shl | M::Sal | M::Shr | M::Sar | M::Shld | M::Shrd);
    let count_mask = if wide(instruction) { 63 } else { 31 };
    let shifts_by_zero = shifts && !by_cl && count(instruction) & count_mask == 0;
    match instruction.mnemonic() {
        M::Inc | M::Dec => FlagUse { reads: CF, writes: Writes::All },
        M::Bt | M::Bts | M::Btr | M::Btc | M::Cmpxchg16b | M::Cmpxchg8b => {
            FlagUse { reads: ALL, writes: Writes::Some }
        }
        _ if modified == 0 => FlagUse { reads, writes: Writes::Nothing },
        _ if shifts && (by_cl || shifts_by_zero) => FlagUse { reads: ALL, writes: Writes::Some },
        _ if modified == ALL => FlagUse { reads, writes: Writes::All },
        _ => FlagUse { reads: ALL, writes: Writes::Some },
    }
}

fn wide(instruction: &Instruction) -> bool {
    match instruction.op0_kind() {
        OpKind::Register => instruction.op0_register().is_gpr64(),
        _ => instruction.memory_size().size() == 8,
    }
}

fn count(instruction: &Instruction) -> u64 {
    let last = instruction.op_count().saturating_sub(1);
    instruction.try_immediate(last).unwrap_or(1)
}

/// Whether an instruction does nothing here.
pub fn is_nop(instruction: &Instruction) -> bool {
    matches!(
        instruction.mnemonic(),
        M::Nop
            | M::Reservednop
            | M::Endbr32
            | M::Endbr64
            | M::Prefetch
            | M::Prefetchw
            | M::Prefetchwt1
            | M::Prefetchnta
            | M::Prefetcht0
            | M::Prefetcht1
            | M::Prefetcht2
            | M::Cldemote
    )
}

/// Whether an instruction on general registers can be encoded again with others.
pub fn is_integer(instruction: &Instruction) -> bool {
    use iced_x86::ConditionCode;
    let conditional = instruction.condition_code() != ConditionCode::None;
    match instruction.mnemonic() {
        M::Add
        | M::Or
        | M::Adc
        | M::Sbb
        | M::And
        | M::Sub
        | M::Xor
        | M::Cmp
        | M::Test
        | M::Mov
        | M::Movzx
        | M::Movsx
        | M::Movsxd
        | M::Inc
        | M::Dec
        | M::Neg
        | M::Not
        | M::Mul
        | M::Imul
        | M::Shl
        | M::Sal
        | M::Shr
        | M::Sar
        | M::Rol
        | M::Ror
        | M::Bsf
        | M::Bsr
        | M::Tzcnt
        | M::Lzcnt
        | M::Popcnt
        | M::Xchg
        | M::Xadd
        | M::Cmpxchg
        | M::Cmpxchg16b
        | M::Crc32
        | M::Movbe
        | M::Movnti
        | M::Cbw
        | M::Cwde
        | M::Cdqe
        | M::Cwd
        | M::Cdq
        | M::Cqo
        | M::Lfence
        | M::Mfence
        | M::Sfence
        | M::Clc
        | M::Stc
        | M::Cmc => true,
        // Of 8 and 16 bits OF after a whole turn is what the host likes; the interpreter knows.
        M::Rcl | M::Rcr => match instruction.op0_kind() {
            OpKind::Register => instruction.op0_register().size() >= 4,
            _ => instruction.memory_size().size() >= 4,
        },
        M::Bswap => instruction.op0_register().size() > 2,
        M::Shld | M::Shrd => instruction.op1_register().size() > 2,
        // With a register as the bit number memory outside the operand is reached.
        M::Bt | M::Bts | M::Btr | M::Btc => {
            instruction.op0_kind() == OpKind::Register || instruction.op1_kind() != OpKind::Register
        }
        _ => (conditional && is_cmov_or_setcc(instruction)) || is_bit_manipulation(instruction),
    }
}

/// BMI1 and BMI2.
fn is_bit_manipulation(instruction: &Instruction) -> bool {
    matches!(
        instruction.mnemonic(),
        M::Andn
            | M::Bextr
            | M::Blsi
            | M::Blsmsk
            | M::Blsr
            | M::Bzhi
            | M::Mulx
            | M::Pdep
            | M::Pext
            | M::Rorx
            | M::Sarx
            | M::Shlx
            | M::Shrx
    )
}

fn is_cmov_or_setcc(instruction: &Instruction) -> bool {
    !instruction.is_jcc_short_or_near() && !instruction.is_loop() && !instruction.is_loopcc()
}

/// Whether an SSE instruction can be encoded again: its operands are XMM registers, general registers and memory.
pub fn is_sse(instruction: &Instruction) -> bool {
    let known = instruction.cpuid_features().iter().all(|feature| {
        matches!(
            feature,
            CpuidFeature::SSE
                | CpuidFeature::SSE2
                | CpuidFeature::SSE3
                | CpuidFeature::SSSE3
                | CpuidFeature::SSE4_1
                | CpuidFeature::SSE4_2
                | CpuidFeature::AES
                | CpuidFeature::PCLMULQDQ
                | CpuidFeature::SHA
        )
    });
    let operands =
        (0..instruction.op_count()).filter(|n| instruction.op_kind(*n) == OpKind::Register).all(|n| {
            let register = instruction.op_register(n);
            register.is_xmm() || register.is_gpr32() || register.is_gpr64()
        });
    let vectors = (0..instruction.op_count())
        .any(|n| instruction.op_kind(n) == OpKind::Register && instruction.op_register(n).is_xmm());
    known && operands && vectors && !matches!(instruction.mnemonic(), M::Maskmovdqu)
}

/// Whether a VEX-encoded instruction on vector registers can be encoded again.
pub fn is_avx(instruction: &Instruction) -> bool {
    if instruction.encoding() != EncodingKind::VEX {
        return false;
    }
    let excluded = matches!(
        instruction.mnemonic(),
        M::Vmaskmovps
            | M::Vmaskmovpd
            | M::Vpmaskmovd
            | M::Vpmaskmovq
            | M::Vmaskmovdqu
            | M::Vldmxcsr
            | M::Vstmxcsr
            | M::Vzeroall
    );
    let registers = (0..instruction.op_count())
        .filter(|n| instruction.op_kind(*n) == OpKind::Register)
        .map(|n| instruction.op_register(n));
    let vectors = registers.clone().any(|register| register.is_xmm() || register.is_ymm());
    let known = registers
        .clone()
        .all(|register| register.is_xmm() || register.is_ymm() || register.is_gpr32() || register.is_gpr64());
    let clears = instruction.mnemonic() == M::Vzeroupper;
    let gathers = instruction.memory_index().is_vector_register();
    !excluded && known && !gathers && (vectors || clears)
}

/// Whether the memory operand of an SSE instruction must be aligned.
pub fn must_be_aligned(instruction: &Instruction) -> bool {
    if instruction.encoding() == EncodingKind::VEX {
        return matches!(
            instruction.mnemonic(),
            M::Vmovaps | M::Vmovapd | M::Vmovdqa | M::Vmovntps | M::Vmovntpd | M::Vmovntdq | M::Vmovntdqa
        );
    }
    instruction.memory_size().size() == 16
        && !matches!(
            instruction.mnemonic(),
            M::Movups
                | M::Movupd
                | M::Movdqu
                | M::Lddqu
                | M::Pcmpestri
                | M::Pcmpestrm
                | M::Pcmpistri
                | M::Pcmpistrm
        )
}
