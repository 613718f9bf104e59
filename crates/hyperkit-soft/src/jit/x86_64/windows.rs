//! Accesses of a trace through the same registers, near one another: the TLB is asked once for all of them.
//!
//! The first one that is emitted looks up the whole range, its window, and keeps its host address in the frame; the
//! others go there. When the range is not to be had as one (a page ends in it, or part of it may be read only) the place in
//! the frame is 0, and each access asks for itself. So it is after every call of the interpreter too, which may have changed
//! what addresses mean.
//!
//! When a trace is a loop, a window through registers that are the same at each turn lasts: it is looked up where the loop
//! is entered, and again, by rare code, by the first access that finds it void.

use iced_x86::{
    FlowControl, Instruction, InstructionInfoFactory, InstructionInfoOptions, Mnemonic, OpAccess, OpKind,
    Register,
};

use super::classify;
use super::frame::WINDOWS;
use super::trace::{Follow, Part};

/// Most bytes of a window.
const BYTES_MAX: i64 = 512;

/// Where a register has gone to from where it was: no further than this, or it is taken for another one.
const MOVED_MAX: i64 = 1 << 20;

/// RSP.
const RSP: usize = 4;

/// What pushes and pops access.
pub const STACK: Through = Through { base: RSP as u8, index: None };

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
    /// Whether it holds for all turns of the loop that the trace is.
    pub lasts: bool,
}

/// A window that holds for all turns of a loop: it is looked up where the loop is entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lasting {
    /// The registers.
    pub through: Through,
    /// Where it begins, from what they are when the loop is entered.
    pub disp: i32,
    /// The window; nothing of `shift` is used.
    pub member: Member,
}

/// Accesses that may become a window.
#[derive(Debug)]
struct Group {
    through: Through,
    /// How far the registers together were from where they were at the trace's begin when it was opened, if that is known.
    since: Option<i64>,
    first: i64,
    end: i64,
    writes: bool,
    /// Instruction and offset.
    members: Vec<(usize, i64)>,
}

/// The registers that an address is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Through {
    /// Base register.
    pub base: u8,
    /// Index register and log2 of its factor.
    pub index: Option<(u8, u8)>,
}

/// A group that accesses may still join.
#[derive(Debug)]
struct Open {
    through: Through,
    group: usize,
    /// How far the registers together are from where they were when it was opened.
    moved: i64,
}

/// What is known of the registers while a trace is gone through.
struct Walk {
    groups: Vec<Group>,
    open: Vec<Open>,
    /// How far each register is from where it was at the trace's begin; `None` if something else was written to it.
    total: [Option<i64>; 16],
    /// The same at each instruction that may be followed by the trace's begin, with its number.
    turns: Vec<(u32, [Option<i64>; 16])>,
    info: InstructionInfoFactory,
}

/// The windows of a trace.
#[derive(Debug)]
pub struct Windows {
    /// For each instruction the window that its access belongs to.
    pub members: Vec<Option<Member>>,
    /// Those that last.
    pub lasting: Vec<Lasting>,
    /// The instructions after which the trace, if it is a loop, may go on at its begin.
    pub turns: Vec<u32>,
}

/// The windows of a trace, which is a loop, if it may be, when it branches to its begin.
pub fn find(parts: &[Part], loops: bool) -> Windows {
    let mut walk = Walk {
        groups: Vec::new(),
        open: Vec::new(),
        total: [Some(0); 16],
        turns: Vec::new(),
        info: InstructionInfoFactory::new(),
    };
    let head = parts.first().filter(|_| loops).map(|head| head.rip);
    let mut count = 0;
    for part in parts {
        for instruction in &part.instructions {
            walk.step(count, instruction);
            count += 1;
        }
        let Some(last) = part.instructions.last() else { continue };
        let around = matches!(part.follow, Follow::Around { .. });
        if head.is_some_and(|head| around || leads_to(last, head)) {
            walk.turns.push((count as u32 - 1, walk.total));
        }
    }
    let mut groups: Vec<(Group, bool)> = std::mem::take(&mut walk.groups)
        .into_iter()
        .map(|group| {
            let lasts = walk.lasts(&group);
            (group, lasts)
        })
        .collect();
    // Of the accesses of a window that does not last, the first one looks it up.
    let gain = |(group, lasts): &(Group, bool)| group.members.len() - usize::from(!lasts);
    groups.retain(|group| gain(group) > 0);
    groups.sort_by_key(|group| std::cmp::Reverse(gain(group)));
    let mut members = vec![None; count];
    let mut lasting = Vec::new();
    for (slot, (group, lasts)) in groups.iter().take(WINDOWS).enumerate() {
        let bytes = (group.end - group.first) as u32;
        let window = Member { slot: slot as u8, shift: 0, bytes, writes: group.writes, lasts: *lasts };
        for (number, at) in &group.members {
            members[*number] = Some(Member { shift: (at - group.first) as i32, ..window });
        }
        if *lasts {
            let disp = (group.first + group.since.unwrap_or(0)) as i32;
            lasting.push(Lasting { through: group.through, disp, member: window });
        }
    }
    let turns = walk.turns.iter().map(|(number, _)| *number).collect();
    Windows { members, lasting, turns }
}

