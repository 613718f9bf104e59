//! String instructions: MOVS, STOS, LODS, SCAS, CMPS, alone and repeated.
//!
//! A repeated instruction keeps its progress in RCX, RSI and RDI, so a fault or an interrupt in the middle is
//! resumed by executing it again. Forward MOVS and STOS on RAM move a page at a time. Spec: SDM vol. 1 §7.3.9.

use iced_x86::{Code, Instruction};

use super::width::{Done, Int};
use crate::cpu::{CodeSize, Cpu, seg};
use crate::decode::{Context, operand};
use crate::flags::{Flags, bit};
use crate::op::{Flow, Handler, Op};
use crate::trap::Trap;

const RAX: u8 = 0;
const RCX: u8 = 1;
const RSI: u8 = 6;
const RDI: u8 = 7;

/// `Op::aux`: not repeated.
const ONCE: u8 = 0;
/// `Op::aux`: REP or REPE.
const REPEAT_EQUAL: u8 = 1;
/// `Op::aux`: REPNE, which MOVS, STOS and LODS take as REP.
const REPEAT_NOT_EQUAL: u8 = 2;

/// Elements, or pages, that are moved before the run loop gets a look at interrupts and timers.
const TURNS_MAX: u32 = 256;

/// One of the string instructions.
trait Operation {
    /// Whether ZF can end the repetition.
    const COMPARES: bool = false;

    /// Does one element and moves the pointers.
    fn step<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap>;

    /// Does up to `count` elements the fast way and moves the pointers; how many, 0 if there is no fast way here.
    fn burst<T: Int>(_cpu: &mut Cpu, _op: &Op, _count: u64) -> u64 {
        0
    }
}

struct Movs;
struct Stos;
struct Lods;
struct Scas;
struct Cmps;

/// Bits of a pointer or counter that take part.
fn mask(op: &Op) -> u64 {
    match op.addr_bits {
        16 => 0xffff,
        32 => 0xffff_ffff,
        _ => u64::MAX,
    }
}

/// Writes a pointer or counter: 32-bit writes clear the upper half, 16-bit ones keep the rest.
fn put(cpu: &mut Cpu, register: u8, op: &Op, value: u64) {
    match op.addr_bits {
        16 => u16::set(cpu, register, value as u16),
        32 => u32::set(cpu, register, value as u32),
        _ => cpu.set_reg(register, value),
    }
}

fn is_backward(cpu: &Cpu) -> bool {
    cpu.flags.rest & bit::DF != 0
}

/// Moves a pointer past one element.
fn advance<T: Int>(cpu: &mut Cpu, register: u8, op: &Op) {
    let step = if is_backward(cpu) { T::BYTES.wrapping_neg() } else { T::BYTES };
    let value = cpu.reg(register).wrapping_add(step);
    put(cpu, register, op, value);
}

fn linear(cpu: &Cpu, base: u64, offset: u64) -> u64 {
    let sum = base.wrapping_add(offset);
    if cpu.code_size == CodeSize::Bits64 { sum } else { sum & 0xffff_ffff }
}

/// Linear address of the source element, in DS or the segment of an override.
fn source(cpu: &Cpu, op: &Op) -> u64 {
    linear(cpu, cpu.seg_base[usize::from(op.seg) & 7], cpu.reg(RSI) & mask(op))
}

/// Linear address of the destination element, always in ES.
fn destination(cpu: &Cpu, op: &Op) -> u64 {
    linear(cpu, cpu.seg_base[seg::ES], cpu.reg(RDI) & mask(op))
}

/// The source element against its segment's limit, outside 64-bit mode.
fn check_source<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let offset = cpu.reg(RSI) & mask(op);
    cpu.check_element(usize::from(op.seg), offset, T::BYTES, false)
}

/// The destination element.
fn check_destination<T: Int>(cpu: &mut Cpu, op: &Op, writes: bool) -> Result<(), Trap> {
    let offset = cpu.reg(RDI) & mask(op);
    cpu.check_element(seg::ES, offset, T::BYTES, writes)
}

/// Whether the segments allow everything, so that many elements can be moved at once.
fn may_burst(cpu: &Cpu, op: &Op) -> bool {
    let open = |number: usize| {
        let segment = &cpu.segments[number & 7];
        segment.limit == u32::MAX && segment.rights & 0x8e == 0x82
    };
    cpu.code_size == CodeSize::Bits64 || open(seg::ES) && open(usize::from(op.seg).min(seg::GS))
}

