//! Pairs of instructions that are executed as one op: what sets the flags, and the conditional branch on them.
//!
//! The flags are set as by the first alone; the condition of CMP and TEST is computed from the operands. The op has
//! the immediate of the first in the low half of `imm` and the distance of the branch in the high half.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::alu::{Add, Alu, And, Cmp, Dec, Inc, Or, Sub, Test, Unary, Xor, bytes};
use super::cond::{by_cond, encoding, holds};
use super::width::{Addr, AddrKind, Based, Done, Indexed, Int, LEAVE, addr_kind};
use crate::cpu::{CodeSize, Cpu};
use crate::decode::Context;
use crate::flags::Flags;
use crate::op::{BLOCK, Handler, Op};

/// A two-operand operation whose flags a branch asks for.
pub trait Tested: Alu {
    /// Whether condition `C` holds for the flags of the operation on `a` and `b`; `flags` are those flags.
    #[inline(always)]
    fn holds<const C: u8, T: Int>(flags: &Flags, _a: T, _b: T) -> bool {
        holds::<C>(flags)
    }
}

impl Tested for Add {}
impl Tested for And {}
impl Tested for Or {}
impl Tested for Xor {}

impl Tested for Test {
    #[inline(always)]
    fn holds<const C: u8, T: Int>(flags: &Flags, a: T, b: T) -> bool {
        let both = (a.sx() & b.sx()) as i64;
        match C {
            4 => both == 0,
            5 => both != 0,
            8 => both < 0,
            9 => both >= 0,
            14 => both <= 0,
            15 => both > 0,
            _ => holds::<C>(flags),
        }
    }
}

#[inline(always)]
fn compares<const C: u8, T: Int>(flags: &Flags, a: T, b: T) -> bool {
    let (left, right) = (a.sx() as i64, b.sx() as i64);
    match C {
        2 => a < b,
        3 => a >= b,
        4 => a == b,
        5 => a != b,
        6 => a <= b,
        7 => a > b,
        12 => left < right,
        13 => left >= right,
        14 => left <= right,
        15 => left > right,
        _ => holds::<C>(flags),
    }
}

impl Tested for Cmp {
    #[inline(always)]
    fn holds<const C: u8, T: Int>(flags: &Flags, a: T, b: T) -> bool {
        compares::<C, T>(flags, a, b)
    }
}

impl Tested for Sub {
    #[inline(always)]
    fn holds<const C: u8, T: Int>(flags: &Flags, a: T, b: T) -> bool {
        compares::<C, T>(flags, a, b)
    }
}

#[inline(always)]
fn branch(cpu: &mut Cpu, op: &Op, taken: bool) -> Done {
    let there = (op.imm as i64 >> 32) as u64;
    let here = u64::from(op.at) + u64::from(op.len);
    cpu.rip = cpu.reg(BLOCK).wrapping_add(if taken { there } else { here });
    LEAVE
}

/// The immediate of the first instruction.
#[inline(always)]
fn constant<T: Int>(op: &Op) -> T {
    T::cut(op.imm as i32 as i64 as u64)
}

#[inline(always)]
fn on_register<const C: u8, A: Tested, T: Int>(cpu: &mut Cpu, op: &Op, b: T) -> Done {
    let a = T::get(cpu, op.dst);
    let result = A::eval(&mut cpu.flags, a, b);
    if A::WRITES {
        T::set(cpu, op.dst, result);
    }
    let taken = A::holds::<C, T>(&cpu.flags, a, b);
    branch(cpu, op, taken)
}

fn rr<const C: u8, A: Tested, T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    on_register::<C, A, T>(cpu, op, T::get(cpu, op.src))
}

fn ri<const C: u8, A: Tested, T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    on_register::<C, A, T>(cpu, op, constant(op))
}

fn rm<const C: u8, A: Tested, M: Addr, T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    let Some(b) = cpu.load_fast::<T>(M::linear(cpu, op)) else { return rm_slow::<C, A, M, T>(cpu, op) };
    on_register::<C, A, T>(cpu, op, b)
}

#[cold]
#[inline(never)]
fn rm_slow<const C: u8, A: Tested, M: Addr, T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    let b = cpu.load_slow::<T>(M::linear(cpu, op))?;
    on_register::<C, A, T>(cpu, op, b)
}

/// CMP or TEST of memory with a constant.
fn mi<const C: u8, A: Tested, M: Addr, T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    let Some(a) = cpu.load_fast::<T>(M::linear(cpu, op)) else { return mi_slow::<C, A, M, T>(cpu, op) };
    on_memory::<C, A, T>(cpu, op, a, constant(op))
}

#[cold]
#[inline(never)]
fn mi_slow<const C: u8, A: Tested, M: Addr, T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    let a = cpu.load_slow::<T>(M::linear(cpu, op))?;
    on_memory::<C, A, T>(cpu, op, a, constant(op))
}

/// CMP or TEST of memory with a register.
fn mr<const C: u8, A: Tested, M: Addr, T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    let Some(a) = cpu.load_fast::<T>(M::linear(cpu, op)) else { return mr_slow::<C, A, M, T>(cpu, op) };
    on_memory::<C, A, T>(cpu, op, a, T::get(cpu, op.src))
}

