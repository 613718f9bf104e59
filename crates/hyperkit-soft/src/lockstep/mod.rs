//! Both tiers in step: every block is interpreted, taken back, executed as its translation, and held against what the
//! interpreter made of it: registers, flags, vector state, exceptions, memory. The first difference stops the processor.
//!
//! What must happen once (accesses to devices and ports, reads of clocks, everything privileged) is left out: a stretch
//! ends before it, and the interpreter executes it alone. Translations are of one block each and entered one by one: traces
//! and links are not tried here but by `tests/sequences`. For one vCPU: what others write meanwhile would be a difference. Devices
//! write too; a stretch that differs is tried again, and only what differs every time is reported.

pub mod journal;
pub mod snapshot;

use iced_x86::{Decoder, DecoderOptions};

use crate::cpu::Cpu;
use crate::decode::blocks::Block;
use crate::flags::bit;
use crate::jit::Left;
use crate::mem::{TlbEntry, tlb_slot};
use crate::op::{BLOCK, Flow};
use hyperkit_mem::GuestAddr;
use journal::{Differs, Journal, Phase};
use snapshot::Snapshot;

/// How often a stretch is tried before what differs is believed.
const TRIES: u32 = 4;

/// A processor's lockstep.
#[derive(Debug, Default)]
pub struct Lockstep {
    /// What the current stretch writes.
    pub journal: Journal,
    /// The interpreter came to something that must happen once.
    pub met_device: bool,
    /// RIP where the translation is to stop, short of something that must happen once.
    pub stop: Option<u64>,
    /// The current stretch differed so often.
    tries: u32,
    /// Room for what a stretch is held against: not in it while a stretch runs.
    sides: Option<Box<Sides>>,
    /// What was found.
    pub counts: Counts,
    /// The difference that stopped the processor.
    pub report: Option<Report>,
}

/// How much was compared.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Stretches that agreed.
    pub agreed: u64,
    /// Instructions in them.
    pub instructions: u64,
    /// Instructions that were executed once, by the interpreter.
    pub alone: u64,
    /// Stretches that agreed only when they were tried again.
    pub again: u64,
}

/// A translation that does what the interpreter does not do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// RIP of the block.
    pub rip: u64,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// What differs, a line each.
    pub differences: String,
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the translation of the block at {:#x}", self.rip)?;
        writeln!(f, " does not do what the interpreter does\ncode: {:02x?}", self.bytes)?;
        f.write_str(self.differences.trim_end())
    }
}

/// How a block ended in lockstep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// The run loop may go on with what comes next.
    On,
    /// The run loop must look around first.
    Look,
    /// The instruction at this RIP raised the exception in [`Cpu::fault`].
    Fault(u64),
    /// The next instruction must be executed once: by the interpreter, alone.
    Alone,
    /// The tiers differ, see [`Lockstep::report`].
    Differs,
}

/// How far the interpreter came.
enum Came {
    /// To [`Cpu::rip`].
    Through,
    /// To an exception at this RIP.
    Fault(u64),
    /// To the op with this index, which must happen once.
    Device(usize),
}

impl Cpu {
    /// Has both tiers run in step from now on.
    pub fn set_lockstep(&mut self) {
        self.set_tiers(crate::jit::Tiers::FORCED);
        self.protect_all();
        self.lockstep = Some(Box::default());
    }

    /// The journal, while a stretch is compared.
    #[inline]
    pub(crate) fn journal(&mut self) -> Option<&mut Journal> {
        let journal = &mut self.lockstep.as_mut()?.journal;
        (journal.phase != Phase::Off).then_some(journal)
    }

    /// Whether the TLB may have the page at `linear` for writing, as far as lockstep is concerned.
    #[inline]
    pub(crate) fn lockstep_opens(&self, linear: u64) -> bool {
        self.lockstep.as_ref().is_none_or(|lockstep| lockstep.journal.may_open(linear))
    }

    /// Whether a stretch must end before the access to a device that is about to be made.
    #[cold]
    pub(crate) fn lockstep_refuses_device(&mut self) -> bool {
        let Some(lockstep) = &mut self.lockstep else { return false };
        lockstep.met_device |= lockstep.journal.phase != Phase::Off;
        lockstep.met_device
    }

    /// Whether translated code is to stop before the instruction at `rip`.
    #[inline]
    pub(crate) fn lockstep_stops_at(&self, rip: u64) -> bool {
        self.lockstep.as_ref().is_some_and(|lockstep| lockstep.stop == Some(rip))
    }
}

