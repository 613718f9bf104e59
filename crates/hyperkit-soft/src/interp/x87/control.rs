//! Control and state of the x87 unit: everything that needs no arithmetic.
//!
//! Spec: SDM vol. 1 §8.1, vol. 2 FLDENV, FNSAVE, FNSTENV and their figures 8-9 to 8-12.

use iced_x86::{Code, Mnemonic};

use crate::cpu::Cpu;
use crate::op::{Flow, Handler, Op};
use crate::trap::{Trap, vector};

/// Offset of the abridged tag word in the FXSAVE image.
const FTW: usize = 4;
/// Offset of FIP.
const FIP: usize = 8;
/// Offset of FDP.
const FDP: usize = 16;
/// Offset of ST0.
const ST: usize = 32;
/// Exception flags in the status word, masks in the control word.
const EXCEPTIONS: u16 = 0x3f;
/// ES and B.
const PENDING: u16 = 0x8080;
/// IE to PE, SF, ES and B: what FNCLEX clears.
const CLEARED: u16 = 0x80ff;
/// Bits of the control word that can be written.
const FCW_WRITABLE: u16 = 0x1f3f;
/// A bit of the control word that is always 1.
const FCW_ONE: u16 = 0x40;

impl Cpu {
    /// The control word.
    pub(super) fn fcw(&self) -> u16 {
        u16::from_le_bytes([self.fx.0[0], self.fx.0[1]])
    }

    fn set_fcw(&mut self, value: u16) {
        self.fx.0[..2].copy_from_slice(&((value & FCW_WRITABLE) | FCW_ONE).to_le_bytes());
    }

    /// Sets the status word. The image has the registers by their distance from TOP, so that they move if TOP does.
    fn set_fsw(&mut self, value: u16) {
        let up = usize::from((self.fsw() >> 11).wrapping_sub(value >> 11) & 7);
        if up != 0 {
            self.fx.0[ST..ST + 128].rotate_right(16 * up);
        }
        self.fx.0[2..4].copy_from_slice(&value.to_le_bytes());
    }

    /// Sets ES and B to what the flags and masks make them, after either was loaded.
    pub(in crate::interp) fn settle_x87(&mut self) {
        self.set_fcw(self.fcw());
        let quiet = self.fsw() & !PENDING;
        let pending = quiet & !self.fcw() & EXCEPTIONS != 0;
        self.set_fsw(if pending { quiet | PENDING } else { quiet });
    }

    /// Raises what keeps a waiting x87 instruction from running: #NM, or #MF for a pending exception.
    #[inline(always)]
    pub(super) fn pass_x87(&mut self) -> Result<(), Trap> {
        self.pass(self.gate.x87)?;
        if self.fsw() & !self.fcw() & EXCEPTIONS != 0 { Err(self.plain_fault(vector::MF)) } else { Ok(()) }
    }

    /// The state that FNINIT leaves; data registers keep their contents but are empty.
    fn initialise_x87(&mut self) {
        self.set_fsw(0);
        self.fx.0[..24].fill(0);
        self.set_fcw(0x37f);
    }

    /// The tag word with two bits a register: 0 valid, 1 zero, 2 special, 3 empty.
    fn full_tags(&self) -> u16 {
        let top = usize::from(self.fsw() >> 11 & 7);
        (0..8).rev().fold(0, |tags, physical| {
            let offset = ST + 16 * ((physical + 8 - top) & 7);
            let empty = self.fx.0[FTW] >> physical & 1 == 0;
            tags << 2 | if empty { 3 } else { tag(&self.fx.0[offset..offset + 10]) }
        })
    }

    fn set_full_tags(&mut self, tags: u16) {
        self.fx.0[FTW] = (0..8).fold(0, |abridged, n| abridged | u8::from(tags >> (2 * n) & 3 != 3) << n);
    }

    fn pointer(&self, offset: usize) -> u32 {
        u32::from_le_bytes([
            self.fx.0[offset],
            self.fx.0[offset + 1],
            self.fx.0[offset + 2],
            self.fx.0[offset + 3],
        ])
    }

