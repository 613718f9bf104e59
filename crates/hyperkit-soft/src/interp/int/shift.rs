//! SHL, SHR, SAR, ROL, ROR, RCL, RCR, SHLD, SHRD.
//!
//! Flags that the SDM leaves undefined (OF of counts other than 1, AF) are computed as for a count of 1, or cleared.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::alu::bytes;
use super::width::{Addr, Done, General, Int, NEXT, by_addr, by_width, modify};
use crate::cpu::Cpu;
use crate::decode::{Context, operand};
use crate::flags::Flags;
use crate::op::Op;

/// A shift or rotation by a count that is already masked to 5 or 6 bits and is not 0.
pub trait Shift {
    /// The result; sets the flags.
    fn eval<T: Int>(flags: &mut Flags, a: T, count: u32) -> T;
}

/// SHL and SAL.
pub struct Shl;
/// SHR.
pub struct Shr;
/// SAR.
pub struct Sar;
/// ROL.
pub struct Rol;
/// ROR.
pub struct Ror;
/// RCL.
pub struct Rcl;
/// RCR.
pub struct Rcr;

fn is_negative<T: Int>(value: T) -> bool {
    value.zx() >> (T::BITS - 1) != 0
}

/// The count that takes part: SDM vol. 2B, SAL/SAR/SHL/SHR.
#[inline(always)]
fn masked<T: Int>(count: u64) -> u32 {
    count as u32 & if T::BITS == 64 { 63 } else { 31 }
}

impl Flags {
    /// The flags of a shift: those of its result, and CF and OF.
    #[inline(always)]
    fn shifted<T: Int>(&mut self, result: T, cf: bool, of: bool) -> T {
        self.result(result);
        self.carries = u64::from(cf) << 63 | u64::from(cf ^ of) << 62;
        result
    }
}

impl Shift for Shl {
    #[inline(always)]
    fn eval<T: Int>(flags: &mut Flags, a: T, count: u32) -> T {
        let result = T::cut(a.zx() << count);
        // The last bit out of the top; none is left when the count exceeds the width.
        let cf = count <= T::BITS && (a.zx() >> (T::BITS.wrapping_sub(count) & 63)) & 1 != 0;
        flags.shifted(result, cf, is_negative(result) ^ cf)
    }
}

impl Shift for Shr {
    #[inline(always)]
    fn eval<T: Int>(flags: &mut Flags, a: T, count: u32) -> T {
        let result = T::cut(a.zx() >> count);
        let cf = (a.zx() >> (count - 1)) & 1 != 0;
        flags.shifted(result, cf, is_negative(a))
    }
}

impl Shift for Sar {
    #[inline(always)]
    fn eval<T: Int>(flags: &mut Flags, a: T, count: u32) -> T {
        let wide = a.sx() as i64;
        let result = T::cut((wide >> count) as u64);
        let cf = (wide >> (count - 1)) & 1 != 0;
        flags.shifted(result, cf, false)
    }
}

impl Shift for Rol {
    #[inline(always)]
    fn eval<T: Int>(flags: &mut Flags, a: T, count: u32) -> T {
        let by = count % T::BITS;
        let result = if by == 0 { a } else { T::cut(a.zx() << by | a.zx() >> (T::BITS - by)) };
        let cf = result.zx() & 1 != 0;
        flags.set_cf_of(cf, is_negative(result) ^ cf);
        result
    }
}

impl Shift for Ror {
    #[inline(always)]
    fn eval<T: Int>(flags: &mut Flags, a: T, count: u32) -> T {
        let by = count % T::BITS;
        let result = if by == 0 { a } else { T::cut(a.zx() >> by | a.zx() << (T::BITS - by)) };
        let cf = is_negative(result);
        let next = result.zx() >> (T::BITS - 2) & 1 != 0;
        flags.set_cf_of(cf, cf ^ next);
        result
    }
}

impl Shift for Rcl {
    fn eval<T: Int>(flags: &mut Flags, a: T, count: u32) -> T {
        let width = T::BITS + 1;
        let by = count % width;
        let whole = u128::from(a.zx()) | u128::from(flags.cf()) << T::BITS;
        let turned = if by == 0 { whole } else { whole << by | whole >> (width - by) };
        let result = T::cut(turned as u64);
        let cf = turned >> T::BITS & 1 != 0;
        flags.set_cf_of(cf, is_negative(result) ^ cf);
        result
    }
}

impl Shift for Rcr {
    fn eval<T: Int>(flags: &mut Flags, a: T, count: u32) -> T {
        let width = T::BITS + 1;
        let by = count % width;
        let whole = u128::from(a.zx()) | u128::from(flags.cf()) << T::BITS;
        let turned = if by == 0 { whole } else { whole >> by | whole << (width - by) };
        let result = T::cut(turned as u64);
        let cf = turned >> T::BITS & 1 != 0;
        let next = result.zx() >> (T::BITS - 2) & 1 != 0;
        flags.set_cf_of(cf, is_negative(result) ^ next);
        result
    }
}

/// By a constant that is not 0 after masking.
fn by_constant<S: Shift, T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    let a = T::get(cpu, op.dst);
    let result = S::eval(&mut cpu.flags, a, op.imm as u32);
    T::set(cpu, op.dst, result);
    NEXT
}

/// By 0: nothing happens, except that a 32-bit register is written.
fn by_zero<T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    T::set(cpu, op.dst, T::get(cpu, op.dst));
    NEXT
}

