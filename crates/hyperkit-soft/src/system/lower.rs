//! From system instructions to ops.

use iced_x86::{Code, Instruction, Mnemonic as M, OpKind, Register};

use crate::cpu::{CodeSize, seg};
use crate::decode::{Context, operand};
use crate::op::{Handler, Op};
use crate::system::operand::{REGISTER, rm};
use crate::system::{
    clock, control, cpuid, delivery, flags, msr, ports, random, segments, syscall, tables, transfer,
};
use crate::trap::vector;

/// The op of a system instruction; `None` for any other.
pub fn lower(instruction: &Instruction, context: &Context) -> Option<Op> {
    simple(instruction, context)
        .or_else(|| registers(instruction, context))
        .or_else(|| descriptors(instruction, context))
        .or_else(|| transfers(instruction, context))
        .or_else(|| port(instruction, context))
}

/// Those whose operands, if any, are implied.
fn simple(instruction: &Instruction, context: &Context) -> Option<Op> {
    let run: Handler = match instruction.mnemonic() {
        M::Hlt => flags::hlt,
        M::Cli => flags::cli,
        M::Sti => flags::sti,
        M::Clac | M::Stac => flags::set_ac,
        M::Clts => control::clts,
        M::Invd | M::Wbinvd => control::write_back,
        M::Invlpg => control::invlpg,
        M::Clflush => control::clflush,
        M::Swapgs => segments::swapgs,
        M::Syscall => syscall::syscall,
        M::Sysret | M::Sysretq => syscall::sysret,
        M::Sysenter => syscall::sysenter,
        M::Sysexit | M::Sysexitq => syscall::sysexit,
        M::Rdmsr => msr::rdmsr,
        M::Wrmsr => msr::wrmsr,
        M::Rdtsc => clock::rdtsc,
        M::Rdtscp => clock::rdtscp,
        M::Rdpmc => clock::rdpmc,
        M::Cpuid => cpuid::cpuid,
        _ => return None,
    };
    let mut op = operand::op(run, instruction, context);
    op.aux = match instruction.mnemonic() {
        M::Sysretq | M::Sysexitq => 8,
        _ => 4,
    };
    if instruction.mnemonic() == M::Stac {
        op.imm = crate::flags::bit::AC;
    }
    Some(op)
}

/// Moves to and from control, debug and segment registers, and their kind.
fn registers(instruction: &Instruction, context: &Context) -> Option<Op> {
    let wide = if context.code_size == CodeSize::Bits64 { 8 } else { 4 };
    let (to, from) = (instruction.op0_register(), instruction.op1_register());
    let special = |run, n: u32, register: Register, bytes| {
        let mut op = rm(run, instruction, context, n, bytes);
        op.src = operand::register(register);
        Some(op)
    };
    match instruction.mnemonic() {
        M::Mov if to.is_cr() => special(control::write_control, 1, to, wide),
        M::Mov if from.is_cr() => special(control::read_control, 0, from, wide),
        M::Mov if to.is_dr() => special(control::write_debug, 1, to, wide),
        M::Mov if from.is_dr() => special(control::read_debug, 0, from, wide),
        M::Mov if to == Register::CS => None,
        M::Mov if to.is_segment_register() => special(segments::mov_to_segment, 1, to, 2),
        M::Mov if from.is_segment_register() => {
            let bytes = if instruction.op0_kind() == OpKind::Register { to.size() as u8 } else { 2 };
            special(segments::mov_from_segment, 0, from, bytes)
        }
        M::Push if to.is_segment_register() => {
            special(segments::push_segment, 0, to, stack_size(instruction))
        }
        M::Pop if to.is_segment_register() => special(segments::pop_segment, 0, to, stack_size(instruction)),
        M::Rdfsbase | M::Rdgsbase => special(segments::read_base, 0, base_of(instruction), to.size() as u8),
        M::Wrfsbase | M::Wrgsbase => special(segments::write_base, 0, base_of(instruction), to.size() as u8),
        M::Rdpid => special(clock::rdpid, 0, Register::None, wide),
        M::Rdrand | M::Rdseed => special(random::rdrand, 0, Register::None, to.size() as u8),
        M::Lds | M::Les | M::Lfs | M::Lgs | M::Lss => {
            let mut op = operand::op(segments::load_far_pointer, instruction, context);
            op.dst = operand::register(to);
            op.src = far_segment(instruction.mnemonic());
            op.aux = to.size() as u8;
            Some(op)
        }
        _ => None,
    }
}

fn base_of(instruction: &Instruction) -> Register {
    match instruction.mnemonic() {
        M::Rdfsbase | M::Wrfsbase => Register::FS,
        _ => Register::GS,
    }
}

fn far_segment(mnemonic: M) -> u8 {
    let number = match mnemonic {
        M::Lds => seg::DS,
        M::Les => seg::ES,
        M::Lfs => seg::FS,
        M::Lgs => seg::GS,
        _ => seg::SS,
    };
    number as u8
}

fn stack_size(instruction: &Instruction) -> u8 {
    instruction.stack_pointer_increment().unsigned_abs() as u8
}

