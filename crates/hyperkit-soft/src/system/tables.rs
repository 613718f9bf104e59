//! Descriptor-table and task registers, and the instructions that look at descriptors.

use hyperkit_hv::state::x86_64::DescriptorTable;

use crate::cpu::{CodeSize, Cpu};
use crate::flags::bit;
use crate::op::{Flow, Op};
use crate::system::descriptor::{Descriptor, canonical, is_null, kind, rights, rpl};
use crate::system::operand::{get, leave, privileged, put, set_register, size};
use crate::trap::{Trap, vector};

fn load_table(cpu: &mut Cpu, op: &Op) -> Result<DescriptorTable, Trap> {
    privileged(cpu)?;
    let linear = cpu.address(op);
    let limit = cpu.load::<u16>(linear)?;
    let base = match (cpu.code_size, size(op)) {
        (CodeSize::Bits64, _) => cpu.load::<u64>(linear.wrapping_add(2))?,
        (_, 2) => u64::from(cpu.load::<u32>(linear.wrapping_add(2))? & 0xff_ffff),
        _ => u64::from(cpu.load::<u32>(linear.wrapping_add(2))?),
    };
    if cpu.code_size == CodeSize::Bits64 && !canonical(base) {
        return Err(cpu.protection(0));
    }
    Ok(DescriptorTable { base, limit })
}

fn store_table(cpu: &mut Cpu, op: &Op, table: DescriptorTable) -> Result<Flow, Trap> {
    let linear = cpu.address(op);
    let mut bytes = [0; 10];
    bytes[..2].copy_from_slice(&table.limit.to_le_bytes());
    bytes[2..].copy_from_slice(&table.base.to_le_bytes());
    let len = if cpu.code_size == CodeSize::Bits64 { 10 } else { 6 };
    cpu.write_linear(linear, &bytes[..len])?;
    Ok(Flow::Next)
}

/// `lgdt`
pub fn lgdt(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.gdtr = load_table(cpu, op)?;
    leave(cpu, op)
}

/// `lidt`
pub fn lidt(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.idtr = load_table(cpu, op)?;
    leave(cpu, op)
}

/// `sgdt`
pub fn sgdt(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    store_table(cpu, op, cpu.gdtr)
}

/// `sidt`
pub fn sidt(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    store_table(cpu, op, cpu.idtr)
}

fn need_protected(cpu: &mut Cpu) -> Result<(), Trap> {
    if cpu.protected() { Ok(()) } else { Err(cpu.undefined()) }
}

/// `sldt`
pub fn sldt(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    need_protected(cpu)?;
    put(cpu, op, u64::from(cpu.ldtr.selector))?;
    Ok(Flow::Next)
}

/// `str`
pub fn str(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    need_protected(cpu)?;
    put(cpu, op, u64::from(cpu.tr.selector))?;
    Ok(Flow::Next)
}

/// `lldt`
pub fn lldt(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    need_protected(cpu)?;
    privileged(cpu)?;
    let selector = get(cpu, op)? as u16;
    if is_null(selector) {
        cpu.ldtr = crate::system::segments::null_segment(selector);
        return leave(cpu, op);
    }
    let found = in_gdt(cpu, selector)?;
    if found.descriptor.rights() & 0x1f != kind::LDT {
        return Err(cpu.selector_fault(vector::GP, selector));
    }
    cpu.check_present(found.descriptor, selector, vector::NP)?;
    let upper = cpu.upper_base(&found)?;
    cpu.ldtr = found.descriptor.segment(selector);
    cpu.ldtr.base |= upper;
    leave(cpu, op)
}

