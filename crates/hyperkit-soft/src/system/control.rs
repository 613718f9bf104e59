//! Control and debug registers, and the instructions around the TLB and the caches.

use crate::cpu::{CodeSize, Cpu, seg};
use crate::mmu::walk::PHYS_BITS;
use crate::op::{Flow, Op};
use crate::system::descriptor::{canonical, rights};
use crate::system::operand::{get, leave, privileged, put};
use crate::system::{cr0, cr4, efer};
use crate::trap::{Fault, Trap, vector};

/// Bits of CR0 that exist.
const CR0_BITS: u64 = cr0::PE
    | cr0::MP
    | cr0::EM
    | cr0::TS
    | cr0::ET
    | cr0::NE
    | cr0::WP
    | cr0::AM
    | cr0::NW
    | cr0::CD
    | cr0::PG;

/// Bits of CR4 that may be set: those whose feature CPUID offers.
const CR4_BITS: u64 = cr4::TSD
    | cr4::DE
    | cr4::PSE
    | cr4::PAE
    | cr4::PGE
    | cr4::PCE
    | cr4::OSFXSR
    | cr4::OSXMMEXCPT
    | cr4::FSGSBASE
    | cr4::PCIDE
    | cr4::SMEP
    | cr4::SMAP;

/// Changes of these bits of CR4 change what addresses mean.
const CR4_PAGING: u64 = cr4::PSE | cr4::PAE | cr4::PGE | cr4::PCIDE | cr4::SMEP | cr4::SMAP;

/// Bit of a value for CR3, with CR4.PCIDE: translations of its PCID are kept.
const CR3_KEEP: u64 = 1 << 63;

/// Index of DR6 and DR7 in [`Cpu::debug`].
pub const DR6: usize = 4;
const DR7: usize = 5;
/// DR6: a single step.
pub const DR6_BS: u64 = 1 << 14;
/// DR6: access to a debug register while DR7.GD was set.
const DR6_BD: u64 = 1 << 13;
const DR7_GD: u64 = 1 << 13;

impl Cpu {
    /// Writes CR0; enters and leaves IA-32e mode.
    fn write_cr0(&mut self, value: u64) -> Result<(), Trap> {
        let paging = value & cr0::PG != 0;
        let protected = value & cr0::PE != 0;
        if value >> 32 != 0 || (paging && !protected) || value & (cr0::CD | cr0::NW) == cr0::NW {
            return Err(self.protection(0));
        }
        if paging && !self.paging() && self.efer & efer::LME != 0 {
            if self.cr4 & cr4::PAE == 0 || self.segments[seg::CS].rights & rights::LONG != 0 {
                return Err(self.protection(0));
            }
            self.efer |= efer::LMA;
        } else if !paging && self.long_mode() {
            if self.code_size == CodeSize::Bits64 || self.cr4 & cr4::PCIDE != 0 {
                return Err(self.protection(0));
            }
            self.efer &= !efer::LMA;
        }
        let changed = self.cr0 ^ value;
        self.cr0 = value & CR0_BITS | cr0::ET;
        if changed & (cr0::PG | cr0::PE | cr0::WP) != 0 {
            self.flush_tlb();
        }
        self.refresh();
        Ok(())
    }

    /// Writes CR3. With CR4.PCIDE the low bits choose whose translations apply, and bit 63 keeps what is known of them
    /// (SDM vol. 3A §4.10.4.1).
    fn write_cr3(&mut self, value: u64) -> Result<(), Trap> {
        let pcids = self.cr4 & cr4::PCIDE != 0;
        let keep = pcids && value & CR3_KEEP != 0;
        let value = if pcids { value & !CR3_KEEP } else { value };
        if self.long_mode() && value >> PHYS_BITS != 0 {
            return Err(self.protection(0));
        }
        self.cr3 = value;
        let pcid = self.pcid();
        self.enter_pcid(pcid);
        if !keep {
            self.flush_pcid(pcid);
        }
        Ok(())
    }

    /// The current process-context identifier: 0 unless CR4.PCIDE.
    pub fn pcid(&self) -> u16 {
        if self.cr4 & cr4::PCIDE != 0 { (self.cr3 & 0xfff) as u16 } else { 0 }
    }

    /// MOV to CR4, with the checks of what is offered.
    pub fn write_cr4(&mut self, value: u64) -> Result<(), Trap> {
        let allowed = if self.offers_wide().avx { CR4_BITS | cr4::OSXSAVE } else { CR4_BITS };
        if value & !allowed != 0 || (self.long_mode() && value & cr4::PAE == 0) {
            return Err(self.protection(0));
        }
        let changed = self.cr4 ^ value;
        if changed & value & cr4::PCIDE != 0 && (!self.long_mode() || self.cr3 & 0xfff != 0) {
            return Err(self.protection(0));
        }
        self.cr4 = value;
        if changed & CR4_PAGING != 0 {
            self.flush_tlb();
            self.enter_pcid(self.pcid());
        }
        self.refresh();
        Ok(())
    }

    fn write_cr8(&mut self, value: u64) -> Result<(), Trap> {
        if value > 15 {
            return Err(self.protection(0));
        }
        let interrupts = self.interrupts.shared();
        interrupts.apics.local(self.interrupts.id).set_cr8(value);
        self.look_for_interrupts();
        Ok(())
    }

