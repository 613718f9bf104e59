//! Every form of every instruction of 64-bit mode, and random instances of each.

use iced_x86::{
    Code, CpuidFeature, Encoder, EncodingKind, Instruction, MandatoryPrefix, Mnemonic,
    OpCodeOperandKind as Operand, OpKind, Register,
};

use crate::random::Random;
use crate::{CODE, DATA, DATA_BYTES};

/// A prefix that makes a form of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prefix {
    None,
    Lock,
    Rep,
    Repne,
}

/// An instruction, whether its operand that may be either is in memory, and its prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Form {
    pub code: Code,
    pub memory: bool,
    pub prefix: Prefix,
}

/// An encoded instruction with the addresses it was built around.
#[derive(Debug, Clone)]
pub struct Instance {
    pub instruction: Instruction,
    pub bytes: Vec<u8>,
    /// Where its memory operand is, if it has one.
    pub address: Option<u64>,
    /// Registers that form the address, with the values that make it so.
    pub fixed: Vec<(Register, u64)>,
}

/// All forms that 64-bit mode has, without those of AVX-512 and of extensions that nobody here offers.
pub fn all() -> Vec<Form> {
    let mut forms = Vec::new();
    for code in Code::values() {
        let info = code.op_code();
        let coprocessor = code.cpuid_features().contains(&CpuidFeature::KNC); // shares VEX encodings with others
        let vex = info.encoding() == EncodingKind::VEX && !coprocessor;
        let general_vex = vex && (on_general_registers(code) || is_wide(code));
        if !info.is_instruction()
            || !info.mode64()
            || !(info.encoding() == EncodingKind::Legacy || general_vex)
        {
            continue;
        }
        let kinds = || (0..info.op_count()).map(|n| info.op_kind(n));
        let either = kinds().any(is_either);
        let always = kinds().any(|kind| matches!(kind, Operand::mem | Operand::mem_offs));
        let places: &[bool] = if either { &[false, true] } else { &[always] };
        for memory in places.iter().copied() {
            let mut prefixes = vec![Prefix::None];
            if info.can_use_lock_prefix() && memory {
                prefixes.push(Prefix::Lock);
            }
            if info.can_use_rep_prefix() {
                prefixes.push(Prefix::Rep);
            }
            if info.can_use_repne_prefix() {
                prefixes.push(Prefix::Repne);
            }
            forms.extend(prefixes.into_iter().map(|prefix| Form { code, memory, prefix }));
        }
    }
    forms
}

/// Whether an instruction is of AVX or one of its kin that the host has and that are offered with it.
fn is_wide(code: Code) -> bool {
    code.cpuid_features().iter().all(|feature| match feature {
        CpuidFeature::AVX => is_x86_feature_detected!("avx"),
        CpuidFeature::AVX2 => is_x86_feature_detected!("avx2"),
        CpuidFeature::FMA => is_x86_feature_detected!("fma"),
        CpuidFeature::F16C => is_x86_feature_detected!("f16c"),
        CpuidFeature::VAES => is_x86_feature_detected!("vaes"),
        CpuidFeature::VPCLMULQDQ => is_x86_feature_detected!("vpclmulqdq"),
        CpuidFeature::AES => is_x86_feature_detected!("aes"),
        CpuidFeature::PCLMULQDQ => is_x86_feature_detected!("pclmulqdq"),
        _ => false,
    })
}

fn on_general_registers(code: Code) -> bool {
    let info = code.op_code();
    (0..info.op_count()).all(|n| {
        use Operand as O;
        matches!(
            info.op_kind(n),
            O::r32_or_mem
                | O::r64_or_mem
                | O::r32_reg
                | O::r64_reg
                | O::r32_vvvv
                | O::r64_vvvv
                | O::r32_rm
                | O::r64_rm
                | O::imm8
        )
    })
}

fn is_either(kind: Operand) -> bool {
    use Operand as O;
    matches!(
        kind,
        O::r8_or_mem
            | O::r16_or_mem
            | O::r32_or_mem
            | O::r64_or_mem
            | O::mm_or_mem
            | O::xmm_or_mem
            | O::ymm_or_mem
    )
}

const BYTE_REGISTERS: [Register; 20] = [
    Register::AL,
    Register::CL,
    Register::DL,
    Register::BL,
    Register::SPL,
    Register::BPL,
    Register::SIL,
    Register::DIL,
    Register::R8L,
    Register::R9L,
    Register::R10L,
    Register::R11L,
    Register::R12L,
    Register::R13L,
    Register::R14L,
    Register::R15L,
    Register::AH,
    Register::CH,
    Register::DH,
    Register::BH,
];

