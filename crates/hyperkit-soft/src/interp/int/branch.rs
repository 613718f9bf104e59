//! Near branches: Jcc, JMP, CALL, RET, LOOPcc, JrCXZ.
//!
//! A direct branch to an address that is not canonical faults on the fetch of its target.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::cond::{by_cond, encoding, holds};
use super::stack::push_64_fast;
use super::width::{Done, Int, LEAVE, by_width};
use crate::cpu::{CodeSize, Cpu};
use crate::decode::build::is_canonical;
use crate::decode::{Context, operand};
use crate::op::{BLOCK, Op};
use crate::trap::Trap;

/// Goes to the target of a relative branch, in 64-bit mode.
#[inline(always)]
pub fn take(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.rip = cpu.reg(BLOCK).wrapping_add(op.imm);
    LEAVE
}

/// Goes to the next instruction.
#[inline(always)]
pub fn pass_by(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.rip = cpu.reg(BLOCK).wrapping_add(u64::from(op.at) + u64::from(op.len));
    LEAVE
}

/// Goes to the target or the next instruction, in 64-bit mode.
#[inline(always)]
pub fn choose(cpu: &mut Cpu, op: &Op, taken: bool) -> Done {
    let (here, there) = (u64::from(op.at) + u64::from(op.len), op.imm);
    cpu.rip = cpu.reg(BLOCK).wrapping_add(if taken { there } else { here });
    LEAVE
}

/// The same in 16-bit and 32-bit code, with RIP cut to the operand size, `aux` bits.
fn choose_legacy(cpu: &mut Cpu, op: &Op, taken: bool) -> Done {
    if taken {
        let target = cpu.reg(BLOCK).wrapping_add(op.imm);
        cpu.rip = target & if op.aux == 16 { 0xffff } else { 0xffff_ffff };
        return LEAVE;
    }
    cpu.rip = cpu.next_rip(op) & 0xffff_ffff;
    LEAVE
}

fn jcc<const C: u8>(cpu: &mut Cpu, op: &Op) -> Done {
    let taken = holds::<C>(&cpu.flags);
    choose(cpu, op, taken)
}

fn jcc_legacy<const C: u8>(cpu: &mut Cpu, op: &Op) -> Done {
    let taken = holds::<C>(&cpu.flags);
    choose_legacy(cpu, op, taken)
}

fn jmp(cpu: &mut Cpu, op: &Op) -> Done {
    take(cpu, op)
}

fn jmp_legacy(cpu: &mut Cpu, op: &Op) -> Done {
    choose_legacy(cpu, op, true)
}

fn call(cpu: &mut Cpu, op: &Op) -> Done {
    if push_64_fast(cpu, cpu.next_rip(op)) { take(cpu, op) } else { call_slow(cpu, op) }
}

#[cold]
#[inline(never)]
fn call_slow(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.push(cpu.next_rip(op))?;
    take(cpu, op)
}

fn call_legacy<T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.push(T::cut(cpu.next_rip(op)))?;
    choose_legacy(cpu, op, true)
}

fn go<T: Int>(cpu: &mut Cpu, target: T) -> Result<(), Trap> {
    if T::BITS == 64 && !is_canonical(target.zx()) {
        return Err(cpu.protection(0));
    }
    cpu.rip = target.zx();
    Ok(())
}

#[inline(always)]
fn target<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<T, Trap> {
    if op.aux == 0 { Ok(T::get(cpu, op.src)) } else { cpu.load(cpu.address(op)) }
}

/// `aux` says whether the target is in memory.
fn jmp_to<T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    let target = target::<T>(cpu, op)?;
    go(cpu, target)?;
    LEAVE
}

fn call_to<T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    let target = target::<T>(cpu, op)?;
    if T::BITS == 64 && !is_canonical(target.zx()) {
        return Err(cpu.protection(0));
    }
    cpu.push(T::cut(cpu.next_rip(op)))?;
    cpu.rip = target.zx();
    LEAVE
}

/// `imm`: bytes of arguments to drop.
fn ret<T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    let linear = cpu.stack_linear(cpu.regs[4]);
    let target = cpu.load::<T>(linear).map_err(|trap| cpu.on_stack(linear, trap))?;
    go(cpu, target)?;
    cpu.set_stack_pointer(cpu.regs[4].wrapping_add(T::BYTES).wrapping_add(op.imm));
    LEAVE
}

fn ret_64(cpu: &mut Cpu, op: &Op) -> Done {
    let Some(target) = cpu.load_fast::<u64>(cpu.regs[4]) else { return ret_slow(cpu, op) };
    if !is_canonical(target) {
        return ret_slow(cpu, op);
    }
    cpu.rip = target;
    cpu.regs[4] = cpu.regs[4].wrapping_add(8).wrapping_add(op.imm);
    LEAVE
}

#[cold]
#[inline(never)]
fn ret_slow(cpu: &mut Cpu, op: &Op) -> Done {
    ret::<u64>(cpu, op)
}

