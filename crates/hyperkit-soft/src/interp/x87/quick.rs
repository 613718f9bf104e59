//! The common x87 instructions, without the cost of loading and storing the whole state on the host.
//!
//! They apply when every exception is masked and no register that they read is empty (nor one that they push on is in
//! use): then nothing but the result, the exception flags and the condition codes can come of them. The operands are
//! loaded on the host's own empty stack, which never changes them. All else goes the long way, through [`super::host`].

use std::arch::asm;

use iced_x86::Code;

use super::lower::{into_flags, into_memory, on_memory, on_registers};
use crate::cpu::Cpu;
use crate::op::{Flow, Handler, Op};
use crate::trap::Trap;

/// Offset of ST0 in the image.
const ST: usize = 32;
/// C1.
const C1: u16 = 0x200;
/// C0, C1, C2, C3.
const CODES: u16 = 0x4700;
/// IE to PE.
const EXCEPTIONS: u16 = 0x3f;
/// The control word that Rust code expects.
static FCW_DEFAULT: u16 = 0x37f;

/// An extended number, in a slot like those of the image.
type Slot = [u8; 16];

/// What an instruction computes from `first` (ST0 most often) and `second` (a register, or what memory holds), under
/// control word `fcw`; and the status word.
type Compute = fn(first: &Slot, second: &Slot, fcw: u16) -> (Slot, u16);

/// A [`Compute`]: RSI points at the second operand, RDI at the first, RDX at the result, AX is the status word.
macro_rules! compute {
    ($($text:expr),+) => {{
        fn run(first: &Slot, second: &Slot, fcw: u16) -> (Slot, u16) {
            let mut result = [0; 16];
            let status: u16;
            // SAFETY: reads 10 bytes of each operand and writes at most 10 of the result. Every exception is masked in
            // `fcw` (the caller's promise is that of the module), every register of the unit is declared as
            // overwritten, and stack, flags and control word are left as they were found.
            unsafe {
                asm!(
                    "cmp {fcw:x}, 0x37f",
                    "je 2f",
                    "fldcw [{control}]",
                    "2:",
                    $($text,)+
                    "test al, 0x3f",
                    "jz 3f",
                    "fnclex",
                    "3:",
                    "cmp {fcw:x}, 0x37f",
                    "je 4f",
                    "fldcw [{default}]",
                    "4:",
                    fcw = in(reg) fcw,
                    control = in(reg) &raw const fcw,
                    default = in(reg) &raw const FCW_DEFAULT,
                    in("rdi") first, in("rsi") second, in("rdx") result.as_mut_ptr(), out("ax") status,
                    out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
                    out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
                    out("mm0") _, out("mm1") _, out("mm2") _, out("mm3") _,
                    out("mm4") _, out("mm5") _, out("mm6") _, out("mm7") _,
                    options(nostack),
                );
            }
            (result, status)
        }
        run as Compute
    }};
}

/// `first OP second`, both in registers.
macro_rules! of_registers {
    ($text:literal) => {
        compute!(
            "fld tbyte ptr [rsi]",
            "fld tbyte ptr [rdi]",
            concat!($text, " st, st(1)"),
            "fnstsw ax",
            "fstp tbyte ptr [rdx]",
            "fstp st(0)"
        )
    };
}

/// `first OP memory`; the text includes the operand.
macro_rules! of_memory {
    ($text:literal) => {
        compute!("fld tbyte ptr [rdi]", $text, "fnstsw ax", "fstp tbyte ptr [rdx]")
    };
}

/// Memory to a register.
macro_rules! load {
    ($text:literal) => {
        compute!($text, "fnstsw ax", "fstp tbyte ptr [rdx]")
    };
}

/// A register to memory; the text pops.
macro_rules! store {
    ($text:literal) => {
        compute!("fld tbyte ptr [rdi]", $text, "fnstsw ax")
    };
}

/// A comparison of registers, into the status word and, for the flags, the result's first bytes.
macro_rules! comparison {
    ($text:literal) => {
        compute!(
            "fld tbyte ptr [rsi]",
            "fld tbyte ptr [rdi]",
            concat!($text, " st, st(1)"),
            "setc [rdx]",
            "setp [rdx + 1]",
            "setz [rdx + 2]",
            "fnstsw ax",
            "fstp st(0)",
            "fstp st(0)"
        )
    };
}

