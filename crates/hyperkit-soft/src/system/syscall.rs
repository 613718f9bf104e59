//! SYSCALL, SYSRET, SYSENTER and SYSEXIT. Spec: SDM vol. 3A §5.8.7 and §5.8.8.

use hyperkit_hv::state::x86_64::Segment;

use crate::cpu::{CodeSize, Cpu, seg};
use crate::flags::bit;
use crate::op::{Flow, Op};
use crate::system::descriptor::canonical;
use crate::system::efer;
use crate::system::operand::size;
use crate::trap::Trap;

const RCX: usize = 1;
const RDX: usize = 2;
const RSP: usize = 4;
const R11: usize = 11;

/// Rights of the fixed segments: present, accessed, flat.
const CODE_64: u16 = 0xa09b;
const CODE_32: u16 = 0xc09b;
const DATA: u16 = 0xc093;

impl Cpu {
    /// Loads CS and SS with fixed contents for privilege level `cpl`.
    fn flat_segments(&mut self, cs: u16, code: u16, ss: u16, cpl: u8) {
        let level = u16::from(cpl);
        let flat = |selector: u16, rights: u16| Segment {
            selector: selector & !3 | level,
            base: 0,
            limit: u32::MAX,
            rights: rights | level << 5,
        };
        self.segments[seg::CS] = flat(cs, code);
        self.segments[seg::SS] = flat(ss, DATA);
        self.cpl = cpl;
        self.refresh();
    }
}

/// `syscall`: as on Intel's processors, #UD outside 64-bit mode.
pub fn syscall(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    if cpu.efer & efer::SCE == 0 || cpu.code_size != CodeSize::Bits64 {
        return Err(cpu.undefined());
    }
    cpu.regs[RCX] = cpu.next_rip(op);
    cpu.regs[R11] = cpu.flags.rflags() & !bit::RF;
    cpu.rip = cpu.msr.lstar;
    let selector = (cpu.msr.star >> 32) as u16;
    cpu.write_flags(0, (cpu.msr.sfmask | bit::RF) & !bit::VM);
    cpu.flat_segments(selector, CODE_64, selector.wrapping_add(8), 0);
    Ok(Flow::Leave)
}

/// `sysret`, `sysretq`
pub fn sysret(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    if cpu.efer & efer::SCE == 0 || cpu.code_size != CodeSize::Bits64 {
        return Err(cpu.undefined());
    }
    if cpu.cpl != 0 || (size(op) == 8 && !canonical(cpu.regs[RCX])) {
        return Err(cpu.protection(0));
    }
    let selector = (cpu.msr.star >> 48) as u16;
    let stack = selector.wrapping_add(8);
    if size(op) == 8 {
        cpu.rip = cpu.regs[RCX];
        cpu.flat_segments(selector.wrapping_add(16), CODE_64, stack, 3);
    } else {
        cpu.rip = cpu.regs[RCX] & 0xffff_ffff;
        cpu.flat_segments(selector, CODE_32, stack, 3);
    }
    let kept = bit::ARITHMETIC | bit::TF | bit::IF | bit::DF | bit::IOPL | bit::NT;
    let mask = kept | bit::RF | bit::AC | bit::VIF | bit::VIP | bit::ID;
    cpu.write_flags(cpu.regs[R11] & (mask & !bit::RF), mask);
    Ok(Flow::Leave)
}

/// `sysenter`
pub fn sysenter(cpu: &mut Cpu, _op: &Op) -> Result<Flow, Trap> {
    let selector = cpu.msr.sysenter_cs as u16;
    if cpu.cr0 & crate::system::cr0::PE == 0 || selector & !3 == 0 {
        return Err(cpu.protection(0));
    }
    cpu.write_flags(0, bit::VM | bit::IF | bit::RF);
    let long = cpu.long_mode();
    let mask = if long { u64::MAX } else { 0xffff_ffff };
    cpu.regs[RSP] = cpu.msr.sysenter_esp & mask;
    cpu.rip = cpu.msr.sysenter_eip & mask;
    cpu.flat_segments(selector, if long { CODE_64 } else { CODE_32 }, selector.wrapping_add(8), 0);
    Ok(Flow::Leave)
}

/// `sysexit`, `sysexitq`
pub fn sysexit(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    let selector = cpu.msr.sysenter_cs as u16;
    if cpu.cr0 & crate::system::cr0::PE == 0 || cpu.cpl != 0 || selector & !3 == 0 {
        return Err(cpu.protection(0));
    }
    if size(op) == 8 {
        if !canonical(cpu.regs[RCX]) || !canonical(cpu.regs[RDX]) {
            return Err(cpu.protection(0));
        }
        (cpu.regs[RSP], cpu.rip) = (cpu.regs[RCX], cpu.regs[RDX]);
        cpu.flat_segments(selector.wrapping_add(32), CODE_64, selector.wrapping_add(40), 3);
    } else {
        cpu.regs[RSP] = cpu.regs[RCX] & 0xffff_ffff;
        cpu.rip = cpu.regs[RDX] & 0xffff_ffff;
        cpu.flat_segments(selector.wrapping_add(16), CODE_32, selector.wrapping_add(24), 3);
    }
    Ok(Flow::Leave)
}
