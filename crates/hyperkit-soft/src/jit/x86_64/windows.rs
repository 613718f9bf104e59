//! Accesses of a trace through one register, near one another: the TLB is asked once for all of them.
//!
//! The first one that is emitted looks up the whole range, its window, and keeps its host address in the frame; the
//! others go there. When the range is not to be had as one (a page ends in it, or part of it may be read only) the place in
//! the frame is 0, and each access asks for itself. So it is after every call of the interpreter too, which may have changed
//! what addresses mean.

use iced_x86::{
    Instruction, InstructionInfoFactory, InstructionInfoOptions, Mnemonic, OpAccess, OpKind, Register,
};

use super::classify;
use super::frame::WINDOWS;

/// Most bytes of a window.
const BYTES_MAX: i64 = 512;

/// Where a register has gone to from where it was: no further than this, or it is taken for another one.
const MOVED_MAX: i64 = 1 << 20;

/// RSP.
const RSP: usize = 4;

/// An access that belongs to a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Which place of the frame the window has.
    pub slot: u8,
    /// Where the access is in it.
    pub shift: i32,
    /// Its bytes.
    pub bytes: u32,
    /// Whether something is written in it.
    pub writes: bool,
}

/// Accesses that may become a window.
#[derive(Debug)]
struct Group {
    first: i64,
    end: i64,
    writes: bool,
    /// Instruction and offset.
    members: Vec<(usize, i64)>,
}

/// What is known of the registers while a trace is gone through.
struct Walk {
    groups: Vec<Group>,
    /// The group that accesses through a register belong to.
    open: [Option<usize>; 16],
    /// How far a register is from where it was when its group was opened.
    moved: [i64; 16],
    info: InstructionInfoFactory,
}

/// For each instruction of a trace the window that its access belongs to.
pub fn find<'a>(instructions: impl Iterator<Item = &'a Instruction>) -> Vec<Option<Member>> {
    let mut walk =
        Walk { groups: Vec::new(), open: [None; 16], moved: [0; 16], info: InstructionInfoFactory::new() };
    let mut count = 0;
    for (number, instruction) in instructions.enumerate() {
        walk.step(number, instruction);
        count = number + 1;
    }
    let mut members = vec![None; count];
    let mut groups = walk.groups;
    groups.retain(|group| group.members.len() > 1);
    groups.sort_by_key(|group| std::cmp::Reverse(group.members.len()));
    for (slot, group) in groups.iter().take(WINDOWS).enumerate() {
        for (number, at) in &group.members {
            members[*number] = Some(Member {
                slot: slot as u8,
                shift: (at - group.first) as i32,
                bytes: (group.end - group.first) as u32,
                writes: group.writes,
            });
        }
    }
    members
}

impl Walk {
    fn step(&mut self, number: usize, instruction: &Instruction) {
        let moves = instruction.stack_pointer_increment();
        let of_register = instruction.op_count() == 0 || instruction.op0_kind() != OpKind::Memory;
        match instruction.mnemonic() {
            Mnemonic::Push if moves == -8 && of_register => {
                self.access(number, RSP, -8, 8, true);
                self.go(RSP, -8);
            }
            Mnemonic::Pop if moves == 8 && of_register => {
                self.access(number, RSP, 0, 8, false);
                self.go(RSP, 8);
                self.lose(instruction.op0_register());
            }
            Mnemonic::Call if of_register => self.access(number, RSP, -8, 8, true),
            Mnemonic::Ret => self.access(number, RSP, 0, 8, false),
            _ => {
                if is_plain(instruction) {
                    let base = instruction.memory_base().number();
                    let writes = self.writes_memory(instruction);
                    let at = instruction.memory_displacement64() as i64;
                    self.access(number, base, at, instruction.memory_size().size() as i64, writes);
                }
                match distance(instruction) {
                    Some(distance) => self.go(instruction.op0_register().number(), distance),
                    None => self.lose_written(instruction),
                }
            }
        }
    }