impl Cpu {
    /// Whether the quick way applies as far as control and status say; #NM and #MF come from the long one.
    #[inline(always)]
    fn is_quick(&self) -> bool {
        self.gate.x87 == 0 && self.fcw() & EXCEPTIONS == EXCEPTIONS
    }

    fn top(&self) -> u32 {
        u32::from(self.fsw() >> 11 & 7)
    }

    /// Whether ST(i) is not empty.
    #[inline(always)]
    fn has_st(&self, i: u8) -> bool {
        self.fx.0[4] >> ((self.top() + u32::from(i)) & 7) & 1 != 0
    }

    fn st(&self, i: u8) -> Slot {
        let at = ST + 16 * usize::from(i & 7);
        std::array::from_fn(|n| self.fx.0[at + n])
    }

    fn set_st(&mut self, i: u8, value: Slot) {
        let at = ST + 16 * usize::from(i & 7);
        self.fx.0[at..at + 10].copy_from_slice(&value[..10]);
    }

    /// Whether a push would not overflow.
    fn has_room(&self) -> bool {
        self.fx.0[4] >> ((self.top() + 7) & 7) & 1 == 0
    }

    fn push_st(&mut self, value: Slot) {
        let top = (self.top() + 7) & 7;
        self.fx.0[ST..ST + 128].rotate_right(16);
        self.fx.0[3] = (self.fx.0[3] & !0x38) | (top as u8) << 3;
        self.fx.0[4] |= 1 << top;
        self.set_st(0, value);
    }

    fn pop_st(&mut self) {
        let top = self.top();
        self.fx.0[ST..ST + 128].rotate_left(16);
        self.fx.0[3] = (self.fx.0[3] & !0x38) | ((top + 1) as u8 & 7) << 3;
        self.fx.0[4] &= !(1 << top);
    }

    /// Adds the exceptions of a computation, and takes those of its condition codes that `codes` covers.
    fn note_status(&mut self, status: u16, codes: u16) {
        let merged = (self.fsw() & !codes) | (status & (codes | EXCEPTIONS));
        self.fx.0[2..4].copy_from_slice(&merged.to_le_bytes());
    }

    fn note_rip(&mut self, op: &Op) {
        let rip = self.regs[usize::from(crate::op::BLOCK)].wrapping_add(op.at.into());
        self.fx.0[8..16].copy_from_slice(&rip.to_le_bytes());
    }
}

/// Which computation: the argument of the handlers.
trait Quick {
    const COMPUTE: Compute;
}

macro_rules! quick {
    ($($name:ident = $compute:expr;)+) => {$(
        struct $name;
        impl Quick for $name {
            const COMPUTE: Compute = $compute;
        }
    )+};
}

quick! {
    Add = of_registers!("fadd");
    Sub = of_registers!("fsub");
    SubReverse = of_registers!("fsubr");
    Mul = of_registers!("fmul");
    Div = of_registers!("fdiv");
    DivReverse = of_registers!("fdivr");
    AddSingle = of_memory!("fadd dword ptr [rsi]");
    SubSingle = of_memory!("fsub dword ptr [rsi]");
    SubReverseSingle = of_memory!("fsubr dword ptr [rsi]");
    MulSingle = of_memory!("fmul dword ptr [rsi]");
    DivSingle = of_memory!("fdiv dword ptr [rsi]");
    DivReverseSingle = of_memory!("fdivr dword ptr [rsi]");
    AddDouble = of_memory!("fadd qword ptr [rsi]");
    SubDouble = of_memory!("fsub qword ptr [rsi]");
    SubReverseDouble = of_memory!("fsubr qword ptr [rsi]");
    MulDouble = of_memory!("fmul qword ptr [rsi]");
    DivDouble = of_memory!("fdiv qword ptr [rsi]");
    DivReverseDouble = of_memory!("fdivr qword ptr [rsi]");
    LoadSingle = load!("fld dword ptr [rsi]");
    LoadDouble = load!("fld qword ptr [rsi]");
    LoadExtended = load!("fld tbyte ptr [rsi]");
    LoadInteger16 = load!("fild word ptr [rsi]");
    LoadInteger32 = load!("fild dword ptr [rsi]");
    LoadInteger64 = load!("fild qword ptr [rsi]");
    One = load!("fld1");
    Zero = load!("fldz");
    StoreSingle = store!("fstp dword ptr [rdx]");
    StoreDouble = store!("fstp qword ptr [rdx]");
    StoreExtended = store!("fstp tbyte ptr [rdx]");
    StoreInteger16 = store!("fistp word ptr [rdx]");
    StoreInteger32 = store!("fistp dword ptr [rdx]");
    StoreInteger64 = store!("fistp qword ptr [rdx]");
    Compare = comparison!("fcomi");
    CompareUnordered = comparison!("fucomi");
}

