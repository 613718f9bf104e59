//! FXSAVE, FXRSTOR, MXCSR, fences and cache hints.
//!
//! Of the pointers to the last x87 instruction only the offsets are kept; the selectors read as 0, as on
//! processors that deprecate them (CPUID.7.0:EBX bit 13).
//!
//! Spec: SDM vol. 1 §10.5, vol. 2 FXSAVE, FXRSTOR, LDMXCSR.

use std::sync::atomic::{Ordering, fence};

use iced_x86::{Code, Mnemonic};

use crate::cpu::{CodeSize, Cpu};
use crate::op::{Flow, Handler, Op};
use crate::trap::Trap;

/// Bits of MXCSR that exist; what FXSAVE stores as MXCSR_MASK.
const MXCSR_MASK: u32 = 0xffff;
/// Where the reserved and software-available end of the image begins.
const RESERVED: usize = 416;
/// Where XMM8 is: outside 64-bit mode the image ends here.
const XMM8: usize = 288;

impl Cpu {
    /// Address of an FXSAVE image, or #NM, or #GP(0) for one that is not aligned to 16.
    fn image_address(&mut self, op: &Op) -> Result<u64, Trap> {
        self.pass(self.gate.fxsave)?;
        let linear = self.address(op);
        if linear & 15 != 0 { Err(self.protection(0)) } else { Ok(linear) }
    }

    /// How much of the image the current mode has registers for.
    fn image_end(&self) -> usize {
        if self.code_size == CodeSize::Bits64 { RESERVED } else { XMM8 }
    }

    fn save_image<const WIDE: bool>(&mut self, op: &Op) -> Result<Flow, Trap> {
        let linear = self.image_address(op)?;
        let mut image = self.fx.0;
        image[5] = 0;
        if !WIDE {
            image[12..16].fill(0);
            image[20..24].fill(0);
        }
        image[28..32].copy_from_slice(&MXCSR_MASK.to_le_bytes());
        (0..8).for_each(|n| image[42 + 16 * n..48 + 16 * n].fill(0));
        self.write_linear(linear, &image[..self.image_end()])?;
        Ok(Flow::Next)
    }

    fn restore_image<const WIDE: bool>(&mut self, op: &Op) -> Result<Flow, Trap> {
        let linear = self.image_address(op)?;
        let mut image = [0; 512];
        self.read_linear(linear, &mut image)?;
        let mxcsr = u32::from_le_bytes([image[24], image[25], image[26], image[27]]);
        if mxcsr & !MXCSR_MASK != 0 {
            return Err(self.protection(0));
        }
        if !WIDE {
            image[12..16].fill(0);
            image[20..24].fill(0);
        }
        let end = self.image_end();
        self.fx.0[..end].copy_from_slice(&image[..end]);
        self.settle_x87();
        Ok(Flow::Next)
    }
}

fn ldmxcsr(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.pass(cpu.gate.sse)?;
    let value = cpu.load::<u32>(cpu.address(op))?;
    if value & !MXCSR_MASK != 0 {
        return Err(cpu.protection(0));
    }
    *cpu.mxcsr() = value;
    Ok(Flow::Next)
}

fn stmxcsr(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.pass(cpu.gate.sse)?;
    let value = *cpu.mxcsr();
    cpu.store(cpu.address(op), value)?;
    Ok(Flow::Next)
}

fn ordering(_cpu: &mut Cpu, _op: &Op) -> Result<Flow, Trap> {
    fence(Ordering::SeqCst);
    Ok(Flow::Next)
}

/// CLFLUSH: faults as a load does; there is no cache to flush.
fn flush(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.load::<u8>(cpu.address(op))?;
    Ok(Flow::Next)
}

fn hint(_cpu: &mut Cpu, _op: &Op) -> Result<Flow, Trap> {
    Ok(Flow::Next)
}

/// The handler of an instruction of this file.
pub fn find(code: Code) -> Option<[Handler; 2]> {
    let run: Handler = match code.mnemonic() {
        Mnemonic::Fxsave => Cpu::save_image::<false>,
        Mnemonic::Fxsave64 => Cpu::save_image::<true>,
        Mnemonic::Fxrstor => Cpu::restore_image::<false>,
        Mnemonic::Fxrstor64 => Cpu::restore_image::<true>,
        Mnemonic::Ldmxcsr => ldmxcsr,
        Mnemonic::Stmxcsr => stmxcsr,
        Mnemonic::Lfence | Mnemonic::Mfence | Mnemonic::Sfence => ordering,
        Mnemonic::Clflush => flush,
        Mnemonic::Prefetchnta
        | Mnemonic::Prefetcht0
        | Mnemonic::Prefetcht1
        | Mnemonic::Prefetcht2
        | Mnemonic::Prefetch
        | Mnemonic::Prefetchw => hint,
        _ => return None,
    };
    Some([run, run])
}
