//! Executing an instruction through its stub, and those that need none.
//!
//! What is said of exceptions in `sse::float` holds here: with the control bits of MXCSR not at their default the
//! instruction runs with every exception masked, and the flags that it set are compared with the masks afterwards.

use std::arch::asm;

use iced_x86::{Code, Mnemonic};

use super::stubs::{Frame, Result as To, Stub};
use crate::cpu::{CodeSize, Cpu};
use crate::op::{Flow, Op};
use crate::trap::{Trap, vector};

/// Where an operand comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Not a register.
    Nowhere,
    /// A vector register.
    Vector,
    /// A general register.
    General,
}

/// The numbers of a result that underflow can make too small.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tiny {
    /// None.
    Never,
    /// So many of half precision.
    Halves(u8),
    /// So many of single precision.
    Singles(u8),
    /// So many of double precision.
    Doubles(u8),
}

/// What is the same for all instructions that use a stub.
#[derive(Debug)]
pub struct Shape {
    /// Does it.
    pub stub: Stub,
    /// What becomes of the result.
    pub result: To,
    /// The operands by number. Their registers: [`Op::dst`], the low and the high half of [`Op::src`], [`Op::aux`].
    pub places: [Place; 4],
    /// Bytes of the memory operand, 0 if there is none.
    pub bytes: u8,
    /// #GP(0) unless the memory operand is aligned to its size.
    pub aligned: bool,
    /// What unmasked underflow asks.
    pub tiny: Tiny,
}

/// Bits of MXCSR: the exception masks; those and what says how to compute; the exception flags; IE, DE and ZE, found
/// before computing; UE; FTZ.
const MASKS: u32 = 0x1f80;
const CONTROL: u32 = 0xffc0;
const RAISED: u32 = 0x3f;
const BEFORE: u32 = 0x7;
const UNDERFLOW: u32 = 0x10;
const FLUSH: u32 = 0x8000;
const CR4_OSXMMEXCPT: u64 = 1 << 10;

fn number(op: &Op, operand: usize) -> u8 {
    match operand {
        0 => op.dst,
        1 => op.src & 15,
        2 => op.src >> 4,
        _ => op.aux & 15,
    }
}

/// Executes an instruction; [`Op::imm`] is the address of its [`Shape`].
pub fn run(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.pass(cpu.gate.avx)?;
    // SAFETY: `lower` put the address of a shape there that is never freed.
    let shape = unsafe { &*(op.imm as *const Shape) };
    let mut frame = Frame { vectors: [[0; 32]; 4], memory: [0; 64], general: 0, flags: 0, mxcsr: 0 };
    let linear = if shape.bytes != 0 { cpu.address(op) } else { 0 };
    let bytes = usize::from(shape.bytes);
    if shape.aligned && bytes != 0 && !linear.is_multiple_of(bytes as u64) {
        return Err(cpu.protection(0));
    }
    if shape.result == To::Memory {
        cpu.probe_write(linear, bytes as u64)?;
    } else if bytes != 0 {
        cpu.load_vector(linear, &mut frame.memory[..bytes])?;
    }
    for (operand, place) in shape.places.iter().enumerate() {
        match place {
            Place::Nowhere => {}
            Place::Vector => frame.vectors[operand] = cpu.ymm(number(op, operand)),
            Place::General => frame.general = cpu.regs[usize::from(number(op, operand))],
        }
    }
    call(cpu, shape, &mut frame)?;
    match shape.result {
        To::Flags => cpu.flags.set_arithmetic(frame.flags),
        To::Vector => cpu.set_ymm(op.dst, &frame.vectors[0]),
        To::General => cpu.regs[usize::from(op.dst & 15)] = frame.general,
        To::Memory => cpu.write_linear(linear, &frame.memory[..bytes])?,
    }
    Ok(Flow::Next)
}

/// Calls the stub under the guest's MXCSR; #XM (#UD if the system does not expect #XM).
#[inline]
fn call(cpu: &mut Cpu, shape: &Shape, frame: &mut Frame) -> Result<(), Trap> {
    let guest = *cpu.mxcsr();
    if guest & CONTROL == MASKS {
        frame.mxcsr = guest;
        // SAFETY: the frame is whole, and MXCSR has no reserved bit set and masks every exception.
        unsafe { (shape.stub)(frame) };
        *cpu.mxcsr() = frame.mxcsr;
        return Ok(());
    }
    frame.mxcsr = (guest & CONTROL & !FLUSH) | MASKS;
    if guest & FLUSH != 0 && guest & (UNDERFLOW << 7) != 0 {
        frame.mxcsr |= FLUSH; // FTZ acts only while underflow is masked
    }
    // SAFETY: as above.
    unsafe { (shape.stub)(frame) };
    let default: u32 = MASKS;
    // SAFETY: loads the value that Rust code expects, from 4 readable bytes.
    unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const default, options(nostack, readonly)) };
    let unmasked = !(guest >> 7) & RAISED;
    let mut flags = frame.mxcsr & RAISED;
    if unmasked & UNDERFLOW != 0 && is_tiny(shape, frame) {
        flags |= UNDERFLOW; // an exact tiny result is reported only to those who unmasked it
    }
    if flags & unmasked & BEFORE != 0 {
        flags &= BEFORE;
    }
    *cpu.mxcsr() |= flags;
    if flags & unmasked == 0 {
        return Ok(());
    }
    let expected = cpu.cr4 & CR4_OSXMMEXCPT != 0;
    Err(cpu.plain_fault(if expected { vector::XM } else { vector::UD }))
}