/// Whether an instruction is a branch to this address, or one past which what comes next lies there.
fn leads_to(instruction: &Instruction, target: u64) -> bool {
    let near = instruction.op_count() == 1 && instruction.op0_kind() == OpKind::NearBranch64;
    let taken = near && instruction.near_branch_target() == target;
    match instruction.flow_control() {
        FlowControl::UnconditionalBranch => taken,
        FlowControl::ConditionalBranch => taken || instruction.next_ip() == target,
        _ => false,
    }
}

impl Walk {
    /// Whether a group's registers are at each turn of the loop what they were at the one before.
    fn lasts(&self, group: &Group) -> bool {
        let fits = group.since.is_some_and(|since| i32::try_from(group.first + since).is_ok());
        fits && !self.turns.is_empty()
            && group.through.distance(&self.total).is_some()
            && self.turns.iter().all(|(_, total)| group.through.distance(total) == Some(0))
    }

    fn step(&mut self, number: usize, instruction: &Instruction) {
        let moves = instruction.stack_pointer_increment();
        let of_register = instruction.op_count() == 0 || instruction.op0_kind() != OpKind::Memory;
        match instruction.mnemonic() {
            Mnemonic::Push if moves == -8 && of_register => {
                self.access(number, STACK, -8, 8, true);
                self.go(RSP, -8);
            }
            Mnemonic::Pop if moves == 8 && of_register => {
                self.access(number, STACK, 0, 8, false);
                self.go(RSP, 8);
                self.lose(instruction.op0_register());
            }
            Mnemonic::Call if of_register => {
                self.access(number, STACK, -8, 8, true);
                self.go(RSP, -8);
            }
            Mnemonic::Ret => {
                self.access(number, STACK, 0, 8, false);
                self.go(RSP, i64::from(moves));
            }
            _ => {
                if is_plain(instruction) {
                    let writes = self.writes_memory(instruction);
                    let at = instruction.memory_displacement64() as i64;
                    let bytes = instruction.memory_size().size() as i64;
                    self.access(number, Through::of(instruction), at, bytes, writes);
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

    fn access(&mut self, number: usize, through: Through, at: i64, bytes: i64, writes: bool) {
        let open = self.open.iter().position(|open| open.through == through);
        let moved = open.map_or(0, |open| self.open[open].moved);
        let at = at.wrapping_add(moved);
        let Some(end) = at.checked_add(bytes).filter(|_| at.abs() <= 1 << 32) else { return };
        if let Some(open) = open {
            let group = &mut self.groups[self.open[open].group];
            let (first, last) = (group.first.min(at), group.end.max(end));
            if last - first <= BYTES_MAX {
                (group.first, group.end) = (first, last);
                group.writes |= writes;
                group.members.push((number, at));
                return;
            }
            self.open[open].group = self.groups.len();
        } else {
            self.open.push(Open { through, group: self.groups.len(), moved });
        }
        let since = through.distance(&self.total).map(|distance| distance - moved);
        self.groups.push(Group { through, since, first: at, end, writes, members: vec![(number, at)] });
    }

    /// A register has a distance added to it.
    fn go(&mut self, register: usize, distance: i64) {
        let total = self.total[register].map(|total| total + distance);
        self.total[register] = total.filter(|total| total.abs() <= MOVED_MAX);
        for open in &mut self.open {
            open.moved += distance * open.through.factor(register);
        }
        self.open.retain(|open| open.moved.abs() <= MOVED_MAX);
    }

    /// A register gets a value that nothing is known of.
    fn forget(&mut self, register: usize) {
        self.total[register] = None;
        self.open.retain(|open| open.through.factor(register) == 0);
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

impl Through {
    /// Those of a memory operand of an instruction that [`find`] knows.
    pub fn of(instruction: &Instruction) -> Through {
        let index = instruction.memory_index();
        let scale = instruction.memory_index_scale().trailing_zeros() as u8;
        Through {
            base: instruction.memory_base().number() as u8,
            index: (index != Register::None).then(|| (index.number() as u8, scale)),
        }
    }

    /// How far an address goes when a register goes by one.
    fn factor(&self, register: usize) -> i64 {
        let of_index = match self.index {
            Some((index, scale)) if usize::from(index) == register => 1 << scale,
            _ => 0,
        };
        i64::from(usize::from(self.base) == register) + of_index
    }

    /// How far an address has gone when registers have gone by `total`.
    fn distance(&self, total: &[Option<i64>; 16]) -> Option<i64> {
        let of_index = match self.index {
            Some((index, scale)) => total[usize::from(index)]? << scale,
            None => 0,
        };
        Some(total[usize::from(self.base)]? + of_index)
    }
}

/// Whether an instruction has a memory operand of a base register, and perhaps an index, that it accesses, and needs no
/// alignment.
fn is_plain(instruction: &Instruction) -> bool {
    let memory = (0..instruction.op_count()).any(|n| instruction.op_kind(n) == OpKind::Memory);
    let bytes = instruction.memory_size().size();
    memory
        && instruction.memory_base().is_gpr64()
        && (instruction.memory_index() == Register::None || instruction.memory_index().is_gpr64())
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
