//! Accesses through one window, one right after the other: R15 keeps its address, and only the first one tests whether the
//! window is to be had.
//!
//! If it is not, the whole chain, from that access to the last one, is done by rare code in which each access asks the TLB
//! for itself. What comes between the accesses are instructions on registers that leave R15 alone, and branches that go on in the
//! trace or leave it; anything that can be left to the interpreter, or be entered again, ends the chain before it.

use iced_x86::{
    Decoder, DecoderOptions, Instruction, InstructionInfoFactory, InstructionInfoOptions, OpAccess, Register,
};

use super::access::{Miss, Single};
use super::asm::{Asm, host};
use super::cold::{Cold, ColdKind};
use super::emit::Emit;
use super::flags::{ALL, Place, Tracker};
use super::frame::window_of;
use super::trace::{Follow, Part};

/// What is known where a chain begins: at the first access's test.
#[derive(Debug, Clone, Copy)]
struct Start {
    /// Number of the instruction in the trace.
    number: u32,
    flags: Tracker,
    counted: bool,
    vectors: i32,
    opened: u32,
}

/// R15 has the address of a window.
#[derive(Debug, Clone, Copy)]
pub struct Held {
    /// Of which.
    pub slot: u8,
    start: Start,
    /// The first access.
    single: Single,
    /// Displacement of the branch of its test.
    test: usize,
    /// The last access that needed no test, with what is known after it.
    last: Option<Last>,
}

#[derive(Debug, Clone, Copy)]
struct Last {
    number: u32,
    flags: Tracker,
    back: usize,
}

/// The accesses of a chain, to be done one by one.
#[derive(Debug, Clone, Copy)]
pub struct Chain {
    held: Held,
    last: Last,
}

/// What an instruction of the guest has made of the lists of an [`Emit`] so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Mark {
    code: usize,
    cold: usize,
    resumes: usize,
}

impl<'a> Emit<'a> {
    /// Notes that an instruction is emitted next.
    pub fn begin(&mut self) {
        self.begun = Mark { code: self.asm.here(), cold: self.cold.len(), resumes: self.resumes.len() };
    }

    /// Whether R15 has the address of a window, for an access of the current instruction; that then belongs to the chain.
    pub fn holds(&mut self, slot: u8) -> bool {
        let Some(held) = self.held.filter(|held| held.slot == slot) else { return false };
        let Mark { code, cold, resumes } = self.begun;
        let entered = self.cold.len() != cold || self.resumes.len() != resumes;
        if entered || writes_r15(&self.asm.out[code..]) {
            return false;
        }
        let last = Last { number: self.before, flags: self.flags, back: 0 };
        self.held = Some(Held { last: Some(last), ..held });
        self.chained = true;
        true
    }

    /// An access through a window begins that has been tested by the branch with its displacement at `test`; R15 has the
    /// window's address from here on.
    pub fn hold(&mut self, test: usize, single: Single) {
        self.drop_held();
        let start = Start {
            number: self.before,
            flags: self.flags,
            counted: self.counted,
            vectors: self.vectors,
            opened: self.opened,
        };
        self.fresh = Some(Held { slot: single.member.slot, start, single, test, last: None });
    }

    /// To be called when the instruction has been emitted: sees whether R15 still has the window's address.
    pub fn keep(&mut self) {
        let mark = self.begun;
        let chained = std::mem::take(&mut self.chained);
        if let Some(fresh) = self.fresh.take() {
            // Its own test is all that may leave it, and come back.
            let cold = &self.cold[mark.cold..];
            let counts = cold.iter().any(|cold| matches!(cold.kind, ColdKind::Due { .. }));
            let tests = cold.iter().filter(|cold| may_come_back(cold)).count();
            let plain = !counts && tests == 1 && self.resumes.len() == mark.resumes;
            let keeps = plain && !writes_r15(&self.asm.out[fresh.single.back..]);
            self.held = keeps.then_some(fresh);
            return;
        }
        let Some(held) = self.held else { return };
        if chained && let Some(last) = held.last {
            let last = Last { flags: self.flags, back: self.asm.here(), ..last };
            self.held = Some(Held { last: Some(last), ..held });
        }
        if self.cold[mark.cold..].iter().any(may_come_back)
            || self.resumes.len() != mark.resumes
            || writes_r15(&self.asm.out[mark.code..])
        {
            self.drop_held();
        }
    }

