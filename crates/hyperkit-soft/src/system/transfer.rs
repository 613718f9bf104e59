//! Far jumps, calls and returns. Spec: SDM vol. 3A §5.8.

use hyperkit_hv::state::x86_64::Segment;

use crate::cpu::{Cpu, seg};
use crate::op::{Flow, Op};
use crate::system::descriptor::{Descriptor, Found, is_null, kind, rights, rpl};
use crate::system::operand::{REGISTER, size};
use crate::system::stack::Frame;
use crate::trap::{Trap, vector};

/// A call gate.
struct Gate {
    selector: u16,
    offset: u64,
    /// Bytes of each value pushed.
    size: u64,
    /// Values copied from the caller's stack.
    parameters: u64,
}

impl Cpu {
    /// Loads CS in real or virtual-8086 mode and jumps.
    pub fn jump_real(&mut self, selector: u16, offset: u64) {
        self.load_real_segment(seg::CS, selector);
        self.rip = offset;
        self.refresh();
    }

    /// Takes over a code segment for privilege level `cpl`, and jumps.
    pub fn enter_code(&mut self, found: &mut Found, selector: u16, rip: u64, cpl: u8) -> Result<(), Trap> {
        self.mark_accessed(found)?;
        self.segments[seg::CS] = found.descriptor.segment(selector & !3 | u16::from(cpl));
        self.cpl = cpl;
        self.rip = rip;
        self.refresh();
        Ok(())
    }

    /// Checks a code segment for a direct jump or call: same privilege, or conforming from an outer one.
    fn check_code(&mut self, descriptor: Descriptor, selector: u16) -> Result<(), Trap> {
        let level = if descriptor.is_conforming() {
            descriptor.dpl() <= self.cpl
        } else {
            rpl(selector) <= self.cpl && descriptor.dpl() == self.cpl
        };
        if !level || !descriptor.is_code() || self.is_both_sizes(descriptor) {
            return Err(self.selector_fault(vector::GP, selector));
        }
        self.check_present(descriptor, selector, vector::NP)
    }

    /// Whether L and D are both set in IA-32e mode, which is reserved.
    pub fn is_both_sizes(&self, descriptor: Descriptor) -> bool {
        self.long_mode() && descriptor.has(rights::LONG | rights::BIG)
    }

    /// Finds the descriptor that a far transfer names; the null selector is #GP(0).
    pub fn find_far(&mut self, selector: u16) -> Result<Found, Trap> {
        if is_null(selector) {
            return Err(self.protection(0));
        }
        self.find_descriptor(selector, vector::GP)
    }

    fn far_jump(&mut self, selector: u16, offset: u64) -> Result<(), Trap> {
        if !self.protected() {
            self.jump_real(selector, offset);
            return Ok(());
        }
        let mut found = self.find_far(selector)?;
        if found.descriptor.has(rights::SEGMENT) {
            self.check_code(found.descriptor, selector)?;
            self.check_target(found.descriptor, offset)?;
            return self.enter_code(&mut found, selector, offset, self.cpl);
        }
        let gate = self.read_gate(&found, selector)?;
        let (mut code, _) = self.find_gate_code(&gate, false)?;
        self.enter_code(&mut code, gate.selector, gate.offset, self.cpl)
    }

    fn far_call(&mut self, selector: u16, offset: u64, bytes: u64, back: u64) -> Result<(), Trap> {
        let mut frame = Frame::empty();
        frame.push(bytes, u64::from(self.segments[seg::CS].selector));
        frame.push(bytes, back);
        if !self.protected() {
            self.push_frame(&frame)?;
            self.jump_real(selector, offset);
            return Ok(());
        }
        let mut found = self.find_far(selector)?;
        if !found.descriptor.has(rights::SEGMENT) {
            return self.call_gate(&found, selector, back);
        }
        self.check_code(found.descriptor, selector)?;
        self.check_target(found.descriptor, offset)?;
        self.push_frame(&frame)?;
        self.enter_code(&mut found, selector, offset, self.cpl)
    }