/// An instance of a form; `None` if its random choices cannot be encoded together.
pub fn instance(form: Form, random: &mut Random) -> Option<Instance> {
    let info = form.code.op_code();
    let mut built =
        Instance { instruction: Instruction::default(), bytes: Vec::new(), address: None, fixed: Vec::new() };
    built.instruction.set_code(form.code);
    for n in 0..info.op_count() {
        operand(&mut built, n, info.op_kind(n), form.memory, random)?;
    }
    match form.prefix {
        Prefix::None => {}
        Prefix::Lock => built.instruction.set_has_lock_prefix(true),
        Prefix::Rep => built.instruction.set_has_rep_prefix(true),
        Prefix::Repne => built.instruction.set_has_repne_prefix(true),
    }
    let far_bit = built.address.is_some()
        && matches!(
            built.instruction.mnemonic(),
            Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc
        )
        && built
            .fixed
            .iter()
            .any(|(register, _)| *register == built.instruction.op1_register().full_register());
    if far_bit {
        return None; // the bit would be as far as its offset, an address, is large
    }
    let index = built.instruction.memory_index();
    if index.is_xmm() || index.is_ymm() {
        let numbers =
            [built.instruction.op0_register(), index, built.instruction.op2_register()].map(Register::number);
        if numbers[0] == numbers[1] || numbers[0] == numbers[2] || numbers[1] == numbers[2] {
            return None; // undefined by definition
        }
    }
    let branches = matches!(built.instruction.mnemonic(), Mnemonic::Call | Mnemonic::Jmp);
    if branches && built.instruction.op0_register() == Register::RSP {
        return None; // the stack would be among the breakpoints
    }
    let mut encoder = Encoder::new(64);
    encoder.encode(&built.instruction, CODE).ok()?;
    built.bytes = encoder.take_buffer();
    if form.prefix == Prefix::None && info.mandatory_prefix() == MandatoryPrefix::None && random.once_in(16) {
        ignored_prefix(&mut built, random);
    }
    Some(built)
}

/// Puts a segment override that means nothing in 64-bit mode before the instruction.
fn ignored_prefix(built: &mut Instance, random: &mut Random) {
    let relative = built.instruction.is_ip_rel_memory_operand() || built.instruction.is_jcc_short_or_near();
    let branch =
        (0..built.instruction.op_count()).any(|n| built.instruction.op_kind(n) == OpKind::NearBranch64);
    if !relative && !branch && built.bytes.len() < 14 {
        built.bytes.insert(0, random.pick(&[0x26, 0x2e, 0x36, 0x3e]));
    }
}

fn operand(built: &mut Instance, n: u32, kind: Operand, in_memory: bool, random: &mut Random) -> Option<()> {
    use Operand as O;
    let register = |first: Register, count: u64, random: &mut Random| first + random.below(count) as u32;
    let chosen = match kind {
        _ if is_either(kind) && in_memory => return memory(built, n, random),
        O::mem => return memory(built, n, random),
        O::mem_offs => return absolute(built, n, random),
        O::r8_or_mem | O::r8_reg | O::r8_opcode => random.pick(&BYTE_REGISTERS),
        O::r16_or_mem | O::r16_reg | O::r16_reg_mem | O::r16_rm | O::r16_opcode => {
            register(Register::AX, 16, random)
        }
        O::r32_or_mem | O::r32_reg | O::r32_reg_mem | O::r32_rm | O::r32_opcode | O::r32_vvvv => {
            register(Register::EAX, 16, random)
        }
        O::r64_or_mem | O::r64_reg | O::r64_reg_mem | O::r64_rm | O::r64_opcode | O::r64_vvvv => {
            register(Register::RAX, 16, random)
        }
        O::mm_or_mem | O::mm_reg | O::mm_rm => register(Register::MM0, 8, random),
        O::xmm_or_mem | O::xmm_reg | O::xmm_rm | O::xmm_vvvv | O::xmm_is4 => {
            register(Register::XMM0, 16, random)
        }
        O::ymm_or_mem | O::ymm_reg | O::ymm_rm | O::ymm_vvvv | O::ymm_is4 => {
            register(Register::YMM0, 16, random)
        }
        O::mem_vsib32x | O::mem_vsib64x => return vsib(built, n, Register::XMM0, random),
        O::mem_vsib32y | O::mem_vsib64y => return vsib(built, n, Register::YMM0, random),
        O::sti_opcode => register(Register::ST0, 8, random),
        O::st0 => Register::ST0,
        O::al => Register::AL,
        O::cl => Register::CL,
        O::ax => Register::AX,
        O::dx => Register::DX,
        O::eax => Register::EAX,
        O::rax => Register::RAX,
        O::es => Register::ES,
        O::cs => Register::CS,
        O::ss => Register::SS,
        O::ds => Register::DS,
        O::fs => Register::FS,
        O::gs => Register::GS,
        O::seg_reg => register(Register::ES, 6, random),
        O::cr_reg => {
            random.pick(&[Register::CR0, Register::CR2, Register::CR3, Register::CR4, Register::CR8])
        }
        O::dr_reg => random.pick(&[Register::DR0, Register::DR3, Register::DR6, Register::DR7]),
        _ => return other(built, n, kind, random),
    };
    built.instruction.set_op_kind(n, OpKind::Register);
    built.instruction.set_op_register(n, chosen);
    Some(())
}

