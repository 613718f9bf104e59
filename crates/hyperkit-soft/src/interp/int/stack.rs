//! PUSH, POP, PUSHA, POPA, PUSHF, POPF, ENTER, LEAVE, and the stack that CALL and RET use.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::width::{Done, Int, LEAVE, NEXT, by_width};
use crate::cpu::{CodeSize, Cpu, seg};
use crate::decode::{Context, operand};
use crate::flags::bit;
use crate::op::{Handler, Op};
use crate::trap::Trap;

const RSP: u8 = 4;
const RBP: u8 = 5;

/// In a segment's rights: the stack pointer has 32 bits (SDM vol. 3A §3.4.5).
const RIGHTS_BIG: u16 = 1 << 14;

impl Cpu {
    /// The bits of RSP that the stack uses.
    #[inline]
    pub fn stack_mask(&self) -> u64 {
        if self.code_size == CodeSize::Bits64 {
            u64::MAX
        } else if self.segments[seg::SS].rights & RIGHTS_BIG != 0 {
            0xffff_ffff
        } else {
            0xffff
        }
    }

    /// The linear address of an offset in the stack segment.
    #[inline]
    pub fn stack_linear(&self, offset: u64) -> u64 {
        if self.code_size == CodeSize::Bits64 {
            offset
        } else {
            self.seg_base[seg::SS].wrapping_add(offset & self.stack_mask()) & 0xffff_ffff
        }
    }

    /// Sets the stack pointer, of which only the bits that the stack uses change.
    #[inline]
    pub fn set_stack_pointer(&mut self, value: u64) {
        let mask = self.stack_mask();
        // In legacy modes nothing can see bits 63 to 32.
        self.regs[4] = self.regs[4] & !mask & 0xffff_ffff | value & mask;
    }

    /// Pushes a value; RSP is as before if it faults.
    #[inline]
    pub fn push<T: Int>(&mut self, value: T) -> Result<(), Trap> {
        let pointer = self.regs[4].wrapping_sub(T::BYTES);
        let linear = self.stack_linear(pointer);
        self.store(linear, value).map_err(|trap| self.on_stack(linear, trap))?;
        self.set_stack_pointer(pointer);
        Ok(())
    }

    /// Pops a value; RSP is as before if it faults.
    #[inline]
    pub fn pop<T: Int>(&mut self) -> Result<T, Trap> {
        let linear = self.stack_linear(self.regs[4]);
        let value = self.load(linear).map_err(|trap| self.on_stack(linear, trap))?;
        self.set_stack_pointer(self.regs[4].wrapping_add(T::BYTES));
        Ok(value)
    }
}

/// Pushes in 64-bit mode if the TLB has the page of the stack; otherwise false, and nothing is done.
#[inline(always)]
pub fn push_64_fast(cpu: &mut Cpu, value: u64) -> bool {
    let pointer = cpu.regs[4].wrapping_sub(8);
    let done = cpu.store_fast(pointer, value);
    if done {
        cpu.regs[4] = pointer;
    }
    done
}

fn push_r64(cpu: &mut Cpu, op: &Op) -> Done {
    if push_64_fast(cpu, cpu.reg(op.src)) { NEXT } else { push_r_slow(cpu, op) }
}

#[cold]
#[inline(never)]
fn push_r_slow(cpu: &mut Cpu, op: &Op) -> Done {
    push_r::<u64>(cpu, op)
}

fn pop_r64(cpu: &mut Cpu, op: &Op) -> Done {
    let Some(value) = cpu.load_fast::<u64>(cpu.regs[4]) else { return pop_r_slow(cpu, op) };
    cpu.regs[4] = cpu.regs[4].wrapping_add(8);
    cpu.set_reg(op.dst, value);
    NEXT
}

#[cold]
#[inline(never)]
fn pop_r_slow(cpu: &mut Cpu, op: &Op) -> Done {
    pop_r::<u64>(cpu, op)
}