    fn push_frame(&mut self, frame: &Frame) -> Result<(), Trap> {
        let mask = self.stack_bits();
        let pointer = self.write_frame(frame, self.seg_base[seg::SS], self.regs[4], mask)?;
        self.put_stack_pointer(pointer, mask);
        Ok(())
    }

    /// Reads a call gate. Task gates and TSS selectors are refused with #GP: tasks are not switched in hardware.
    fn read_gate(&mut self, found: &Found, selector: u16) -> Result<Gate, Trap> {
        let raw = found.descriptor.0;
        let long = self.long_mode();
        let known = match found.descriptor.kind() {
            kind::CALL_GATE => true,
            kind::CALL_GATE_16 => !long,
            _ => false,
        };
        if !known || found.descriptor.dpl() < self.cpl.max(rpl(selector)) {
            return Err(self.selector_fault(vector::GP, selector));
        }
        self.check_present(found.descriptor, selector, vector::NP)?;
        let wide = found.descriptor.kind() == kind::CALL_GATE;
        let mut offset = raw & 0xffff | if wide { raw >> 32 & 0xffff_0000 } else { 0 };
        if long {
            let high: u64 = self.load_system(found.at + 8)?;
            if high >> 40 & 0x1f != 0 {
                return Err(self.selector_fault(vector::GP, selector));
            }
            offset |= high << 32;
        }
        let (size, parameters) = match (long, wide) {
            (true, _) => (8, 0),
            (false, true) => (4, raw >> 32 & 31),
            (false, false) => (2, raw >> 32 & 31),
        };
        Ok(Gate { selector: (raw >> 16) as u16, offset, size, parameters })
    }

    /// The code segment of a gate, and whether entering it changes the privilege level.
    fn find_gate_code(&mut self, gate: &Gate, call: bool) -> Result<(Found, bool), Trap> {
        let found = self.find_far(gate.selector)?;
        let code = found.descriptor;
        let inner = call && !code.is_conforming() && code.dpl() < self.cpl;
        let level =
            if code.is_conforming() || call { code.dpl() <= self.cpl } else { code.dpl() == self.cpl };
        let long = self.long_mode();
        let wrong_size = long && (!code.has(rights::LONG) || code.has(rights::BIG));
        if !code.is_code() || !level || wrong_size {
            return Err(self.selector_fault(vector::GP, gate.selector));
        }
        self.check_present(code, gate.selector, vector::NP)?;
        self.check_target(code, gate.offset)?;
        Ok((found, inner))
    }

    fn call_gate(&mut self, found: &Found, selector: u16, back: u64) -> Result<(), Trap> {
        let gate = self.read_gate(found, selector)?;
        let (mut code, inner) = self.find_gate_code(&gate, true)?;
        let mut frame = Frame::empty();
        let cs = u64::from(self.segments[seg::CS].selector);
        if !inner {
            frame.push(gate.size, cs);
            frame.push(gate.size, back);
            self.push_frame(&frame)?;
            return self.enter_code(&mut code, gate.selector, gate.offset, self.cpl);
        }
        let level = code.descriptor.dpl();
        let (stack, pointer) = self.inner_stack(level, 0)?;
        frame.push(gate.size, u64::from(self.segments[seg::SS].selector));
        frame.push(gate.size, self.regs[4]);
        for number in (0..gate.parameters).rev() {
            let value = self.peek(gate.size, number)?;
            frame.push(gate.size, value);
        }
        frame.push(gate.size, cs);
        frame.push(gate.size, back);
        self.switch_stack(&frame, stack, pointer)?;
        self.enter_code(&mut code, gate.selector, gate.offset, level)
    }

    /// Writes a frame to an inner stack and takes the stack over.
    pub fn switch_stack(&mut self, frame: &Frame, stack: Segment, pointer: u64) -> Result<(), Trap> {
        let mask = match (self.long_mode(), stack.rights & rights::BIG != 0) {
            (true, _) => u64::MAX,
            (false, true) => 0xffff_ffff,
            (false, false) => 0xffff,
        };
        let base = if self.long_mode() { 0 } else { stack.base };
        let pointer = self.as_supervisor(|cpu| cpu.write_frame(frame, base, pointer, mask))?;
        self.segments[seg::SS] = stack;
        self.put_stack_pointer(pointer, mask);
        Ok(())
    }