/// Immediates, implicit memory and branch targets.
fn other(built: &mut Instance, n: u32, kind: Operand, random: &mut Random) -> Option<()> {
    use Operand as O;
    let instruction = &mut built.instruction;
    let value = random.value();
    let second = n > 0
        && (0..n)
            .any(|i| instruction.op_kind(i) != OpKind::Register && instruction.op_kind(i) != OpKind::Memory);
    match kind {
        O::imm8 if second => {
            instruction.set_op_kind(n, OpKind::Immediate8_2nd);
            instruction.set_immediate8_2nd(value as u8);
        }
        O::imm8 => {
            instruction.set_op_kind(n, OpKind::Immediate8);
            instruction.set_immediate8(if random.once_in(2) { random.next() } else { value } as u8);
        }
        O::imm8_const_1 => {
            instruction.set_op_kind(n, OpKind::Immediate8);
            instruction.set_immediate8(1);
        }
        O::imm8sex16 => {
            instruction.set_op_kind(n, OpKind::Immediate8to16);
            instruction.set_immediate8to16((value as i8).into());
        }
        O::imm8sex32 => {
            instruction.set_op_kind(n, OpKind::Immediate8to32);
            instruction.set_immediate8to32((value as i8).into());
        }
        O::imm8sex64 => {
            instruction.set_op_kind(n, OpKind::Immediate8to64);
            instruction.set_immediate8to64((value as i8).into());
        }
        O::imm16 => {
            instruction.set_op_kind(n, OpKind::Immediate16);
            let is_frame = instruction.mnemonic() == Mnemonic::Enter; // one that the stack has room for
            instruction.set_immediate16(value as u16 & if is_frame { 0x3ff } else { 0xffff });
        }
        O::imm32 => {
            instruction.set_op_kind(n, OpKind::Immediate32);
            instruction.set_immediate32(value as u32);
        }
        O::imm32sex64 => {
            instruction.set_op_kind(n, OpKind::Immediate32to64);
            instruction.set_immediate32to64((value as i32).into());
        }
        O::imm64 => {
            instruction.set_op_kind(n, OpKind::Immediate64);
            instruction.set_immediate64(value);
        }
        O::br64_1 | O::br64_4 => {
            let reach = if kind == O::br64_1 { 100 } else { 0x600 };
            instruction.set_op_kind(n, OpKind::NearBranch64);
            instruction.set_near_branch64(CODE + 20 + random.below(reach));
        }
        O::seg_rSI => implicit(built, n, OpKind::MemorySegRSI, OpKind::MemorySegESI, Register::RSI, random),
        O::es_rDI => implicit(built, n, OpKind::MemoryESRDI, OpKind::MemoryESEDI, Register::RDI, random),
        O::seg_rDI => implicit(built, n, OpKind::MemorySegRDI, OpKind::MemorySegEDI, Register::RDI, random),
        O::seg_rBX_al => {
            instruction.set_op_kind(n, OpKind::Memory);
            instruction.set_memory_base(Register::RBX);
            instruction.set_memory_index(Register::AL);
            let address = DATA + random.below(DATA_BYTES);
            built.fixed.push((Register::RBX, address));
            built.address = Some(address);
        }
        _ => return None,
    }
    Some(())
}

/// Memory at RSI or RDI, or ESI or EDI; both operands of an instruction use the same width.
fn implicit(
    built: &mut Instance,
    n: u32,
    wide: OpKind,
    narrow: OpKind,
    pointer: Register,
    random: &mut Random,
) {
    let earlier = (0..n).map(|i| built.instruction.op_kind(i)).find(|kind| *kind != OpKind::Register);
    let is_narrow = match earlier {
        Some(kind) => matches!(kind, OpKind::MemorySegESI | OpKind::MemoryESEDI | OpKind::MemorySegEDI),
        None => random.once_in(4),
    };
    built.instruction.set_op_kind(n, if is_narrow { narrow } else { wide });
    let address = DATA + random.below(DATA_BYTES);
    built.fixed.push((pointer, address));
    built.address = Some(address);
}

/// The address of a memory operand: of any alignment, but mostly one that the instruction does not object to.
fn address(instruction: &Instruction, random: &mut Random) -> u64 {
    let any = DATA + random.below(DATA_BYTES);
    let align = instruction.memory_size().size().next_power_of_two().clamp(16, 64) as u64;
    let wide = instruction.memory_size().size() >= 16 || instruction.mnemonic() == Mnemonic::Cmpxchg16b;
    let sha = format!("{:?}", instruction.mnemonic()).starts_with("Sha"); // vendors differ in whether they check
    if sha || (wide && !random.once_in(8)) { any & !(align - 1) } else { any }
}

