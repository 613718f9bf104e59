//! The loop over blocks.

use hyperkit_hv::Exit;

use crate::cpu::Cpu;
use crate::decode::blocks::{Block, Link};
use crate::flags::bit;
use crate::jit::Left;
use crate::lockstep::{self, Step};
use crate::op::{BLOCK, Flow, Op};
use crate::system::Next;
use crate::trap::{Fault, vector};

/// Blocks between two looks at the clock.
const COUNTDOWN: u32 = 512;

/// Index of DR6 in [`Cpu::debug`].
const DR6: usize = 4;

/// Bit of DR6: the trap is that of single-stepping (SDM vol. 3B §17.2.3).
const DR6_BS: u64 = 1 << 14;

/// Why a burst of blocks ended.
enum Outcome {
    /// Somebody wants attention, or something may have changed.
    Look,
    /// The instruction at this RIP raised the exception in [`Cpu::fault`].
    Fault(u64),
    /// The tiers differ ([`crate::lockstep`]).
    Differs,
}

/// How a pass through one block ended.
enum End {
    /// At its end; [`Cpu::rip`] is that of the next one.
    Whole,
    /// Somewhere else; [`Cpu::rip`] is what comes next.
    Early,
    /// With the exception in [`Cpu::fault`], raised at this RIP.
    Fault(u64),
}

/// Executes guest code until there is an exit. [`Cpu::bus`] is set.
pub fn run(cpu: &mut Cpu) -> Exit {
    loop {
        if let Next::Exit(exit) = step(cpu) {
            return exit;
        }
    }
}

impl Cpu {
    /// Executes instructions until one raises an exception, which is returned with its RIP and not delivered; or
    /// until about `instructions` were executed. For tests and measurements: nothing else is looked after.
    #[doc(hidden)]
    pub fn run_to_fault(&mut self, instructions: u64) -> Option<(u64, Fault)> {
        let end = self.retired.saturating_add(instructions);
        while self.retired < end {
            drop_written(self);
            self.shadow = false;
            self.blocks.countdown = COUNTDOWN;
            let outcome = if steps(self) { single_step(self) } else { burst(self) };
            match outcome {
                Outcome::Fault(rip) => return self.fault.take().map(|fault| (rip, fault)),
                Outcome::Differs => return None,
                Outcome::Look => {}
            }
        }
        None
    }
}

/// Does what is due between blocks, then executes blocks until something is due again.
fn step(cpu: &mut Cpu) -> Next {
    drop_written(cpu);
    if cpu.shadow {
        cpu.shadow = false;
        if cpu.attention.wanted() != 0 || cpu.blocks.countdown == 0 {
            return after_shadow(cpu);
        }
    } else if cpu.attention.wanted() != 0 || cpu.blocks.countdown == 0 {
        cpu.blocks.countdown = COUNTDOWN;
        if let Next::Exit(exit) = cpu.look_up() {
            return Next::Exit(exit);
        }
    }
    if cpu.halted {
        cpu.blocks.countdown = 0;
        return cpu.sleep();
    }
    let outcome = if steps(cpu) { single_step(cpu) } else { burst(cpu) };
    match outcome {
        Outcome::Look => Next::Run,
        Outcome::Fault(rip) => cpu.deliver_fault(rip),
        // `run` of the vCPU looks at the report before it says that it was kicked.
        Outcome::Differs => Next::Exit(Exit::Kicked),
    }
}

/// Executes the one instruction that the shadow of STI, MOV SS or POP SS covers: what is wanted comes right after it.
#[cold]
fn after_shadow(cpu: &mut Cpu) -> Next {
    if steps(cpu) {
        return match single_step(cpu) {
            Outcome::Look | Outcome::Differs => Next::Run,
            Outcome::Fault(rip) => cpu.deliver_fault(rip),
        };
    }
    let Ok(block) = cpu.single_at_rip() else { return cpu.deliver_fault(cpu.rip) };
    match pass(cpu, &block) {
        End::Fault(rip) => cpu.deliver_fault(rip),
        End::Whole | End::Early => Next::Run,
    }
}

/// Drops the blocks of pages that others wrote, and frees what was dropped.
fn drop_written(cpu: &mut Cpu) {
    if cpu.ram.watch().pending(cpu.interrupts.id) {
        for page in cpu.ram.watch().take(cpu.interrupts.id) {
            cpu.blocks.written(page, 0, 4095);
        }
    }
    if cpu.blocks.has_dropped() {
        for page in cpu.blocks.bury() {
            cpu.unwatch(page);
        }
    }
}

