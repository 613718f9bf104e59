//! Flag instructions, BCD arithmetic, BOUND.

use iced_x86::{Instruction, Mnemonic};

use super::width::{Done, Int, NEXT};
use crate::cpu::Cpu;
use crate::decode::{Context, operand};
use crate::flags::bit;
use crate::op::{Handler, Op};
use crate::trap::vector;

/// AH as a byte register.
const AH: u8 = 1;

fn clc(cpu: &mut Cpu, _op: &Op) -> Done {
    cpu.flags.set_cf(false);
    NEXT
}

fn stc(cpu: &mut Cpu, _op: &Op) -> Done {
    cpu.flags.set_cf(true);
    NEXT
}

fn cmc(cpu: &mut Cpu, _op: &Op) -> Done {
    let cf = cpu.flags.cf();
    cpu.flags.set_cf(!cf);
    NEXT
}

fn cld(cpu: &mut Cpu, _op: &Op) -> Done {
    cpu.flags.rest &= !bit::DF;
    NEXT
}

fn std_(cpu: &mut Cpu, _op: &Op) -> Done {
    cpu.flags.rest |= bit::DF;
    NEXT
}

fn lahf(cpu: &mut Cpu, _op: &Op) -> Done {
    let flags = cpu.flags.rflags() as u8;
    u8::set(cpu, AH, flags);
    NEXT
}

fn sahf(cpu: &mut Cpu, _op: &Op) -> Done {
    let flags = u64::from(u8::get(cpu, AH)) & !bit::OF | cpu.flags.arithmetic() & bit::OF;
    cpu.flags.set_arithmetic(flags);
    NEXT
}

/// Sets AL and the flags of a BCD correction: ZF, SF and PF by AL; OF, undefined, is cleared.
fn set_al(cpu: &mut Cpu, al: u8, af: bool, cf: bool) {
    u8::set(cpu, 0, al);
    cpu.flags.result(al);
    cpu.flags.carries = u64::from(af) << 3;
    cpu.flags.set_cf_of(cf, false);
}

fn daa(cpu: &mut Cpu, _op: &Op) -> Done {
    let (al, cf, af) = (cpu.regs[0] as u8, cpu.flags.cf(), cpu.flags.af());
    let low = al & 15 > 9 || af;
    let high = al > 0x99 || cf;
    let fixed = al.wrapping_add(if low { 6 } else { 0 }).wrapping_add(if high { 0x60 } else { 0 });
    set_al(cpu, fixed, low, high);
    NEXT
}

fn das(cpu: &mut Cpu, _op: &Op) -> Done {
    let (al, cf, af) = (cpu.regs[0] as u8, cpu.flags.cf(), cpu.flags.af());
    let low = al & 15 > 9 || af;
    let high = al > 0x99 || cf;
    let fixed = al.wrapping_sub(if low { 6 } else { 0 }).wrapping_sub(if high { 0x60 } else { 0 });
    set_al(cpu, fixed, low, high || (low && al < 6));
    NEXT
}

/// AAA adds, AAS subtracts.
fn adjust<const ADD: bool>(cpu: &mut Cpu, _op: &Op) -> Done {
    let ax = cpu.regs[0] as u16;
    let carry = ax & 15 > 9 || cpu.flags.af();
    let fixed = match (carry, ADD) {
        (false, _) => ax,
        (true, true) => ax.wrapping_add(0x106),
        (true, false) => ax.wrapping_sub(0x106),
    };
    u16::set(cpu, 0, fixed);
    set_al(cpu, fixed as u8 & 15, carry, carry);
    NEXT
}

fn aam(cpu: &mut Cpu, op: &Op) -> Done {
    let (al, base) = (cpu.regs[0] as u8, op.imm as u8);
    if base == 0 {
        return Err(cpu.plain_fault(vector::DE));
    }
    u8::set(cpu, AH, al / base);
    set_al(cpu, al % base, false, false);
    NEXT
}

fn aad(cpu: &mut Cpu, op: &Op) -> Done {
    let (al, ah) = (cpu.regs[0] as u8, u8::get(cpu, AH));
    u8::set(cpu, AH, 0);
    set_al(cpu, al.wrapping_add(ah.wrapping_mul(op.imm as u8)), false, false);
    NEXT
}

fn salc(cpu: &mut Cpu, _op: &Op) -> Done {
    let al = if cpu.flags.cf() { 0xff } else { 0 };
    u8::set(cpu, 0, al);
    NEXT
}

/// BOUND: `dst` is checked against two signed bounds in memory.
fn bound<T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    let at = cpu.address(op);
    let low = cpu.load::<T>(at)?.sx() as i64;
    let high = cpu.load::<T>(at.wrapping_add(T::BYTES) & 0xffff_ffff)?.sx() as i64;
    let index = T::get(cpu, op.dst).sx() as i64;
    if index < low || index > high {
        return Err(cpu.plain_fault(vector::BR));
    }
    NEXT
}

/// The op of an instruction of this file.
pub fn lower(instruction: &Instruction, context: &Context) -> Option<Op> {
    use Mnemonic as M;
    let run: Handler = match instruction.mnemonic() {
        M::Clc => clc,
        M::Stc => stc,
        M::Cmc => cmc,
        M::Cld => cld,
        M::Std => std_,
        M::Lahf => lahf,
        M::Sahf => sahf,
        M::Daa => daa,
        M::Das => das,
        M::Aaa => adjust::<true>,
        M::Aas => adjust::<false>,
        M::Aam => aam,
        M::Aad => aad,
        M::Salc => salc,
        M::Bound if instruction.op0_register().size() == 2 => bound::<u16>,
        M::Bound => bound::<u32>,
        _ => return None,
    };
    let mut op = operand::op(run, instruction, context);
    op.imm = operand::immediate(instruction, 0);
    if instruction.mnemonic() == M::Bound {
        op.dst = operand::register(instruction.op0_register());
    }
    Some(op)
}
