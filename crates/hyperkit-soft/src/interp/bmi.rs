//! BMI1, BMI2 and ADX: bit manipulation on general registers, mostly with a destination of its own.
//!
//! Where AF, PF or SF are undefined they are what the result would make them. TZCNT and LZCNT are with the other
//! integer instructions.
//!
//! Spec: SDM vol. 1 §5.1.16; the instructions in vol. 2.

use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::cpu::Cpu;
use crate::decode::{Context, operand};
use crate::op::{Flow, Handler, Op};
use crate::trap::Trap;

/// What an instruction computes from its operands; sets flags if it has any.
trait Bits {
    /// `operand` is the one that may be in memory, `other` the other one (or the first, if there is none, or the
    /// immediate); both have zeros above their `width` bits, and so has the result.
    fn run(cpu: &mut Cpu, operand: u64, other: u64, width: u32) -> u64;
}

/// Runs `B` on operands of 64 or 32 bits, the operand that may be in memory being so or not.
fn bits<B: Bits, const WIDE: bool, const MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    let value = match (MEMORY, WIDE) {
        (true, true) => cpu.load::<u64>(cpu.address(op))?,
        (true, false) => cpu.load::<u32>(cpu.address(op))?.into(),
        (false, _) => cpu.regs[usize::from(op.src & 15)],
    };
    let other = if op.aux == IMMEDIATE { op.imm } else { cpu.regs[usize::from(op.aux & 15)] };
    let (width, mask) = if WIDE { (64, u64::MAX) } else { (32, u64::from(u32::MAX)) };
    cpu.regs[usize::from(op.dst & 15)] = B::run(cpu, value & mask, other & mask, width);
    Ok(Flow::Next)
}

/// [`Op::aux`] of an instruction with an immediate.
const IMMEDIATE: u8 = 0xff;

/// Sets SF, ZF and PF from a result of `width` bits, CF as told, and clears OF and AF.
fn set_flags(cpu: &mut Cpu, result: u64, width: u32, cf: bool) {
    cpu.flags.zero = result;
    cpu.flags.sign = if width == 32 { result as i32 as u64 } else { result };
    cpu.flags.carries = if cf { 3 << 62 } else { 0 };
}

macro_rules! instructions {
    ($($name:ident |$cpu:ident, $operand:ident, $other:ident, $width:ident| $value:expr;)+) => {
        $(
            struct $name;

            impl Bits for $name {
                fn run($cpu: &mut Cpu, $operand: u64, $other: u64, $width: u32) -> u64 {
                    $value
                }
            }
        )+

        fn find(mnemonic: Mnemonic, wide: bool, memory: bool) -> Option<Handler> {
            Some(match mnemonic {
                $(Mnemonic::$name => match (wide, memory) {
                    (false, false) => bits::<$name, false, false>,
                    (false, true) => bits::<$name, false, true>,
                    (true, false) => bits::<$name, true, false>,
                    (true, true) => bits::<$name, true, true>,
                },)+
                _ => return None,
            })
        }
    };
}

instructions! {
    Andn |cpu, operand, other, width| {
        let value = !other & operand;
        set_flags(cpu, value, width, false);
        value
    };
    Bextr |cpu, operand, other, width| {
        let (start, length) = (other as u32 & 0xff, other as u32 >> 8 & 0xff);
        let shifted = if start < width { operand >> start } else { 0 };
        let value = if length < width { shifted & !(u64::MAX << length) } else { shifted };
        set_flags(cpu, value, width, false);
        value
    };
    Blsi |cpu, operand, _other, width| {
        let value = operand & operand.wrapping_neg();
        set_flags(cpu, value, width, operand != 0);
        value
    };
    Blsmsk |cpu, operand, _other, width| {
        let value = (operand ^ operand.wrapping_sub(1)) & (u64::MAX >> (64 - width));
        set_flags(cpu, value, width, operand == 0);
        value
    };
    Blsr |cpu, operand, _other, width| {
        let value = operand & operand.wrapping_sub(1);
        set_flags(cpu, value, width, operand == 0);
        value
    };
    Bzhi |cpu, operand, other, width| {
        let first = other as u32 & 0xff;
        let value = if first < width { operand & !(u64::MAX << first) } else { operand };
        set_flags(cpu, value, width, first >= width);
        value
    };
    Shlx |_cpu, operand, other, width| {
        (operand << (other as u32 & (width - 1))) & (u64::MAX >> (64 - width))
    };
    Shrx |_cpu, operand, other, width| operand >> (other as u32 & (width - 1));
    Sarx |_cpu, operand, other, width| {
        let signed = if width == 32 { i64::from(operand as i32) } else { operand as i64 };
        (signed >> (other as u32 & (width - 1))) as u64 & (u64::MAX >> (64 - width))
    };
    Rorx |_cpu, operand, other, width| {
        if width == 32 {
            (operand as u32).rotate_right(other as u32 & 31).into()
        } else {
            operand.rotate_right(other as u32 & 63)
        }
    };
    Pdep |_cpu, operand, other, _width| deposit(other, operand);
    Pext |_cpu, operand, other, _width| extract(other, operand);
    Adcx |cpu, operand, other, width| {
        let sum = u128::from(operand) + u128::from(other) + u128::from(cpu.flags.cf());
        cpu.flags.set_cf(sum >> width != 0);
        sum as u64 & (u64::MAX >> (64 - width))
    };
    Adox |cpu, operand, other, width| {
        let sum = u128::from(operand) + u128::from(other) + u128::from(cpu.flags.of());
        cpu.flags.set_cf_of(cpu.flags.cf(), sum >> width != 0);
        sum as u64 & (u64::MAX >> (64 - width))
    };
}