/// Executes blocks until one ends in a way that needs a look around.
fn burst(cpu: &mut Cpu) -> Outcome {
    cpu.blocks.set_mode(cpu.cpl == 3, cpu.code_size);
    if cpu.lockstep.is_some() {
        return burst_in_lockstep(cpu);
    }
    let mut found = match find_link(cpu, cpu.rip_linear()) {
        Ok(found) => found,
        Err(outcome) => return outcome,
    };
    // The branch in translated code that led to the current block and has yet to be linked to its translation.
    let mut from = None;
    loop {
        // SAFETY: blocks are freed by `bury` only, which `step` calls between bursts and which changes the contexts:
        // what `find_link`, `linked` and `find_jump` give is allocated.
        let current = unsafe { &*found.block };
        let code = if cpu.blocks.jit.is_on() && found.holds() { translation(cpu, current) } else { None };
        let Some(code) = code else {
            from = None;
            match pass(cpu, current) {
                End::Whole => {}
                End::Early => return Outcome::Look,
                End::Fault(rip) => return Outcome::Fault(rip),
            }
            if must_look(cpu) || !current.chains {
                return Outcome::Look;
            }
            found = match next(cpu, current) {
                Ok(found) => found,
                Err(outcome) => return outcome,
            };
            continue;
        };
        if let Some(link) = from.take() {
            cpu.blocks.jit.connect(link, current.key());
        }
        match cpu.run_translated(code, found.is_global()) {
            Left::Look => return Outcome::Look,
            Left::Fault(rip) => return Outcome::Fault(rip),
            Left::Miss => {}
            Left::Link(link) => from = Some(link),
        }
        if must_look(cpu) {
            return Outcome::Look;
        }
        found = match find_link(cpu, cpu.rip_linear()) {
            Ok(found) => found,
            Err(outcome) => return outcome,
        };
    }
}

/// The same with both tiers in step.
#[cold]
fn burst_in_lockstep(cpu: &mut Cpu) -> Outcome {
    loop {
        let found = match find_link(cpu, cpu.rip_linear()) {
            Ok(found) => found,
            Err(outcome) => return outcome,
        };
        // SAFETY: as in `burst`.
        let current = unsafe { &*found.block };
        let end = match translation(cpu, current) {
            Some(code) => match lockstep::advance(cpu, current, code) {
                Step::On => End::Whole,
                Step::Look => return Outcome::Look,
                Step::Fault(rip) => return Outcome::Fault(rip),
                Step::Differs => return Outcome::Differs,
                Step::Alone => alone(cpu),
            },
            None => pass(cpu, current),
        };
        match end {
            End::Whole => {}
            End::Early => return Outcome::Look,
            End::Fault(rip) => return Outcome::Fault(rip),
        }
        if must_look(cpu) || !current.chains {
            return Outcome::Look;
        }
    }
}

/// In lockstep: the interpreter executes one instruction that must happen once.
fn alone(cpu: &mut Cpu) -> End {
    let Ok(block) = cpu.single_at_rip() else { return End::Fault(cpu.rip) };
    if let Some(lockstep) = &mut cpu.lockstep {
        lockstep.counts.alone += 1;
    }
    match pass(cpu, &block) {
        End::Fault(rip) => End::Fault(rip),
        End::Whole | End::Early => End::Early,
    }
}

/// Where the translation of a block is entered: made now if the block has become hot.
#[inline(always)]
fn translation(cpu: &mut Cpu, block: &Block) -> Option<usize> {
    match cpu.blocks.jit.code_of(block) {
        Some(code) => Some(code),
        None => cpu.warm(block),
    }
}

/// Counts a block; whether it is time to look around.
#[inline(always)]
fn must_look(cpu: &mut Cpu) -> bool {
    cpu.blocks.countdown = cpu.blocks.countdown.saturating_sub(1);
    cpu.attention.wanted() != 0 || cpu.blocks.countdown == 0 || cpu.ram.watch().pending(cpu.interrupts.id)
}

/// The block at RIP, after the interpreted block `current`.
#[inline(always)]
fn next(cpu: &mut Cpu, current: &Block) -> Result<Link, Outcome> {
    let linear = cpu.rip_linear();
    let known = if current.varies {
        cpu.blocks.find_jump(linear)
    } else {
        current.linked(linear, cpu.blocks.contexts)
    };
    match known {
        // SAFETY: as in `burst`.
        Some(next) if !unsafe { &*next.block }.is_dead() => Ok(next),
        _ => follow(cpu, current, linear),
    }
}

/// The block at RIP, for which `from` has no link; links it if `from` always goes to the same places.
#[inline(never)]
fn follow(cpu: &mut Cpu, from: &Block, linear: u64) -> Result<Link, Outcome> {
    let link = find_link(cpu, linear)?;
    if !from.varies {
        let falls_through = cpu.rip == cpu.regs[usize::from(BLOCK)].wrapping_add(u64::from(from.bytes));
        from.link(usize::from(falls_through), link);
    }
    Ok(link)
}