#[cold]
#[inline(never)]
fn mr_slow<const C: u8, A: Tested, M: Addr, T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    let a = cpu.load_slow::<T>(M::linear(cpu, op))?;
    on_memory::<C, A, T>(cpu, op, a, T::get(cpu, op.src))
}

#[inline(always)]
fn on_memory<const C: u8, A: Tested, T: Int>(cpu: &mut Cpu, op: &Op, a: T, b: T) -> Done {
    A::eval(&mut cpu.flags, a, b);
    let taken = A::holds::<C, T>(&cpu.flags, a, b);
    branch(cpu, op, taken)
}

fn unary<const C: u8, U: Unary, T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    let a = T::get(cpu, op.dst);
    let result = U::eval(&mut cpu.flags, a);
    T::set(cpu, op.dst, result);
    let taken = holds::<C>(&cpu.flags);
    branch(cpu, op, taken)
}

macro_rules! by_size {
    ($cond:expr, $bytes:expr, $handler:ident $(, $param:ty)*) => {
        match $bytes {
            1 => by_cond!($cond, $handler $(, $param)*, u8),
            4 => by_cond!($cond, $handler $(, $param)*, u32),
            8 => by_cond!($cond, $handler $(, $param)*, u64),
            _ => return None,
        }
    };
}

macro_rules! by_place {
    ($cond:expr, $op:expr, $bytes:expr, $handler:ident, $alu:ty) => {
        match addr_kind($op) {
            AddrKind::Based => by_size!($cond, $bytes, $handler, $alu, Based),
            AddrKind::Indexed => by_size!($cond, $bytes, $handler, $alu, Indexed),
            AddrKind::General => return None,
        }
    };
}

/// CMP and TEST, in all their forms.
macro_rules! compare {
    ($op:expr, $first:expr, $cond:expr, $bytes:expr, $alu:ty) => {
        match ($first.op0_kind(), $first.op1_kind()) {
            (OpKind::Register, OpKind::Register) => by_size!($cond, $bytes, rr, $alu),
            (OpKind::Register, OpKind::Memory) => by_place!($cond, $op, $bytes, rm, $alu),
            (OpKind::Register, _) => by_size!($cond, $bytes, ri, $alu),
            (OpKind::Memory, OpKind::Register) => by_place!($cond, $op, $bytes, mr, $alu),
            _ => by_place!($cond, $op, $bytes, mi, $alu),
        }
    };
}

/// The others, on registers only.
macro_rules! change {
    ($first:expr, $cond:expr, $bytes:expr, $alu:ty) => {
        match ($first.op0_kind(), $first.op1_kind()) {
            (OpKind::Register, OpKind::Register) => by_size!($cond, $bytes, rr, $alu),
            (OpKind::Register, kind) if kind != OpKind::Memory => by_size!($cond, $bytes, ri, $alu),
            _ => return None,
        }
    };
}

fn handler(op: &Op, first: &Instruction, cond: usize) -> Option<Handler> {
    let bytes = bytes(first);
    let register = first.op0_kind() == OpKind::Register;
    Some(match first.mnemonic() {
        Mnemonic::Cmp => compare!(op, first, cond, bytes, Cmp),
        Mnemonic::Test => compare!(op, first, cond, bytes, Test),
        Mnemonic::Add => change!(first, cond, bytes, Add),
        Mnemonic::Sub => change!(first, cond, bytes, Sub),
        Mnemonic::And => change!(first, cond, bytes, And),
        Mnemonic::Or => change!(first, cond, bytes, Or),
        Mnemonic::Xor => change!(first, cond, bytes, Xor),
        Mnemonic::Inc if register => by_size!(cond, bytes, unary, Inc),
        Mnemonic::Dec if register => by_size!(cond, bytes, unary, Dec),
        _ => return None,
    })
}

/// Makes `last`, the op of `first`, stand for the pair of `first` and the next instruction, if there is a handler
/// for the two. A fault of the pair is a fault of its first.
pub fn fuse(last: &mut Op, first: &Instruction, next: &Op, branch: &Instruction, context: &Context) -> bool {
    let fits = context.code_size == CodeSize::Bits64
        && branch.is_jcc_short_or_near()
        && next.aux == 64
        && last.count == 1
        && !first.has_lock_prefix();
    if !fits {
        return false;
    }
    let constant = if bytes(first) == 8 { last.imm as i64 } else { i64::from(last.imm as i32) };
    let (Ok(constant), Ok(distance)) = (i32::try_from(constant), i32::try_from(next.imm as i64)) else {
        return false;
    };
    let Some(run) = handler(last, first, encoding(branch)) else { return false };
    if first.op1_kind() == OpKind::Register && first.op0_register() == first.op1_register() {
        last.src = last.dst; // an op that sets a register to 0 has no use for it
    }
    last.run = run;
    last.imm = (distance as u32 as u64) << 32 | u64::from(constant as u32);
    last.len += next.len;
    last.count = 2;
    true
}
