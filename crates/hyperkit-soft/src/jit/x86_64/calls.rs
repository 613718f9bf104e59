//! Which calls a trace goes on with: those to a function of its page that is short enough to be in the trace as a whole, up
//! to its return, and what comes after that.
//!
//! A return in a trace leads where the call that is in the trace came from, unless the guest has changed the return address
//! since. Where nothing can have, nobody needs to look.

use iced_x86::{
    Code, FlowControl, Instruction, InstructionInfoFactory, InstructionInfoOptions, Mnemonic, OpAccess,
    OpKind, Register,
};

use super::classify;
use super::trace::{Follow, Heat, Part};
use crate::cpu::Cpu;

/// How many blocks are tried for the ways through one function.
const TRIES_MAX: u32 = 24;

/// A trace in the making.
#[derive(Debug)]
pub struct Path {
    /// Its blocks.
    pub parts: Vec<Part>,
    /// Where the functions that it is in return to, the innermost last.
    pub returns: Vec<u64>,
    /// Blocks that may still be tried.
    tries: u32,
}

impl Path {
    /// One that has a block.
    pub fn new(head: Part) -> Path {
        Path { parts: vec![head], returns: Vec::new(), tries: 0 }
    }

    fn set_follow(&mut self, follow: Follow) {
        if let Some(last) = self.parts.last_mut() {
            last.follow = follow;
        }
    }
}

impl Cpu {
    /// Adds what is called by the call that `path` ends with, and the block that it returns to. False, with nothing added,
    /// if it does not fit, or is no call of this kind.
    pub(super) fn through(&self, path: &mut Path) -> bool {
        let Some(call) = path.parts.last().and_then(|part| part.instructions.last()) else { return false };
        if !is_near_call(call) {
            return false;
        }
        let (target, next) = (call.near_branch_target(), call.next_ip());
        let mark = path.parts.len();
        // A function that calls none is tried first.
        for nested in [false, true] {
            path.tries = TRIES_MAX;
            path.returns.push(next);
            path.set_follow(Follow::Call);
            if self.is_known(&path.parts, target)
                && self.append(path, target)
                && self.until_return(path, nested)
            {
                return true;
            }
            path.parts.truncate(mark);
            path.returns.clear();
            path.set_follow(Follow::Nothing);
        }
        false
    }

    /// Goes on from the last block of `path`, which is in a function, until all functions have returned. False, with nothing
    /// added, if there is no way.
    fn until_return(&self, path: &mut Path, nested: bool) -> bool {
        let (mark, returns) = (path.parts.len(), path.returns.clone());
        for (follow, rip) in self.ways(path, nested).into_iter().flatten() {
            if path.tries == 0 {
                break;
            }
            path.tries -= 1;
            path.set_follow(follow);
            match follow {
                Follow::Call => path.returns.extend(path.parts.last().map(Part::end)),
                Follow::Return { .. } => drop(path.returns.pop()),
                _ => {}
            }
            if path.returns.is_empty() && rip == path.parts[0].rip {
                path.set_follow(Follow::Around { popped: true });
                return true;
            }
            if self.append(path, rip) && (path.returns.is_empty() || self.until_return(path, nested)) {
                return true;
            }
            path.parts.truncate(mark);
            path.returns.clone_from(&returns);
            path.set_follow(Follow::Nothing);
        }
        false
    }

    /// The ways on from the last block of `path`, which is in a function, the better one first.
    fn ways(&self, path: &Path, nested: bool) -> [Option<(Follow, u64)>; 2] {
        let parts = &path.parts;
        let Some(branch) = parts.last().and_then(|part| part.instructions.last()) else { return [None; 2] };
        let way = |follow, rip| self.is_known(parts, rip).then_some((follow, rip));
        let (next, target) = (branch.next_ip(), branch.near_branch_target());
        let near = branch.op0_kind() == OpKind::NearBranch64;
        match branch.flow_control() {
            FlowControl::UnconditionalBranch if near => [way(Follow::Target, target), None],
            FlowControl::ConditionalBranch if near && branch.is_jcc_short_or_near() => {
                let ways = [way(Follow::Next, next), way(Follow::Target, target)];
                match (self.heat(parts, next), self.heat(parts, target)) {
                    (Heat::Warm(less), Heat::Warm(more)) if less < more => [ways[1], ways[0]],
                    _ => ways,
                }
            }
            FlowControl::Call if nested && is_near_call(branch) => [way(Follow::Call, target), None],
            FlowControl::Return if is_near_return(branch) && is_balanced(parts) => {
                // What is there is executed each time, however often that was.
                let to = path.returns.last().copied();
                let known = to.filter(|to| self.heat(parts, *to) != Heat::Cold);
                [known.map(|to| (Follow::Return { to, popped: true }, to)), None]
            }
            _ => [None; 2],
        }
    }

    fn is_known(&self, parts: &[Part], rip: u64) -> bool {
        let heat = self.heat(parts, rip);
        matches!(heat, Heat::Here | Heat::Translated) || self.is_hot(heat)
    }
}

fn is_near_call(instruction: &Instruction) -> bool {
    instruction.code() == Code::Call_rel32_64
}

