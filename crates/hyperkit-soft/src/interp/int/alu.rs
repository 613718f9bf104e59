//! ADD, ADC, SUB, SBB, CMP, AND, OR, XOR, TEST; INC, DEC, NEG, NOT.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::width::{Addr, Done, Int, NEXT, by_addr, by_width, modify, modify_fast, modify_locked};
use crate::cpu::Cpu;
use crate::decode::{Context, operand};
use crate::flags::Flags;
use crate::op::Op;

/// A two-operand operation.
pub trait Alu {
    /// Whether the result goes to the first operand.
    const WRITES: bool = true;

    /// The result; sets the arithmetic flags.
    fn eval<T: Int>(flags: &mut Flags, a: T, b: T) -> T;
}

/// A one-operand operation.
pub trait Unary {
    /// The result; sets the flags that the operation sets.
    fn eval<T: Int>(flags: &mut Flags, a: T) -> T;
}

macro_rules! operation {
    ($trait:ident $name:ident ($($arg:ident),*) writes $writes:literal |$flags:ident| $body:expr) => {
        #[doc = concat!("The operation of ", stringify!($name), ".")]
        pub struct $name;
        operation!(@ $trait $name ($($arg),*) $writes $flags $body);
    };
    (@ Alu $name:ident ($a:ident, $b:ident) $writes:literal $flags:ident $body:expr) => {
        impl Alu for $name {
            const WRITES: bool = $writes;
            #[inline(always)]
            fn eval<T: Int>($flags: &mut Flags, a: T, b: T) -> T {
                let ($a, $b) = (a.zx(), b.zx());
                $body
            }
        }
    };
    (@ Unary $name:ident ($a:ident) $writes:literal $flags:ident $body:expr) => {
        impl Unary for $name {
            #[inline(always)]
            fn eval<T: Int>($flags: &mut Flags, a: T) -> T {
                let $a = a.zx();
                $body
            }
        }
    };
}

operation!(Alu Add(a, b) writes true |flags| flags.add::<T>(a, b, T::cut(a.wrapping_add(b))));
operation!(Alu Adc(a, b) writes true |flags| {
    let carry = u64::from(flags.cf());
    flags.add::<T>(a, b, T::cut(a.wrapping_add(b).wrapping_add(carry)))
});
operation!(Alu Sub(a, b) writes true |flags| flags.sub::<T>(a, b, T::cut(a.wrapping_sub(b))));
operation!(Alu Sbb(a, b) writes true |flags| {
    let borrow = u64::from(flags.cf());
    flags.sub::<T>(a, b, T::cut(a.wrapping_sub(b).wrapping_sub(borrow)))
});
operation!(Alu Cmp(a, b) writes false |flags| flags.sub::<T>(a, b, T::cut(a.wrapping_sub(b))));
operation!(Alu And(a, b) writes true |flags| flags.logic(T::cut(a & b)));
operation!(Alu Or(a, b) writes true |flags| flags.logic(T::cut(a | b)));
operation!(Alu Xor(a, b) writes true |flags| flags.logic(T::cut(a ^ b)));
operation!(Alu Test(a, b) writes false |flags| flags.logic(T::cut(a & b)));
operation!(Unary Inc(a) writes true |flags| {
    let before = flags.carries;
    let result = flags.add::<T>(a, 1, T::cut(a.wrapping_add(1)));
    flags.put_back_cf(before);
    result
});
operation!(Unary Dec(a) writes true |flags| {
    let before = flags.carries;
    let result = flags.sub::<T>(a, 1, T::cut(a.wrapping_sub(1)));
    flags.put_back_cf(before);
    result
});
operation!(Unary Neg(a) writes true |flags| flags.sub::<T>(0, a, T::cut(a.wrapping_neg())));
operation!(Unary Not(a) writes true |_flags| T::cut(!a));

fn rr<A: Alu, T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    let (a, b) = (T::get(cpu, op.dst), T::get(cpu, op.src));
    let result = A::eval(&mut cpu.flags, a, b);
    if A::WRITES {
        T::set(cpu, op.dst, result);
    }
    NEXT
}