/// Executes a block whose translation begins at `code`, or what of it may be executed twice.
pub(crate) fn advance(cpu: &mut Cpu, block: &Block, code: usize) -> Step {
    let mut end = block.alone.map_or(block.ops().len(), usize::from);
    if end == 0 {
        return Step::Alone;
    }
    let mut sides = sides(cpu);
    sides.before.retake(cpu);
    begin(cpu);
    let mut came = interpret(cpu, block, end);
    if let Came::Device(index) = came {
        take_back(cpu, &sides.before);
        if index == 0 {
            return settle(cpu, sides, Step::Alone);
        }
        end = index;
        begin(cpu);
        came = interpret(cpu, block, end);
    }
    sides.expected.retake(cpu);
    let before = &sides.before;
    let stop = block.ops().get(end).map(|op| before.rip.wrapping_add(u64::from(op.at)));
    if let Some(lockstep) = &mut cpu.lockstep {
        lockstep.journal.turn();
        lockstep.stop = stop;
    }
    before.restore(cpu);
    open_pages(cpu);
    let left = cpu.run_translated(code, false);
    close_pages(cpu, before.same_rights(cpu));
    let step = judge(cpu, block, &sides, Ends { end, came, left });
    settle(cpu, sides, step)
}

/// A processor before a stretch, and as the interpreter left it.
#[derive(Debug)]
struct Sides {
    before: Snapshot,
    expected: Snapshot,
}

/// How a stretch up to the op number `end` ended on either side.
struct Ends {
    end: usize,
    came: Came,
    left: Left,
}

/// The room for them, which [`settle`] gives back.
fn sides(cpu: &mut Cpu) -> Box<Sides> {
    let room = cpu.lockstep.as_mut().and_then(|lockstep| lockstep.sides.take());
    room.unwrap_or_else(|| Box::new(Sides { before: Snapshot::take(cpu), expected: Snapshot::take(cpu) }))
}

fn settle(cpu: &mut Cpu, sides: Box<Sides>, step: Step) -> Step {
    if let Some(lockstep) = &mut cpu.lockstep {
        lockstep.sides = Some(sides);
    }
    step
}

/// What registers differ in, a line each.
fn register_differences(cpu: &Cpu, block: &Block, expected: &Snapshot, end: usize) -> String {
    if expected.is_left_by(cpu) {
        return String::new();
    }
    let got = Snapshot::take(cpu);
    let same = expected.rflags() == got.rflags();
    let mask = if same { u64::MAX } else { !undefined_flags(cpu, block, end) };
    expected.differences(&got, mask)
}

/// Compares, and goes on with the translation's state or reports.
fn judge(cpu: &mut Cpu, block: &Block, sides: &Sides, ends: Ends) -> Step {
    let Ends { end, came, left } = ends;
    let mut text = register_differences(cpu, block, &sides.expected, end);
    let interpreted = if let Came::Fault(rip) = came { Some(rip) } else { None };
    let translated = if let Left::Fault(rip) = left { Some(rip) } else { None };
    if interpreted != translated {
        text += &format!("exception at: interpreted {interpreted:x?}, translated {translated:x?}\n");
    }
    let Some(lockstep) = &mut cpu.lockstep else { return Step::On };
    if std::mem::take(&mut lockstep.met_device) {
        text += "the translation reaches a device where the interpreter does not\n";
    }
    for Differs { linear, interpreted, translated } in lockstep.journal.differences() {
        text += &match linear {
            Some(at) => {
                format!("byte at {at:#x}: interpreted {interpreted:#04x}, translated {translated:#04x}\n")
            }
            None => {
                format!("the translation writes a page that the interpreter does not: {translated:#04x}\n")
            }
        };
    }
    if !text.is_empty() {
        return differs(cpu, block, &sides.before, text);
    }
    let executed = sides.before.retired_since(cpu);
    let Some(lockstep) = &mut cpu.lockstep else { return Step::On };
    lockstep.counts.again += u64::from(lockstep.tries > 0);
    lockstep.tries = 0;
    lockstep.journal.settle();
    lockstep.counts.agreed += 1;
    lockstep.counts.instructions += executed;
    match left {
        Left::Fault(rip) => Step::Fault(rip),
        Left::Look => Step::Look,
        Left::Miss | Left::Link(_) => Step::On,
    }
}

