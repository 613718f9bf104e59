//! Rust functions that translated code calls.
//!
//! They get the processor in the state between two instructions, but for the flags, which are in the frame.

use super::flags::{pack, unpack};
use super::frame::{Frame, WINDOWS, reason};
use super::places::Places;
use crate::cpu::{Cpu, seg};
use crate::op::{BLOCK, Flow, Op};

/// Instructions of a share of the blocks between two looks at interrupts and timers.
pub const BUDGET: i64 = 4096;

/// What a budget counts for in [`crate::decode::blocks::Blocks::countdown`], which is in blocks.
const COUNTED: u32 = 32;

/// An instruction of a translation that the interpreter can execute instead.
#[derive(Debug, Clone, Copy)]
pub struct Site {
    /// The instruction.
    pub op: Op,
    /// Where its block begins in its page.
    pub block: u32,
    /// Instructions of the block before it.
    pub before: u32,
    /// Instructions that were taken from the budget for the block when this is reached: all or none.
    pub counted: u32,
    /// Where registers are.
    pub places: Places,
    /// What else there is to know.
    pub kind: Kind,
    /// Whether the instruction reads or writes arithmetic flags.
    pub flags: bool,
    /// Where the code goes on after it.
    pub resume: usize,
}

/// Why a site calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An access missed the TLB, or another rare case of an instruction that is translated.
    Rare,
    /// The instruction has no translation.
    Untranslated,
    /// The same, and the code after it is not to be gone on with: the last of its block, or an SSE instruction that must
    /// not run on the host now.
    Last,
    /// The same of a near branch: there is no reason to look around after it.
    Branch,
    /// The budget is used up, before the instruction; its flags are in the frame.
    Due,
    /// The same where the instruction is one that overwrites the flags, which are lost.
    DueWithoutFlags,
}

fn site_of(cpu: &Cpu, frame: &Frame) -> Site {
    cpu.blocks.jit.site(frame.site)
}

/// Executes the instruction of a site.
///
/// # Safety
/// Called by translated code with its frame, whose processor nobody else refers to meanwhile.
pub unsafe extern "sysv64" fn interpret(cpu: *mut Cpu, frame: *mut Frame) -> u32 {
    // SAFETY: the caller's promise.
    let (cpu, frame) = unsafe { (&mut *cpu, &mut *frame) };
    let site = site_of(cpu, frame);
    site.places.exchange(cpu);
    let left = execute(cpu, frame, &site);
    if left == 0 {
        site.places.exchange(cpu);
    }
    left
}

/// Looks whether somebody wants attention or time is up; if not, gives a new budget.
///
/// # Safety
/// As for [`interpret`].
pub unsafe extern "sysv64" fn look(cpu: *mut Cpu, frame: *mut Frame) -> u32 {
    // SAFETY: the caller's promise.
    let (cpu, frame) = unsafe { (&mut *cpu, &mut *frame) };
    let site = site_of(cpu, frame);
    let used = cpu.blocks.jit.refill(&mut frame.budgets);
    cpu.blocks.countdown = cpu.blocks.countdown.saturating_sub(counts(used));
    if !cpu.is_due() {
        frame.resume = site.resume;
        return 0;
    }
    site.places.exchange(cpu);
    if site.kind == Kind::DueWithoutFlags {
        let left = execute(cpu, frame, &site);
        if left != 0 {
            return left;
        }
        let op = &site.op;
        cpu.rip = block_rip(frame, &site).wrapping_add(u64::from(op.at) + u64::from(op.len));
        frame.budgets[0] += i64::from(site.counted) - i64::from(site.before + 1);
        return reason::LOOK;
    }
    cpu.rip = block_rip(frame, &site).wrapping_add(u64::from(site.op.at));
    frame.budgets[0] += i64::from(site.counted) - i64::from(site.before);
    reason::LOOK
}

/// What so many instructions count for in [`crate::decode::blocks::Blocks::countdown`].
pub fn counts(instructions: i64) -> u32 {
    (instructions.max(0) * i64::from(COUNTED) / BUDGET) as u32
}

fn block_rip(frame: &Frame, site: &Site) -> u64 {
    frame.page.wrapping_add(u64::from(site.block))
}

fn execute(cpu: &mut Cpu, frame: &mut Frame, site: &Site) -> u32 {
    let op: &Op = &site.op;
    let rip = block_rip(frame, site);
    cpu.regs[usize::from(BLOCK)] = rip;
    let at = rip.wrapping_add(u64::from(op.at));
    if cpu.lockstep_stops_at(at) {
        cpu.rip = at;
        frame.budgets[0] += i64::from(site.counted) - i64::from(site.before);
        return reason::LOOK;
    }
    if site.flags {
        cpu.flags.set_arithmetic(unpack(frame.flags));
    }
    // Past every op: cleared by what has the block end here.
    cpu.blocks.limit = std::ptr::without_provenance(usize::MAX);
    let flow = (op.run)(cpu, op);
    if site.flags {
        frame.flags = pack(cpu.flags.arithmetic());
    }
    let counted = i64::from(site.counted) - i64::from(site.before);
    match flow {
        Ok(Flow::Next) => {
            if cpu.blocks.limit.is_null() || matches!(site.kind, Kind::Last | Kind::Branch) {
                cpu.rip = rip.wrapping_add(u64::from(op.at) + u64::from(op.len));
                frame.budgets[0] += counted - 1;
                return if cpu.blocks.limit.is_null() { reason::LOOK } else { reason::MISS };
            }
            frame.tlb = cpu.tlb;
            frame.windows = [0; WINDOWS];
            frame.bases = [cpu.seg_base[seg::FS], cpu.seg_base[seg::GS]];
            if site.kind == Kind::Untranslated {
                frame.vectors = 0;
            }
            frame.resume = site.resume;
            0
        }
        Ok(Flow::Leave) => {
            frame.budgets[0] += counted - 1;
            let goes_on = site.kind == Kind::Branch && !cpu.blocks.limit.is_null();
            if goes_on { reason::MISS } else { reason::LOOK }
        }
        Err(trap) => {
            let _ = cpu.on_operand(op, trap);
            frame.budgets[0] += counted;
            cpu.jit.fault = rip.wrapping_add(u64::from(op.at));
            reason::FAULT
        }
    }
}
