//! Exceptions and interrupts on their way through the IDT. Spec: SDM vol. 3A §6.
//!
//! Task gates, as everything of hardware task switches, are refused with #GP.

use hyperkit_hv::Exit;
use hyperkit_hv::state::x86_64::Segment;

use crate::cpu::{CodeSize, Cpu, seg};
use crate::flags::bit;
use crate::op::{Flow, Op};
use crate::system::Next;
use crate::system::descriptor::{Descriptor, Found, canonical, is_null, rights, rpl};
use crate::system::operand::size;
use crate::system::stack::Frame;
use crate::trap::{Fault, Trap, vector};

/// What is delivered.
#[derive(Debug, Clone, Copy)]
pub struct Event {
    /// Vector.
    pub vector: u8,
    /// Error code to push.
    pub error: Option<u16>,
    /// RIP to push.
    pub rip: u64,
    /// Whether it is `int n`, `int3` or `into`: gates check the caller's privilege.
    pub software: bool,
    /// Whether the pushed flags have RF set: faults, so that the instruction runs again past its breakpoint; but for the
    /// breakpoint itself, whose handler says whether it does (SDM vol. 3B §17.3.1.1).
    pub resume: bool,
}

/// A gate of the IDT.
struct Gate {
    selector: u16,
    offset: u64,
    /// Bytes of each value pushed.
    size: u64,
    /// Interrupt gate: clears IF.
    masks: bool,
    /// Interrupt stack table, 0 for none.
    stack: u8,
}

/// Severity for the double-fault rule (SDM vol. 3A, table 6-5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Benign,
    Contributory,
    Page,
    Double,
}

fn class(vector: u8) -> Class {
    match vector {
        vector::DE | vector::TS | vector::NP | vector::SS | vector::GP => Class::Contributory,
        vector::PF => Class::Page,
        vector::DF => Class::Double,
        _ => Class::Benign,
    }
}

/// Error code bits: the fault is of an event from outside the program; the index is into the IDT.
const EXTERNAL: u16 = 1;
const IN_IDT: u16 = 2;

impl Cpu {
    /// Delivers the exception in [`Cpu::fault`], raised by the instruction at `rip`: through the IDT, with double
    /// and triple faults.
    pub fn deliver_fault(&mut self, rip: u64) -> Next {
        let Some(fault) = self.fault.take() else { return Next::Run };
        let (rip, resume) = if fault.after { (self.rip, false) } else { (rip, fault.vector != vector::DB) };
        self.deliver(Event { vector: fault.vector, error: fault.error, rip, software: false, resume })
    }

    /// Delivers an event, or what delivering it leads to.
    pub fn deliver(&mut self, mut event: Event) -> Next {
        self.shadow = false;
        loop {
            if self.enter_handler(event).is_ok() {
                self.halted = false;
                return Next::Run;
            }
            let Some(second) = self.fault.take() else { return Next::Exit(Exit::TripleFault) };
            let (before, after) = (class(event.vector), class(second.vector));
            let first = if event.software { Class::Benign } else { before };
            event = match (first, after) {
                (Class::Double, Class::Benign) => nested(&event, second),
                (Class::Double, _) => return Next::Exit(Exit::TripleFault),
                (Class::Contributory, Class::Contributory)
                | (Class::Page, Class::Contributory | Class::Page) => {
                    Event { vector: vector::DF, error: Some(0), software: false, resume: false, ..event }
                }
                _ => nested(&event, second),
            };
        }
    }

    fn enter_handler(&mut self, event: Event) -> Result<(), Trap> {
        if self.cr0 & crate::system::cr0::PE == 0 {
            return self.enter_real(event);
        }
        let gate = self.read_idt(event)?;
        let mut code = self.find_handler(&gate)?;
        self.mark_accessed(&mut code)?;
        let level = if code.descriptor.is_conforming() { self.cpl } else { code.descriptor.dpl() };
        if self.long_mode() {
            self.enter_long(event, &gate, &mut code, level)
        } else {
            self.enter_protected(event, &gate, &mut code, level)
        }
    }