fn ri<A: Alu, T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    let a = T::get(cpu, op.dst);
    let result = A::eval(&mut cpu.flags, a, T::cut(op.imm));
    if A::WRITES {
        T::set(cpu, op.dst, result);
    }
    NEXT
}

#[inline(always)]
fn to_register<A: Alu, T: Int>(cpu: &mut Cpu, op: &Op, b: T) -> Done {
    let a = T::get(cpu, op.dst);
    let result = A::eval(&mut cpu.flags, a, b);
    if A::WRITES {
        T::set(cpu, op.dst, result);
    }
    NEXT
}

fn rm<A: Alu, M: Addr, T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    let Some(b) = cpu.load_fast::<T>(M::linear(cpu, op)) else { return rm_slow::<A, M, T>(cpu, op) };
    to_register::<A, T>(cpu, op, b)
}

#[cold]
#[inline(never)]
fn rm_slow<A: Alu, M: Addr, T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    let b = cpu.load_slow::<T>(M::linear(cpu, op))?;
    to_register::<A, T>(cpu, op, b)
}

/// The operation on memory if the TLB has the page, otherwise nothing.
#[inline(always)]
fn to_memory_fast<A: Alu, T: Int>(cpu: &mut Cpu, linear: u64, b: T) -> bool {
    if A::WRITES {
        return modify_fast::<T>(cpu, linear, |cpu, a| A::eval(&mut cpu.flags, a, b));
    }
    let Some(a) = cpu.load_fast::<T>(linear) else { return false };
    A::eval(&mut cpu.flags, a, b);
    true
}

#[inline(always)]
fn to_memory<A: Alu, T: Int>(cpu: &mut Cpu, linear: u64, b: T) -> Done {
    if A::WRITES {
        modify::<T>(cpu, linear, |cpu, a| A::eval(&mut cpu.flags, a, b))?;
    } else {
        let a = cpu.load::<T>(linear)?;
        A::eval(&mut cpu.flags, a, b);
    }
    NEXT
}

fn mr<A: Alu, M: Addr, T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    let done = to_memory_fast::<A, T>(cpu, M::linear(cpu, op), T::get(cpu, op.src));
    if done { NEXT } else { mr_slow::<A, M, T>(cpu, op) }
}

#[cold]
#[inline(never)]
fn mr_slow<A: Alu, M: Addr, T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    to_memory::<A, T>(cpu, M::linear(cpu, op), T::get(cpu, op.src))
}

fn mi<A: Alu, M: Addr, T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    let done = to_memory_fast::<A, T>(cpu, M::linear(cpu, op), T::cut(op.imm));
    if done { NEXT } else { mi_slow::<A, M, T>(cpu, op) }
}

#[cold]
#[inline(never)]
fn mi_slow<A: Alu, M: Addr, T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    to_memory::<A, T>(cpu, M::linear(cpu, op), T::cut(op.imm))
}

fn locked_mr<A: Alu, T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    let b = T::get(cpu, op.src);
    modify_locked::<T>(cpu, cpu.address(op), |cpu, a| A::eval(&mut cpu.flags, a, b))?;
    NEXT
}

fn locked_mi<A: Alu, T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    modify_locked::<T>(cpu, cpu.address(op), |cpu, a| A::eval(&mut cpu.flags, a, T::cut(op.imm)))?;
    NEXT
}

fn unary_r<U: Unary, T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    let a = T::get(cpu, op.dst);
    let result = U::eval(&mut cpu.flags, a);
    T::set(cpu, op.dst, result);
    NEXT
}

fn unary_m<U: Unary, M: Addr, T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    let done = modify_fast::<T>(cpu, M::linear(cpu, op), |cpu, a| U::eval(&mut cpu.flags, a));
    if done { NEXT } else { unary_m_slow::<U, M, T>(cpu, op) }
}

#[cold]
#[inline(never)]
fn unary_m_slow<U: Unary, M: Addr, T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    modify::<T>(cpu, M::linear(cpu, op), |cpu, a| U::eval(&mut cpu.flags, a))?;
    NEXT
}