/// How many elements from `linear` lie in its page, and before the pointer wraps.
fn elements_in_page<T: Int>(cpu: &Cpu, register: u8, op: &Op, linear: u64) -> u64 {
    let in_page = 4096 - (linear & 0xfff);
    let before_wrap = (mask(op) - (cpu.reg(register) & mask(op))).saturating_add(1);
    in_page.min(before_wrap) / T::BYTES
}

/// The host address of `len` bytes inside one page of RAM that may be read, if the TLB has it.
fn readable(cpu: &Cpu, linear: u64, len: u64) -> Option<*const u8> {
    let entry = cpu.tlb_entry(linear);
    let within = linear.wrapping_sub(entry.read);
    // SAFETY: the tag matched, so the sum stays inside the page at `host`.
    (within <= 4096 - len).then(|| unsafe { entry.host.add(within as usize) }.cast_const())
}

impl Operation for Movs {
    fn step<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        check_source::<T>(cpu, op)?;
        check_destination::<T>(cpu, op, true)?;
        let value = cpu.load::<T>(source(cpu, op))?;
        cpu.store(destination(cpu, op), value)?;
        advance::<T>(cpu, RSI, op);
        advance::<T>(cpu, RDI, op);
        Ok(())
    }

    fn burst<T: Int>(cpu: &mut Cpu, op: &Op, count: u64) -> u64 {
        let (from, to) = (source(cpu, op), destination(cpu, op));
        let n =
            count.min(elements_in_page::<T>(cpu, RSI, op, from)).min(elements_in_page::<T>(cpu, RDI, op, to));
        let bytes = n * T::BYTES;
        if n < 2 {
            return 0;
        }
        let (Some(read), Some(write)) = (readable(cpu, from, bytes), cpu.writable(to, bytes)) else {
            return 0;
        };
        let ahead = (write as usize).wrapping_sub(read as usize) as u64;
        if ahead == 0 || ahead >= bytes {
            // SAFETY: both ranges are RAM; the destination does not start inside the source, so moving all at once
            // gives what moving one element after the other gives.
            unsafe { std::ptr::copy(read, write, bytes as usize) };
        } else {
            for at in (0..bytes as usize).step_by(T::BYTES as usize) {
                // SAFETY: `at + BYTES` is within both ranges; overlapping elements repeat, as they must.
                let value = unsafe { read.add(at).cast::<T>().read_unaligned() };
                // SAFETY: as above.
                unsafe { write.add(at).cast::<T>().write_unaligned(value) };
            }
        }
        let (si, di) = (cpu.reg(RSI).wrapping_add(bytes), cpu.reg(RDI).wrapping_add(bytes));
        put(cpu, RSI, op, si);
        put(cpu, RDI, op, di);
        n
    }
}

impl Operation for Stos {
    fn step<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        check_destination::<T>(cpu, op, true)?;
        cpu.store(destination(cpu, op), T::get(cpu, RAX))?;
        advance::<T>(cpu, RDI, op);
        Ok(())
    }

    fn burst<T: Int>(cpu: &mut Cpu, op: &Op, count: u64) -> u64 {
        let to = destination(cpu, op);
        let n = count.min(elements_in_page::<T>(cpu, RDI, op, to));
        let bytes = n * T::BYTES;
        if n < 2 {
            return 0;
        }
        let Some(write) = cpu.writable(to, bytes) else { return 0 };
        let value = T::get(cpu, RAX);
        let byte = value.zx() as u8;
        if value == T::cut(u64::from(byte) * 0x0101_0101_0101_0101) {
            // SAFETY: `bytes` bytes of RAM from `write`.
            unsafe { std::ptr::write_bytes(write, byte, bytes as usize) };
        } else {
            for at in (0..bytes as usize).step_by(T::BYTES as usize) {
                // SAFETY: `at + BYTES` is within the range.
                unsafe { write.add(at).cast::<T>().write_unaligned(value) };
            }
        }
        let di = cpu.reg(RDI).wrapping_add(bytes);
        put(cpu, RDI, op, di);
        n
    }
}

impl Operation for Lods {
    fn step<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        check_source::<T>(cpu, op)?;
        let value = cpu.load::<T>(source(cpu, op))?;
        T::set(cpu, RAX, value);
        advance::<T>(cpu, RSI, op);
        Ok(())
    }
}

impl Operation for Scas {
    const COMPARES: bool = true;

    fn step<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        check_destination::<T>(cpu, op, false)?;
        let value = cpu.load::<T>(destination(cpu, op))?;
        let a = T::get(cpu, RAX);
        compare(&mut cpu.flags, a, value);
        advance::<T>(cpu, RDI, op);
        Ok(())
    }
}

impl Operation for Cmps {
    const COMPARES: bool = true;