    fn writes_memory(&mut self, instruction: &Instruction) -> bool {
        let info = self.info.info_options(instruction, InstructionInfoOptions::NO_REGISTER_USAGE);
        (0..instruction.op_count()).any(|n| {
            instruction.op_kind(n) == OpKind::Memory
                && !matches!(info.op_access(n), OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess)
        })
    }

    fn access(&mut self, number: usize, base: usize, at: i64, bytes: i64, writes: bool) {
        let at = at.wrapping_add(self.moved[base]);
        let Some(end) = at.checked_add(bytes).filter(|_| at.abs() <= 1 << 32) else { return };
        if let Some(group) = self.open[base].and_then(|group| self.groups.get_mut(group)) {
            let (first, last) = (group.first.min(at), group.end.max(end));
            if last - first <= BYTES_MAX {
                (group.first, group.end) = (first, last);
                group.writes |= writes;
                group.members.push((number, at));
                return;
            }
        }
        self.open[base] = Some(self.groups.len());
        self.groups.push(Group { first: at, end, writes, members: vec![(number, at)] });
    }

    /// A register has a distance added to it.
    fn go(&mut self, register: usize, distance: i64) {
        self.moved[register] += distance;
        if self.moved[register].abs() > MOVED_MAX {
            self.forget(register);
        }
    }

    /// A register gets a value that nothing is known of.
    fn forget(&mut self, register: usize) {
        (self.open[register], self.moved[register]) = (None, 0);
    }

    fn lose(&mut self, register: Register) {
        if register.is_gpr() {
            self.forget(register.full_register().number());
        }
    }

    fn lose_written(&mut self, instruction: &Instruction) {
        let info = self.info.info_options(instruction, InstructionInfoOptions::NO_MEMORY_USAGE);
        let mut written = 0u16;
        for used in info.used_registers() {
            if used.register().is_gpr() && !matches!(used.access(), OpAccess::Read | OpAccess::CondRead) {
                written |= 1 << used.register().full_register().number();
            }
        }
        (0..16).filter(|register| written & 1 << register != 0).for_each(|register| self.forget(register));
    }
}

/// Whether an instruction has a memory operand `[base + displacement]` that it accesses, and needs no alignment.
fn is_plain(instruction: &Instruction) -> bool {
    let memory = (0..instruction.op_count()).any(|n| instruction.op_kind(n) == OpKind::Memory);
    let bytes = instruction.memory_size().size();
    memory
        && instruction.memory_base().is_gpr64()
        && instruction.memory_index() == Register::None
        && !matches!(instruction.memory_segment(), Register::FS | Register::GS)
        && (1..=32).contains(&bytes)
        && !instruction.has_lock_prefix()
        && !matches!(instruction.mnemonic(), Mnemonic::Lea | Mnemonic::Xchg)
        && (classify::is_integer(instruction)
            || ((classify::is_sse(instruction) || classify::is_avx(instruction))
                && !classify::must_be_aligned(instruction)))
}

/// How far an instruction moves its first operand, a 64-bit register, if it does nothing else to registers.
fn distance(instruction: &Instruction) -> Option<i64> {
    let register = instruction.op0_register();
    if instruction.op_count() == 0 || instruction.op0_kind() != OpKind::Register || !register.is_gpr64() {
        return None;
    }
    let immediate = || instruction.try_immediate(1).ok().map(|value| value as i64);
    let distance = match instruction.mnemonic() {
        Mnemonic::Add => immediate()?,
        Mnemonic::Sub => immediate()?.checked_neg()?,
        Mnemonic::Inc => 1,
        Mnemonic::Dec => -1,
        Mnemonic::Lea
            if instruction.memory_base() == register && instruction.memory_index() == Register::None =>
        {
            instruction.memory_displacement64() as i64
        }
        _ => return None,
    };
    (distance.abs() <= MOVED_MAX).then_some(distance)
}
