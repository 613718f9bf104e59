//! From an x87 instruction to its op, and what is around the host's instruction: operands, pointers, faults.

use iced_x86::{Code, Instruction};

use super::{control, host, quick};
use crate::cpu::Cpu;
use crate::decode::{Context, operand};
use crate::interp::sse::offered;
use crate::mem::Width;
use crate::op::{Flow, Handler, Op};
use crate::trap::Trap;

use host::Host;

/// IE, DE, ZE, OE, UE: unmasked, they keep a result from being stored in memory.
const KEEPS_MEMORY: u16 = 0x1f;

/// The op of an instruction of this family; `None` for any other.
pub fn lower(instruction: &Instruction, context: &Context) -> Option<Op> {
    let code = instruction.code();
    if !offered(instruction) {
        return None;
    }
    if let Some(run) = control::find(code) {
        return Some(operand::op(run, instruction, context));
    }
    let (run, host, aux): (Handler, Host, u8) = if let Some(host) = host::plain(code) {
        (on_registers, host, 0)
    } else if let Some((host, bytes)) = host::loading(code) {
        (on_memory, host, bytes)
    } else if let Some((host, bytes)) = host::storing(code) {
        (into_memory, host, bytes)
    } else {
        let (run, hosts): (Handler, _) = if let Some(hosts) = host::indexed(code) {
            (on_registers, hosts)
        } else if let Some(hosts) = host::comparing(code) {
            (into_flags, hosts)
        } else {
            (on_flags, host::conditional(code)?)
        };
        (run, hosts[index(instruction)], 0)
    };
    let mut op = operand::op(quick::find(code).unwrap_or(run), instruction, context);
    op.dst = if code == Code::Fcompp || code == Code::Fucompp { 1 } else { index(instruction) as u8 };
    op.imm = host as usize as u64;
    op.aux = aux;
    Some(op)
}

/// i of the operand that is not ST(0), or 0.
fn index(instruction: &Instruction) -> usize {
    (0..instruction.op_count())
        .map(|n| instruction.op_register(n))
        .filter(|register| register.is_st())
        .map(|register| register.number() & 7)
        .max()
        .unwrap_or(0)
}

impl Cpu {
    /// Runs the host instruction of an op, and notes where the guest's was.
    fn run_host(&mut self, op: &Op, memory: &mut [u8; 16]) {
        // SAFETY: `lower` put a `Host` there, and a `usize` holds it.
        let host = unsafe { std::mem::transmute::<usize, Host>(op.imm as usize) };
        let kept: [u8; 16] = std::array::from_fn(|n| self.fx.0[8 + n]);
        self.fx.0[3] &= 0x7f;
        self.fx.0[2] &= 0x7f;
        // SAFETY: the image is 512 bytes aligned to 64, its MXCSR was valid when it was set, and `pass_x87` found
        // no unmasked exception; `memory` has 16 bytes.
        unsafe { host(self.fx.0.as_mut_ptr(), memory.as_mut_ptr()) };
        self.fx.0[6..24].fill(0);
        self.fx.0[8..24].copy_from_slice(&kept);
        let rip = self.regs[usize::from(crate::op::BLOCK)].wrapping_add(op.at.into());
        self.fx.0[8..16].copy_from_slice(&rip.to_le_bytes());
    }

    pub(super) fn note_operand(&mut self, op: &Op) {
        let offset = self.offset(op);
        self.fx.0[16..24].copy_from_slice(&offset.to_le_bytes());
    }
}

pub(super) fn on_registers(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.pass_x87()?;
    cpu.run_host(op, &mut [0; 16]);
    Ok(Flow::Next)
}

pub(super) fn into_flags(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.pass_x87()?;
    let mut found = [0; 16];
    cpu.run_host(op, &mut found);
    cpu.fx.0[3] &= !2; // C1, which not every host clears
    cpu.flags.set_compared(found[0] != 0, found[1] != 0, found[2] != 0);
    Ok(Flow::Next)
}

fn on_flags(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.pass_x87()?;
    let mut flags = [0; 16];
    flags[..8].copy_from_slice(&(cpu.flags.arithmetic() | 2).to_le_bytes());
    cpu.run_host(op, &mut flags);
    Ok(Flow::Next)
}

pub(super) fn on_memory(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.pass_x87()?;
    let linear = cpu.address(op);
    let mut memory = [0; 16];
    match op.aux {
        2 => memory[..2].copy_from_slice(&cpu.load::<u16>(linear)?.to_le_bytes()),
        4 => memory[..4].copy_from_slice(&cpu.load::<u32>(linear)?.to_le_bytes()),
        8 => memory[..8].copy_from_slice(&cpu.load::<u64>(linear)?.to_le_bytes()),
        _ => cpu.read_linear(linear, &mut memory[..10])?,
    }
    cpu.run_host(op, &mut memory);
    cpu.note_operand(op);
    Ok(Flow::Next)
}

pub(super) fn into_memory(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.pass_x87()?;
    let linear = cpu.address(op);
    let before = cpu.fx;
    let mut memory = [0; 16];
    cpu.run_host(op, &mut memory);
    cpu.note_operand(op);
    if cpu.fsw() & !cpu.fcw() & KEEPS_MEMORY != 0 {
        return cpu.probe_write(linear, op.aux.into()).map(|()| Flow::Next).inspect_err(|_| cpu.fx = before);
    }
    let low = u64::from_bytes(&memory[..8]);
    let stored = match op.aux {
        2 => cpu.store(linear, low as u16),
        4 => cpu.store(linear, low as u32),
        8 => cpu.store(linear, low),
        _ => cpu.write_linear(linear, &memory[..10]),
    };
    stored.map(|()| Flow::Next).inspect_err(|_| cpu.fx = before)
}