    fn step<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        check_source::<T>(cpu, op)?;
        check_destination::<T>(cpu, op, false)?;
        let a = cpu.load::<T>(source(cpu, op))?;
        let b = cpu.load::<T>(destination(cpu, op))?;
        compare(&mut cpu.flags, a, b);
        advance::<T>(cpu, RSI, op);
        advance::<T>(cpu, RDI, op);
        Ok(())
    }
}

/// Sets the flags of `a - b`.
fn compare<T: Int>(flags: &mut Flags, a: T, b: T) {
    flags.sub::<T>(a.zx(), b.zx(), T::cut(a.zx().wrapping_sub(b.zx())));
}

fn once<O: Operation, T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    O::step::<T>(cpu, op)?;
    Ok(Flow::Next)
}

fn repeated<O: Operation, T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    for turn in 0.. {
        let count = cpu.reg(RCX) & mask(op);
        if count == 0 {
            return Ok(Flow::Next);
        }
        let wanted = cpu.attention.wanted() != 0 || cpu.ram.watch().pending(cpu.interrupts.id);
        if turn == TURNS_MAX || (turn > 0 && (wanted || cpu.flags.rest & bit::TF != 0 || cpu.is_armed())) {
            break;
        }
        let by_element = is_backward(cpu) || !may_burst(cpu, op);
        let mut done = if by_element { 0 } else { O::burst::<T>(cpu, op, count) };
        if done == 0 {
            O::step::<T>(cpu, op)?;
            done = 1;
        }
        put(cpu, RCX, op, count - done);
        if O::COMPARES && cpu.flags.zf() != (op.aux == REPEAT_EQUAL) {
            return Ok(Flow::Next);
        }
    }
    // Not done: the same instruction again, after the run loop has looked up.
    cpu.rip = cpu.reg(crate::op::BLOCK).wrapping_add(u64::from(op.at));
    Ok(Flow::Leave)
}

fn handler<O: Operation>(bytes: u8, repeat: bool) -> Handler {
    match (bytes, repeat) {
        (1, false) => once::<O, u8>,
        (2, false) => once::<O, u16>,
        (4, false) => once::<O, u32>,
        (_, false) => once::<O, u64>,
        (1, true) => repeated::<O, u8>,
        (2, true) => repeated::<O, u16>,
        (4, true) => repeated::<O, u32>,
        (_, true) => repeated::<O, u64>,
    }
}

/// The op of a string instruction; `None` for any other.
pub fn lower(instruction: &Instruction, context: &Context) -> Option<Op> {
    let repeat = if instruction.has_repne_prefix() {
        REPEAT_NOT_EQUAL
    } else if instruction.has_rep_prefix() {
        REPEAT_EQUAL
    } else {
        ONCE
    };
    let is_repeated = repeat != ONCE;
    let run = match instruction.code() {
        Code::Movsb_m8_m8 => handler::<Movs>(1, is_repeated),
        Code::Movsw_m16_m16 => handler::<Movs>(2, is_repeated),
        Code::Movsd_m32_m32 => handler::<Movs>(4, is_repeated),
        Code::Movsq_m64_m64 => handler::<Movs>(8, is_repeated),
        Code::Stosb_m8_AL => handler::<Stos>(1, is_repeated),
        Code::Stosw_m16_AX => handler::<Stos>(2, is_repeated),
        Code::Stosd_m32_EAX => handler::<Stos>(4, is_repeated),
        Code::Stosq_m64_RAX => handler::<Stos>(8, is_repeated),
        Code::Lodsb_AL_m8 => handler::<Lods>(1, is_repeated),
        Code::Lodsw_AX_m16 => handler::<Lods>(2, is_repeated),
        Code::Lodsd_EAX_m32 => handler::<Lods>(4, is_repeated),
        Code::Lodsq_RAX_m64 => handler::<Lods>(8, is_repeated),
        Code::Scasb_AL_m8 => handler::<Scas>(1, is_repeated),
        Code::Scasw_AX_m16 => handler::<Scas>(2, is_repeated),
        Code::Scasd_EAX_m32 => handler::<Scas>(4, is_repeated),
        Code::Scasq_RAX_m64 => handler::<Scas>(8, is_repeated),
        Code::Cmpsb_m8_m8 => handler::<Cmps>(1, is_repeated),
        Code::Cmpsw_m16_m16 => handler::<Cmps>(2, is_repeated),
        Code::Cmpsd_m32_m32 => handler::<Cmps>(4, is_repeated),
        Code::Cmpsq_m64_m64 => handler::<Cmps>(8, is_repeated),
        _ => return None,
    };
    let mut op = operand::op(run, instruction, context);
    op.aux = repeat;
    Some(op)
}