    /// Number of a debug register, with DR4 and DR5 standing for DR6 and DR7 unless CR4.DE forbids it.
    fn debug_index(&mut self, number: u8) -> Result<usize, Trap> {
        if self.debug[DR7] & DR7_GD != 0 {
            self.debug[DR6] |= DR6_BD;
            self.debug[DR7] &= !DR7_GD;
            return Err(self.raise(Fault { vector: vector::DB, error: None, after: false }));
        }
        match number {
            0..=3 => Ok(usize::from(number)),
            4 | 5 if self.cr4 & cr4::DE != 0 => Err(self.undefined()),
            4 | 6 => Ok(DR6),
            5 | 7 => Ok(DR7),
            _ => Err(self.undefined()),
        }
    }

    /// The trap after an instruction that began with RFLAGS.TF set. [`Cpu::rip`] is that of the next one.
    pub fn step_trap(&mut self) -> Trap {
        self.debug[DR6] |= DR6_BS;
        self.raise(Fault { vector: vector::DB, error: None, after: true })
    }
}

/// `mov cr, r`: [`Op::src`] is the control register.
pub fn write_control(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    privileged(cpu)?;
    let value = get(cpu, op)?;
    match op.src {
        0 => cpu.write_cr0(value)?,
        2 => cpu.cr2 = value,
        3 => cpu.write_cr3(value)?,
        4 => cpu.write_cr4(value)?,
        8 => cpu.write_cr8(value)?,
        _ => return Err(cpu.undefined()),
    }
    leave(cpu, op)
}

/// `mov r, cr`
pub fn read_control(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    privileged(cpu)?;
    let value = match op.src {
        0 => cpu.cr0,
        2 => cpu.cr2,
        3 => cpu.cr3,
        4 => cpu.cr4,
        8 => cpu.interrupts.shared().apics.local(cpu.interrupts.id).cr8(),
        _ => return Err(cpu.undefined()),
    };
    put(cpu, op, value)?;
    Ok(Flow::Next)
}

/// `mov dr, r`
pub fn write_debug(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    privileged(cpu)?;
    let value = get(cpu, op)?;
    let index = cpu.debug_index(op.src)?;
    if index >= DR6 && value >> 32 != 0 {
        return Err(cpu.protection(0));
    }
    cpu.debug[index] = match index {
        DR6 => value & 0xe00f | 0xffff_0ff0,
        DR7 => value & 0xffff_2bff | 0x400,
        _ => value,
    };
    cpu.debug_changed();
    leave(cpu, op)
}

/// `mov r, dr`
pub fn read_debug(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    privileged(cpu)?;
    let index = cpu.debug_index(op.src)?;
    put(cpu, op, cpu.debug[index])?;
    Ok(Flow::Next)
}

/// `clts`
pub fn clts(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    privileged(cpu)?;
    cpu.cr0 &= !cr0::TS;
    cpu.refresh();
    leave(cpu, op)
}

/// `lmsw`: PE can be set, not cleared.
pub fn lmsw(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    privileged(cpu)?;
    let value = get(cpu, op)? & 0xf;
    let cr0 = cpu.cr0 & !0xe | value | cpu.cr0 & cr0::PE;
    cpu.write_cr0(cr0)?;
    leave(cpu, op)
}

/// `smsw`
pub fn smsw(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    put(cpu, op, cpu.cr0)?;
    Ok(Flow::Next)
}

/// `invlpg`
pub fn invlpg(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    privileged(cpu)?;
    let linear = cpu.address(op);
    if !cpu.long_mode() || canonical(linear) {
        cpu.flush_page(linear);
    }
    leave(cpu, op)
}

/// `invpcid`: the kind is in register [`Op::src`].
pub fn invpcid(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    privileged(cpu)?;
    let kind = get_kind(cpu, op);
    let at = cpu.address(op);
    let descriptor = cpu.load::<u128>(at)?;
    let (low, linear) = (descriptor as u64, (descriptor >> 64) as u64);
    let pcid = (low & 0xfff) as u16;
    let chosen = kind <= 1;
    let without = cpu.cr4 & cr4::PCIDE == 0;
    if kind > 3 || low > 0xfff || (chosen && without && pcid != 0) || (kind == 0 && !canonical(linear)) {
        return Err(cpu.protection(0));
    }
    match kind {
        0 => cpu.flush_pcid_page(linear, pcid),
        1 => cpu.flush_pcid(pcid),
        2 => cpu.flush_tlb(),
        _ => cpu.flush_local(),
    }
    leave(cpu, op)
}

fn get_kind(cpu: &Cpu, op: &Op) -> u64 {
    let value = cpu.regs[usize::from(op.src & 15)];
    if cpu.code_size == CodeSize::Bits64 { value } else { value & 0xffff_ffff }
}

/// `wbinvd`, `invd`: there are no caches to write back.
pub fn write_back(cpu: &mut Cpu, _op: &Op) -> Result<Flow, Trap> {
    privileged(cpu)?;
    Ok(Flow::Next)
}

/// `clflush`: faults as a load of one byte does.
pub fn clflush(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    let linear = cpu.address(op);
    cpu.translate(linear, crate::mem::Access::Read)?;
    Ok(Flow::Next)
}
