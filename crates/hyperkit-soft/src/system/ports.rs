//! IN, OUT, INS and OUTS. Spec: SDM vol. 1 ch. 19.

use crate::cpu::{CodeSize, Cpu, seg};
use crate::flags::bit;
use crate::op::{FLAT, Flow, Op};
use crate::system::operand::{cut, leave, size};
use crate::trap::Trap;

/// In [`Op::aux`] of INS and OUTS: repeated.
pub const REPEATED: u8 = 0x40;

/// Iterations of a repeated instruction between looks at what else is wanted.
const BURST: u64 = 1024;

const RCX: usize = 1;
const RDX: usize = 2;
const RSI: usize = 6;
const RDI: usize = 7;

impl Cpu {
    /// #GP(0) unless the I/O privilege level or the TSS's bitmap permits the ports.
    fn check_port(&mut self, port: u16, bytes: u64) -> Result<(), Trap> {
        if self.is_armed() {
            self.note_port(port, bytes);
        }
        if self.cr0 & crate::system::cr0::PE == 0 || (self.cpl <= self.iopl() && !self.virtual_8086()) {
            return Ok(());
        }
        let limit = u64::from(self.tr.limit);
        if self.tr.rights & 8 == 0 || limit < 0x67 {
            return Err(self.protection(0));
        }
        let map: u16 = self.load_system(self.tr.base.wrapping_add(0x66))?;
        let at = u64::from(map) + u64::from(port / 8);
        if at + 1 > limit {
            return Err(self.protection(0));
        }
        let bits: u16 = self.load_system(self.tr.base.wrapping_add(at))?;
        let mask = ((1u16 << bytes) - 1) << (port & 7);
        if bits & mask != 0 { Err(self.protection(0)) } else { Ok(()) }
    }

    fn port_in(&self, port: u16, bytes: u64) -> u64 {
        let mut data = [0; 8];
        self.bus().port_read(port, &mut data[..bytes as usize]);
        u64::from_le_bytes(data)
    }

    fn port_out(&self, port: u16, bytes: u64, value: u64) {
        self.bus().port_write(port, &value.to_le_bytes()[..bytes as usize]);
    }
}

/// The port of an op: its immediate, or DX if `src` is 1.
fn port(cpu: &Cpu, op: &Op) -> u16 {
    if op.src == 1 { cpu.regs[RDX] as u16 } else { op.imm as u16 }
}

/// `in`
pub fn port_in(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    let (port, bytes) = (port(cpu, op), size(op));
    cpu.check_port(port, bytes)?;
    let value = cpu.port_in(port, bytes);
    cpu.regs[0] = match bytes {
        1 => cpu.regs[0] & !0xff | value,
        2 => cpu.regs[0] & !0xffff | value,
        _ => value,
    };
    leave(cpu, op)
}

/// `out`. Leaves the block: the device may have asked for attention.
pub fn port_out(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    let (port, bytes) = (port(cpu, op), size(op));
    cpu.check_port(port, bytes)?;
    cpu.port_out(port, bytes, cut(cpu.regs[0], bytes));
    leave(cpu, op)
}

fn address_mask(op: &Op) -> u64 {
    match op.addr_bits {
        16 => 0xffff,
        32 => 0xffff_ffff,
        _ => u64::MAX,
    }
}

/// Moves an index register on, in the width of the address.
fn step(cpu: &mut Cpu, register: usize, mask: u64, by: u64) {
    let value = cpu.regs[register].wrapping_add(by) & mask;
    let keep = if mask == 0xffff { !mask } else { 0 };
    cpu.regs[register] = cpu.regs[register] & keep | value;
}

/// Runs one INS or OUTS, or as many as RCX says, in bursts.
fn string(cpu: &mut Cpu, op: &Op, one: fn(&mut Cpu, &Op, u16) -> Result<(), Trap>) -> Result<Flow, Trap> {
    let port = cpu.regs[RDX] as u16;
    cpu.check_port(port, size(op))?;
    if op.aux & REPEATED == 0 {
        one(cpu, op, port)?;
        return leave(cpu, op);
    }
    let mask = address_mask(op);
    for _ in 0..BURST {
        if cpu.regs[RCX] & mask == 0 {
            return leave(cpu, op);
        }
        one(cpu, op, port)?;
        step(cpu, RCX, mask, u64::MAX);
    }
    if cpu.regs[RCX] & mask == 0 {
        return leave(cpu, op);
    }
    cpu.rip = cpu.next_rip(op).wrapping_sub(u64::from(op.len)); // once more, after a look at what is wanted
    Ok(Flow::Leave)
}

fn stride(cpu: &Cpu, op: &Op) -> u64 {
    if cpu.flags.rest & bit::DF != 0 { size(op).wrapping_neg() } else { size(op) }
}

fn linear(cpu: &Cpu, segment: usize, offset: u64) -> u64 {
    let linear = cpu.seg_base[segment].wrapping_add(offset);
    if cpu.code_size == CodeSize::Bits64 { linear } else { linear & 0xffff_ffff }
}

fn one_in(cpu: &mut Cpu, op: &Op, port: u16) -> Result<(), Trap> {
    let mask = address_mask(op);
    let to = linear(cpu, seg::ES, cpu.regs[RDI] & mask);
    cpu.probe_write(to, size(op))?;
    let bytes = cpu.port_in(port, size(op)).to_le_bytes();
    cpu.write_linear(to, &bytes[..size(op) as usize])?;
    step(cpu, RDI, mask, stride(cpu, op));
    Ok(())
}

fn one_out(cpu: &mut Cpu, op: &Op, port: u16) -> Result<(), Trap> {
    let mask = address_mask(op);
    let segment = if op.seg == FLAT { usize::from(FLAT) } else { usize::from(op.seg) };
    let from = linear(cpu, segment, cpu.regs[RSI] & mask);
    let value = cpu.load_sized(from, size(op))?;
    cpu.port_out(port, size(op), value);
    step(cpu, RSI, mask, stride(cpu, op));
    Ok(())
}

/// `ins`
pub fn ins(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    string(cpu, op, one_in)
}

/// `outs`
pub fn outs(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    string(cpu, op, one_out)
}