/// The low bits of `value`, spread to where `mask` has ones.
fn deposit(value: u64, mut mask: u64) -> u64 {
    let mut spread = 0;
    let mut n = 0;
    while mask != 0 {
        spread |= if value >> n & 1 != 0 { mask & mask.wrapping_neg() } else { 0 };
        mask &= mask - 1;
        n += 1;
    }
    spread
}

/// The bits of `value` where `mask` has ones, moved together.
fn extract(value: u64, mut mask: u64) -> u64 {
    let mut together = 0;
    let mut n = 0;
    while mask != 0 {
        together |= u64::from(value & mask & mask.wrapping_neg() != 0) << n;
        mask &= mask - 1;
        n += 1;
    }
    together
}

/// MULX: RDX times the operand; the upper half goes to `dst`, the lower to `aux` (first, should they be the same).
fn mulx<const WIDE: bool, const MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    let value = match (MEMORY, WIDE) {
        (true, true) => cpu.load::<u64>(cpu.address(op))?,
        (true, false) => cpu.load::<u32>(cpu.address(op))?.into(),
        (false, _) => cpu.regs[usize::from(op.src & 15)],
    };
    let (high, low) = if WIDE {
        let product = u128::from(value) * u128::from(cpu.regs[2]);
        ((product >> 64) as u64, product as u64)
    } else {
        let product = u64::from(value as u32) * u64::from(cpu.regs[2] as u32);
        (product >> 32, product & u64::from(u32::MAX))
    };
    cpu.regs[usize::from(op.aux & 15)] = low;
    cpu.regs[usize::from(op.dst & 15)] = high;
    Ok(Flow::Next)
}

/// The op of an instruction of this file; `None` for any other.
pub fn lower(instruction: &Instruction, context: &Context) -> Option<Op> {
    let wide = instruction.op0_register().is_gpr64();
    let operands = 0..instruction.op_count();
    let memory = operands.clone().any(|n| instruction.op_kind(n) == OpKind::Memory);
    let run: Handler = match instruction.mnemonic() {
        Mnemonic::Mulx => match (wide, memory) {
            (false, false) => mulx::<false, false>,
            (false, true) => mulx::<false, true>,
            (true, false) => mulx::<true, false>,
            (true, true) => mulx::<true, true>,
        },
        mnemonic => find(mnemonic, wide, memory)?,
    };
    let mut op = operand::op(run, instruction, context);
    // Which operand may be in memory: the last of those whose other source is encoded in VEX.vvvv before it, else
    // the second.
    let either = match instruction.mnemonic() {
        Mnemonic::Andn | Mnemonic::Pdep | Mnemonic::Pext | Mnemonic::Mulx => 2,
        _ => 1,
    };
    op.dst = operand::register(instruction.op0_register());
    op.src = operand::register(instruction.op_register(either));
    op.aux = op.dst;
    if operands.end == 3 {
        let other = 3 - either;
        match instruction.op_kind(other) {
            OpKind::Immediate8 => (op.aux, op.imm) = (IMMEDIATE, instruction.immediate8().into()),
            _ => op.aux = operand::register(instruction.op_register(other)),
        }
    }
    Some(op)
}