/// `ltr`: marks the TSS busy.
pub fn ltr(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    need_protected(cpu)?;
    privileged(cpu)?;
    let selector = get(cpu, op)? as u16;
    if is_null(selector) {
        return Err(cpu.protection(0));
    }
    let found = in_gdt(cpu, selector)?;
    let long = cpu.long_mode();
    let available = match found.descriptor.rights() & 0x1f {
        kind::TSS => true,
        kind::TSS_16 => !long,
        _ => false,
    };
    if !available {
        return Err(cpu.selector_fault(vector::GP, selector));
    }
    cpu.check_present(found.descriptor, selector, vector::NP)?;
    let upper = cpu.upper_base(&found)?;
    let busy = Descriptor(found.descriptor.0 | 2 << 40);
    let byte = (busy.0 >> 40) as u8;
    cpu.as_supervisor(|cpu| cpu.store::<u8>(found.at + 5, byte))?;
    cpu.tr = busy.segment(selector);
    cpu.tr.base |= upper;
    leave(cpu, op)
}

fn in_gdt(cpu: &mut Cpu, selector: u16) -> Result<crate::system::descriptor::Found, Trap> {
    if selector & 4 != 0 {
        return Err(cpu.selector_fault(vector::GP, selector));
    }
    cpu.find_descriptor(selector, vector::GP)
}

/// The descriptor of a selector that may be anything: `None` where the instructions clear ZF.
fn visible(cpu: &mut Cpu, selector: u16) -> Result<Option<Descriptor>, Trap> {
    if is_null(selector) {
        return Ok(None);
    }
    match cpu.find_descriptor(selector, vector::GP) {
        Ok(found) => {
            let descriptor = found.descriptor;
            let level = cpu.cpl.max(rpl(selector));
            let seen = descriptor.is_conforming() || descriptor.dpl() >= level;
            Ok(seen.then_some(descriptor))
        }
        Err(trap) => {
            if cpu.fault.is_some_and(|fault| fault.vector == vector::GP) {
                cpu.fault = None;
                return Ok(None);
            }
            Err(trap)
        }
    }
}

fn set_zf(cpu: &mut Cpu, zf: bool) {
    cpu.write_flags(if zf { bit::ZF } else { 0 }, bit::ZF);
}

fn lar_sees(cpu: &Cpu, descriptor: Descriptor) -> bool {
    let long = cpu.long_mode();
    descriptor.has(rights::SEGMENT)
        || match descriptor.kind() {
            kind::LDT | kind::TSS | kind::TSS_BUSY | kind::CALL_GATE => true,
            kind::TSS_16 | kind::TSS_16_BUSY | kind::CALL_GATE_16 | kind::TASK_GATE => !long,
            _ => false,
        }
}

/// `lar`: access rights into register [`Op::src`].
pub fn lar(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    need_protected(cpu)?;
    let selector = get(cpu, op)? as u16;
    let descriptor = visible(cpu, selector)?.filter(|descriptor| lar_sees(cpu, *descriptor));
    if let Some(descriptor) = descriptor {
        let value = descriptor.0 >> 32 & 0x00ff_ff00;
        set_register(cpu, usize::from(op.src), op.imm, value);
    }
    set_zf(cpu, descriptor.is_some());
    Ok(Flow::Next)
}

/// `lsl`: limit into register [`Op::src`].
pub fn lsl(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    need_protected(cpu)?;
    let selector = get(cpu, op)? as u16;
    let gate =
        |descriptor: &Descriptor| !descriptor.has(rights::SEGMENT) && matches!(descriptor.kind(), 4 | 5 | 12);
    let descriptor = visible(cpu, selector)?.filter(|it| lar_sees(cpu, *it) && !gate(it));
    if let Some(descriptor) = descriptor {
        set_register(cpu, usize::from(op.src), op.imm, u64::from(descriptor.limit()));
    }
    set_zf(cpu, descriptor.is_some());
    Ok(Flow::Next)
}

/// `verr` (imm 0) and `verw` (imm 1).
pub fn verify(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    need_protected(cpu)?;
    let selector = get(cpu, op)? as u16;
    let write = op.imm != 0;
    let fits = visible(cpu, selector)?.is_some_and(|descriptor| {
        let readable = !descriptor.has(rights::CODE) || descriptor.has(rights::WRITABLE);
        descriptor.has(rights::SEGMENT) && if write { descriptor.is_writable_data() } else { readable }
    });
    set_zf(cpu, fits);
    Ok(Flow::Next)
}
