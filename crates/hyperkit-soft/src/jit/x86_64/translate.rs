//! From the instructions of a trace to its translation.

use iced_x86::{FlowControl, Instruction, InstructionInfoFactory, Mnemonic};

use super::asm::{Asm, alu, cond, host};
use super::chains::Mark;
use super::classify::{self, Writes, flag_use};
use super::cold::{Cold, ColdKind};
use super::emit::{Emit, Turn};
use super::flags::{self, Place, SAVE_BYTES, Tracker};
use super::frame::{PAGE, budget_of};
use super::helpers::Kind;
use super::places::Places;
use super::state::{Entries, State};
use super::trace::Part;
use super::windows::{self, Lasting};

/// What a trace does first that has to do with the flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum First {
    /// Something that wants them in the frame.
    Saves,
    /// An instruction on registers that overwrites them all.
    Overwrites,
    /// Something that wants them in RFLAGS.
    Reads,
}

/// Translates a trace; false if it cannot be. If it `loops` it may go on at its begin without leaving the translation.
pub fn translate(state: &mut State, parts: &[Part], loops: bool) -> bool {
    let Some(head) = parts.first().filter(|head| !head.instructions.is_empty()) else { return false };
    let base = state.next();
    let share = state.next_share();
    let offsets = parts.iter().map(|part| (part.rip & 0xfff) as u32);
    let instructions = parts.iter().flat_map(|part| &part.instructions);
    let windows = windows::find(parts, loops);
    let places = if windows.turns.is_empty() { Places::default() } else { Places::of_loop(instructions) };
    let mut emit = Emit {
        asm: Asm::new(base),
        state,
        flags: Tracker::at(Place::Frame),
        page: head.rip & !0xfff,
        phys: head.key.phys() & !0xfff,
        block: (head.rip & 0xfff) as u32,
        furthest: offsets.max().unwrap_or(0),
        share,
        ops: &head.ops,
        total: parts.iter().map(|part| part.instructions.len() as u32).sum(),
        before: 0,
        counted: false,
        vectors: 0,
        windows: windows.members,
        opened: 0,
        parts,
        turn: None,
        turns: windows.turns,
        places,
        held: None,
        fresh: None,
        chained: false,
        alone: false,
        begun: Mark::default(),
        cold: Vec::new(),
        resumes: Vec::new(),
        links: Vec::new(),
        info: InstructionInfoFactory::new(),
    };
    let entries = emit.entries(parts, &windows.lasting);
    for part in parts {
        emit.part(part);
    }
    emit.drop_held();
    emit.finish();
    let Emit { asm, resumes, links, state, .. } = emit;
    for (site, offset) in resumes {
        state.set_resume(site, asm.base + offset);
    }
    let mut keys = Vec::with_capacity(parts.len());
    for part in parts {
        if !keys.contains(&part.key) {
            keys.push(part.key);
        }
    }
    state.insert(keys, &asm.out, entries, links)
}

impl<'a> Emit<'a> {
    /// Emits a block of the trace.
    fn part(&mut self, part: &'a Part) {
        self.enter(part);
        for (n, instruction) in part.instructions.iter().enumerate() {
            self.begin();
            self.one(part, n, instruction);
            self.keep();
            self.before += 1;
        }
    }

    /// Emits the ways in.
    fn entries(&mut self, parts: &[Part], lasting: &[Lasting]) -> Entries {
        let mut instructions = parts.iter().flat_map(|part| &part.instructions);
        let start = &parts[0].instructions[0];
        let first = instructions.find_map(|instruction| self.first_use(instruction));
        let first = first.unwrap_or(First::Saves);
        let turning = self.asm.address();
        let turns = !lasting.is_empty() || !self.places.is_usual();
        let mut turn = 0;
        if turns && first != First::Overwrites {
            flags::save(&mut self.asm);
            turn = self.asm.jmp(0);
        }
        let saving = self.asm.address();
        if first != First::Overwrites {
            flags::save(&mut self.asm);
            self.asm.bytes(&[0xeb, 0]); // jmp over the other entry
        }
        let jump = self.asm.here();
        let any = self.asm.address();
        self.asm.alu_imm(true, alu::AND, host::R14, -4096);
        self.asm.store(PAGE, host::R14);
        if first != First::Overwrites {
            self.asm.out[jump - 1] = (self.asm.here() - jump) as u8;
        }
        let saved = self.asm.address();
        self.exchange();
        self.open_lasting(lasting);
        if turns {
            let frame = self.asm.address();
            let host = if first == First::Overwrites { frame } else { turning };
            if turn != 0 {
                self.asm.land(turn);
            }
            self.turn = Some(Turn { distance: i64::from(self.block), frame, host });
        }
        let entries = self.begin_with(first, start, [any, saved, saving]);
        // Windows that last are looked up by who enters.
        if turns { Entries { frame: saved, host: entries.polling[1], ..entries } } else { entries }
    }

