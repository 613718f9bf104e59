//! Model-specific registers: RDMSR and WRMSR. What is not here is #GP(0), as on a processor without it.

use crate::cpu::{Cpu, seg};
use crate::mmu::walk::PHYS_BITS;
use crate::op::{Flow, Op};
use crate::system::descriptor::canonical;
use crate::system::efer;
use crate::system::operand::{leave, privileged};
use crate::trap::Trap;

/// The registers that are plain storage.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the names are the registers'")]
pub struct Msrs {
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    pub kernel_gs_base: u64,
    pub pat: u64,
    pub misc_enable: u64,
    pub debug_control: u64,
    pub tsc_aux: u64,
    /// What WRMSR to the time-stamp counter has added to it.
    pub tsc_adjust: u64,
    /// The paravirtual clock: address and enable bit.
    pub system_time: u64,
    /// Where the wall clock was last asked for.
    pub wall_clock: u64,
}

/// Write-back, write-through, uncached minus, uncached, twice (SDM vol. 3A §12.12.4).
const PAT_RESET: u64 = 0x0007_0406_0007_0406;
/// Fast strings; no branch trace, no precise event sampling.
const MISC_ENABLE_RESET: u64 = 1 | 1 << 11 | 1 << 12;

impl Default for Msrs {
    fn default() -> Msrs {
        Msrs {
            sysenter_cs: 0,
            sysenter_esp: 0,
            sysenter_eip: 0,
            star: 0,
            lstar: 0,
            cstar: 0,
            sfmask: 0,
            kernel_gs_base: 0,
            pat: PAT_RESET,
            misc_enable: MISC_ENABLE_RESET,
            debug_control: 0,
            tsc_aux: 0,
            tsc_adjust: 0,
            system_time: 0,
            wall_clock: 0,
        }
    }
}

/// Numbers of the registers (SDM vol. 4; the last ones are KVM's).
#[expect(missing_docs, reason = "the names are the SDM's")]
pub mod index {
    pub const TSC: u32 = 0x10;
    pub const PLATFORM_ID: u32 = 0x17;
    pub const APIC_BASE: u32 = 0x1b;
    pub const FEATURE_CONTROL: u32 = 0x3a;
    pub const MICROCODE: u32 = 0x8b;
    pub const ARCH_CAPABILITIES: u32 = 0x10a;
    pub const SYSENTER_CS: u32 = 0x174;
    pub const SYSENTER_ESP: u32 = 0x175;
    pub const SYSENTER_EIP: u32 = 0x176;
    pub const MISC_ENABLE: u32 = 0x1a0;
    pub const DEBUG_CONTROL: u32 = 0x1d9;
    pub const PAT: u32 = 0x277;
    pub const TSC_DEADLINE: u32 = 0x6e0;
    pub const X2APIC_FIRST: u32 = 0x800;
    pub const X2APIC_LAST: u32 = 0x8ff;
    pub const EFER: u32 = 0xc000_0080;
    pub const STAR: u32 = 0xc000_0081;
    pub const LSTAR: u32 = 0xc000_0082;
    pub const CSTAR: u32 = 0xc000_0083;
    pub const SFMASK: u32 = 0xc000_0084;
    pub const FS_BASE: u32 = 0xc000_0100;
    pub const GS_BASE: u32 = 0xc000_0101;
    pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
    pub const TSC_AUX: u32 = 0xc000_0103;
    pub const WALL_CLOCK_OLD: u32 = 0x11;
    pub const SYSTEM_TIME_OLD: u32 = 0x12;
    pub const WALL_CLOCK: u32 = 0x4b56_4d00;
    pub const SYSTEM_TIME: u32 = 0x4b56_4d01;
}