/// The block at RIP, by linear address or by physical address, decoded if need be.
fn find_link(cpu: &mut Cpu, linear: u64) -> Result<Link, Outcome> {
    if let Some(link) = cpu.blocks.find_jump(linear) {
        // SAFETY: what `find_jump` gives is allocated.
        if !unsafe { &*link.block }.is_dead() {
            return Ok(link);
        }
    }
    let (block, global) = cpu.block_at_rip().map_err(|_| Outcome::Fault(cpu.rip))?;
    match global {
        // SAFETY: what `block_at_rip` gives is allocated.
        Some(global) if !unsafe { &*block }.is_dead() => Ok(cpu.blocks.keep_jump(linear, block, global)),
        _ => Ok(Link::once(block)),
    }
}

/// Executes one block from its first op.
#[inline(always)]
fn pass(cpu: &mut Cpu, block: &Block) -> End {
    let range = block.ops().as_ptr_range();
    cpu.regs[usize::from(BLOCK)] = cpu.rip;
    cpu.blocks.limit = range.end;
    let mut at = range.start;
    loop {
        // SAFETY: `at` starts at the first op of a block, which has at least one, and goes on below only
        // while it is below the end. The block is not freed while it runs.
        let op = unsafe { &*at };
        match (op.run)(cpu, op) {
            Ok(Flow::Next) => {
                // SAFETY: at most one past the end.
                at = unsafe { at.add(1) };
                if at < cpu.blocks.limit {
                    continue;
                }
                cpu.rip = after(cpu, op);
                if at == range.end {
                    cpu.retired += u64::from(block.count);
                    return End::Whole;
                }
                return early(cpu, block, op);
            }
            Ok(Flow::Leave) => {
                // SAFETY: as above.
                if unsafe { at.add(1) } == range.end {
                    cpu.retired += u64::from(block.count);
                    return End::Whole;
                }
                return early(cpu, block, op);
            }
            Err(trap) => {
                let _ = cpu.on_operand(op, trap);
                return faulted(cpu, block, op);
            }
        }
    }
}

/// RIP after an op that does not branch.
pub(crate) fn after(cpu: &Cpu, op: &Op) -> u64 {
    let next = cpu.regs[usize::from(BLOCK)].wrapping_add(u64::from(op.at) + u64::from(op.len));
    if cpu.code_size == crate::cpu::CodeSize::Bits64 { next } else { next & 0xffff_ffff }
}

/// Counts what was executed of a block up to and including `last`.
#[cold]
fn early(cpu: &mut Cpu, block: &Block, last: &Op) -> End {
    cpu.retired += before(block, last) + u64::from(last.count);
    End::Early
}

#[cold]
fn faulted(cpu: &mut Cpu, block: &Block, op: &Op) -> End {
    cpu.retired += before(block, op);
    End::Fault(cpu.regs[usize::from(BLOCK)].wrapping_add(u64::from(op.at)))
}

/// Instructions of a block before an op.
fn before(block: &Block, op: &Op) -> u64 {
    block.ops().iter().take_while(|other| !std::ptr::eq(*other, op)).map(|other| u64::from(other.count)).sum()
}

/// Whether instructions are executed one by one: RFLAGS.TF is set, or there are breakpoints.
#[inline]
fn steps(cpu: &Cpu) -> bool {
    cpu.flags.rest & bit::TF != 0 || cpu.is_armed()
}

/// Executes one instruction between what breakpoints and RFLAGS.TF ask for (SDM vol. 3B §17.3.1).
#[cold]
fn single_step(cpu: &mut Cpu) -> Outcome {
    let here = cpu.execution_hits();
    if here != 0 {
        cpu.debug[DR6] |= u64::from(here);
        let _ = cpu.plain_fault(vector::DB);
        return Outcome::Fault(cpu.rip);
    }
    let traced = cpu.flags.rest & bit::TF != 0;
    cpu.flags.rest &= !bit::RF;
    let Ok(block) = cpu.single_at_rip() else { return Outcome::Fault(cpu.rip) };
    if let End::Fault(rip) = pass(cpu, &block) {
        return Outcome::Fault(rip);
    }
    // In the shadow of MOV SS both wait for the instruction after it.
    if cpu.shadow {
        return Outcome::Look;
    }
    let touched = std::mem::take(&mut cpu.debug_hits);
    // What clears TF by entering a handler is not followed by the trap.
    let traced = traced && (block.chains || cpu.flags.rest & bit::TF != 0);
    if traced || touched != 0 {
        cpu.debug[DR6] |= u64::from(touched) | if traced { DR6_BS } else { 0 };
        let _ = cpu.raise(Fault { vector: vector::DB, error: None, after: true });
        return Outcome::Fault(cpu.rip);
    }
    Outcome::Look
}
