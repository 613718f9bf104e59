//! XSAVE, XSAVEOPT, XRSTOR, XGETBV and XSETBV, with the components x87, SSE and AVX in the standard format.
//!
//! Spec: SDM vol. 1 ch. 13. x87 and SSE always count as in use; AVX does while an upper half is not zero. XSAVEOPT leaves
//! out what is not in use, and nothing else.

use iced_x86::{Instruction, Mnemonic as M};

use super::component::{ALL, AVX, SSE, X87};
use super::{AREA_BYTES, AVX_AT};
use crate::cpu::{CodeSize, Cpu};
use crate::decode::{Context, operand};
use crate::op::{Flow, Handler, Op};
use crate::system::cr4;
use crate::system::operand::leave;
use crate::trap::{Trap, vector};

/// Where the header is in an area.
const HEADER: usize = 512;

const MXCSR_MASK: u32 = 0xffff;

impl Cpu {
    fn check_xsave(&mut self) -> Result<(), Trap> {
        if self.cr4 & cr4::OSXSAVE == 0 { Err(self.undefined()) } else { Ok(()) }
    }

    /// Where an area is, and which components are asked for.
    fn area(&mut self, op: &Op) -> Result<(u64, u64), Trap> {
        self.check_xsave()?;
        if self.cr0 & crate::system::cr0::TS != 0 {
            return Err(self.plain_fault(vector::NM));
        }
        let linear = self.address(op);
        if !linear.is_multiple_of(64) {
            return Err(self.protection(0));
        }
        let mask = self.regs[2] << 32 | self.regs[0] & 0xffff_ffff;
        Ok((linear, mask & self.xcr0))
    }

    fn registers(&self) -> usize {
        if self.code_size == CodeSize::Bits64 { 16 } else { 8 }
    }

    fn in_use(&self) -> u64 {
        if self.upper.0.iter().any(|byte| *byte != 0) { ALL } else { X87 | SSE }
    }

    /// The x87 part as it is saved: 24 bytes of control, then the registers.
    fn x87_image(&self, wide: bool) -> [u8; 160] {
        let mut image = [0; 160];
        image.copy_from_slice(&self.fx.0[..160]);
        image[5] = 0;
        if !wide {
            image[12..16].fill(0);
            image[20..24].fill(0);
        }
        (0..8).for_each(|n| image[42 + 16 * n..48 + 16 * n].fill(0));
        image
    }

    fn save_area(&mut self, op: &Op, leave_out: bool) -> Result<Flow, Trap> {
        let (linear, wanted) = self.area(op)?;
        let used = self.in_use();
        let written = if leave_out { wanted & used } else { wanted };
        let length = if wanted & AVX != 0 { AREA_BYTES } else { AVX_AT };
        let old: u64 = self.load(linear + HEADER as u64)?;
        self.probe_write(linear, length as u64)?;
        let x87 = self.x87_image(op.aux != 0);
        if written & X87 != 0 {
            self.write_linear(linear, &x87[..24])?;
            self.write_linear(linear + 32, &x87[32..])?;
        }
        if wanted & (SSE | AVX) != 0 {
            let mut control = [0; 8];
            control[..4].copy_from_slice(&self.fx.0[24..28]);
            control[4..].copy_from_slice(&MXCSR_MASK.to_le_bytes());
            self.write_linear(linear + 24, &control)?;
        }
        let bytes = 16 * self.registers();
        if written & SSE != 0 {
            let xmm = self.fx.0;
            self.write_linear(linear + 160, &xmm[160..160 + bytes])?;
        }
        if written & AVX != 0 {
            let upper = self.upper.0;
            self.write_linear(linear + AVX_AT as u64, &upper[..bytes])?;
        }
        self.store(linear + HEADER as u64, old & !wanted | used & wanted)?;
        Ok(Flow::Next)
    }

