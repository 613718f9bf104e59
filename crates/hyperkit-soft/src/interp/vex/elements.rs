//! Instructions that access memory element by element: gathers, and loads and stores under a mask.
//!
//! A fault in the middle of a gather leaves the elements before it loaded and their mask cleared (SDM vol. 2,
//! VPGATHERDD); elements that the mask leaves out are not accessed.

use iced_x86::{Instruction, Mnemonic as M, OpKind, Register};

use crate::cpu::Cpu;
use crate::decode::{Context, operand};
use crate::op::{Flow, Handler, Op, ZERO};
use crate::trap::Trap;

/// In [`Op::imm`] of a gather: 32 bytes of indices or elements, whichever are more; otherwise 16.
const WIDE: u64 = 1;

/// Element `n` of `bytes` bytes.
fn element(vector: &[u8], n: usize, bytes: usize) -> u64 {
    let mut value = [0; 8];
    value[..bytes].copy_from_slice(&vector[n * bytes..(n + 1) * bytes]);
    u64::from_le_bytes(value)
}

/// Gathers elements of `ELEMENT` bytes into `dst`, by indices of `INDEX` bytes in vector register `src`, under the mask
/// in `aux`.
fn gather<const INDEX: usize, const ELEMENT: usize>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.pass(cpu.gate.avx)?;
    if op.dst == op.src || op.dst == op.aux || op.src == op.aux {
        return Err(cpu.undefined());
    }
    let wide = if op.imm & WIDE != 0 { 32 } else { 16 };
    let count = wide / INDEX.max(ELEMENT);
    let indices = cpu.ymm(op.src);
    for n in 0..count {
        let mut mask = cpu.ymm(op.aux);
        let top = mask[(n + 1) * ELEMENT - 1] & 0x80 != 0;
        if top {
            let index = element(&indices, n, INDEX);
            let index = if INDEX == 4 { index as i32 as i64 as u64 } else { index };
            let linear = indexed(cpu, op, index);
            let value = if ELEMENT == 4 { cpu.load::<u32>(linear)?.into() } else { cpu.load::<u64>(linear)? };
            let mut destination = cpu.ymm(op.dst);
            destination[n * ELEMENT..(n + 1) * ELEMENT].copy_from_slice(&value.to_le_bytes()[..ELEMENT]);
            cpu.set_ymm(op.dst, &destination);
        }
        mask[n * ELEMENT..(n + 1) * ELEMENT].fill(0);
        cpu.set_ymm(op.aux, &mask);
    }
    let mut destination = cpu.ymm(op.dst);
    destination[count * ELEMENT..].fill(0);
    cpu.set_ymm(op.dst, &destination);
    cpu.set_ymm(op.aux, &[0; 32]);
    Ok(Flow::Next)
}

/// The address of a memory operand with an index that is no general register.
fn indexed(cpu: &mut Cpu, op: &Op, index: u64) -> u64 {
    // As an op with the index in its displacement would have it: the sum is the same in every width.
    let with_index = Op { index: ZERO, ..*op };
    let offset = cpu.offset(&with_index).wrapping_add(index << (op.scale & 3));
    let offset = if op.addr_bits == 64 { offset } else { offset & 0xffff_ffff };
    cpu.linear_of(op.seg, offset)
}

/// Loads the elements whose mask has its top bit set; zeros for the others.
fn load<const ELEMENT: usize>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.pass(cpu.gate.avx)?;
    let bytes = op.imm as usize;
    let mask = cpu.ymm(op.src);
    let linear = cpu.address(op);
    let mut value = [0; 32];
    for n in (0..bytes / ELEMENT).filter(|n| mask[(n + 1) * ELEMENT - 1] & 0x80 != 0) {
        let at = n * ELEMENT;
        cpu.load_vector(linear.wrapping_add(at as u64), &mut value[at..at + ELEMENT])?;
    }
    cpu.set_ymm(op.dst, &value);
    Ok(Flow::Next)
}

/// Stores the elements of `dst` whose mask in `src` has its top bit set.
fn store<const ELEMENT: usize>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    cpu.pass(cpu.gate.avx)?;
    let bytes = op.imm as usize;
    let (value, mask) = (cpu.ymm(op.dst), cpu.ymm(op.src));
    let linear = cpu.address(op);
    let chosen = || (0..bytes / ELEMENT).filter(|n| mask[(n + 1) * ELEMENT - 1] & 0x80 != 0);
    for n in chosen() {
        cpu.probe_write(linear.wrapping_add((n * ELEMENT) as u64), ELEMENT as u64)?;
    }
    for n in chosen() {
        let at = n * ELEMENT;
        cpu.write_linear(linear.wrapping_add(at as u64), &value[at..at + ELEMENT])?;
    }
    Ok(Flow::Next)
}

/// The op of an instruction of this file; `None` for any other.
pub fn lower(instruction: &Instruction, context: &Context) -> Option<Op> {
    let run: Handler = match instruction.mnemonic() {
        M::Vgatherdps | M::Vpgatherdd => gather::<4, 4>,
        M::Vgatherdpd | M::Vpgatherdq => gather::<4, 8>,
        M::Vgatherqps | M::Vpgatherqd => gather::<8, 4>,
        M::Vgatherqpd | M::Vpgatherqq => gather::<8, 8>,
        M::Vmaskmovps | M::Vpmaskmovd => return masked(instruction, context, [load::<4>, store::<4>]),
        M::Vmaskmovpd | M::Vpmaskmovq => return masked(instruction, context, [load::<8>, store::<8>]),
        _ => return None,
    };
    let index = instruction.memory_index();
    let mut op = operand::op(run, instruction, context);
    if instruction.memory_base() == Register::None {
        op.addr_bits = if instruction.memory_displ_size() == 8 { 64 } else { 32 };
    }
    op.index = ZERO;
    op.dst = operand::register(instruction.op0_register());
    op.src = operand::register(index);
    op.aux = operand::register(instruction.op2_register());
    op.imm = if index.is_ymm() || instruction.op0_register().is_ymm() { WIDE } else { 0 };
    Some(op)
}

fn masked(instruction: &Instruction, context: &Context, pair: [Handler; 2]) -> Option<Op> {
    let stores = instruction.op0_kind() == OpKind::Memory;
    let mut op = operand::op(pair[usize::from(stores)], instruction, context);
    let (value, mask) = if stores {
        (instruction.op2_register(), instruction.op1_register())
    } else {
        (instruction.op0_register(), instruction.op1_register())
    };
    op.dst = operand::register(value);
    op.src = operand::register(mask);
    op.imm = if value.is_ymm() { 32 } else { 16 };
    Some(op)
}