fn locked_unary<U: Unary, T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    modify_locked::<T>(cpu, cpu.address(op), |cpu, a| U::eval(&mut cpu.flags, a))?;
    NEXT
}

/// `xor r, r` and `sub r, r`: zero.
fn zero<T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    T::set(cpu, op.dst, T::cut(0));
    cpu.flags.logic(T::cut(0));
    NEXT
}

/// The op of an instruction of this file.
pub fn lower(instruction: &Instruction, context: &Context) -> Option<Op> {
    Some(match instruction.mnemonic() {
        Mnemonic::Add => binary::<Add>(instruction, context),
        Mnemonic::Adc => binary::<Adc>(instruction, context),
        Mnemonic::Sub => zeroing(instruction, context).unwrap_or_else(|| binary::<Sub>(instruction, context)),
        Mnemonic::Sbb => binary::<Sbb>(instruction, context),
        Mnemonic::Cmp => binary::<Cmp>(instruction, context),
        Mnemonic::And => binary::<And>(instruction, context),
        Mnemonic::Or => binary::<Or>(instruction, context),
        Mnemonic::Xor => zeroing(instruction, context).unwrap_or_else(|| binary::<Xor>(instruction, context)),
        Mnemonic::Test => binary::<Test>(instruction, context),
        Mnemonic::Inc => unary::<Inc>(instruction, context),
        Mnemonic::Dec => unary::<Dec>(instruction, context),
        Mnemonic::Neg => unary::<Neg>(instruction, context),
        Mnemonic::Not => unary::<Not>(instruction, context),
        _ => return None,
    })
}

fn zeroing(instruction: &Instruction, context: &Context) -> Option<Op> {
    let same = instruction.op1_kind() == OpKind::Register
        && instruction.op0_kind() == OpKind::Register
        && instruction.op0_register() == instruction.op1_register();
    if !same {
        return None;
    }
    let register = instruction.op0_register();
    let mut op = operand::op(by_width!(register.size(), zero), instruction, context);
    op.dst = operand::register(register);
    Some(op)
}

/// Width of the first operand, in bytes.
pub fn bytes(instruction: &Instruction) -> usize {
    match instruction.op0_kind() {
        OpKind::Register => instruction.op0_register().size(),
        _ => instruction.memory_size().size(),
    }
}

fn binary<A: Alu>(instruction: &Instruction, context: &Context) -> Op {
    let mut op = operand::op(rr::<A, u8>, instruction, context);
    let bytes = bytes(instruction);
    let lock = instruction.has_lock_prefix();
    if instruction.op0_kind() == OpKind::Register {
        op.dst = operand::register(instruction.op0_register());
    }
    if instruction.op1_kind() == OpKind::Register {
        op.src = operand::register(instruction.op1_register());
    }
    op.imm = operand::immediate(instruction, 1);
    op.run = match (instruction.op0_kind(), instruction.op1_kind()) {
        (OpKind::Register, OpKind::Register) => by_width!(bytes, rr, A),
        (OpKind::Register, OpKind::Memory) => by_addr!(&op, bytes, rm, A),
        (OpKind::Register, _) => by_width!(bytes, ri, A),
        (_, OpKind::Register) if lock => by_width!(bytes, locked_mr, A),
        (_, OpKind::Register) => by_addr!(&op, bytes, mr, A),
        _ if lock => by_width!(bytes, locked_mi, A),
        _ => by_addr!(&op, bytes, mi, A),
    };
    op
}

fn unary<U: Unary>(instruction: &Instruction, context: &Context) -> Op {
    let mut op = operand::op(unary_r::<U, u8>, instruction, context);
    let bytes = bytes(instruction);
    op.run = if instruction.op0_kind() == OpKind::Register {
        op.dst = operand::register(instruction.op0_register());
        by_width!(bytes, unary_r, U)
    } else if instruction.has_lock_prefix() {
        by_width!(bytes, locked_unary, U)
    } else {
        by_addr!(&op, bytes, unary_m, U)
    };
    op
}
