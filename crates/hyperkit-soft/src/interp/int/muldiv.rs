//! MUL, IMUL, DIV, IDIV.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::alu::bytes;
use super::width::{Addr, Done, General, Int, NEXT, by_width};
use crate::cpu::Cpu;
use crate::decode::{Context, operand};
use crate::op::Op;
use crate::trap::{Trap, vector};

const RAX: u8 = 0;
const RDX: u8 = 2;
/// AH as a byte register.
const AH: u8 = 1;

/// The source operand; `aux` says whether it is in memory.
#[inline(always)]
fn source<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<T, Trap> {
    if op.aux == 0 { Ok(T::get(cpu, op.src)) } else { cpu.load(General::linear(cpu, op)) }
}

/// Sets CF and OF of a product; SF, ZF and PF, undefined, are those of its low half.
#[inline(always)]
fn overflowed<T: Int>(cpu: &mut Cpu, low: T, overflow: bool) {
    cpu.flags.result(low);
    cpu.flags.carries = u64::from(overflow) << 63;
}

/// Sets RDX:RAX, for bytes AX.
#[inline(always)]
fn set_pair<T: Int>(cpu: &mut Cpu, low: T, high: T) {
    T::set(cpu, RAX, low);
    T::set(cpu, if T::BITS == 8 { AH } else { RDX }, high);
}

/// RDX:RAX, for bytes AX.
#[inline(always)]
fn pair<T: Int>(cpu: &Cpu) -> u128 {
    let high = T::get(cpu, if T::BITS == 8 { AH } else { RDX });
    u128::from(high.zx()) << T::BITS | u128::from(T::get(cpu, RAX).zx())
}

fn mul<T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    let b = source::<T>(cpu, op)?;
    let product = u128::from(T::get(cpu, RAX).zx()) * u128::from(b.zx());
    let (low, high) = (T::cut(product as u64), T::cut((product >> T::BITS) as u64));
    set_pair(cpu, low, high);
    overflowed(cpu, low, high != T::cut(0));
    NEXT
}

/// The low half of a signed product, the high one, and whether the low one is not all of it.
#[inline(always)]
fn signed_product<T: Int>(a: T, b: T) -> (T, T, bool) {
    let product = i128::from(a.sx() as i64) * i128::from(b.sx() as i64);
    let low = T::cut(product as u64);
    (low, T::cut((product >> T::BITS) as u64), i128::from(low.sx() as i64) != product)
}

fn imul_1<T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    let b = source::<T>(cpu, op)?;
    let (low, high, overflow) = signed_product(T::get(cpu, RAX), b);
    set_pair(cpu, low, high);
    overflowed(cpu, low, overflow);
    NEXT
}

fn imul_2<T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    let b = source::<T>(cpu, op)?;
    let (low, _, overflow) = signed_product(T::get(cpu, op.dst), b);
    T::set(cpu, op.dst, low);
    overflowed(cpu, low, overflow);
    NEXT
}

fn imul_3<T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    let a = source::<T>(cpu, op)?;
    let (low, _, overflow) = signed_product(a, T::cut(op.imm));
    T::set(cpu, op.dst, low);
    overflowed(cpu, low, overflow);
    NEXT
}

/// The flags, all undefined, stay.
fn div<T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    let divisor = source::<T>(cpu, op)?.zx();
    let dividend = pair::<T>(cpu);
    if divisor == 0 || dividend >> T::BITS >= u128::from(divisor) {
        return Err(cpu.plain_fault(vector::DE));
    }
    let (quotient, rest) = match u64::try_from(dividend) {
        Ok(small) => (small / divisor, small % divisor),
        Err(_) => ((dividend / u128::from(divisor)) as u64, (dividend % u128::from(divisor)) as u64),
    };
    set_pair(cpu, T::cut(quotient), T::cut(rest));
    NEXT
}

fn idiv<T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    let divisor = i128::from(source::<T>(cpu, op)?.sx() as i64);
    let unused = 128 - 2 * T::BITS;
    let dividend = (pair::<T>(cpu) << unused) as i128 >> unused;
    let divided = match (i64::try_from(dividend), i64::try_from(divisor)) {
        (Ok(a), Ok(b)) => {
            a.checked_div(b).map(|quotient| (i128::from(quotient), i128::from(a.wrapping_rem(b))))
        }
        _ => dividend.checked_div(divisor).map(|quotient| (quotient, dividend.wrapping_rem(divisor))),
    };
    let Some((quotient, rest)) = divided else { return Err(cpu.plain_fault(vector::DE)) };
    let low = T::cut(quotient as u64);
    if i128::from(low.sx() as i64) != quotient {
        return Err(cpu.plain_fault(vector::DE));
    }
    set_pair(cpu, low, T::cut(rest as u64));
    NEXT
}

/// The op of an instruction of this file.
pub fn lower(instruction: &Instruction, context: &Context) -> Option<Op> {
    let operands = instruction.op_count();
    let bytes = bytes(instruction);
    let run = match (instruction.mnemonic(), operands) {
        (Mnemonic::Mul, _) => by_width!(bytes, mul),
        (Mnemonic::Div, _) => by_width!(bytes, div),
        (Mnemonic::Idiv, _) => by_width!(bytes, idiv),
        (Mnemonic::Imul, 1) => by_width!(bytes, imul_1),
        (Mnemonic::Imul, 2) => by_width!(bytes, imul_2),
        (Mnemonic::Imul, _) => by_width!(bytes, imul_3),
        _ => return None,
    };
    let mut op = operand::op(run, instruction, context);
    let from = u32::from(operands > 1);
    if from == 1 {
        op.dst = operand::register(instruction.op0_register());
    }
    match instruction.op_kind(from) {
        OpKind::Register => op.src = operand::register(instruction.op_register(from)),
        _ => op.aux = 1,
    }
    if operands == 3 {
        op.imm = operand::immediate(instruction, 2);
    }
    Some(op)
}