/// The registers that a saved state lists; the others are derived, fixed or elsewhere in the state.
pub const SAVED: [u32; 15] = [
    index::TSC,
    index::SYSENTER_CS,
    index::SYSENTER_ESP,
    index::SYSENTER_EIP,
    index::MISC_ENABLE,
    index::DEBUG_CONTROL,
    index::PAT,
    index::STAR,
    index::LSTAR,
    index::CSTAR,
    index::SFMASK,
    index::KERNEL_GS_BASE,
    index::TSC_AUX,
    index::TSC_DEADLINE,
    index::SYSTEM_TIME,
];

/// IA32_ARCH_CAPABILITIES: nothing here speculates, so none of the known side channels of speculation exist.
/// RDCL_NO, SKIP_L1DFL_VMENTRY, SSB_NO, MDS_NO, PSCHANGE_MC_NO, TAA_NO, SBDR_SSDP_NO, FBSDP_NO, PSDP_NO, BHI_NO,
/// PBRSB_NO, GDS_NO, RFDS_NO.
const ARCH_CAPABILITIES: u64 = 1
    | 1 << 3
    | 1 << 4
    | 1 << 5
    | 1 << 6
    | 1 << 8
    | 1 << 13
    | 1 << 14
    | 1 << 15
    | 1 << 20
    | 1 << 24
    | 1 << 26
    | 1 << 27;

/// Bits of EFER that exist.
const EFER_BITS: u64 = efer::SCE | efer::LME | efer::LMA | efer::NXE;

impl Cpu {
    /// The value of a register; `None` if there is none or it cannot be read.
    pub fn read_msr(&mut self, number: u32) -> Option<u64> {
        let msr = &self.msr;
        Some(match number {
            index::TSC => self.tsc(),
            index::PLATFORM_ID => 0,
            index::FEATURE_CONTROL => 1, // locked, nothing enabled
            index::MICROCODE => 1 << 32,
            index::ARCH_CAPABILITIES => ARCH_CAPABILITIES,
            index::SYSENTER_CS => msr.sysenter_cs,
            index::SYSENTER_ESP => msr.sysenter_esp,
            index::SYSENTER_EIP => msr.sysenter_eip,
            index::MISC_ENABLE => msr.misc_enable,
            index::DEBUG_CONTROL => msr.debug_control,
            index::PAT => msr.pat,
            index::EFER => self.efer,
            index::STAR => msr.star,
            index::LSTAR => msr.lstar,
            index::CSTAR => msr.cstar,
            index::SFMASK => msr.sfmask,
            index::FS_BASE => self.segments[seg::FS].base,
            index::GS_BASE => self.segments[seg::GS].base,
            index::KERNEL_GS_BASE => msr.kernel_gs_base,
            index::TSC_AUX => msr.tsc_aux,
            index::WALL_CLOCK | index::WALL_CLOCK_OLD => msr.wall_clock,
            index::SYSTEM_TIME | index::SYSTEM_TIME_OLD => msr.system_time,
            _ => return self.read_apic_msr(number),
        })
    }

    /// Writes a register; `None` if there is none or it refuses the value.
    pub fn write_msr(&mut self, number: u32, value: u64) -> Option<()> {
        match number {
            index::TSC => {
                self.msr.tsc_adjust = self.msr.tsc_adjust.wrapping_add(value.wrapping_sub(self.tsc()));
                self.publish_clock(self.msr.system_time);
            }
            index::MICROCODE => {} // asks for the revision to be put there, which it is
            index::SYSENTER_CS => self.msr.sysenter_cs = value,
            index::SYSENTER_ESP => self.msr.sysenter_esp = checked_address(value)?,
            index::SYSENTER_EIP => self.msr.sysenter_eip = checked_address(value)?,
            index::MISC_ENABLE => self.msr.misc_enable = value,
            index::DEBUG_CONTROL => self.msr.debug_control = (value & !3 == 0).then_some(value)?,
            index::PAT => self.msr.pat = is_pat(value).then_some(value)?,
            index::EFER => return self.write_efer(value),
            index::STAR => self.msr.star = value,
            index::LSTAR => self.msr.lstar = checked_address(value)?,
            index::CSTAR => self.msr.cstar = checked_address(value)?,
            index::SFMASK => self.msr.sfmask = (value >> 32 == 0).then_some(value)?,
            index::FS_BASE => self.segments[seg::FS].base = checked_address(value)?,
            index::GS_BASE => self.segments[seg::GS].base = checked_address(value)?,
            index::KERNEL_GS_BASE => self.msr.kernel_gs_base = checked_address(value)?,
            index::TSC_AUX => self.msr.tsc_aux = (value >> 32 == 0).then_some(value)?,
            index::WALL_CLOCK | index::WALL_CLOCK_OLD => self.publish_wall_clock(value),
            index::SYSTEM_TIME | index::SYSTEM_TIME_OLD => self.publish_clock(value),
            _ => return self.write_apic_msr(number, value),
        }
        if matches!(number, index::FS_BASE | index::GS_BASE) {
            self.refresh_bases();
        }
        Some(())
    }