/// Descriptor tables, and the machine status word.
fn descriptors(instruction: &Instruction, context: &Context) -> Option<Op> {
    let bytes = |n: u32| {
        if instruction.op_kind(n) == OpKind::Register { instruction.op_register(n).size() as u8 } else { 2 }
    };
    let run: Handler = match instruction.mnemonic() {
        M::Lgdt => tables::lgdt,
        M::Lidt => tables::lidt,
        M::Sgdt => tables::sgdt,
        M::Sidt => tables::sidt,
        M::Invpcid => {
            let mut op = operand::op(control::invpcid, instruction, context);
            op.src = operand::register(instruction.op0_register());
            return Some(op);
        }
        M::Lldt => return Some(rm(tables::lldt, instruction, context, 0, 2)),
        M::Ltr => return Some(rm(tables::ltr, instruction, context, 0, 2)),
        M::Lmsw => return Some(rm(control::lmsw, instruction, context, 0, 2)),
        M::Sldt => return Some(rm(tables::sldt, instruction, context, 0, bytes(0))),
        M::Str => return Some(rm(tables::str, instruction, context, 0, bytes(0))),
        M::Smsw => return Some(rm(control::smsw, instruction, context, 0, bytes(0))),
        M::Verr | M::Verw => {
            let mut op = rm(tables::verify, instruction, context, 0, 2);
            op.imm = u64::from(instruction.mnemonic() == M::Verw);
            return Some(op);
        }
        M::Lar | M::Lsl => {
            let run = if instruction.mnemonic() == M::Lar { tables::lar } else { tables::lsl };
            let mut op = rm(run, instruction, context, 1, 2);
            op.src = operand::register(instruction.op0_register());
            op.imm = instruction.op0_register().size() as u64;
            return Some(op);
        }
        _ => return None,
    };
    let mut op = operand::op(run, instruction, context);
    let short = matches!(instruction.code(), Code::Lgdt_m1632_16 | Code::Lidt_m1632_16);
    op.aux = if short { 2 } else { 4 };
    Some(op)
}

/// Far transfers, software interrupts and returns from them.
fn transfers(instruction: &Instruction, context: &Context) -> Option<Op> {
    let op = |run: Handler, bytes: u8, imm: u64| {
        let mut op = operand::op(run, instruction, context);
        op.aux = bytes;
        op.imm = imm;
        Some(op)
    };
    match instruction.mnemonic() {
        M::Int => op(delivery::int, 2, operand::immediate(instruction, 0)),
        M::Int3 => op(delivery::int, 0, u64::from(vector::BP)),
        M::Int1 => op(delivery::int, 1, u64::from(vector::DB)),
        M::Into => op(delivery::into, 0, 0),
        M::Iret => op(delivery::iret, 2, 0),
        M::Iretd => op(delivery::iret, 4, 0),
        M::Iretq => op(delivery::iret, 8, 0),
        M::Retf => {
            let release = if instruction.op_count() > 0 { operand::immediate(instruction, 0) } else { 0 };
            op(transfer::ret_far, far_return_size(instruction.code()), release)
        }
        M::Jmp => far(transfer::jmp_far, instruction, context),
        M::Call => far(transfer::call_far, instruction, context),
        _ => None,
    }
}

fn far_return_size(code: Code) -> u8 {
    match code {
        Code::Retfw | Code::Retfw_imm16 => 2,
        Code::Retfq | Code::Retfq_imm16 => 8,
        _ => 4,
    }
}

fn far(run: Handler, instruction: &Instruction, context: &Context) -> Option<Op> {
    let mut op = operand::op(run, instruction, context);
    match instruction.op0_kind() {
        OpKind::FarBranch16 => {
            op.aux = REGISTER | 2;
            op.imm =
                u64::from(instruction.far_branch_selector()) << 32 | u64::from(instruction.far_branch16());
        }
        OpKind::FarBranch32 => {
            op.aux = REGISTER | 4;
            op.imm =
                u64::from(instruction.far_branch_selector()) << 32 | u64::from(instruction.far_branch32());
        }
        OpKind::Memory => {
            op.aux = match instruction.code() {
                Code::Jmp_m1616 | Code::Call_m1616 => 2,
                Code::Jmp_m1632 | Code::Call_m1632 => 4,
                Code::Jmp_m1664 | Code::Call_m1664 => 8,
                _ => return None,
            };
        }
        _ => return None,
    }
    Some(op)
}

/// Port input and output.
fn port(instruction: &Instruction, context: &Context) -> Option<Op> {
    let (run, n): (Handler, u32) = match instruction.mnemonic() {
        M::In => (ports::port_in, 1),
        M::Out => (ports::port_out, 0),
        M::Insb | M::Insw | M::Insd => (ports::ins, 0),
        M::Outsb | M::Outsw | M::Outsd => (ports::outs, 0),
        _ => return None,
    };
    let mut op = operand::op(run, instruction, context);
    op.aux = match instruction.mnemonic() {
        M::In => instruction.op0_register().size() as u8,
        M::Out => instruction.op1_register().size() as u8,
        M::Insb | M::Outsb => 1,
        M::Insw | M::Outsw => 2,
        _ => 4,
    };
    if instruction.has_rep_prefix() || instruction.has_repne_prefix() {
        op.aux |= ports::REPEATED;
    }
    if instruction.op_kind(n) == OpKind::Register {
        op.src = 1;
    } else {
        op.imm = operand::immediate(instruction, n);
    }
    Some(op)
}