fn push_r<T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.push(T::get(cpu, op.src))?;
    NEXT
}

fn push_i<T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.push(T::cut(op.imm))?;
    NEXT
}

fn push_m<T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    let value = cpu.load::<T>(cpu.address(op))?;
    cpu.push(value)?;
    NEXT
}

fn pop_r<T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    let value = cpu.pop::<T>()?;
    T::set(cpu, op.dst, value);
    NEXT
}

/// The address is computed with RSP already popped (SDM vol. 2B, POP).
fn pop_m<T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    let before = cpu.regs[4];
    let value = cpu.pop::<T>()?;
    cpu.store(cpu.address(op), value).inspect_err(|_| cpu.regs[4] = before)?;
    NEXT
}

fn pusha<T: Int>(cpu: &mut Cpu, _op: &Op) -> Done {
    let before = cpu.regs[4];
    for register in 0..8 {
        let value = if register == RSP { T::cut(before) } else { T::get(cpu, register) };
        cpu.push(value).inspect_err(|_| cpu.regs[4] = before)?;
    }
    NEXT
}

fn popa<T: Int>(cpu: &mut Cpu, _op: &Op) -> Done {
    let mut values = [T::cut(0); 8];
    let pointer = cpu.regs[4];
    for (n, value) in values.iter_mut().enumerate() {
        *value = cpu.load(cpu.stack_linear(pointer.wrapping_add(n as u64 * T::BYTES)))?;
    }
    for (register, value) in (0..8u8).rev().zip(values) {
        if register != RSP {
            T::set(cpu, register, value);
        }
    }
    cpu.set_stack_pointer(pointer.wrapping_add(8 * T::BYTES));
    NEXT
}

/// In virtual-8086 mode PUSHF and POPF need IOPL 3.
fn check_vm86(cpu: &mut Cpu) -> Result<(), Trap> {
    let rest = cpu.flags.rest;
    if rest & bit::VM != 0 && rest & bit::IOPL != bit::IOPL {
        return Err(cpu.protection(0));
    }
    Ok(())
}

fn pushf<T: Int>(cpu: &mut Cpu, _op: &Op) -> Done {
    check_vm86(cpu)?;
    let value = cpu.flags.rflags() & !(bit::VM | bit::RF);
    cpu.push(T::cut(value))?;
    NEXT
}

fn popf<T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    check_vm86(cpu)?;
    let value = cpu.pop::<T>()?.zx();
    let before = cpu.flags.rflags();
    let iopl = before >> 12 & 3;
    let mut writable = bit::ARITHMETIC | bit::TF | bit::DF | bit::NT | bit::AC | bit::ID;
    if cpu.cpl == 0 {
        writable |= bit::IOPL;
    }
    if u64::from(cpu.cpl) <= iopl {
        writable |= bit::IF;
    }
    if T::BITS == 16 {
        writable &= 0xffff;
    }
    cpu.flags.set_rflags(before & !writable & !bit::RF | value & writable);
    cpu.refresh_privilege();
    cpu.blocks.look_up_soon();
    cpu.rip = cpu.next_rip(op);
    LEAVE
}

fn leave<T: Int>(cpu: &mut Cpu, _op: &Op) -> Done {
    let frame = cpu.regs[5];
    let linear = cpu.stack_linear(frame);
    let value = cpu.load::<T>(linear).map_err(|trap| cpu.on_stack(linear, trap))?;
    cpu.set_stack_pointer(frame.wrapping_add(T::BYTES));
    T::set(cpu, RBP, value);
    NEXT
}