/// ST0 := ST0 op ST(i).
fn st0_sti<Q: Quick>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    if !(cpu.is_quick() && cpu.has_st(0) && cpu.has_st(op.dst)) {
        return on_registers(cpu, op);
    }
    let (value, status) = Q::COMPUTE(&cpu.st(0), &cpu.st(op.dst), cpu.fcw());
    cpu.set_st(0, value);
    cpu.note_status(status, C1);
    cpu.note_rip(op);
    Ok(Flow::Next)
}

/// ST(i) := ST(i) op ST0, and a pop.
fn sti_st0<Q: Quick, const POPS: bool>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    if !(cpu.is_quick() && cpu.has_st(0) && cpu.has_st(op.dst)) {
        return on_registers(cpu, op);
    }
    let (value, status) = Q::COMPUTE(&cpu.st(op.dst), &cpu.st(0), cpu.fcw());
    cpu.set_st(op.dst, value);
    cpu.note_status(status, C1);
    if POPS {
        cpu.pop_st();
    }
    cpu.note_rip(op);
    Ok(Flow::Next)
}

/// The bytes of a memory operand of [`Op::aux`] bytes.
fn read(cpu: &mut Cpu, op: &Op) -> Result<Slot, Trap> {
    let linear = cpu.address(op);
    let value: u128 = match op.aux {
        2 => cpu.load::<u16>(linear)?.into(),
        4 => cpu.load::<u32>(linear)?.into(),
        8 => cpu.load::<u64>(linear)?.into(),
        _ => {
            let mut bytes = [0; 16];
            cpu.read_linear(linear, &mut bytes[..10])?;
            return Ok(bytes);
        }
    };
    Ok(value.to_le_bytes())
}

/// ST0 := ST0 op memory.
fn st0_memory<Q: Quick>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    if !(cpu.is_quick() && cpu.has_st(0)) {
        return on_memory(cpu, op);
    }
    let second = read(cpu, op)?;
    let (value, status) = Q::COMPUTE(&cpu.st(0), &second, cpu.fcw());
    cpu.set_st(0, value);
    cpu.note_status(status, C1);
    cpu.note_rip(op);
    cpu.note_operand(op);
    Ok(Flow::Next)
}

fn push_memory<Q: Quick>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    if !(cpu.is_quick() && cpu.has_room()) {
        return on_memory(cpu, op);
    }
    let memory = read(cpu, op)?;
    let (value, status) = Q::COMPUTE(&memory, &memory, cpu.fcw());
    cpu.push_st(value);
    cpu.note_status(status, C1);
    cpu.note_rip(op);
    cpu.note_operand(op);
    Ok(Flow::Next)
}

fn push_constant<Q: Quick>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    if !(cpu.is_quick() && cpu.has_room()) {
        return on_registers(cpu, op);
    }
    let (value, status) = Q::COMPUTE(&[0; 16], &[0; 16], cpu.fcw());
    cpu.push_st(value);
    cpu.note_status(status, C1);
    cpu.note_rip(op);
    Ok(Flow::Next)
}

fn push_sti(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    if !(cpu.is_quick() && cpu.has_room() && cpu.has_st(op.dst)) {
        return on_registers(cpu, op);
    }
    let value = cpu.st(op.dst);
    cpu.push_st(value);
    cpu.note_status(0, C1);
    cpu.note_rip(op);
    Ok(Flow::Next)
}