    fn set_pointer(&mut self, offset: usize, value: u32) {
        self.fx.0[offset..offset + 8].copy_from_slice(&u64::from(value).to_le_bytes());
    }

    /// Whether pointers are stored as 20-bit linear addresses.
    fn pointers_are_linear(&self) -> bool {
        self.cr0 & 1 == 0 || self.flags.rest & crate::flags::bit::VM != 0
    }

    /// The environment as FNSTENV stores it: 28 bytes, or 14.
    fn environment<const BYTES: usize>(&self) -> [u8; BYTES] {
        let (fip, fdp) = (self.pointer(FIP), self.pointer(FDP));
        let mut fields = [u32::from(self.fcw()), self.fsw().into(), self.full_tags().into(), fip, 0, fdp, 0];
        let mut bytes = [0; BYTES];
        if BYTES == 28 {
            if self.pointers_are_linear() {
                (fields[3], fields[4]) = (fip & 0xffff, fip >> 16 << 12);
                (fields[5], fields[6]) = (fdp & 0xffff, fdp >> 16 << 12);
            }
            (0..3).for_each(|n| fields[n] |= 0xffff_0000);
            fields[6] |= if self.pointers_are_linear() { 0 } else { 0xffff_0000 };
            bytes
                .chunks_exact_mut(4)
                .zip(fields)
                .for_each(|(to, field)| to.copy_from_slice(&field.to_le_bytes()));
        } else {
            if self.pointers_are_linear() {
                (fields[4], fields[6]) = (fip >> 16 << 12, fdp >> 16 << 12);
            }
            let short = |field: u32| (field as u16).to_le_bytes();
            bytes.chunks_exact_mut(2).zip(fields).for_each(|(to, field)| to.copy_from_slice(&short(field)));
        }
        bytes
    }

    fn set_environment(&mut self, bytes: &[u8]) {
        let size = bytes.len() / 7;
        let field = |n: usize| -> u32 {
            bytes[n * size..(n + 1) * size].iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte))
        };
        let linear = self.pointers_are_linear();
        let whole = |low: u32, high: u32| if linear { (low & 0xffff) | high >> 12 << 16 } else { low };
        self.set_fcw(field(0) as u16);
        self.set_fsw(field(1) as u16);
        self.set_full_tags(field(2) as u16);
        self.set_pointer(FIP, whole(field(3), field(4)));
        self.set_pointer(FDP, whole(field(5), field(6)));
        self.settle_x87();
    }
}

/// Tag of a register that is not empty: 0 valid, 1 zero, 2 special (NaN, infinity, denormal, unsupported).
fn tag(register: &[u8]) -> u16 {
    let exponent = u16::from_le_bytes([register[8], register[9]]) & 0x7fff;
    match (exponent, register[7] & 0x80 != 0) {
        (0, _) if register[..8].iter().all(|byte| *byte == 0) => 1,
        (0 | 0x7fff, _) | (_, false) => 2,
        _ => 0,
    }
}

fn wait(cpu: &mut Cpu, _op: &Op) -> Result<Flow, Trap> {
    cpu.pass(cpu.gate.wait)?;
    if cpu.fsw() & !cpu.fcw() & EXCEPTIONS != 0 {
        return Err(cpu.plain_fault(vector::MF));
    }
    Ok(Flow::Next)
}

/// FNOP: waits, and does nothing.
fn fnop(cpu: &mut Cpu, _op: &Op) -> Result<Flow, Trap> {
    cpu.pass_x87()?;
    Ok(Flow::Next)
}

/// Instructions of the 8087 and 80287 that mean nothing any more.
fn nothing(cpu: &mut Cpu, _op: &Op) -> Result<Flow, Trap> {
    cpu.pass(cpu.gate.x87)?;
    Ok(Flow::Next)
}

fn fninit(cpu: &mut Cpu, _op: &Op) -> Result<Flow, Trap> {
    cpu.pass(cpu.gate.x87)?;
    cpu.initialise_x87();
    Ok(Flow::Next)
}

