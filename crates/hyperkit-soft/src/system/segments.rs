//! Loading segment registers: MOV and POP Sreg, LDS and its kind, the FS and GS bases.

use hyperkit_hv::state::x86_64::Segment;

use crate::cpu::{CodeSize, Cpu, seg};
use crate::flags::bit;
use crate::op::{Flow, Op};
use crate::system::descriptor::{canonical, is_null, rights, rpl};
use crate::system::operand::{get, leave, put, size};
use crate::system::{cr0, cr4};
use crate::trap::{Trap, vector};

/// A segment register that a null selector was loaded into.
pub fn null_segment(selector: u16) -> Segment {
    Segment { selector, base: 0, limit: 0, rights: 0 }
}

impl Cpu {
    /// Loads ES, SS, DS, FS or GS, with the checks of the mode.
    pub fn load_segment(&mut self, number: usize, selector: u16) -> Result<(), Trap> {
        if !self.protected() {
            self.load_real_segment(number, selector);
        } else if number == seg::SS {
            self.segments[seg::SS] = self.stack_segment(selector, self.cpl, vector::GP)?;
        } else {
            self.segments[number] = self.data_segment(selector)?;
        }
        self.refresh_bases();
        Ok(())
    }

    /// In real mode the limit stays as it was; in virtual-8086 mode everything but the selector is fixed.
    pub fn load_real_segment(&mut self, number: usize, selector: u16) {
        let segment = &mut self.segments[number];
        segment.selector = selector;
        segment.base = u64::from(selector) << 4;
        if self.flags.rest & bit::VM != 0 {
            segment.limit = 0xffff;
            segment.rights = 0xf3;
        } else {
            segment.rights = segment.rights & (rights::BIG | rights::GRANULAR) | 0x93;
        }
    }

    /// Checks a selector for SS at privilege `cpl` (SDM vol. 2, MOV); `fault` is #GP, or #TS for stacks of a TSS.
    pub fn stack_segment(&mut self, selector: u16, cpl: u8, fault: u8) -> Result<Segment, Trap> {
        if is_null(selector) {
            if self.code_size == CodeSize::Bits64 && cpl != 3 && rpl(selector) == cpl {
                return Ok(Segment { rights: u16::from(cpl) << 5, ..null_segment(selector) });
            }
            return Err(self.selector_fault(fault, 0));
        }
        let mut found = self.find_descriptor(selector, fault)?;
        let descriptor = found.descriptor;
        if rpl(selector) != cpl || descriptor.dpl() != cpl || !descriptor.is_writable_data() {
            return Err(self.selector_fault(fault, selector));
        }
        self.check_present(descriptor, selector, vector::SS)?;
        self.mark_accessed(&mut found)?;
        Ok(found.descriptor.segment(selector))
    }

    /// Checks a selector for ES, DS, FS or GS.
    fn data_segment(&mut self, selector: u16) -> Result<Segment, Trap> {
        if is_null(selector) {
            return Ok(null_segment(selector));
        }
        let mut found = self.find_descriptor(selector, vector::GP)?;
        let descriptor = found.descriptor;
        let readable = descriptor.has(rights::SEGMENT)
            && (!descriptor.has(rights::CODE) || descriptor.has(rights::WRITABLE));
        let allowed = descriptor.is_conforming() || descriptor.dpl() >= self.cpl.max(rpl(selector));
        if !readable || !allowed {
            return Err(self.selector_fault(vector::GP, selector));
        }
        self.check_present(descriptor, selector, vector::NP)?;
        self.mark_accessed(&mut found)?;
        Ok(found.descriptor.segment(selector))
    }

    /// Takes segments away that the new, outer privilege level may not use (SDM vol. 3A §5.8.6).
    pub fn drop_inner_segments(&mut self) {
        for number in [seg::ES, seg::DS, seg::FS, seg::GS] {
            let segment = &mut self.segments[number];
            if segment.rights & rights::PRESENT == 0 {
                continue; // null already: FS and GS keep the base that an MSR gave them
            }
            let conforming = rights::SEGMENT | rights::CODE | rights::CONFORMING;
            let dpl = (segment.rights >> 5 & 3) as u8;
            if segment.rights & conforming != conforming && dpl < self.cpl {
                *segment = null_segment(0);
            }
        }
    }
}

/// `mov sreg, r/m16`
pub fn mov_to_segment(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    let selector = get(cpu, op)? as u16;
    cpu.load_segment(usize::from(op.src), selector)?;
    cpu.shadow |= usize::from(op.src) == seg::SS;
    leave(cpu, op)
}

/// `mov r/m, sreg`
pub fn mov_from_segment(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    put(cpu, op, u64::from(cpu.segments[usize::from(op.src)].selector))?;
    Ok(Flow::Next)
}

/// `push sreg`
pub fn push_segment(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    let selector = u64::from(cpu.segments[usize::from(op.src)].selector);
    cpu.push_sized(size(op), selector)?;
    Ok(Flow::Next)
}

/// `pop sreg`
pub fn pop_segment(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    let selector = cpu.peek(size(op), 0)? as u16;
    let mask = cpu.stack_bits();
    cpu.load_segment(usize::from(op.src), selector)?;
    cpu.put_stack_pointer(cpu.regs[4].wrapping_add(size(op)), mask);
    cpu.shadow |= usize::from(op.src) == seg::SS;
    leave(cpu, op)
}

/// `lds`, `les`, `lfs`, `lgs`, `lss`: a far pointer into a segment register and a general one.
pub fn load_far_pointer(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    let (offset, selector) = crate::system::transfer::far_pointer(cpu, op)?;
    cpu.load_segment(usize::from(op.src), selector)?;
    crate::system::operand::set_register(cpu, usize::from(op.dst), size(op), offset);
    leave(cpu, op)
}

/// `rdfsbase`, `rdgsbase`
pub fn read_base(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    check_fsgsbase(cpu)?;
    put(cpu, op, cpu.segments[usize::from(op.src)].base)?;
    Ok(Flow::Next)
}

/// `wrfsbase`, `wrgsbase`
pub fn write_base(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    check_fsgsbase(cpu)?;
    let base = get(cpu, op)?;
    if !canonical(base) {
        return Err(cpu.protection(0));
    }
    cpu.segments[usize::from(op.src)].base = base;
    cpu.refresh_bases();
    Ok(Flow::Next)
}

fn check_fsgsbase(cpu: &mut Cpu) -> Result<(), Trap> {
    if cpu.cr4 & cr4::FSGSBASE == 0 || cpu.code_size != CodeSize::Bits64 || cpu.cr0 & cr0::PE == 0 {
        return Err(cpu.undefined());
    }
    Ok(())
}

/// `swapgs`
pub fn swapgs(cpu: &mut Cpu, _op: &Op) -> Result<Flow, Trap> {
    if cpu.cpl != 0 {
        return Err(cpu.protection(0));
    }
    std::mem::swap(&mut cpu.segments[seg::GS].base, &mut cpu.msr.kernel_gs_base);
    cpu.refresh_bases();
    Ok(Flow::Next)
}
