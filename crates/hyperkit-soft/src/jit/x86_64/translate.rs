//! From the bytes of a block to its translation.

use iced_x86::{Decoder, DecoderOptions, Instruction, InstructionInfoFactory, Mnemonic};

use super::asm::{Asm, alu, cond, host};
use super::classify::{self, Writes, flag_use};
use super::emit::{Cold, ColdKind, Emit};
use super::flags::{self, Place, SAVE_BYTES, Tracker};
use super::frame::{BUDGET, PAGE};
use super::helpers::Kind;
use super::state::{Entries, State};
use crate::decode::blocks::Key;

/// A block to translate.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// Its key.
    pub key: Key,
    /// RIP of its first byte; the translation serves it at others too.
    pub rip: u64,
    /// Its bytes, in one page.
    pub bytes: &'a [u8],
}

/// What a block does first that has to do with the flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum First {
    /// Something that wants them in the frame.
    Saves,
    /// An instruction on registers that overwrites them all.
    Overwrites,
    /// Something that wants them in RFLAGS.
    Reads,
}

/// Translates a block; false if it cannot be.
pub fn translate(state: &mut State, source: &Source) -> bool {
    let instructions = decode(source);
    if instructions.is_empty() {
        return false;
    }
    let block = (source.rip & 0xfff) as u32;
    let base = state.next();
    let mut emit = Emit {
        asm: Asm::new(base),
        state,
        flags: Tracker::at(Place::Frame),
        page: source.rip & !0xfff,
        phys: source.key.phys() & !0xfff,
        block,
        total: instructions.len() as u32,
        before: 0,
        counted: false,
        vectors: 0,
        cold: Vec::new(),
        resumes: Vec::new(),
        links: Vec::new(),
        info: InstructionInfoFactory::new(),
    };
    let entries = emit.entries(&instructions);
    for (n, instruction) in instructions.iter().enumerate() {
        emit.before = n as u32;
        let at = (instruction.ip() - source.rip) as usize;
        let bytes = &source.bytes[at..at + instruction.len()];
        let last = n + 1 == instructions.len();
        emit.instruction(instruction, bytes, last);
    }
    emit.finish();
    let Emit { asm, resumes, links, state, .. } = emit;
    for (site, offset) in resumes {
        state.set_resume(site, asm.base + offset);
    }
    state.insert(source.key, &asm.out, entries, links)
}

fn decode(source: &Source) -> Vec<Instruction> {
    let mut decoder = Decoder::with_ip(64, source.bytes, source.rip, DecoderOptions::NONE);
    let mut instructions = Vec::with_capacity(16);
    while decoder.can_decode() {
        let instruction = decoder.decode();
        // Invalid ones are #UD; ones that are not whole mean that the bytes changed meanwhile.
        if decoder.last_error() == iced_x86::DecoderError::NoMoreBytes {
            return Vec::new();
        }
        instructions.push(instruction);
    }
    instructions
}

impl Emit<'_> {
    /// Emits the ways in.
    fn entries(&mut self, instructions: &[Instruction]) -> Entries {
        let first = instructions.iter().find_map(|instruction| self.first_use(instruction));
        let first = first.unwrap_or(First::Saves);
        let host = self.asm.address();
        if first == First::Saves {
            flags::save(&mut self.asm);
            self.asm.bytes(&[0xeb, 0]); // jmp over the other entry
        }
        let jump = self.asm.here();
        let any = self.asm.address();
        self.asm.alu_imm(true, alu::AND, host::R14, -4096);
        self.asm.store(PAGE, host::R14);
        match first {
            First::Saves => {
                self.asm.out[jump - 1] = (self.asm.here() - jump) as u8;
                let frame = self.asm.address();
                self.count(&instructions[0], Kind::Due);
                Entries { any, frame, host, polls: true }
            }
            First::Overwrites => {
                let frame = self.asm.address();
                Entries { any, frame, host: frame, polls: true }
            }
            First::Reads => {
                self.asm.alu_mem_imm(true, alu::CMP, BUDGET, 0);
                let from = self.asm.jcc(cond::S, 0);
                let site = self.site(&instructions[0], Kind::Due);
                let frame = self.asm.address();
                self.resumes.push((site, self.asm.here()));
                self.cold.push(Cold { from: [from, 0], kind: ColdKind::Due { site } });
                flags::restore(&mut self.asm, flags::ALL);
                let host = self.asm.address();
                self.count_only();
                self.flags = Tracker::at(Place::Host);
                Entries { any, frame, host, polls: false }
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

    fn instruction(&mut self, instruction: &Instruction, bytes: &[u8], last: bool) {
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
    fn is_undefined(&self, instruction: &Instruction) -> bool {
        let context = crate::decode::Context {
            block_rip: self.page + u64::from(self.block),
            code_size: crate::cpu::CodeSize::Bits64,
        };
        let op = crate::decode::lower(instruction, &context);
        std::ptr::fn_addr_eq(op.run, crate::system::undefined as crate::op::Handler)
    }
}

const _: () = assert!(SAVE_BYTES < 0x70);