fn is_tiny(shape: &Shape, frame: &Frame) -> bool {
    let value = if shape.result == To::Memory { &frame.memory[..32] } else { &frame.vectors[0] };
    match shape.tiny {
        Tiny::Never => false,
        Tiny::Halves(count) => value.as_chunks::<2>().0.iter().take(count.into()).any(|bytes| {
            let half = u16::from_le_bytes(*bytes);
            half & 0x7c00 == 0 && half & 0x3ff != 0
        }),
        Tiny::Singles(count) => {
            let mut lanes = value.as_chunks::<4>().0.iter().take(count.into());
            lanes.any(|bytes| f32::from_le_bytes(*bytes).is_subnormal())
        }
        Tiny::Doubles(count) => {
            let mut lanes = value.as_chunks::<8>().0.iter().take(count.into());
            lanes.any(|bytes| f64::from_le_bytes(*bytes).is_subnormal())
        }
    }
}

impl Cpu {
    /// Loads up to 32 bytes.
    #[inline]
    pub(super) fn load_vector(&mut self, linear: u64, bytes: &mut [u8]) -> Result<(), Trap> {
        let entry = self.tlb_entry(linear);
        let within = linear.wrapping_sub(entry.read);
        if within <= 4096 - bytes.len() as u64 {
            // SAFETY: the tag matched, so `host` is a page of RAM in which so many bytes are left.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    entry.host.add(within as usize),
                    bytes.as_mut_ptr(),
                    bytes.len(),
                );
            }
            return Ok(());
        }
        self.read_linear(linear, bytes)
    }

    /// How many vector registers the mode has.
    fn vector_registers(&self) -> usize {
        if self.code_size == CodeSize::Bits64 { 16 } else { 8 }
    }
}

/// `vzeroupper`
pub fn zero_upper(cpu: &mut Cpu, _op: &Op) -> Result<Flow, Trap> {
    cpu.pass(cpu.gate.avx)?;
    let end = 16 * cpu.vector_registers();
    cpu.upper.0[..end].fill(0);
    Ok(Flow::Next)
}

/// `vzeroall`
pub fn zero_all(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    zero_upper(cpu, op)?;
    let end = 16 * cpu.vector_registers();
    cpu.fx.0[160..160 + end].fill(0);
    Ok(Flow::Next)
}

/// `vldmxcsr`
pub fn load_mxcsr(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.pass(cpu.gate.avx)?;
    let value = cpu.load::<u32>(cpu.address(op))?;
    if value >> 16 != 0 {
        return Err(cpu.protection(0));
    }
    *cpu.mxcsr() = value;
    Ok(Flow::Next)
}

/// `vstmxcsr`
pub fn store_mxcsr(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.pass(cpu.gate.avx)?;
    let value = *cpu.mxcsr();
    cpu.store(cpu.address(op), value)?;
    Ok(Flow::Next)
}

/// The string comparisons: without VEX they differ only in what becomes of the upper half of XMM0. [`Op::aux`] is the
/// place in [`STRINGS`], and [`IN_MEMORY`] with an operand in memory.
pub fn compare_strings(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.pass(cpu.gate.avx)?;
    let (_, code) = STRINGS[usize::from(op.aux & 7)];
    let Some(pair) = crate::interp::sse::strings::find(code) else { return Err(cpu.undefined()) };
    let flow = pair[usize::from(op.aux & IN_MEMORY != 0)](cpu, op)?;
    if matches!(code.mnemonic(), Mnemonic::Pcmpestrm | Mnemonic::Pcmpestrm64 | Mnemonic::Pcmpistrm) {
        cpu.upper.0[..16].fill(0);
    }
    Ok(flow)
}

/// In [`Op::aux`] of a string comparison.
pub const IN_MEMORY: u8 = 0x80;

/// The string comparisons with VEX and without.
pub const STRINGS: [(Code, Code); 6] = [
    (Code::VEX_Vpcmpestrm_xmm_xmmm128_imm8, Code::Pcmpestrm_xmm_xmmm128_imm8),
    (Code::VEX_Vpcmpestrm64_xmm_xmmm128_imm8, Code::Pcmpestrm64_xmm_xmmm128_imm8),
    (Code::VEX_Vpcmpestri_xmm_xmmm128_imm8, Code::Pcmpestri_xmm_xmmm128_imm8),
    (Code::VEX_Vpcmpestri64_xmm_xmmm128_imm8, Code::Pcmpestri64_xmm_xmmm128_imm8),
    (Code::VEX_Vpcmpistrm_xmm_xmmm128_imm8, Code::Pcmpistrm_xmm_xmmm128_imm8),
    (Code::VEX_Vpcmpistri_xmm_xmmm128_imm8, Code::Pcmpistri_xmm_xmmm128_imm8),
];

/// `vmaskmovdqu`: bytes of `dst` whose byte in `src` has its top bit set.
pub fn store_bytes(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.pass(cpu.gate.avx)?;
    let (bytes, mask) = (cpu.ymm(op.dst), cpu.ymm(op.src));
    cpu.store_masked(cpu.address(op), &bytes[..16], &mask[..16])?;
    Ok(Flow::Next)
}