    /// Through the real-mode vector table.
    fn enter_real(&mut self, event: Event) -> Result<(), Trap> {
        let slot = u64::from(event.vector) * 4;
        if slot + 3 > u64::from(self.idtr.limit) {
            return Err(self.protection(0));
        }
        let entry = self.load::<u32>(self.idtr.base.wrapping_add(slot))?;
        let mut frame = Frame::empty();
        frame.push(2, self.flags.rflags());
        frame.push(2, u64::from(self.segments[seg::CS].selector));
        frame.push(2, event.rip);
        let mask = self.stack_bits();
        let pointer = self.write_frame(&frame, self.seg_base[seg::SS], self.regs[4], mask)?;
        self.put_stack_pointer(pointer, mask);
        self.write_flags(0, bit::IF | bit::TF | bit::AC | bit::RF);
        self.jump_real((entry >> 16) as u16, u64::from(entry & 0xffff));
        Ok(())
    }

    /// #GP and the like about an entry of the IDT.
    fn idt_fault(&mut self, vector: u8, event: Event) -> Trap {
        let error = u16::from(event.vector) << 3 | IN_IDT;
        self.raise(Fault { vector, error: Some(error), after: false })
    }

    fn read_idt(&mut self, event: Event) -> Result<Gate, Trap> {
        let long = self.long_mode();
        let bytes = if long { 16 } else { 8 };
        let slot = u64::from(event.vector) * bytes;
        if slot + bytes - 1 > u64::from(self.idtr.limit) {
            return Err(self.idt_fault(vector::GP, event));
        }
        let at = self.idtr.base.wrapping_add(slot);
        let raw = Descriptor(self.load_system(at)?);
        let wide = raw.rights() & 8 != 0;
        let is_gate = matches!(raw.rights() & 0x1f, 6 | 7 | 14 | 15) && (wide || !long);
        if !is_gate || (event.software && raw.dpl() < self.cpl) {
            return Err(self.idt_fault(vector::GP, event));
        }
        if !raw.has(rights::PRESENT) {
            return Err(self.idt_fault(vector::NP, event));
        }
        let high: u32 = if long { self.load_system(at + 8)? } else { 0 };
        let middle = if wide { raw.0 >> 32 & 0xffff_0000 } else { 0 };
        Ok(Gate {
            selector: (raw.0 >> 16) as u16,
            offset: raw.0 & 0xffff | middle | u64::from(high) << 32,
            size: if long {
                8
            } else if wide {
                4
            } else {
                2
            },
            masks: raw.kind() & 1 == 0,
            stack: if long { (raw.0 >> 32 & 7) as u8 } else { 0 },
        })
    }

    /// The code segment of a gate.
    fn find_handler(&mut self, gate: &Gate) -> Result<Found, Trap> {
        let found = self.find_far(gate.selector)?;
        let code = found.descriptor;
        let wrong_size = self.long_mode() && (!code.has(rights::LONG) || code.has(rights::BIG));
        if !code.is_code() || code.dpl() > self.cpl || wrong_size {
            return Err(self.selector_fault(vector::GP, gate.selector));
        }
        self.check_present(code, gate.selector, vector::NP)?;
        if self.virtual_8086() && (code.is_conforming() || code.dpl() != 0) {
            return Err(self.selector_fault(vector::GP, gate.selector));
        }
        if self.long_mode() && !canonical(gate.offset) {
            return Err(self.protection(0));
        }
        Ok(found)
    }

    fn pushed_flags(&self, event: Event) -> u64 {
        self.flags.rflags() & !bit::RF | if event.resume { bit::RF } else { 0 }
    }

    /// In IA-32e mode: the stack is aligned, SS and RSP are always pushed.
    fn enter_long(&mut self, event: Event, gate: &Gate, code: &mut Found, level: u8) -> Result<(), Trap> {
        let mut pointer = self.regs[4];
        let mut stack = self.segments[seg::SS];
        if gate.stack != 0 || level < self.cpl {
            pointer = self.long_stack(level, gate.stack)?;
        }
        if level < self.cpl {
            let rights = u16::from(level) << 5;
            stack = Segment { selector: u16::from(level), base: 0, limit: 0, rights };
        }
        let mut frame = Frame::empty();
        frame.push(8, u64::from(self.segments[seg::SS].selector));
        frame.push(8, self.regs[4]);
        frame.push(8, self.pushed_flags(event));
        frame.push(8, u64::from(self.segments[seg::CS].selector));
        frame.push(8, event.rip);
        if let Some(error) = event.error {
            frame.push(8, u64::from(error));
        }
        self.switch_stack(&frame, stack, pointer & !15)?;
        self.finish_entry(gate, code, level)
    }

