//! MOV, MOVZX, MOVSX, MOVSXD, MOVBE, LEA, XCHG, BSWAP, CMOVcc, SETcc, CBW and its kin, XLAT, NOP.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::alu::bytes;
use super::cond::{by_cond, encoding, holds};
use super::width::{Addr, Done, Int, NEXT, by_addr, by_width, modify_locked};
use crate::cpu::Cpu;
use crate::decode::{Context, operand};
use crate::op::{FLAT, Handler, Op, ZERO};

fn mov_rr<T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    T::set(cpu, op.dst, T::get(cpu, op.src));
    NEXT
}

fn mov_ri<T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    T::set(cpu, op.dst, T::cut(op.imm));
    NEXT
}

fn mov_rm<M: Addr, T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    let Some(value) = cpu.load_fast::<T>(M::linear(cpu, op)) else { return zx_m_slow::<T, M, T>(cpu, op) };
    T::set(cpu, op.dst, value);
    NEXT
}

fn mov_mr<M: Addr, T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    if cpu.store_fast(M::linear(cpu, op), T::get(cpu, op.src)) { NEXT } else { mov_mr_slow::<M, T>(cpu, op) }
}

#[cold]
#[inline(never)]
fn mov_mr_slow<M: Addr, T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.store_slow(M::linear(cpu, op), T::get(cpu, op.src))?;
    NEXT
}

fn mov_mi<M: Addr, T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    if cpu.store_fast(M::linear(cpu, op), T::cut(op.imm)) { NEXT } else { mov_mi_slow::<M, T>(cpu, op) }
}

#[cold]
#[inline(never)]
fn mov_mi_slow<M: Addr, T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.store_slow(M::linear(cpu, op), T::cut(op.imm))?;
    NEXT
}

/// From the 64-bit absolute address in `imm`.
fn from_absolute<T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    let value = cpu.load::<T>(absolute(cpu, op))?;
    T::set(cpu, 0, value);
    NEXT
}

/// To the 64-bit absolute address in `imm`.
fn to_absolute<T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.store(absolute(cpu, op), T::get(cpu, 0))?;
    NEXT
}

fn absolute(cpu: &Cpu, op: &Op) -> u64 {
    cpu.seg_base[usize::from(op.seg) & 7].wrapping_add(op.imm)
}

fn movbe_rm<T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    let value = cpu.load::<T>(cpu.address(op))?;
    T::set(cpu, op.dst, swapped(value));
    NEXT
}

fn movbe_mr<T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.store(cpu.address(op), swapped(T::get(cpu, op.src)))?;
    NEXT
}

fn swapped<T: Int>(value: T) -> T {
    T::cut(value.zx().swap_bytes() >> (64 - T::BITS))
}

fn zx_r<S: Int, T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    T::set(cpu, op.dst, T::cut(S::get(cpu, op.src).zx()));
    NEXT
}

fn zx_m<S: Int, M: Addr, T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    let Some(value) = cpu.load_fast::<S>(M::linear(cpu, op)) else { return zx_m_slow::<S, M, T>(cpu, op) };
    T::set(cpu, op.dst, T::cut(value.zx()));
    NEXT
}

#[cold]
#[inline(never)]
fn zx_m_slow<S: Int, M: Addr, T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    let value = cpu.load_slow::<S>(M::linear(cpu, op))?;
    T::set(cpu, op.dst, T::cut(value.zx()));
    NEXT
}

fn sx_r<S: Int, T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    T::set(cpu, op.dst, T::cut(S::get(cpu, op.src).sx()));
    NEXT
}

fn sx_m<S: Int, M: Addr, T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    let Some(value) = cpu.load_fast::<S>(M::linear(cpu, op)) else { return sx_m_slow::<S, M, T>(cpu, op) };
    T::set(cpu, op.dst, T::cut(value.sx()));
    NEXT
}

#[cold]
#[inline(never)]
fn sx_m_slow<S: Int, M: Addr, T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    let value = cpu.load_slow::<S>(M::linear(cpu, op))?;
    T::set(cpu, op.dst, T::cut(value.sx()));
    NEXT
}

fn lea<M: Addr, T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    T::set(cpu, op.dst, T::cut(M::linear(cpu, op)));
    NEXT
}

fn xchg_rr<T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    let (a, b) = (T::get(cpu, op.dst), T::get(cpu, op.src));
    T::set(cpu, op.dst, b);
    T::set(cpu, op.src, a);
    NEXT
}

/// With memory XCHG is locked, prefix or not.
fn xchg_mr<T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    let new = T::get(cpu, op.src);
    let mut old = new;
    modify_locked::<T>(cpu, cpu.address(op), |_, value| {
        old = value;
        new
    })?;
    T::set(cpu, op.src, old);
    NEXT
}