/// LOOP and its kin, with the counter of width `T`; `dst` 0: LOOPNE, 1: LOOPE, 2: LOOP, 3: JrCXZ.
fn count<T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    let counter = T::get(cpu, 1);
    let left = if op.dst == 3 { counter } else { T::cut(counter.zx().wrapping_sub(1)) };
    let nonzero = left != T::cut(0);
    let taken = match op.dst {
        0 => nonzero && !cpu.flags.zf(),
        1 => nonzero && cpu.flags.zf(),
        2 => nonzero,
        _ => !nonzero,
    };
    if op.dst != 3 {
        T::set(cpu, 1, left);
    }
    if cpu.code_size == CodeSize::Bits64 { choose(cpu, op, taken) } else { choose_legacy(cpu, op, taken) }
}

/// The op of an instruction of this file.
pub fn lower(instruction: &Instruction, context: &Context) -> Option<Op> {
    use Mnemonic as M;
    if instruction.is_jcc_short_or_near() {
        return Some(jcc_op(instruction, context));
    }
    match instruction.mnemonic() {
        M::Jmp if instruction.is_jmp_short_or_near() => Some(direct(instruction, context, false)),
        M::Jmp if instruction.is_jmp_near_indirect() => Some(indirect(instruction, context, false)),
        M::Call if instruction.is_call_near() => Some(direct(instruction, context, true)),
        M::Call if instruction.is_call_near_indirect() => Some(indirect(instruction, context, true)),
        M::Ret => Some(ret_op(instruction, context)),
        M::Loopne => Some(count_op(instruction, context, 0)),
        M::Loope => Some(count_op(instruction, context, 1)),
        M::Loop => Some(count_op(instruction, context, 2)),
        M::Jcxz | M::Jecxz | M::Jrcxz => Some(count_op(instruction, context, 3)),
        _ => None,
    }
}

/// An op with the target of a relative branch.
fn relative(instruction: &Instruction, context: &Context) -> Op {
    let mut op = operand::op(jmp, instruction, context);
    op.imm = operand::branch(instruction, context);
    op.aux = match instruction.op0_kind() {
        OpKind::NearBranch16 => 16,
        OpKind::NearBranch32 => 32,
        _ => 64,
    };
    op
}

fn jcc_op(instruction: &Instruction, context: &Context) -> Op {
    let cond = encoding(instruction);
    relative(instruction, context).with(|op| {
        op.run = match context.code_size {
            CodeSize::Bits64 => by_cond!(cond, jcc),
            _ => by_cond!(cond, jcc_legacy),
        };
    })
}

fn direct(instruction: &Instruction, context: &Context, calls: bool) -> Op {
    relative(instruction, context).with(|op| {
        op.run = match (calls, op.aux) {
            (false, 64) => jmp,
            (false, _) => jmp_legacy,
            (true, 64) => call,
            (true, 16) => call_legacy::<u16>,
            (true, _) => call_legacy::<u32>,
        };
    })
}

fn indirect(instruction: &Instruction, context: &Context, calls: bool) -> Op {
    let mut op = operand::op(jmp, instruction, context);
    let bytes = super::alu::bytes(instruction);
    if instruction.op0_kind() == OpKind::Register {
        op.src = operand::register(instruction.op0_register());
    } else {
        op.aux = 1;
    }
    op.run = if calls { by_width!(bytes, call_to) } else { by_width!(bytes, jmp_to) };
    op
}

fn ret_op(instruction: &Instruction, context: &Context) -> Op {
    use iced_x86::Code::{Retnd, Retnd_imm16, Retnw, Retnw_imm16};
    let mut op = operand::op(ret_64, instruction, context);
    op.imm = operand::immediate(instruction, 0);
    if instruction.op_count() == 0 {
        op.imm = 0;
    }
    match instruction.code() {
        Retnw | Retnw_imm16 => op.run = ret::<u16>,
        Retnd | Retnd_imm16 => op.run = ret::<u32>,
        _ => {}
    }
    op
}

fn count_op(instruction: &Instruction, context: &Context, kind: u8) -> Op {
    use iced_x86::Code as C;
    let width = match instruction.code() {
        C::Loop_rel8_16_CX | C::Loop_rel8_32_CX | C::Loope_rel8_16_CX | C::Loope_rel8_32_CX => 2,
        C::Loopne_rel8_16_CX | C::Loopne_rel8_32_CX | C::Jcxz_rel8_16 | C::Jcxz_rel8_32 => 2,
        C::Loop_rel8_64_RCX | C::Loope_rel8_64_RCX | C::Loopne_rel8_64_RCX | C::Jrcxz_rel8_64 => 8,
        C::Loop_rel8_16_RCX | C::Loope_rel8_16_RCX | C::Loopne_rel8_16_RCX | C::Jrcxz_rel8_16 => 8,
        _ => 4,
    };
    relative(instruction, context).with(|op| {
        op.run = by_width!(width, count);
        op.dst = kind;
    })
}