    fn write_efer(&mut self, value: u64) -> Option<()> {
        let changes_mode = (self.efer ^ value) & efer::LME != 0;
        if value & !EFER_BITS != 0 || (self.paging() && changes_mode) {
            return None;
        }
        let changed = self.efer ^ value;
        self.efer = value & !efer::LMA | self.efer & efer::LMA;
        if changed & efer::NXE != 0 {
            self.flush_tlb();
        }
        Some(())
    }

    fn read_apic_msr(&mut self, number: u32) -> Option<u64> {
        let local = self.interrupts.shared().apics.local(self.interrupts.id);
        match number {
            index::APIC_BASE => Some(local.base()),
            index::TSC_DEADLINE => Some(local.tsc_deadline()),
            index::X2APIC_FIRST..=index::X2APIC_LAST => local.read_msr(number, self.tsc()).ok(),
            _ => None,
        }
    }

    fn write_apic_msr(&mut self, number: u32, value: u64) -> Option<()> {
        match number {
            index::APIC_BASE if value >> PHYS_BITS == 0 => {
                self.interrupts.shared().apics.local(self.interrupts.id).set_base(value).ok()?;
                self.apic_changed();
            }
            index::TSC_DEADLINE => {
                self.interrupts.shared().apics.local(self.interrupts.id).set_tsc_deadline(value);
                self.apic_changed();
            }
            index::X2APIC_FIRST..=index::X2APIC_LAST => {
                let now = self.tsc();
                let shared = self.interrupts.shared();
                let effect = shared.apics.local(self.interrupts.id).write_msr(number, value, now).ok()?;
                shared.apics.apply(self.interrupts.id, effect);
                self.apic_changed();
            }
            _ => return None,
        }
        Some(())
    }
}

fn checked_address(value: u64) -> Option<u64> {
    canonical(value).then_some(value)
}

/// Whether each byte is a memory type.
fn is_pat(value: u64) -> bool {
    value.to_le_bytes().iter().all(|kind| matches!(kind, 0 | 1 | 4 | 5 | 6 | 7))
}

/// `rdmsr`
pub fn rdmsr(cpu: &mut Cpu, _op: &Op) -> Result<Flow, Trap> {
    privileged(cpu)?;
    let number = cpu.regs[1] as u32;
    let Some(value) = cpu.read_msr(number) else { return Err(cpu.protection(0)) };
    cpu.regs[0] = value & 0xffff_ffff;
    cpu.regs[2] = value >> 32;
    Ok(Flow::Next)
}

/// `wrmsr`
pub fn wrmsr(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    privileged(cpu)?;
    let value = cpu.regs[2] << 32 | cpu.regs[0] & 0xffff_ffff;
    match cpu.write_msr(cpu.regs[1] as u32, value) {
        Some(()) => leave(cpu, op),
        None => Err(cpu.protection(0)),
    }
}
