//! Changing RFLAGS: CLI, STI, CLAC, STAC and what must follow a change.

use crate::cpu::Cpu;
use crate::flags::bit;
use crate::op::{Flow, Op};
use crate::system::operand::{leave, privileged};
use crate::trap::Trap;

/// What any code may change with POPF and IRET.
const FREE: u64 = bit::ARITHMETIC | bit::TF | bit::DF | bit::NT | bit::AC | bit::ID;

impl Cpu {
    /// I/O privilege level.
    #[inline]
    pub fn iopl(&self) -> u8 {
        (self.flags.rest >> 12 & 3) as u8
    }

    /// Whether this is virtual-8086 mode.
    #[inline]
    pub fn virtual_8086(&self) -> bool {
        self.flags.rest & bit::VM != 0
    }

    /// Replaces the bits of RFLAGS in `mask`, and takes note of what follows.
    pub fn write_flags(&mut self, value: u64, mask: u64) {
        let before = self.flags.rest;
        let rflags = self.flags.rflags() & !mask | value & mask;
        self.flags.set_rflags(rflags);
        if (before ^ self.flags.rest) & bit::AC != 0 {
            self.refresh_privilege();
        }
        if self.flags.rest & !before & bit::IF != 0 {
            self.interrupts_enabled();
        }
    }

    /// The bits that POPF and IRET may change at the current privilege, for an operand of `size` bytes.
    pub fn changeable_flags(&self, size: u64) -> u64 {
        let mut mask = FREE;
        if self.cpl == 0 {
            mask |= bit::IOPL;
        }
        if self.cpl <= self.iopl() {
            mask |= bit::IF;
        }
        if size == 2 { mask & 0xffff } else { mask }
    }

    /// #GP(0) where virtual-8086 code needs an I/O privilege level of 3.
    pub fn check_v86_iopl(&mut self) -> Result<(), Trap> {
        if self.virtual_8086() && self.iopl() < 3 { Err(self.protection(0)) } else { Ok(()) }
    }
}

/// `cli`
pub fn cli(cpu: &mut Cpu, _op: &Op) -> Result<Flow, Trap> {
    if cpu.cpl > cpu.iopl() {
        return Err(cpu.protection(0));
    }
    cpu.flags.rest &= !bit::IF;
    Ok(Flow::Next)
}

/// `sti`
pub fn sti(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    if cpu.cpl > cpu.iopl() {
        return Err(cpu.protection(0));
    }
    if cpu.flags.rest & bit::IF == 0 {
        cpu.flags.rest |= bit::IF;
        cpu.shadow = true;
        cpu.interrupts_enabled();
    }
    leave(cpu, op)
}

/// `clac` and `stac`; [`Op::imm`] is the new AC.
pub fn set_ac(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    if cpu.cpl != 0 {
        return Err(cpu.undefined());
    }
    cpu.write_flags(op.imm, bit::AC);
    Ok(Flow::Next)
}

/// `hlt`
pub fn hlt(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    privileged(cpu)?;
    cpu.halted = true;
    leave(cpu, op)
}