/// `imm`: bytes of locals; `aux`: nesting level (SDM vol. 2A, ENTER).
fn enter<T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    let before = cpu.regs[4];
    let level = op.aux & 31;
    let frame = before.wrapping_sub(T::BYTES);
    let pushed = (|| {
        cpu.push(T::get(cpu, RBP))?;
        for n in 1..u64::from(level) {
            let outer = cpu.regs[5].wrapping_sub(n * T::BYTES);
            let linear = cpu.stack_linear(outer);
            let value = cpu.load::<T>(linear).map_err(|trap| cpu.on_stack(linear, trap))?;
            cpu.push(value)?;
        }
        if level > 0 {
            cpu.push(T::cut(frame))?;
        }
        let bottom = cpu.regs[4].wrapping_sub(op.imm);
        let linear = cpu.stack_linear(bottom);
        cpu.probe_write(linear, 1).map_err(|trap| cpu.on_stack(linear, trap))?;
        Ok(bottom)
    })();
    let bottom = pushed.inspect_err(|_| cpu.regs[4] = before)?;
    let mask = cpu.stack_mask();
    T::set(cpu, RBP, T::cut(cpu.regs[5] & !mask | frame & mask));
    cpu.set_stack_pointer(bottom);
    NEXT
}

/// The op of an instruction of this file.
pub fn lower(instruction: &Instruction, context: &Context) -> Option<Op> {
    use Mnemonic as M;
    let plain = |run: Handler| Some(operand::op(run, instruction, context));
    match instruction.mnemonic() {
        M::Push => push_op(instruction, context),
        M::Pop => pop_op(instruction, context),
        M::Pusha => plain(pusha::<u16>),
        M::Pushad => plain(pusha::<u32>),
        M::Popa => plain(popa::<u16>),
        M::Popad => plain(popa::<u32>),
        M::Pushf => plain(pushf::<u16>),
        M::Pushfd => plain(pushf::<u32>),
        M::Pushfq => plain(pushf::<u64>),
        M::Popf => plain(popf::<u16>),
        M::Popfd => plain(popf::<u32>),
        M::Popfq => plain(popf::<u64>),
        M::Leave => plain(by_width!(stack_bytes(instruction), leave)),
        M::Enter => {
            let mut op = operand::op(by_width!(stack_bytes(instruction), enter), instruction, context);
            op.imm = u64::from(instruction.immediate16());
            op.aux = instruction.immediate8_2nd();
            Some(op)
        }
        _ => None,
    }
}

/// Operand size of ENTER and LEAVE.
fn stack_bytes(instruction: &Instruction) -> usize {
    use iced_x86::Code;
    match instruction.code() {
        Code::Enterw_imm16_imm8 | Code::Leavew => 2,
        Code::Enterd_imm16_imm8 | Code::Leaved => 4,
        _ => 8,
    }
}

/// PUSH of a segment register is not here.
fn push_op(instruction: &Instruction, context: &Context) -> Option<Op> {
    let bytes = instruction.stack_pointer_increment().unsigned_abs() as usize;
    let mut op = operand::op(push_r64, instruction, context);
    match instruction.op0_kind() {
        OpKind::Register if !instruction.op0_register().is_gpr() => return None,
        OpKind::Register => {
            op.src = operand::register(instruction.op0_register());
            if bytes != 8 {
                op.run = by_width!(bytes, push_r);
            }
        }
        OpKind::Memory => op.run = by_width!(bytes, push_m),
        _ => {
            op.imm = operand::immediate(instruction, 0);
            op.run = by_width!(bytes, push_i);
        }
    }
    Some(op)
}

fn pop_op(instruction: &Instruction, context: &Context) -> Option<Op> {
    let bytes = instruction.stack_pointer_increment().unsigned_abs() as usize;
    let mut op = operand::op(pop_r64, instruction, context);
    match instruction.op0_kind() {
        OpKind::Register if !instruction.op0_register().is_gpr() => return None,
        OpKind::Register => {
            op.dst = operand::register(instruction.op0_register());
            if bytes != 8 {
                op.run = by_width!(bytes, pop_r);
            }
        }
        _ => op.run = by_width!(bytes, pop_m),
    }
    Some(op)
}