    /// A stack pointer of the 64-bit TSS: of a privilege level, or of the interrupt stack table.
    fn long_stack(&mut self, level: u8, table: u8) -> Result<u64, Trap> {
        let offset = if table != 0 { 0x24 + 8 * (u64::from(table) - 1) } else { 4 + 8 * u64::from(level) };
        if offset + 7 > u64::from(self.tr.limit) {
            return Err(self.selector_fault(vector::TS, self.tr.selector));
        }
        let pointer: u64 = self.load_system(self.tr.base.wrapping_add(offset))?;
        if !canonical(pointer) {
            return Err(self.raise(Fault { vector: vector::SS, error: Some(0), after: false }));
        }
        Ok(pointer)
    }

    /// The stack of an inner privilege level, from the TSS.
    pub fn inner_stack(&mut self, level: u8, table: u8) -> Result<(Segment, u64), Trap> {
        if self.long_mode() {
            let pointer = self.long_stack(level, table)?;
            let rights = u16::from(level) << 5;
            return Ok((Segment { selector: u16::from(level), base: 0, limit: 0, rights }, pointer));
        }
        let wide = self.tr.rights & 8 != 0;
        let offset = if wide { 4 + 8 * u64::from(level) } else { 2 + 4 * u64::from(level) };
        if offset + 5 > u64::from(self.tr.limit) {
            return Err(self.selector_fault(vector::TS, self.tr.selector));
        }
        let at = self.tr.base.wrapping_add(offset);
        let (pointer, selector) = if wide {
            (u64::from(self.load_system::<u32>(at)?), self.load_system::<u16>(at + 4)?)
        } else {
            (u64::from(self.load_system::<u16>(at)?), self.load_system::<u16>(at + 2)?)
        };
        if is_null(selector) {
            return Err(self.selector_fault(vector::TS, 0));
        }
        let stack = self.stack_segment(selector, level, vector::TS)?;
        Ok((stack, pointer))
    }

    /// In protected mode without IA-32e: SS and ESP are pushed when the privilege changes.
    fn enter_protected(
        &mut self,
        event: Event,
        gate: &Gate,
        code: &mut Found,
        level: u8,
    ) -> Result<(), Trap> {
        if gate.offset > u64::from(code.descriptor.limit()) {
            return Err(self.protection(0));
        }
        let from_v86 = self.virtual_8086();
        let mut frame = Frame::empty();
        if from_v86 {
            for number in [seg::GS, seg::FS, seg::DS, seg::ES] {
                frame.push(gate.size, u64::from(self.segments[number].selector));
            }
        }
        let inward = level < self.cpl;
        if inward {
            frame.push(gate.size, u64::from(self.segments[seg::SS].selector));
            frame.push(gate.size, self.regs[4]);
        }
        frame.push(gate.size, self.pushed_flags(event));
        frame.push(gate.size, u64::from(self.segments[seg::CS].selector));
        frame.push(gate.size, event.rip);
        if let Some(error) = event.error {
            frame.push(gate.size, u64::from(error));
        }
        if inward {
            let (stack, pointer) = self.inner_stack(level, 0)?;
            self.check_stack(&stack, pointer, frame.size())?;
            self.switch_stack(&frame, stack, pointer)?;
        } else {
            let mask = self.stack_bits();
            let pointer = self.write_frame(&frame, self.seg_base[seg::SS], self.regs[4], mask)?;
            self.put_stack_pointer(pointer, mask);
        }
        if from_v86 {
            for number in [seg::GS, seg::FS, seg::DS, seg::ES] {
                self.segments[number] = crate::system::segments::null_segment(0);
            }
        }
        self.finish_entry(gate, code, level)
    }

    fn finish_entry(&mut self, gate: &Gate, code: &mut Found, level: u8) -> Result<(), Trap> {
        let interrupt = if gate.masks { bit::IF } else { 0 };
        self.write_flags(0, bit::TF | bit::NT | bit::RF | bit::VM | interrupt);
        self.enter_code(code, gate.selector, gate.offset, level)
    }