    fn restore_area(&mut self, op: &Op) -> Result<Flow, Trap> {
        let (linear, wanted) = self.area(op)?;
        let mut area = [0; AREA_BYTES];
        let length = if wanted & AVX != 0 { AREA_BYTES } else { AVX_AT };
        self.read_linear(linear, &mut area[..length])?;
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|n| area[at + n]));
        let present = word(HEADER);
        let reserved = word(HEADER + 8) != 0 || word(HEADER + 16) != 0;
        let mxcsr = word(24) as u32;
        let loads_mxcsr = wanted & (SSE | AVX) != 0;
        if present & !self.xcr0 != 0 || reserved || (loads_mxcsr && mxcsr & !MXCSR_MASK != 0) {
            return Err(self.protection(0));
        }
        if wanted & X87 != 0 {
            self.restore_x87(present & X87 != 0, op.aux != 0, &area);
        }
        if loads_mxcsr {
            self.fx.0[24..28].copy_from_slice(&area[24..28]);
        }
        let bytes = 16 * self.registers();
        if wanted & SSE != 0 {
            let xmm = &mut self.fx.0[160..160 + bytes];
            if present & SSE != 0 { xmm.copy_from_slice(&area[160..160 + bytes]) } else { xmm.fill(0) }
        }
        if wanted & AVX != 0 {
            let upper = &mut self.upper.0[..bytes];
            if present & AVX != 0 {
                upper.copy_from_slice(&area[AVX_AT..AVX_AT + bytes])
            } else {
                upper.fill(0)
            }
        }
        Ok(Flow::Next)
    }

    fn restore_x87(&mut self, present: bool, wide: bool, area: &[u8; AREA_BYTES]) {
        if present {
            self.fx.0[..24].copy_from_slice(&area[..24]);
            self.fx.0[32..160].copy_from_slice(&area[32..160]);
            if !wide {
                self.fx.0[12..16].fill(0);
                self.fx.0[20..24].fill(0);
            }
        } else {
            self.fx.0[..24].fill(0);
            self.fx.0[32..160].fill(0);
            self.fx.0[..2].copy_from_slice(&0x37fu16.to_le_bytes());
        }
        self.settle_x87();
    }
}

fn xsave(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.save_area(op, false)
}

fn xsaveopt(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.save_area(op, true)
}

fn xrstor(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.restore_area(op)
}

fn xgetbv(cpu: &mut Cpu, _op: &Op) -> Result<Flow, Trap> {
    cpu.check_xsave()?;
    if cpu.regs[1] as u32 != 0 {
        return Err(cpu.protection(0));
    }
    let value = cpu.xcr0;
    (cpu.regs[0], cpu.regs[2]) = (value & 0xffff_ffff, value >> 32);
    Ok(Flow::Next)
}

fn xsetbv(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.check_xsave()?;
    let value = cpu.regs[2] << 32 | cpu.regs[0] & 0xffff_ffff;
    let halved = value & AVX != 0 && value & SSE == 0;
    if cpu.cpl != 0 || cpu.regs[1] as u32 != 0 || value & !ALL != 0 || value & X87 == 0 || halved {
        return Err(cpu.protection(0));
    }
    cpu.xcr0 = value;
    cpu.refresh_gate();
    leave(cpu, op)
}

/// The op of an instruction of this file; `None` for any other.
pub fn lower(instruction: &Instruction, context: &Context) -> Option<Op> {
    if !super::offers().avx {
        return None;
    }
    let (run, wide): (Handler, bool) = match instruction.mnemonic() {
        M::Xsave => (xsave, false),
        M::Xsave64 => (xsave, true),
        M::Xsaveopt => (xsaveopt, false),
        M::Xsaveopt64 => (xsaveopt, true),
        M::Xrstor => (xrstor, false),
        M::Xrstor64 => (xrstor, true),
        M::Xgetbv => (xgetbv, false),
        M::Xsetbv => (xsetbv, false),
        _ => return None,
    };
    let mut op = operand::op(run, instruction, context);
    op.aux = wide.into();
    Some(op)
}