fn is_near_return(instruction: &Instruction) -> bool {
    matches!(instruction.code(), Code::Retnq | Code::Retnq_imm16)
}

/// A function that a trace is in.
#[derive(Debug, Clone, Copy)]
struct Inside {
    /// How far RSP is from where it was after the call, if that is known.
    moved: Option<i64>,
    /// Whether nothing was done since but on registers, and to push them: nothing was loaded, before which another
    /// processor's store to the return address would have to be seen.
    quiet: bool,
}

/// Walks through a trace and sees what becomes of return addresses.
struct Walk {
    inside: Vec<Inside>,
    info: InstructionInfoFactory,
}

impl Walk {
    fn new() -> Walk {
        Walk { inside: Vec::new(), info: InstructionInfoFactory::new() }
    }

    /// Goes through an instruction that is not a followed return, nor a followed call.
    fn step(&mut self, instruction: &Instruction) {
        if self.inside.is_empty() {
            return;
        }
        let register = instruction.op_count() > 0
            && instruction.op0_kind() == OpKind::Register
            && instruction.op0_register().is_gpr64()
            && instruction.op0_register() != Register::RSP;
        let immediate = matches!(instruction.op0_kind(), OpKind::Immediate8to64 | OpKind::Immediate32to64);
        match instruction.mnemonic() {
            Mnemonic::Push if register || immediate => self.go(-8),
            Mnemonic::Pop if register => {
                self.go(8);
                self.inside.iter_mut().for_each(|inside| inside.quiet = false);
            }
            _ if self.writes_rsp(instruction) => {
                for inside in &mut self.inside {
                    *inside = Inside { moved: None, quiet: false };
                }
            }
            _ if is_quiet(instruction) => {}
            _ => self.inside.iter_mut().for_each(|inside| inside.quiet = false),
        }
    }

    fn go(&mut self, distance: i64) {
        for inside in &mut self.inside {
            inside.moved = inside.moved.map(|moved| moved + distance);
            // What is above the return address is not the function's own.
            inside.quiet &= inside.moved.is_some_and(|moved| moved <= 0);
        }
    }

    fn call(&mut self) {
        self.go(-8);
        self.inside.push(Inside { moved: Some(0), quiet: true });
    }

    /// Goes through a followed return; whether it pops what was pushed without having to look.
    fn returns(&mut self, instruction: &Instruction) -> bool {
        let inside = self.inside.pop();
        let sure = inside.is_some_and(|inside| inside.quiet && inside.moved == Some(0));
        self.go(i64::from(instruction.stack_pointer_increment()));
        self.inside.iter_mut().for_each(|inside| inside.quiet &= sure);
        sure
    }

    fn writes_rsp(&mut self, instruction: &Instruction) -> bool {
        let info = self.info.info_options(instruction, InstructionInfoOptions::NO_MEMORY_USAGE);
        info.used_registers().iter().any(|used| {
            used.register().full_register() == Register::RSP
                && !matches!(used.access(), OpAccess::Read | OpAccess::CondRead)
        })
    }

    /// Goes through a block but for its last instruction.
    fn begin<'a>(&mut self, part: &'a Part) -> Option<&'a Instruction> {
        let (last, others) = part.instructions.split_last()?;
        others.iter().for_each(|instruction| self.step(instruction));
        Some(last)
    }

    /// Goes through a block. Whether it is sure what the return that ends it pops.
    fn part(&mut self, part: &Part) -> bool {
        let Some(last) = self.begin(part) else { return false };
        match part.follow {
            Follow::Call => self.call(),
            Follow::Return { .. } | Follow::Around { .. } => return self.returns(last),
            _ => self.step(last),
        }
        false
    }
}

/// Whether an instruction is on registers that are not RSP, or a branch, and orders nothing.
fn is_quiet(instruction: &Instruction) -> bool {
    use Mnemonic::{Lea, Lfence, Mfence, Sfence};
    let registers = || (0..instruction.op_count()).all(|n| instruction.op_kind(n) != OpKind::Memory);
    match instruction.mnemonic() {
        Lfence | Mfence | Sfence => false,
        Lea => true,
        _ if instruction.is_jcc_short_or_near() || instruction.is_jmp_short_or_near() => true,
        _ => classify::is_nop(instruction) || (classify::is_integer(instruction) && registers()),
    }
}

/// Whether RSP may be where the return address is when the last of `parts` returns, as far as can be told.
fn is_balanced(parts: &[Part]) -> bool {
    let mut walk = Walk::new();
    let Some((last, others)) = parts.split_last() else { return false };
    for part in others {
        walk.part(part);
    }
    walk.begin(last);
    walk.inside.last().is_some_and(|inside| inside.moved.is_none_or(|moved| moved == 0))
}

/// Notes of the returns in a trace which of them need not look at what they pop.
pub fn settle(parts: &mut [Part]) {
    let mut walk = Walk::new();
    for part in parts {
        let sure = walk.part(part);
        if let Follow::Return { popped, .. } | Follow::Around { popped } = &mut part.follow {
            *popped = !sure;
        }
    }
}