    /// IRET in protected mode.
    fn iret_protected(&mut self, bytes: u64) -> Result<(), Trap> {
        if self.flags.rest & bit::NT != 0 {
            return Err(self.protection(0)); // a task return, which is not there
        }
        let rip = self.peek(bytes, 0)?;
        let selector = self.peek(bytes, 1)? as u16;
        let flags = self.peek(bytes, 2)?;
        if !self.long_mode() && flags & bit::VM != 0 && self.cpl == 0 && bytes == 4 {
            return self.iret_v86(rip, selector, flags);
        }
        let mut found = self.find_return_code(selector, rip)?;
        let mask = self.changeable_flags(bytes) | if bytes > 2 { bit::RF } else { 0 };
        let level = rpl(selector);
        if level > self.cpl || self.code_size == CodeSize::Bits64 {
            let pointer = self.peek(bytes, 3)?;
            let stack = self.peek(bytes, 4)? as u16;
            self.return_outward(&mut found, selector, rip, stack, pointer)?;
        } else {
            let mask_before = self.stack_bits();
            let above = self.regs[4].wrapping_add(3 * bytes);
            self.enter_code(&mut found, selector, rip, level)?;
            self.put_stack_pointer(above, mask_before);
        }
        self.write_flags(flags, mask);
        Ok(())
    }

    /// IRET into virtual-8086 mode.
    fn iret_v86(&mut self, rip: u64, selector: u16, flags: u64) -> Result<(), Trap> {
        let mut values = [0; 6];
        for (number, value) in values.iter_mut().enumerate() {
            *value = self.peek(4, 3 + number as u64)?;
        }
        let [pointer, ss, es, ds, fs, gs] = values;
        self.write_flags(flags, self.changeable_flags(4) | bit::VM | bit::RF);
        self.cpl = 3;
        let loads = [(seg::SS, ss), (seg::ES, es), (seg::DS, ds), (seg::FS, fs), (seg::GS, gs)];
        for (number, selector) in loads {
            self.load_real_segment(number, selector as u16);
        }
        self.regs[4] = pointer & 0xffff_ffff;
        self.jump_real(selector, rip & 0xffff);
        Ok(())
    }

    /// IRET in real or virtual-8086 mode.
    fn iret_real(&mut self, bytes: u64) -> Result<(), Trap> {
        self.check_v86_iopl()?;
        let rip = self.peek(bytes, 0)?;
        let selector = self.peek(bytes, 1)? as u16;
        let flags = self.peek(bytes, 2)?;
        let mask = self.stack_bits();
        self.put_stack_pointer(self.regs[4].wrapping_add(3 * bytes), mask);
        self.jump_real(selector, rip);
        self.write_flags(flags, self.changeable_flags(bytes));
        Ok(())
    }
}

/// A fault that came up while an event was delivered, to be delivered instead.
fn nested(event: &Event, second: Fault) -> Event {
    let names_selector = matches!(class(second.vector), Class::Contributory);
    let external = if names_selector && !event.software { EXTERNAL } else { 0 };
    let error = second.error.map(|error| error | external);
    Event { vector: second.vector, error, rip: event.rip, software: false, resume: true }
}

/// `int n`, `int3`, `int1`: [`Op::imm`] is the vector, `aux` 1 for those that gates do not check (`int1`).
pub fn int(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    let number = op.imm as u8;
    if op.aux & 2 != 0 {
        cpu.check_v86_iopl()?;
    }
    soft_interrupt(cpu, op, number, op.aux & 1 == 0)
}

/// `into`
pub fn into(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    if cpu.flags.of() { soft_interrupt(cpu, op, vector::OF, true) } else { Ok(Flow::Next) }
}

/// A fault on the way is the instruction's own: it is delivered by the run loop with RIP of the instruction.
fn soft_interrupt(cpu: &mut Cpu, op: &Op, vector: u8, software: bool) -> Result<Flow, Trap> {
    let rip = cpu.next_rip(op);
    cpu.enter_handler(Event { vector, error: None, rip, software, resume: false })?;
    Ok(Flow::Leave)
}

/// `iret`, `iretd`, `iretq`
pub fn iret(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    if cpu.protected() {
        cpu.iret_protected(size(op))?
    } else {
        cpu.iret_real(size(op))?
    }
    cpu.interrupts.nmi_blocked = false;
    cpu.interrupts_enabled();
    Ok(Flow::Leave)
}