fn fnclex(cpu: &mut Cpu, _op: &Op) -> Result<Flow, Trap> {
    cpu.pass(cpu.gate.x87)?;
    cpu.set_fsw(cpu.fsw() & !CLEARED);
    Ok(Flow::Next)
}

fn fldcw(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.pass_x87()?;
    let value = cpu.load::<u16>(cpu.address(op))?;
    cpu.set_fcw(value);
    cpu.settle_x87();
    Ok(Flow::Next)
}

fn fnstcw(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.pass(cpu.gate.x87)?;
    cpu.store(cpu.address(op), cpu.fcw())?;
    Ok(Flow::Next)
}

fn fnstsw(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.pass(cpu.gate.x87)?;
    cpu.store(cpu.address(op), cpu.fsw())?;
    Ok(Flow::Next)
}

fn fnstsw_ax(cpu: &mut Cpu, _op: &Op) -> Result<Flow, Trap> {
    cpu.pass(cpu.gate.x87)?;
    cpu.regs[0] = (cpu.regs[0] & !0xffff) | u64::from(cpu.fsw());
    Ok(Flow::Next)
}

fn fnstenv<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.pass(cpu.gate.x87)?;
    cpu.write_linear(cpu.address(op), &cpu.environment::<BYTES>())?;
    cpu.set_fcw(cpu.fcw() | EXCEPTIONS);
    cpu.settle_x87();
    Ok(Flow::Next)
}

fn fldenv<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.pass_x87()?;
    let mut bytes = [0; BYTES];
    cpu.read_linear(cpu.address(op), &mut bytes)?;
    cpu.set_environment(&bytes);
    Ok(Flow::Next)
}

fn fnsave<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.pass(cpu.gate.x87)?;
    let mut image = [0; 28 + 80];
    image[..BYTES].copy_from_slice(&cpu.environment::<BYTES>());
    for n in 0..8 {
        image[BYTES + 10 * n..][..10].copy_from_slice(&cpu.fx.0[ST + 16 * n..][..10]);
    }
    cpu.write_linear(cpu.address(op), &image[..BYTES + 80])?;
    fninit(cpu, op)
}

fn frstor<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.pass_x87()?;
    let mut image = [0; 28 + 80];
    cpu.read_linear(cpu.address(op), &mut image[..BYTES + 80])?;
    cpu.set_environment(&image[..BYTES]);
    for n in 0..8 {
        cpu.fx.0[ST + 16 * n..][..10].copy_from_slice(&image[BYTES + 10 * n..][..10]);
    }
    Ok(Flow::Next)
}

fn emms(cpu: &mut Cpu, _op: &Op) -> Result<Flow, Trap> {
    cpu.pass_mmx()?;
    cpu.enter_mmx();
    cpu.fx.0[FTW] = 0;
    Ok(Flow::Next)
}

/// The handler of a control instruction.
pub fn find(code: Code) -> Option<Handler> {
    Some(match code {
        Code::Wait => wait,
        Code::Fnop => fnop,
        Code::Fninit => fninit,
        Code::Fnclex => fnclex,
        Code::Fldcw_m2byte => fldcw,
        Code::Fnstcw_m2byte => fnstcw,
        Code::Fnstsw_m2byte => fnstsw,
        Code::Fnstsw_AX => fnstsw_ax,
        Code::Fnstenv_m14byte => fnstenv::<14>,
        Code::Fnstenv_m28byte => fnstenv::<28>,
        Code::Fldenv_m14byte => fldenv::<14>,
        Code::Fldenv_m28byte => fldenv::<28>,
        Code::Fnsave_m94byte => fnsave::<14>,
        Code::Fnsave_m108byte => fnsave::<28>,
        Code::Frstor_m94byte => frstor::<14>,
        Code::Frstor_m108byte => frstor::<28>,
        Code::Emms => emms,
        _ if matches!(code.mnemonic(), Mnemonic::Fneni | Mnemonic::Fndisi | Mnemonic::Fnsetpm) => nothing,
        _ => return None,
    })
}