fn store_memory<Q: Quick, const POPS: bool>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    if !(cpu.is_quick() && cpu.has_st(0)) {
        return into_memory(cpu, op);
    }
    let st0 = cpu.st(0);
    let (value, status) = Q::COMPUTE(&st0, &st0, cpu.fcw());
    let (linear, whole) = (cpu.address(op), u128::from_le_bytes(value));
    match op.aux {
        2 => cpu.store(linear, whole as u16)?,
        4 => cpu.store(linear, whole as u32)?,
        8 => cpu.store(linear, whole as u64)?,
        _ => cpu.write_linear(linear, &value[..10])?,
    }
    cpu.note_status(status, C1);
    if POPS {
        cpu.pop_st();
    }
    cpu.note_rip(op);
    cpu.note_operand(op);
    Ok(Flow::Next)
}

fn store_sti<const POPS: bool>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    if !(cpu.is_quick() && cpu.has_st(0)) {
        return on_registers(cpu, op);
    }
    let value = cpu.st(0);
    cpu.set_st(op.dst, value);
    cpu.fx.0[4] |= 1 << ((cpu.top() + u32::from(op.dst)) & 7);
    cpu.note_status(0, C1);
    if POPS {
        cpu.pop_st();
    }
    cpu.note_rip(op);
    Ok(Flow::Next)
}

fn fxch(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    if !(cpu.is_quick() && cpu.has_st(0) && cpu.has_st(op.dst)) {
        return on_registers(cpu, op);
    }
    let (first, second) = (cpu.st(0), cpu.st(op.dst));
    cpu.set_st(0, second);
    cpu.set_st(op.dst, first);
    cpu.note_status(0, C1);
    cpu.note_rip(op);
    Ok(Flow::Next)
}

/// FCHS (`FLIP`) and FABS.
fn sign<const FLIP: bool>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    if !(cpu.is_quick() && cpu.has_st(0)) {
        return on_registers(cpu, op);
    }
    let top_byte = &mut cpu.fx.0[ST + 9];
    *top_byte = if FLIP { *top_byte ^ 0x80 } else { *top_byte & 0x7f };
    cpu.note_status(0, C1);
    cpu.note_rip(op);
    Ok(Flow::Next)
}

/// FCOM and FUCOM with ST(i), into the condition codes; and `POPS` pops.
fn compare_codes<Q: Quick, const POPS: u8>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    if !(cpu.is_quick() && cpu.has_st(0) && cpu.has_st(op.dst)) {
        return on_registers(cpu, op);
    }
    let (found, status) = Q::COMPUTE(&cpu.st(0), &cpu.st(op.dst), cpu.fcw());
    let codes = u16::from(found[0]) << 8 | u16::from(found[1]) << 10 | u16::from(found[2]) << 14;
    cpu.note_status(status & EXCEPTIONS | codes, CODES);
    (0..POPS).for_each(|_| cpu.pop_st());
    cpu.note_rip(op);
    Ok(Flow::Next)
}

/// FCOMI and FUCOMI with ST(i), and a pop.
fn compare_flags<Q: Quick, const POPS: bool>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    if !(cpu.is_quick() && cpu.has_st(0) && cpu.has_st(op.dst)) {
        return into_flags(cpu, op);
    }
    let (found, status) = Q::COMPUTE(&cpu.st(0), &cpu.st(op.dst), cpu.fcw());
    cpu.flags.set_compared(found[0] != 0, found[1] != 0, found[2] != 0);
    cpu.note_status(status & EXCEPTIONS, C1);
    if POPS {
        cpu.pop_st();
    }
    cpu.note_rip(op);
    Ok(Flow::Next)
}

