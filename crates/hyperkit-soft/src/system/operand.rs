//! Operands of system instructions: a register or memory, of 2, 4 or 8 bytes.

use iced_x86::{Instruction, OpKind};

use crate::cpu::Cpu;
use crate::decode::{Context, operand};
use crate::op::{Flow, Handler, Op};
use crate::trap::Trap;

/// In [`Op::aux`]: the operand is register [`Op::dst`], not memory. The low bits are its size in bytes.
pub const REGISTER: u8 = 0x80;

/// Operand size in bytes.
#[inline]
pub fn size(op: &Op) -> u64 {
    u64::from(op.aux & 0x1f)
}

/// An op whose operand `n` is a register or memory of `bytes` bytes.
pub fn rm(run: Handler, instruction: &Instruction, context: &Context, n: u32, bytes: u8) -> Op {
    let mut op = operand::op(run, instruction, context);
    op.aux = bytes;
    if instruction.op_kind(n) == OpKind::Register {
        op.dst = operand::register(instruction.op_register(n));
        op.aux |= REGISTER;
    }
    op
}

/// Reads the operand.
pub fn get(cpu: &mut Cpu, op: &Op) -> Result<u64, Trap> {
    if op.aux & REGISTER != 0 {
        let value = cpu.regs[usize::from(op.dst)];
        return Ok(cut(value, size(op)));
    }
    let linear = cpu.address(op);
    cpu.load_sized(linear, size(op))
}

/// Writes the operand; a 4-byte register is extended with zeros.
pub fn put(cpu: &mut Cpu, op: &Op, value: u64) -> Result<(), Trap> {
    if op.aux & REGISTER != 0 {
        set_register(cpu, usize::from(op.dst), size(op), value);
        return Ok(());
    }
    let linear = cpu.address(op);
    match size(op) {
        2 => cpu.store::<u16>(linear, value as u16),
        4 => cpu.store::<u32>(linear, value as u32),
        _ => cpu.store::<u64>(linear, value),
    }
}

/// Writes 2, 4 or 8 bytes of a general register as instructions do.
pub fn set_register(cpu: &mut Cpu, number: usize, bytes: u64, value: u64) {
    let register = &mut cpu.regs[number];
    *register = match bytes {
        2 => *register & !0xffff | value & 0xffff,
        4 => value & 0xffff_ffff,
        _ => value,
    };
}

/// The low `bytes` bytes.
pub fn cut(value: u64, bytes: u64) -> u64 {
    match bytes {
        1 => value & 0xff,
        2 => value & 0xffff,
        4 => value & 0xffff_ffff,
        _ => value,
    }
}

/// Ends an op after which the block cannot go on.
pub fn leave(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.rip = cpu.next_rip(op);
    Ok(Flow::Leave)
}

/// #GP(0) unless at privilege level 0.
#[inline]
pub fn privileged(cpu: &mut Cpu) -> Result<(), Trap> {
    if cpu.cpl == 0 { Ok(()) } else { Err(cpu.protection(0)) }
}

impl Cpu {
    /// Loads 1, 2, 4 or 8 bytes.
    pub fn load_sized(&mut self, linear: u64, bytes: u64) -> Result<u64, Trap> {
        Ok(match bytes {
            1 => u64::from(self.load::<u8>(linear)?),
            2 => u64::from(self.load::<u16>(linear)?),
            4 => u64::from(self.load::<u32>(linear)?),
            _ => self.load::<u64>(linear)?,
        })
    }
}