fn bswap<T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    // Of a 16-bit register the result is undefined; processors clear it.
    let value = if T::BITS == 16 { T::cut(0) } else { swapped(T::get(cpu, op.dst)) };
    T::set(cpu, op.dst, value);
    NEXT
}

fn cmov_r<const C: u8, T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    let value = if holds::<C>(&cpu.flags) { T::get(cpu, op.src) } else { T::get(cpu, op.dst) };
    T::set(cpu, op.dst, value);
    NEXT
}

fn cmov_m<const C: u8, T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    let loaded = cpu.load::<T>(cpu.address(op))?;
    let value = if holds::<C>(&cpu.flags) { loaded } else { T::get(cpu, op.dst) };
    T::set(cpu, op.dst, value);
    NEXT
}

fn set_r<const C: u8>(cpu: &mut Cpu, op: &Op) -> Done {
    u8::set(cpu, op.dst, u8::from(holds::<C>(&cpu.flags)));
    NEXT
}

fn set_m<const C: u8>(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.store(cpu.address(op), u8::from(holds::<C>(&cpu.flags)))?;
    NEXT
}

/// CBW, CWDE, CDQE: `T` from its lower half.
fn widen<T: Int>(cpu: &mut Cpu, _op: &Op) -> Done {
    let half = T::BITS / 2;
    let value = ((cpu.regs[0] << (64 - half)) as i64 >> (64 - half)) as u64;
    T::set(cpu, 0, T::cut(value));
    NEXT
}

/// CWD, CDQ, CQO: the sign of RAX all over RDX.
fn sign_to_dx<T: Int>(cpu: &mut Cpu, _op: &Op) -> Done {
    let sign = (T::get(cpu, 0).sx() as i64 >> 63) as u64;
    T::set(cpu, 2, T::cut(sign));
    NEXT
}

/// `op` has RBX as its base; AL is added here.
fn xlat(cpu: &mut Cpu, op: &Op) -> Done {
    let entry = op.with(|op| op.disp = i32::from(cpu.regs[0] as u8));
    let value = cpu.load::<u8>(cpu.address(&entry))?;
    u8::set(cpu, 0, value);
    NEXT
}

fn nop(_cpu: &mut Cpu, _op: &Op) -> Done {
    NEXT
}

fn pause(cpu: &mut Cpu, _op: &Op) -> Done {
    cpu.pause();
    std::hint::spin_loop();
    NEXT
}

/// The op of an instruction of this file.
pub fn lower(instruction: &Instruction, context: &Context) -> Option<Op> {
    use Mnemonic as M;
    let cond = encoding(instruction);
    let plain = |run: Handler| Some(operand::op(run, instruction, context));
    match instruction.mnemonic() {
        M::Mov => mov(instruction, context),
        M::Movzx | M::Movsx | M::Movsxd => Some(extend(instruction, context)),
        M::Lea => Some(lea_op(instruction, context)),
        M::Xchg => Some(xchg(instruction, context)),
        M::Movbe => Some(registers(instruction, context, |op, bytes, to_memory| {
            let _ = op;
            if to_memory { by_width!(bytes, movbe_mr) } else { by_width!(bytes, movbe_rm) }
        })),
        M::Bswap => Some(registers(instruction, context, |_, bytes, _| by_width!(bytes, bswap))),
        M::Cbw => plain(widen::<u16>),
        M::Cwde => plain(widen::<u32>),
        M::Cdqe => plain(widen::<u64>),
        M::Cwd => plain(sign_to_dx::<u16>),
        M::Cdq => plain(sign_to_dx::<u32>),
        M::Cqo => plain(sign_to_dx::<u64>),
        M::Xlatb => plain(xlat).map(|op| op.with(|op| op.index = ZERO)),
        M::Pause => plain(pause),
        M::Nop | M::Reservednop | M::Endbr32 | M::Endbr64 => plain(nop),
        M::Prefetch
        | M::Prefetchw
        | M::Prefetchwt1
        | M::Prefetchnta
        | M::Prefetcht0
        | M::Prefetcht1
        | M::Prefetcht2
        | M::Cldemote => plain(nop),
        M::Cmova
        | M::Cmovae
        | M::Cmovb
        | M::Cmovbe
        | M::Cmove
        | M::Cmovg
        | M::Cmovge
        | M::Cmovl
        | M::Cmovle
        | M::Cmovne
        | M::Cmovno
        | M::Cmovnp
        | M::Cmovns
        | M::Cmovo
        | M::Cmovp
        | M::Cmovs => Some(cmov(instruction, context, cond)),
        M::Seta
        | M::Setae
        | M::Setb
        | M::Setbe
        | M::Sete
        | M::Setg
        | M::Setge
        | M::Setl
        | M::Setle
        | M::Setne
        | M::Setno
        | M::Setnp
        | M::Setns
        | M::Seto
        | M::Setp
        | M::Sets => Some(registers(instruction, context, |_, _, to_memory| {
            if to_memory { by_cond!(cond, set_m) } else { by_cond!(cond, set_r) }
        })),
        _ => None,
    }
}