/// The quick handler of an instruction that has one. It wants i of ST(i) in [`Op::dst`], and all else as the long one.
pub fn find(code: Code) -> Option<Handler> {
    Some(match code {
        Code::Fadd_st0_sti => st0_sti::<Add>,
        Code::Fsub_st0_sti => st0_sti::<Sub>,
        Code::Fsubr_st0_sti => st0_sti::<SubReverse>,
        Code::Fmul_st0_sti => st0_sti::<Mul>,
        Code::Fdiv_st0_sti => st0_sti::<Div>,
        Code::Fdivr_st0_sti => st0_sti::<DivReverse>,
        Code::Fadd_sti_st0 => sti_st0::<Add, false>,
        Code::Fsub_sti_st0 => sti_st0::<Sub, false>,
        Code::Fsubr_sti_st0 => sti_st0::<SubReverse, false>,
        Code::Fmul_sti_st0 => sti_st0::<Mul, false>,
        Code::Fdiv_sti_st0 => sti_st0::<Div, false>,
        Code::Fdivr_sti_st0 => sti_st0::<DivReverse, false>,
        Code::Faddp_sti_st0 => sti_st0::<Add, true>,
        Code::Fsubp_sti_st0 => sti_st0::<Sub, true>,
        Code::Fsubrp_sti_st0 => sti_st0::<SubReverse, true>,
        Code::Fmulp_sti_st0 => sti_st0::<Mul, true>,
        Code::Fdivp_sti_st0 => sti_st0::<Div, true>,
        Code::Fdivrp_sti_st0 => sti_st0::<DivReverse, true>,
        Code::Fadd_m32fp => st0_memory::<AddSingle>,
        Code::Fsub_m32fp => st0_memory::<SubSingle>,
        Code::Fsubr_m32fp => st0_memory::<SubReverseSingle>,
        Code::Fmul_m32fp => st0_memory::<MulSingle>,
        Code::Fdiv_m32fp => st0_memory::<DivSingle>,
        Code::Fdivr_m32fp => st0_memory::<DivReverseSingle>,
        Code::Fadd_m64fp => st0_memory::<AddDouble>,
        Code::Fsub_m64fp => st0_memory::<SubDouble>,
        Code::Fsubr_m64fp => st0_memory::<SubReverseDouble>,
        Code::Fmul_m64fp => st0_memory::<MulDouble>,
        Code::Fdiv_m64fp => st0_memory::<DivDouble>,
        Code::Fdivr_m64fp => st0_memory::<DivReverseDouble>,
        Code::Fld_m32fp => push_memory::<LoadSingle>,
        Code::Fld_m64fp => push_memory::<LoadDouble>,
        Code::Fld_m80fp => push_memory::<LoadExtended>,
        Code::Fild_m16int => push_memory::<LoadInteger16>,
        Code::Fild_m32int => push_memory::<LoadInteger32>,
        Code::Fild_m64int => push_memory::<LoadInteger64>,
        Code::Fld1 => push_constant::<One>,
        Code::Fldz => push_constant::<Zero>,
        Code::Fld_sti => push_sti,
        Code::Fst_m32fp => store_memory::<StoreSingle, false>,
        Code::Fstp_m32fp => store_memory::<StoreSingle, true>,
        Code::Fst_m64fp => store_memory::<StoreDouble, false>,
        Code::Fstp_m64fp => store_memory::<StoreDouble, true>,
        Code::Fstp_m80fp => store_memory::<StoreExtended, true>,
        Code::Fist_m16int => store_memory::<StoreInteger16, false>,
        Code::Fistp_m16int => store_memory::<StoreInteger16, true>,
        Code::Fist_m32int => store_memory::<StoreInteger32, false>,
        Code::Fistp_m32int => store_memory::<StoreInteger32, true>,
        Code::Fistp_m64int => store_memory::<StoreInteger64, true>,
        Code::Fst_sti => store_sti::<false>,
        Code::Fstp_sti => store_sti::<true>,
        Code::Fxch_st0_sti => fxch,
        Code::Fchs => sign::<true>,
        Code::Fabs => sign::<false>,
        Code::Fcom_st0_sti => compare_codes::<Compare, 0>,
        Code::Fcomp_st0_sti => compare_codes::<Compare, 1>,
        Code::Fcompp => compare_codes::<Compare, 2>,
        Code::Fucom_st0_sti => compare_codes::<CompareUnordered, 0>,
        Code::Fucomp_st0_sti => compare_codes::<CompareUnordered, 1>,
        Code::Fucompp => compare_codes::<CompareUnordered, 2>,
        Code::Fcomi_st0_sti => compare_flags::<Compare, false>,
        Code::Fcomip_st0_sti => compare_flags::<Compare, true>,
        Code::Fucomi_st0_sti => compare_flags::<CompareUnordered, false>,
        Code::Fucomip_st0_sti => compare_flags::<CompareUnordered, true>,
        _ => return None,
    })
}