    fn far_return(&mut self, bytes: u64, release: u64) -> Result<(), Trap> {
        let rip = self.peek(bytes, 0)?;
        let selector = self.peek(bytes, 1)? as u16;
        let mask = self.stack_bits();
        let above = self.regs[4].wrapping_add(2 * bytes + release);
        if !self.protected() {
            self.put_stack_pointer(above, mask);
            self.jump_real(selector, rip);
            return Ok(());
        }
        let mut found = self.find_return_code(selector, rip)?;
        let level = rpl(selector);
        if level == self.cpl {
            self.put_stack_pointer(above, mask);
            return self.enter_code(&mut found, selector, rip, level);
        }
        let pointer = self.outer_value(bytes, 2, release)?;
        let stack = self.outer_value(bytes, 3, release)? as u16;
        self.return_outward(&mut found, selector, rip, stack, pointer.wrapping_add(release))
    }

    /// A value on the stack above released parameters.
    fn outer_value(&mut self, bytes: u64, index: u64, release: u64) -> Result<u64, Trap> {
        let below = self.regs[4];
        let mask = self.stack_bits();
        self.put_stack_pointer(below.wrapping_add(release), mask);
        let value = self.peek(bytes, index);
        self.regs[4] = below;
        value
    }

    /// Checks the code segment that a far return or IRET goes back to.
    pub fn find_return_code(&mut self, selector: u16, rip: u64) -> Result<Found, Trap> {
        let found = self.find_far(selector)?;
        let code = found.descriptor;
        let level = rpl(selector);
        let fits = if code.is_conforming() { code.dpl() <= level } else { code.dpl() == level };
        if !code.is_code() || !fits || level < self.cpl || self.is_both_sizes(code) {
            return Err(self.selector_fault(vector::GP, selector));
        }
        self.check_present(code, selector, vector::NP)?;
        self.check_target(code, rip)?;
        Ok(found)
    }

    /// Goes to an outer privilege level, or in 64-bit mode to any, with a new stack.
    pub fn return_outward(
        &mut self,
        found: &mut Found,
        selector: u16,
        rip: u64,
        stack: u16,
        pointer: u64,
    ) -> Result<(), Trap> {
        let level = rpl(selector);
        let to_long = self.long_mode() && found.descriptor.has(rights::LONG);
        let segment = if is_null(stack) && to_long && level != 3 && rpl(stack) == level {
            Segment { rights: u16::from(level) << 5, ..crate::system::segments::null_segment(stack) }
        } else if is_null(stack) {
            return Err(self.protection(0));
        } else {
            self.stack_segment(stack, level, vector::GP)?
        };
        let outward = level > self.cpl;
        self.enter_code(found, selector, rip, level)?;
        self.segments[seg::SS] = segment;
        self.refresh_bases();
        let mask = self.stack_bits();
        self.put_stack_pointer(pointer, mask);
        if outward {
            self.drop_inner_segments();
            self.refresh_bases();
        }
        Ok(())
    }
}

/// The far pointer in an op: immediate (`imm` = selector above a 32-bit offset) or in memory.
pub fn far_pointer(cpu: &mut Cpu, op: &Op) -> Result<(u64, u16), Trap> {
    if op.aux & REGISTER != 0 {
        return Ok((op.imm & 0xffff_ffff, (op.imm >> 32) as u16));
    }
    let linear = cpu.address(op);
    let offset = cpu.load_sized(linear, size(op))?;
    let selector = cpu.load::<u16>(linear.wrapping_add(size(op)))?;
    Ok((offset, selector))
}

/// `jmp far`
pub fn jmp_far(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    let (offset, selector) = far_pointer(cpu, op)?;
    cpu.far_jump(selector, offset)?;
    Ok(Flow::Leave)
}

/// `call far`
pub fn call_far(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    let (offset, selector) = far_pointer(cpu, op)?;
    let back = cpu.next_rip(op);
    cpu.far_call(selector, offset, size(op), back)?;
    Ok(Flow::Leave)
}

/// `retf`, `retf imm16`
pub fn ret_far(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.far_return(size(op), op.imm & 0xffff)?;
    Ok(Flow::Leave)
}