    /// Emits what comes before the first instruction, behind the ways in for anybody, and for who has the flags in the frame or in
    /// RFLAGS.
    fn begin_with(&mut self, first: First, start: &Instruction, ways: [usize; 3]) -> Entries {
        let [any, saved, saving] = ways;
        match first {
            First::Saves => {
                self.count(start, Kind::Due);
                Entries { any, frame: saved, host: saving, polling: [saved, saving] }
            }
            First::Overwrites => Entries { any, frame: saved, host: saved, polling: [saved; 2] },
            First::Reads => {
                self.asm.alu_mem_imm(true, alu::CMP, budget_of(self.share), 0);
                let from = self.asm.jcc(cond::S, 0);
                let site = self.site(start, Kind::Due);
                let frame = self.asm.address();
                self.resumes.push((site, self.asm.here()));
                self.cold.push(Cold { from: [from, 0], kind: ColdKind::Due { site, window: None } });
                flags::restore(&mut self.asm, flags::ALL);
                let host = self.asm.address();
                self.count_only();
                self.flags = Tracker::at(Place::Host);
                Entries { any, frame, host, polling: [saved, saving] }
            }
        }
    }

    /// What an instruction does with the flags, if anything.
    fn first_use(&mut self, instruction: &Instruction) -> Option<First> {
        if classify::is_nop(instruction) {
            return None;
        }
        if instruction.is_jcc_short_or_near() {
            return Some(First::Reads);
        }
        if instruction.flow_control() == FlowControl::UnconditionalBranch && instruction.op_count() == 1 {
            return None;
        }
        let lea = instruction.mnemonic() == Mnemonic::Lea && instruction.op0_register().size() >= 4;
        if lea && self.addressable(instruction) {
            return None;
        }
        let on_registers = classify::is_integer(instruction) && self.is_on_registers(instruction);
        if !on_registers || self.is_undefined(instruction) {
            return Some(First::Saves);
        }
        let usage = flag_use(instruction);
        match (usage.reads, usage.writes) {
            (0, Writes::All) => Some(First::Overwrites),
            (0, Writes::Nothing) => None,
            _ => Some(First::Reads),
        }
    }

    /// Emits an instruction, the last of the trace or not.
    pub fn instruction(&mut self, instruction: &Instruction, bytes: &[u8], last: bool) {
        let next = instruction.next_ip().wrapping_sub(self.page) as i64;
        let known = !self.is_undefined(instruction);
        if known && !last {
            self.inner(instruction, bytes);
            return;
        }
        if known && instruction.flow_control() != iced_x86::FlowControl::Next {
            if !self.branch(instruction) {
                self.interpret(instruction, Kind::Last);
            }
            return;
        }
        if known && (self.translated(instruction, bytes) || self.system(instruction)) {
            self.go(next);
            return;
        }
        // What changes more than registers leaves of itself; the rest is followed by the next instruction.
        self.interpret(instruction, Kind::Untranslated);
        self.go(next);
    }

    fn inner(&mut self, instruction: &Instruction, bytes: &[u8]) {
        if !self.translated(instruction, bytes) {
            self.interpret(instruction, Kind::Untranslated);
        }
    }

    fn translated(&mut self, instruction: &Instruction, bytes: &[u8]) -> bool {
        if classify::is_nop(instruction) {
            return true;
        }
        if instruction.mnemonic() == Mnemonic::Lea {
            return self.lea(instruction);
        }
        self.general(instruction, bytes)
            || self.stack(instruction)
            || self.pushf(instruction)
            || self.divide(instruction)
    }

    /// Whether the processor does not offer an instruction, though the host may.
    pub fn is_undefined(&self, instruction: &Instruction) -> bool {
        let op = self.op(instruction);
        std::ptr::fn_addr_eq(op.run, crate::system::undefined as crate::op::Handler)
    }
}

const _: () = assert!(SAVE_BYTES < 0x70);