fn by_cl<S: Shift, T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    let count = masked::<T>(cpu.reg(1));
    if count == 0 {
        return by_zero::<T>(cpu, op);
    }
    let a = T::get(cpu, op.dst);
    let result = S::eval(&mut cpu.flags, a, count);
    T::set(cpu, op.dst, result);
    NEXT
}

/// Of a value in memory; `aux` says whether the count is CL.
fn of_memory<S: Shift, M: Addr, T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    let count = masked::<T>(if op.aux == 1 { cpu.reg(1) } else { op.imm });
    modify::<T>(
        cpu,
        M::linear(cpu, op),
        |cpu, a| {
            if count == 0 { a } else { S::eval(&mut cpu.flags, a, count) }
        },
    )?;
    NEXT
}

/// SHLD and SHRD of `a` with bits from `b`, by a count that is not 0. With 16 bits, counts above 16 are undefined.
fn double<const LEFT: bool, T: Int>(flags: &mut Flags, a: T, b: T, count: u32) -> T {
    let bits = T::BITS;
    let count = if count > bits { count - bits } else { count };
    let (a128, b128) = (u128::from(a.zx()), u128::from(b.zx()));
    let (result, cf) = if LEFT {
        let wide = a128 << bits | b128;
        (T::cut((wide << count >> bits) as u64), a.zx() >> (bits - count) & 1 != 0)
    } else {
        let wide = b128 << bits | a128;
        (T::cut((wide >> count) as u64), a.zx() >> (count - 1) & 1 != 0)
    };
    flags.shifted(result, cf, is_negative(result) ^ is_negative(a))
}

fn double_count<T: Int>(cpu: &Cpu, op: &Op) -> u32 {
    masked::<T>(if op.aux == 1 { cpu.reg(1) } else { op.imm })
}

fn double_r<const LEFT: bool, T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    let count = double_count::<T>(cpu, op);
    if count == 0 {
        return by_zero::<T>(cpu, op);
    }
    let (a, b) = (T::get(cpu, op.dst), T::get(cpu, op.src));
    let result = double::<LEFT, T>(&mut cpu.flags, a, b, count);
    T::set(cpu, op.dst, result);
    NEXT
}

fn double_m<const LEFT: bool, T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    let count = double_count::<T>(cpu, op);
    let b = T::get(cpu, op.src);
    modify::<T>(cpu, General::linear(cpu, op), |cpu, a| {
        if count == 0 { a } else { double::<LEFT, T>(&mut cpu.flags, a, b, count) }
    })?;
    NEXT
}

macro_rules! double_by_width {
    ($bytes:expr, $handler:ident, $left:literal) => {
        match $bytes {
            2 => $handler::<$left, u16> as crate::op::Handler,
            4 => $handler::<$left, u32>,
            _ => $handler::<$left, u64>,
        }
    };
}

/// The op of an instruction of this file.
pub fn lower(instruction: &Instruction, context: &Context) -> Option<Op> {
    Some(match instruction.mnemonic() {
        Mnemonic::Shl | Mnemonic::Sal => shift::<Shl>(instruction, context),
        Mnemonic::Shr => shift::<Shr>(instruction, context),
        Mnemonic::Sar => shift::<Sar>(instruction, context),
        Mnemonic::Rol => shift::<Rol>(instruction, context),
        Mnemonic::Ror => shift::<Ror>(instruction, context),
        Mnemonic::Rcl => shift::<Rcl>(instruction, context),
        Mnemonic::Rcr => shift::<Rcr>(instruction, context),
        Mnemonic::Shld | Mnemonic::Shrd => double_op(instruction, context),
        _ => return None,
    })
}

fn shift<S: Shift>(instruction: &Instruction, context: &Context) -> Op {
    let mut op = operand::op(by_cl::<S, u8>, instruction, context);
    let bytes = bytes(instruction);
    let by_register = instruction.op1_kind() == OpKind::Register;
    op.aux = u8::from(by_register);
    op.imm = operand::immediate(instruction, 1) & if bytes == 8 { 63 } else { 31 };
    if instruction.op0_kind() != OpKind::Register {
        op.run = by_addr!(&op, bytes, of_memory, S);
        return op;
    }
    op.dst = operand::register(instruction.op0_register());
    op.run = match (by_register, op.imm) {
        (true, _) => by_width!(bytes, by_cl, S),
        (false, 0) => by_width!(bytes, by_zero),
        (false, _) => by_width!(bytes, by_constant, S),
    };
    op
}

fn double_op(instruction: &Instruction, context: &Context) -> Op {
    let bytes = bytes(instruction);
    let memory = instruction.op0_kind() != OpKind::Register;
    let run = match (instruction.mnemonic() == Mnemonic::Shld, memory) {
        (true, false) => double_by_width!(bytes, double_r, true),
        (true, true) => double_by_width!(bytes, double_m, true),
        (false, false) => double_by_width!(bytes, double_r, false),
        (false, true) => double_by_width!(bytes, double_m, false),
    };
    let mut op = operand::op(run, instruction, context);
    if !memory {
        op.dst = operand::register(instruction.op0_register());
    }
    op.src = operand::register(instruction.op1_register());
    op.aux = u8::from(instruction.op2_kind() == OpKind::Register);
    op.imm = operand::immediate(instruction, 2);
    op
}
