//! BT, BTS, BTR, BTC; BSF, BSR, TZCNT, LZCNT, POPCNT.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::alu::bytes;
use super::width::{Addr, Done, General, Int, NEXT, modify, modify_locked};
use crate::cpu::{CodeSize, Cpu};
use crate::decode::{Context, operand};
use crate::op::Op;
use crate::trap::Trap;

/// What becomes of the bit: 0 BT, 1 BTS, 2 BTR, 3 BTC.
#[inline(always)]
fn changed<const K: u8, T: Int>(value: T, bit: u64) -> T {
    let mask = 1 << bit;
    T::cut(match K {
        0 => value.zx(),
        1 => value.zx() | mask,
        2 => value.zx() & !mask,
        _ => value.zx() ^ mask,
    })
}

/// Bit number, from a register (`aux` 0) or a constant.
#[inline(always)]
fn bit_number<T: Int>(cpu: &Cpu, op: &Op) -> u64 {
    if op.aux & 1 == 0 { T::get(cpu, op.src).sx() } else { op.imm }
}

fn bit_r<const K: u8, T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    let bit = bit_number::<T>(cpu, op) & u64::from(T::BITS - 1);
    let value = T::get(cpu, op.dst);
    cpu.flags.set_cf(value.zx() >> bit & 1 != 0);
    if K != 0 {
        T::set(cpu, op.dst, changed::<K, T>(value, bit));
    }
    NEXT
}

/// A bit number from a register counts from the operand on, through all of memory; the address is cut to the
/// address width with it.
fn bit_m<const K: u8, T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    let number = bit_number::<T>(cpu, op);
    let bit = number & u64::from(T::BITS - 1);
    let linear = if op.aux & 1 == 0 {
        let words = (number as i64 >> T::BITS.trailing_zeros()) as u64;
        cpu.address_beyond(op, words.wrapping_mul(T::BYTES))
    } else {
        General::linear(cpu, op)
    };
    if K == 0 {
        let value = cpu.load::<T>(linear)?;
        cpu.flags.set_cf(value.zx() >> bit & 1 != 0);
        return NEXT;
    }
    let change = |cpu: &mut Cpu, value: T| {
        cpu.flags.set_cf(value.zx() >> bit & 1 != 0);
        changed::<K, T>(value, bit)
    };
    if op.aux & 2 != 0 {
        modify_locked(cpu, linear, change)?
    } else {
        modify(cpu, linear, change)?
    }
    NEXT
}

impl Cpu {
    /// The linear address `bytes` beyond an op's memory operand, cut to the address width.
    fn address_beyond(&self, op: &Op, bytes: u64) -> u64 {
        let offset = self.offset(op).wrapping_add(bytes);
        let offset = match op.addr_bits {
            16 => offset & 0xffff,
            32 => offset & 0xffff_ffff,
            _ => offset,
        };
        let linear = self.seg_base[usize::from(op.seg) & 7].wrapping_add(offset);
        if self.code_size == CodeSize::Bits64 { linear } else { linear & 0xffff_ffff }
    }
}

/// The source operand; `aux` says whether it is in memory.
#[inline(always)]
fn source<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<T, Trap> {
    if op.aux == 0 { Ok(T::get(cpu, op.src)) } else { cpu.load(General::linear(cpu, op)) }
}

/// BSF (`K` 0) and BSR (1): of 0 the destination stays; only ZF is defined.
fn scan<const K: u8, T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    let value = source::<T>(cpu, op)?.zx();
    cpu.flags.logic(T::cut(value));
    if value == 0 {
        return NEXT;
    }
    let number = if K == 0 { value.trailing_zeros() } else { 63 - value.leading_zeros() };
    T::set(cpu, op.dst, T::cut(u64::from(number)));
    NEXT
}

/// TZCNT (`K` 0), LZCNT (1), POPCNT (2). ZF tells a result of 0 and CF a source of 0; POPCNT clears CF and sets ZF
/// for a source of 0. The rest, undefined or cleared, is cleared.
fn count<const K: u8, T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    let value = source::<T>(cpu, op)?.zx();
    let number = match K {
        0 => value.trailing_zeros().min(T::BITS),
        1 => value.leading_zeros() - (64 - T::BITS),
        _ => value.count_ones(),
    };
    let flags = &mut cpu.flags;
    flags.zero = u64::from(number);
    flags.sign = 1; // SF clear, and PF: the parity of one bit is odd
    flags.carries = 0;
    if K != 2 {
        flags.set_cf_of(value == 0, false);
    }
    T::set(cpu, op.dst, T::cut(u64::from(number)));
    NEXT
}

macro_rules! kind_by_width {
    ($bytes:expr, $handler:ident, $kind:literal) => {
        match $bytes {
            2 => $handler::<$kind, u16> as crate::op::Handler,
            4 => $handler::<$kind, u32>,
            _ => $handler::<$kind, u64>,
        }
    };
}

/// The op of an instruction of this file.
pub fn lower(instruction: &Instruction, context: &Context) -> Option<Op> {
    let bytes = bytes(instruction);
    let run = match instruction.mnemonic() {
        Mnemonic::Bsf => kind_by_width!(bytes, scan, 0),
        Mnemonic::Bsr => kind_by_width!(bytes, scan, 1),
        Mnemonic::Tzcnt => kind_by_width!(bytes, count, 0),
        Mnemonic::Lzcnt => kind_by_width!(bytes, count, 1),
        Mnemonic::Popcnt => kind_by_width!(bytes, count, 2),
        Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc => {
            return Some(bit_op(instruction, context));
        }
        _ => return None,
    };
    let mut op = operand::op(run, instruction, context);
    op.dst = operand::register(instruction.op0_register());
    match instruction.op1_kind() {
        OpKind::Register => op.src = operand::register(instruction.op1_register()),
        _ => op.aux = 1,
    }
    Some(op)
}

fn bit_op(instruction: &Instruction, context: &Context) -> Op {
    let bytes = bytes(instruction);
    let memory = instruction.op0_kind() != OpKind::Register;
    let run = match (instruction.mnemonic(), memory) {
        (Mnemonic::Bt, false) => kind_by_width!(bytes, bit_r, 0),
        (Mnemonic::Bts, false) => kind_by_width!(bytes, bit_r, 1),
        (Mnemonic::Btr, false) => kind_by_width!(bytes, bit_r, 2),
        (_, false) => kind_by_width!(bytes, bit_r, 3),
        (Mnemonic::Bt, true) => kind_by_width!(bytes, bit_m, 0),
        (Mnemonic::Bts, true) => kind_by_width!(bytes, bit_m, 1),
        (Mnemonic::Btr, true) => kind_by_width!(bytes, bit_m, 2),
        (_, true) => kind_by_width!(bytes, bit_m, 3),
    };
    let mut op = operand::op(run, instruction, context);
    if !memory {
        op.dst = operand::register(instruction.op0_register());
    }
    match instruction.op1_kind() {
        OpKind::Register => op.src = operand::register(instruction.op1_register()),
        _ => {
            op.aux = 1;
            op.imm = operand::immediate(instruction, 1);
        }
    }
    op.aux |= u8::from(instruction.has_lock_prefix()) << 1;
    op
}