/// Tries again, or gives up.
#[cold]
fn differs(cpu: &mut Cpu, block: &Block, before: &Snapshot, differences: String) -> Step {
    let mut bytes = vec![0; block.bytes as usize];
    let _ = cpu.ram.read(GuestAddr(block.key().phys()), &mut bytes);
    let Some(lockstep) = &mut cpu.lockstep else { return Step::On };
    lockstep.journal.undo();
    lockstep.tries += 1;
    let last = lockstep.tries == TRIES;
    if last {
        lockstep.report = Some(Report { rip: before.rip, bytes, differences });
    }
    before.restore(cpu);
    if last { Step::Differs } else { Step::Look }
}

fn begin(cpu: &mut Cpu) {
    if let Some(lockstep) = &mut cpu.lockstep {
        lockstep.journal.begin();
        lockstep.met_device = false;
        lockstep.stop = None;
    }
    cpu.fault = None;
}

/// Forgets a stretch that the interpreter could not finish.
fn take_back(cpu: &mut Cpu, before: &Snapshot) {
    if let Some(lockstep) = &mut cpu.lockstep {
        lockstep.journal.abandon();
        lockstep.met_device = false;
    }
    before.restore(cpu);
}

/// Executes the ops of a block before `end`.
fn interpret(cpu: &mut Cpu, block: &Block, end: usize) -> Came {
    cpu.regs[usize::from(BLOCK)] = cpu.rip;
    // Past every op: cleared by what has the block end here.
    cpu.blocks.limit = std::ptr::without_provenance(usize::MAX);
    for (index, op) in block.ops()[..end].iter().enumerate() {
        match (op.run)(cpu, op) {
            Ok(Flow::Next) => {
                cpu.rip = crate::run::after(cpu, op);
                cpu.retired += u64::from(op.count);
                if cpu.blocks.limit.is_null() {
                    return Came::Through;
                }
            }
            Ok(Flow::Leave) => {
                cpu.retired += u64::from(op.count);
                return Came::Through;
            }
            Err(_) if cpu.lockstep.as_ref().is_some_and(|lockstep| lockstep.met_device) => {
                return Came::Device(index);
            }
            Err(trap) => {
                let _ = cpu.on_operand(op, trap);
                return Came::Fault(cpu.regs[usize::from(BLOCK)].wrapping_add(u64::from(op.at)));
            }
        }
    }
    Came::Through
}

/// Gives translated code the pages that the interpreter wrote.
fn open_pages(cpu: &mut Cpu) {
    let cr2 = cpu.cr2;
    for number in 0.. {
        let page = cpu.lockstep.as_ref().and_then(|lockstep| lockstep.journal.opened(number));
        let Some(page) = page else { break };
        // A page that is gone is one more that takes the slow path, where the exception is.
        let _ = cpu.probe_write(page.linear, 1);
    }
    // An exception of the probe is not the code's.
    cpu.fault = None;
    cpu.cr2 = cr2;
}

/// Takes them away again.
fn close_pages(cpu: &mut Cpu, same_rights: bool) {
    if !same_rights {
        cpu.protect_all();
        return;
    }
    for number in 0.. {
        let page = cpu.lockstep.as_ref().and_then(|lockstep| lockstep.journal.opened(number));
        let Some(page) = page else { break };
        let slot = tlb_slot(page.linear);
        cpu.tlbs.forbid_writing(cpu.tlb_index, slot, TlbEntry::none(slot).write);
    }
}

/// RFLAGS that are not defined after the first ops of a block, which lies in RAM as it was decoded.
fn undefined_flags(cpu: &Cpu, block: &Block, end: usize) -> u64 {
    let mut bytes = [0; 1024];
    let len = (block.bytes as usize).min(bytes.len());
    if cpu.ram.read(GuestAddr(block.key().phys()), &mut bytes[..len]).is_err() {
        return 0;
    }
    let stop = block.ops().get(end).map_or(u64::MAX, |op| u64::from(op.at));
    let mut undefined = 0;
    for instruction in Decoder::with_ip(64, &bytes[..len], 0, DecoderOptions::NONE).iter() {
        if instruction.ip() >= stop {
            break;
        }
        undefined &= !u64::from(
            instruction.rflags_written() | instruction.rflags_set() | instruction.rflags_cleared(),
        );
        undefined |= u64::from(instruction.rflags_undefined());
    }
    // iced has bits of its own.
    use iced_x86::RflagsBits as R;
    let bits = [
        (R::CF, bit::CF),
        (R::PF, bit::PF),
        (R::AF, bit::AF),
        (R::ZF, bit::ZF),
        (R::SF, bit::SF),
        (R::OF, bit::OF),
    ];
    bits.into_iter().filter(|(theirs, _)| undefined & u64::from(*theirs) != 0).map(|(_, ours)| ours).sum()
}
