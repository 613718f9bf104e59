//! What segments allow outside 64-bit mode: limits, types, null selectors. Spec: SDM vol. 3A §5.3 and §5.5.
//!
//! In 16-bit and 32-bit code a check is decoded before every instruction with a memory operand, explicit or on the
//! stack, as an op that counts for no instruction. String instructions check element by element.

use hyperkit_hv::state::x86_64::Segment;
use iced_x86::{Instruction, InstructionInfoFactory, OpAccess, OpKind, Register, UsedMemory};

use crate::cpu::{CodeSize, Cpu, seg};
use crate::decode::{Context, operand};
use crate::op::{Flow, Op, ZERO};
use crate::system::descriptor::rights;
use crate::trap::{Fault, Trap, vector};

/// [`Op::aux`]: the access is a write.
const WRITES: u8 = 1;
/// [`Op::aux`]: at a distance from the stack pointer, of which the bits count that the stack segment says.
const ON_STACK: u8 = 2;

/// The checks that come before an instruction in 16-bit or 32-bit code; `ours`: of the unprivileged families, whose
/// accesses to the stack are not checked elsewhere.
pub fn checks(instruction: &Instruction, context: &Context, ours: bool, ops: &mut Vec<Op>) {
    if context.code_size == CodeSize::Bits64 || instruction.is_string_instruction() {
        return;
    }
    let mut factory = InstructionInfoFactory::new();
    for memory in factory.info(instruction).used_memory() {
        let explicit = (0..instruction.op_count()).any(|n| instruction.op_kind(n) == OpKind::Memory)
            && memory.base() == instruction.memory_base()
            && memory.index() == instruction.memory_index()
            && memory.displacement() as u32 == instruction.memory_displacement64() as u32;
        let size = memory.memory_size().size();
        let accessed = !matches!(memory.access(), OpAccess::None | OpAccess::NoMemAccess);
        // XLAT adds a byte, gathers a vector.
        let plain = !memory.index().is_gpr8() && !memory.index().is_vector_register();
        if accessed && plain && size > 0 && (ours || explicit) {
            ops.push(check(instruction, context, memory));
        }
    }
}

fn check(instruction: &Instruction, context: &Context, memory: &UsedMemory) -> Op {
    let number = |register: Register| if register == Register::None { ZERO } else { register.number() as u8 };
    let writes = !matches!(memory.access(), OpAccess::Read | OpAccess::CondRead);
    let on_stack = memory.base().full_register() == Register::RSP && memory.segment() == Register::SS;
    let mut op = operand::op(check_limit, instruction, context);
    op.base = number(memory.base());
    op.index = number(memory.index());
    op.scale = memory.scale().trailing_zeros() as u8;
    op.disp = memory.displacement() as i32;
    op.addr_bits = match (memory.base(), memory.index()) {
        (Register::None, Register::None) => (instruction.memory_displ_size() * 8).max(16) as u8,
        (Register::None, only) | (only, _) => (only.size() * 8) as u8,
    };
    op.dst = memory.segment().number() as u8;
    op.imm = memory.memory_size().size() as u64;
    op.aux = if writes { WRITES } else { 0 } | if on_stack && op.index == ZERO { ON_STACK } else { 0 };
    op.count = 0;
    op
}

fn check_limit(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    let offset = if op.aux & ON_STACK != 0 {
        cpu.regs[4].wrapping_add(op.disp as i64 as u64) & cpu.stack_mask()
    } else {
        cpu.offset(op)
    };
    cpu.check_segment(usize::from(op.dst), offset, op.imm, op.aux & WRITES != 0)?;
    Ok(Flow::Next)
}

/// Whether `bytes` bytes at `offset` lie in a segment.
fn holds(segment: &Segment, offset: u64, bytes: u64) -> bool {
    let last = offset + (bytes - 1);
    let limit = u64::from(segment.limit);
    let expands_down = segment.rights & (rights::SEGMENT | rights::CODE | rights::CONFORMING)
        == rights::SEGMENT | rights::CONFORMING;
    if expands_down {
        let top = if segment.rights & rights::BIG != 0 { 0xffff_ffff } else { 0xffff };
        return offset > limit && last <= top;
    }
    last <= limit
}

impl Cpu {
    /// #SS(0) or #GP(0) unless a segment allows an access of `bytes` bytes at an offset, outside 64-bit mode.
    #[inline]
    pub fn check_segment(
        &mut self,
        number: usize,
        offset: u64,
        bytes: u64,
        writes: bool,
    ) -> Result<(), Trap> {
        let segment = &self.segments[number];
        let kind = segment.rights & (rights::CODE | rights::WRITABLE);
        let allowed = match (self.protected(), kind & rights::CODE != 0) {
            (false, _) => true,
            (true, _) if segment.rights & rights::PRESENT == 0 => false,
            (true, true) => !writes && kind & rights::WRITABLE != 0,
            (true, false) => !writes || kind & rights::WRITABLE != 0,
        };
        if allowed && holds(segment, offset, bytes) {
            return Ok(());
        }
        let vector = if number == seg::SS { vector::SS } else { vector::GP };
        Err(self.raise(Fault { vector, error: Some(0), after: false }))
    }

    /// The same for an element of a repeated string instruction, which nothing before it has checked.
    #[inline]
    pub fn check_element(
        &mut self,
        number: usize,
        offset: u64,
        bytes: u64,
        writes: bool,
    ) -> Result<(), Trap> {
        if self.code_size == CodeSize::Bits64 {
            return Ok(());
        }
        self.check_segment(number, offset, bytes, writes)
    }

    /// The exception of an access to the stack at `linear`: #SS(0) where that address is not canonical, and whatever
    /// was raised otherwise (SDM vol. 3A §6.15, stack-fault exception).
    #[cold]
    pub fn on_stack(&mut self, linear: u64, trap: Trap) -> Trap {
        let general = Fault { vector: vector::GP, error: Some(0), after: false };
        let canonical = |linear| crate::decode::build::is_canonical(linear);
        let outside = !canonical(linear) || !canonical(linear.wrapping_add(STACK_ACCESS_MAX - 1));
        if self.code_size != CodeSize::Bits64 || self.fault != Some(general) || !outside {
            return trap;
        }
        self.raise(Fault { vector: vector::SS, ..general })
    }

    /// The exception that an op raised, by the segment of its operand: addresses with RSP or RBP as their base are of
    /// the stack unless there is a prefix that says otherwise.
    #[cold]
    pub fn on_operand(&mut self, op: &Op, trap: Trap) -> Trap {
        if op.seg == crate::op::FLAT && matches!(op.base, 4 | 5) {
            let linear = self.address(op);
            return self.on_stack(linear, trap);
        }
        trap
    }
}

/// Most bytes that one access to the stack has.
const STACK_ACCESS_MAX: u64 = 32;