/// A ModRM memory operand with every kind of address.
fn memory(built: &mut Instance, n: u32, random: &mut Random) -> Option<()> {
    built.instruction.set_op_kind(n, OpKind::Memory);
    let target = address(&built.instruction, random);
    built.address = Some(target);
    let narrow = random.once_in(6);
    let first = if narrow { Register::EAX } else { Register::RAX };
    let general = |number: u64| first + number as u32;
    let whole = |number: u64| Register::RAX + number as u32;
    let instruction = &mut built.instruction;
    let full_displacement = if narrow { 4 } else { 8 };
    match random.below(8) {
        0 => {
            instruction.set_memory_base(Register::RIP);
            instruction.set_memory_displacement64(target);
            instruction.set_memory_displ_size(8);
        }
        1 => {
            instruction.set_memory_displacement64(target);
            instruction.set_memory_displ_size(full_displacement);
        }
        2 | 3 => {
            let base = random.below(16);
            instruction.set_memory_base(general(base));
            built.fixed.push((whole(base), target));
        }
        4 | 5 => {
            let base = random.below(16);
            let displacement = random.below(256) as i8;
            instruction.set_memory_base(general(base));
            instruction.set_memory_displacement64(displacement as i64 as u64);
            instruction.set_memory_displ_size(1);
            built.fixed.push((whole(base), target.wrapping_sub(displacement as i64 as u64)));
        }
        choice => {
            let (base, index) = (random.below(16), random.below(16));
            if index == 4 || index == base {
                return None;
            }
            let (offset, scale) = (random.below(1 << 20), 1 << random.below(4));
            let displacement = random.next() as i32 >> random.below(24);
            instruction.set_memory_index(general(index));
            instruction.set_memory_index_scale(scale);
            instruction.set_memory_displ_size(full_displacement);
            built.fixed.push((whole(index), offset));
            if choice == 6 {
                let displacement = target.wrapping_sub(offset * u64::from(scale));
                if displacement as i32 as i64 as u64 != displacement {
                    return None;
                }
                instruction.set_memory_displacement64(displacement);
            } else {
                instruction.set_memory_base(general(base));
                instruction.set_memory_displacement64(displacement as i64 as u64);
                let rest = (displacement as i64 as u64).wrapping_add(offset * u64::from(scale));
                built.fixed.push((whole(base), target.wrapping_sub(rest)));
            }
            if narrow && displacement < 0 {
                let low = instruction.memory_displacement64() & 0xffff_ffff;
                instruction.set_memory_displacement64(low);
            }
        }
    }
    if narrow {
        narrow_addresses(built, random);
    }
    let stack_moves =
        built.fixed.iter().any(|(register, value)| *register == Register::RSP && *value != target);
    if stack_moves && built.instruction.is_stack_instruction() {
        return None; // it would push and pop far from mapped memory
    }
    Some(())
}

/// A memory operand with indices in a vector register; [`crate::cases`] makes them small.
fn vsib(built: &mut Instance, n: u32, first: Register, random: &mut Random) -> Option<()> {
    let instruction = &mut built.instruction;
    instruction.set_op_kind(n, OpKind::Memory);
    let base = random.below(16);
    let target = DATA + DATA_BYTES / 2 + random.below(64);
    instruction.set_memory_base(Register::RAX + base as u32);
    instruction.set_memory_index(first + random.below(16) as u32);
    instruction.set_memory_index_scale(1 << random.below(4));
    instruction.set_memory_displacement64(random.below(64));
    instruction.set_memory_displ_size(1);
    built.fixed.push((Register::RAX + base as u32, target));
    built.address = Some(target);
    Some(())
}

/// With 32-bit addresses, the upper halves of the registers are ignored: put anything there.
fn narrow_addresses(built: &mut Instance, random: &mut Random) {
    for (_, value) in &mut built.fixed {
        *value = (*value & 0xffff_ffff) | random.next() << 32;
    }
    let instruction = &mut built.instruction;
    if instruction.memory_base() != Register::RIP {
        instruction.set_memory_displacement64(instruction.memory_displacement64() & 0xffff_ffff);
    }
}

/// The 64-bit absolute address of some forms of MOV.
fn absolute(built: &mut Instance, n: u32, random: &mut Random) -> Option<()> {
    built.instruction.set_op_kind(n, OpKind::Memory);
    let target = address(&built.instruction, random);
    built.address = Some(target);
    built.instruction.set_memory_displacement64(target);
    built.instruction.set_memory_displ_size(8);
    Some(())
}