    /// R15 is no longer what it was: what followed the first access without a test is left with it, if anything was.
    pub fn drop_held(&mut self) {
        let Some(held) = self.held.take() else { return };
        let Some(last) = held.last else { return };
        if let Some(cold) = self.cold.iter_mut().find(|cold| cold.from[0] == held.test) {
            cold.kind = ColdKind::Chain(Chain { held, last });
        }
    }

    /// Rare code: does the accesses of a chain, and what is between them, one by one.
    pub fn chain(&mut self, chain: Chain) {
        let Chain { held, last } = chain;
        let Start { number, flags, counted, vectors, opened } = held.start;
        (self.flags, self.counted, self.vectors, self.opened) = (flags, counted, vectors, opened);
        self.reopen(&held.single);
        self.alone = true;
        let parts = self.parts;
        let mut first = 0;
        for part in parts {
            for (n, instruction) in part.instructions.iter().enumerate() {
                self.before = first + n as u32;
                if (number..=last.number).contains(&self.before) {
                    self.enter(part);
                    self.one(part, n, instruction);
                }
            }
            first += part.instructions.len() as u32;
        }
        self.alone = false;
        if self.is_end(last.number) {
            return;
        }
        match last.flags.place {
            Place::Host => self.flags.need_host(&mut self.asm, ALL),
            Place::Both => {
                self.flags.need_frame(&mut self.asm);
                self.flags.need_host(&mut self.asm, ALL);
            }
            Place::Frame => self.flags.need_frame(&mut self.asm),
            // It makes them whatever RFLAGS are.
            Place::Recipe => {}
        }
        let target = self.asm.base + last.back;
        self.asm.jmp(target);
    }

    /// Whether an instruction is the trace's last one, which goes on by itself.
    fn is_end(&self, number: u32) -> bool {
        number + 1 == self.total
    }

    /// Goes over to a block of the trace.
    pub fn enter(&mut self, part: &'a Part) {
        self.block = (part.rip & 0xfff) as u32;
        self.ops = &part.ops;
    }

    /// Emits an instruction of a block.
    pub fn one(&mut self, part: &'a Part, n: usize, instruction: &Instruction) {
        let at = (instruction.ip() - part.rip) as usize;
        let bytes = &part.bytes[at..at + instruction.len()];
        let last = n + 1 == part.instructions.len();
        match part.follow {
            Follow::Nothing => self.instruction(instruction, bytes, last),
            _ if !last => self.instruction(instruction, bytes, last),
            follow => self.pass(instruction, follow),
        }
    }
}

impl Miss {
    /// Of an access that cannot fail.
    pub const NONE: Miss = Miss { from: [0; 2], single: None };

    /// Whether it is [`Miss::NONE`].
    pub fn is_none(&self) -> bool {
        self.from == [0; 2]
    }
}

/// Whether what is done by rare code may go on behind it, with R15 as the rare code leaves it.
fn may_come_back(cold: &Cold) -> bool {
    use ColdKind::{Due, Elsewhere, Far, Link, Side};
    !matches!(
        cold.kind,
        Due { window: Some(_), .. } | Side { .. } | Link { .. } | Far { .. } | Elsewhere { .. }
    )
}

/// Whether any of these instructions of the host writes R15.
fn writes_r15(code: &[u8]) -> bool {
    let mut info = InstructionInfoFactory::new();
    let mut decoder = Decoder::new(64, code, DecoderOptions::NONE);
    let mut instruction = Instruction::default();
    while decoder.can_decode() {
        decoder.decode_out(&mut instruction);
        let used = info.info_options(&instruction, InstructionInfoOptions::NO_MEMORY_USAGE);
        let written = used.used_registers().iter().any(|used| {
            used.register().full_register() == Register::R15
                && !matches!(used.access(), OpAccess::Read | OpAccess::CondRead)
        });
        if written || instruction.is_invalid() {
            return true;
        }
    }
    false
}

/// Loads the address of a window into R15.
pub fn reload(asm: &mut Asm, slot: u8) {
    asm.load(host::R15, window_of(slot));
}