/// An op with its register operands (the first to `dst`, the second to `src`) and the handler that `choose` gives
/// for it, the width of the first operand, and whether that one is in memory.
fn registers(
    instruction: &Instruction,
    context: &Context,
    choose: impl FnOnce(&Op, usize, bool) -> Handler,
) -> Op {
    let mut op = operand::op(nop, instruction, context);
    if instruction.op0_kind() == OpKind::Register {
        op.dst = operand::register(instruction.op0_register());
    }
    if instruction.op1_kind() == OpKind::Register {
        op.src = operand::register(instruction.op1_register());
    }
    op.run = choose(&op, bytes(instruction), instruction.op0_kind() != OpKind::Register);
    op
}

fn mov(instruction: &Instruction, context: &Context) -> Option<Op> {
    let special = |n: u32| instruction.op_kind(n) == OpKind::Register && !instruction.op_register(n).is_gpr();
    if special(0) || special(1) {
        return None;
    }
    let in_memory = |n| instruction.op_kind(n) == OpKind::Memory;
    let mut op =
        registers(instruction, context, |op, bytes, to_memory| match (to_memory, instruction.op1_kind()) {
            (true, OpKind::Register) => by_addr!(op, bytes, mov_mr),
            (true, _) => by_addr!(op, bytes, mov_mi),
            (false, OpKind::Register) => by_width!(bytes, mov_rr),
            (false, OpKind::Memory) => by_addr!(op, bytes, mov_rm),
            (false, _) => by_width!(bytes, mov_ri),
        });
    op.imm = operand::immediate(instruction, 1);
    let absolute = operand::absolute(instruction);
    let no_registers = instruction.memory_base() == Register::None && op.index == ZERO && op.addr_bits == 64;
    if (in_memory(0) || in_memory(1)) && no_registers && op.disp as i64 as u64 != absolute {
        op.imm = absolute;
        let bytes = bytes(instruction);
        op.run = if in_memory(0) { by_width!(bytes, to_absolute) } else { by_width!(bytes, from_absolute) };
    }
    Some(op)
}

fn extend(instruction: &Instruction, context: &Context) -> Op {
    let from = match instruction.op1_kind() {
        OpKind::Register => instruction.op1_register().size(),
        _ => instruction.memory_size().size(),
    };
    let unsigned = instruction.mnemonic() == Mnemonic::Movzx;
    registers(instruction, context, |op, bytes, _| {
        let memory = instruction.op1_kind() == OpKind::Memory;
        match (unsigned, memory, from) {
            (true, false, 1) => by_width!(bytes, zx_r, u8),
            (true, false, _) => by_width!(bytes, zx_r, u16),
            (true, true, 1) => by_addr!(op, bytes, zx_m, u8),
            (true, true, _) => by_addr!(op, bytes, zx_m, u16),
            (false, false, 1) => by_width!(bytes, sx_r, u8),
            (false, false, 2) => by_width!(bytes, sx_r, u16),
            (false, false, _) => by_width!(bytes, sx_r, u32),
            (false, true, 1) => by_addr!(op, bytes, sx_m, u8),
            (false, true, 2) => by_addr!(op, bytes, sx_m, u16),
            (false, true, _) => by_addr!(op, bytes, sx_m, u32),
        }
    })
}

fn lea_op(instruction: &Instruction, context: &Context) -> Op {
    registers(instruction, context, |_, _, _| nop).with(|op| {
        op.seg = FLAT;
        op.run = by_addr!(op, bytes(instruction), lea);
    })
}

fn xchg(instruction: &Instruction, context: &Context) -> Op {
    let mut op = registers(instruction, context, |_, bytes, to_memory| {
        if to_memory { by_width!(bytes, xchg_mr) } else { by_width!(bytes, xchg_rr) }
    });
    if instruction.op1_kind() == OpKind::Memory {
        op.src = op.dst;
        op.run = by_width!(bytes(instruction), xchg_mr);
    }
    op
}

fn cmov(instruction: &Instruction, context: &Context, cond: usize) -> Op {
    registers(instruction, context, |_, bytes, _| {
        let memory = instruction.op1_kind() == OpKind::Memory;
        match (memory, bytes) {
            (false, 2) => by_cond!(cond, cmov_r, u16),
            (false, 4) => by_cond!(cond, cmov_r, u32),
            (false, _) => by_cond!(cond, cmov_r, u64),
            (true, 2) => by_cond!(cond, cmov_m, u16),
            (true, 4) => by_cond!(cond, cmov_m, u32),
            (true, _) => by_cond!(cond, cmov_m, u64),
        }
    })
}

impl Op {
    /// The op after a change.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut Op)) -> Op {
        change(&mut self);
        self
    }
}
