//! The state of one translation that is being made, and what every kind of instruction needs.

use iced_x86::{Instruction, InstructionInfoFactory};

use super::access::Miss;
use super::asm::{Asm, Mem, alu, cond, host};
use super::chains::{Held, Mark};
use super::cold::{Cold, ColdKind};
use super::flags::{self, Place, Recipe, Tracker};
use super::frame::{BASES, PAGE, SHARES, VECTORS, budget_of};
use super::helpers::{Kind, Site};
use super::places::Places;
use super::state::{Link, State};
use super::trace::Part;
use super::windows::Member;
use crate::cpu::{CodeSize, seg};
use crate::decode::Context;
use crate::op::Op;

/// Distances from the page of what can be linked to: an instruction that begins further on may lie on two pages, and where the
/// second one is depends on its translation, as the tables of jumps do.
pub const LINKED: std::ops::Range<i64> = 0..4096 - 14;

/// Where a trace that is a loop is gone on with at its begin.
#[derive(Debug, Clone, Copy)]
pub struct Turn {
    /// Distance of the begin from the page.
    pub distance: i64,
    /// With the flags in the frame.
    pub frame: usize,
    /// With the flags in RFLAGS.
    pub host: usize,
}

/// A translation in the making.
pub struct Emit<'a> {
    /// The code.
    pub asm: Asm,
    /// What translations share.
    pub state: &'a mut State,
    /// Where the flags are.
    pub flags: Tracker,
    /// Linear address of the page that the block begins in.
    pub page: u64,
    /// Its physical address.
    pub phys: u64,
    /// Where the current block begins in it.
    pub block: u32,
    /// Where the last of the trace's blocks begins.
    pub furthest: u32,
    /// Which budget the trace takes its instructions from.
    pub share: u8,
    /// What the current block was decoded to.
    pub ops: &'a [Op],
    /// Instructions of the trace.
    pub total: u32,
    /// Of these, before the current one.
    pub before: u32,
    /// Whether they were taken from the budget yet.
    pub counted: bool,
    /// What is known to be loaded of the vector registers: 1 for XMM, 2 for YMM.
    pub vectors: i32,
    /// For each instruction of the trace the window that its access belongs to.
    pub windows: Vec<Option<Member>>,
    /// A bit for each window that was looked up and holds.
    pub opened: u32,
    /// The trace.
    pub parts: &'a [Part],
    /// How the trace goes on at its begin, with windows that last and registers in its own places.
    pub turn: Option<Turn>,
    /// After which of its instructions it may: what is known to be the same at each turn is so after these.
    pub turns: Vec<u32>,
    /// Where registers are.
    pub places: Places,
    /// The window that R15 has the address of.
    pub held: Option<Held>,
    /// The same, of the current instruction.
    pub fresh: Option<Held>,
    /// Whether the current instruction accesses memory without a test.
    pub chained: bool,
    /// Whether windows are out of use.
    pub alone: bool,
    /// Where the current instruction begins.
    pub begun: Mark,
    /// Rare code.
    pub cold: Vec<Cold>,
    /// Sites whose `resume` is an offset in this code: number and offset.
    pub resumes: Vec<(u32, usize)>,
    /// Links of this block.
    pub links: Vec<u32>,
    /// Tells which registers an instruction writes.
    pub info: InstructionInfoFactory,
}

impl Emit<'_> {
    /// The op of an instruction: the block's, unless that stands for two, or the code was changed since.
    pub fn op(&self, instruction: &Instruction) -> Op {
        let context = Context { block_rip: self.page + u64::from(self.block), code_size: CodeSize::Bits64 };
        let at = instruction.ip().wrapping_sub(context.block_rip) as u16;
        match self.ops.binary_search_by_key(&at, |op| op.at) {
            Ok(n) if self.ops[n].count == 1 && usize::from(self.ops[n].len) == instruction.len() => {
                self.ops[n]
            }
            _ => crate::decode::lower(instruction, &context),
        }
    }

    /// A site for an instruction.
    pub fn site(&mut self, instruction: &Instruction, kind: Kind) -> u32 {
        let op = self.op(instruction);
        self.state.add_site(Site {
            op,
            block: self.block,
            before: self.before,
            counted: if self.counted { self.total } else { 0 },
            places: self.places,
            kind,
            flags: kind != Kind::Rare
                || (instruction.rflags_read() | instruction.rflags_modified()) & flags::ALL != 0,
            resume: 0,
        })
    }

    /// Leaves an instruction to the interpreter. Gives the offset of what follows.
    pub fn interpret(&mut self, instruction: &Instruction, kind: Kind) {
        self.flags.need_frame(&mut self.asm);
        let site = self.site(instruction, kind);
        self.asm.mov_imm32(host::R14, site);
        let stub = self.state.stubs.interpret;
        self.asm.jmp(stub);
        self.resumes.push((site, self.asm.here()));
        self.flags = Tracker::at(Place::Frame);
        self.vectors = 0;
        self.opened = 0;
    }

    /// Takes the block's instructions from the budget and leaves if it is used up. RFLAGS are overwritten.
    pub fn count(&mut self, instruction: &Instruction, kind: Kind) {
        self.asm.alu_mem_imm(true, alu::SUB, budget_of(self.share), self.total as i32);
        self.counted = true;
        let from = self.asm.jcc(cond::S, 0);
        let site = self.site(instruction, kind);
        let back = self.asm.here();
        let window = self.held.map(|held| (held.slot, back));
        if window.is_none() {
            self.resumes.push((site, back));
        }
        self.cold.push(Cold { from: [from, 0], kind: ColdKind::Due { site, window } });
    }

    /// Takes them from the budget, which may become negative; RFLAGS are as before.
    pub fn count_only(&mut self) {
        self.asm.load(host::R14, budget_of(self.share));
        self.asm.lea(true, host::R14, Mem::at(host::R14, -(self.total as i32)));
        self.asm.store(budget_of(self.share), host::R14);
        self.counted = true;
    }

    /// The same the other way round. To another share: this one was taken from a moment ago.
    pub fn give_back(&mut self, rest: u32) {
        let budget = self.other_budget();
        self.asm.load(host::R14, budget);
        self.asm.lea(true, host::R14, Mem::at(host::R14, rest as i32));
        self.asm.store(budget, host::R14);
    }

    /// The budget that instructions are given back to.
    pub fn other_budget(&self) -> Mem {
        budget_of((self.share + SHARES as u8 / 2) % SHARES as u8)
    }

    /// A branch at displacement `from` that leaves the trace after the current instruction.
    pub fn leave_to(&mut self, from: usize, distance: i64) {
        let rest = self.total - self.before - 1;
        let stays = self.places.is_usual() || self.turn_to(distance).is_some();
        if rest == 0 && stays {
            self.branch_to(from, distance);
            return;
        }
        let kind = ColdKind::Side { distance, number: self.before, rest, place: self.flags.place };
        self.cold.push(Cold { from: [from, 0], kind });
    }

    /// How the trace goes on at its begin after the current instruction, if that is at this distance from the page.
    pub fn turn_to(&self, distance: i64) -> Option<Turn> {
        self.turn.filter(|turn| turn.distance == distance && self.turns.contains(&self.before))
    }

    /// A branch at displacement `from`, with registers in their usual places but to the trace's begin, to where the guest's
    /// RIP is `distance` from the page.
    pub fn branch_to(&mut self, from: usize, distance: i64) {
        let save = matches!(self.flags.place, Place::Host | Place::Both);
        if let Some(turn) = self.turn_to(distance) {
            self.asm.aim(from, if save { turn.host } else { turn.frame });
            return;
        }
        let kind = if LINKED.contains(&distance) {
            let link = Link {
                at: self.asm.base + from,
                page: self.phys,
                block: self.furthest,
                offset: distance as u32,
                flags_in_host: save,
                stub: 0,
                target: None,
            };
            let link = self.state.add_link(link);
            self.links.push(link);
            ColdKind::Link { link, save }
        } else {
            ColdKind::Far { distance: distance as i32, save }
        };
        self.cold.push(Cold { from: [from, 0], kind });
    }

    /// Goes to the code for the linear address in R14; RFLAGS are overwritten, the flags are in the frame.
    /// `miss`: displacement of the branch that is taken if it is not known, to be landed somewhere.
    pub fn look_up(&mut self) -> usize {
        self.asm.imul32(host::R15, host::R14, super::lookup::FACTOR);
        self.asm.shr32(host::R15, super::lookup::SHIFT);
        self.asm.alu_imm(false, alu::AND, host::R15, super::lookup::OFFSET_MASK);
        self.asm.alu_mem(true, alu::ADD, host::R15, super::frame::JUMPS);
        self.asm.alu_mem(true, alu::CMP, host::R14, Mem::at(host::R15, 0));
        let second = self.state.stubs.second;
        let from = self.asm.jcc(cond::NE, second);
        self.asm.jmp_mem(Mem::at(host::R15, 8));
        from
    }

    /// The linear address of an instruction's memory operand, in R14. May overwrite RFLAGS, R15. False (with nothing
    /// emitted) if it is of a kind that is not done here.
    pub fn address(&mut self, instruction: &Instruction) -> bool {
        let (base, index) = (instruction.memory_base(), instruction.memory_index());
        let wide = match (base, index) {
            (iced_x86::Register::None, iced_x86::Register::None) => {
                instruction.memory_displacement64() as i32 as i64 as u64
                    == instruction.memory_displacement64()
            }
            _ if base.is_gpr32() || index.is_gpr32() => false,
            _ if base == iced_x86::Register::EIP || index.is_vector_register() => return false,
            _ => true,
        };
        if !wide && base == iced_x86::Register::None && index == iced_x86::Register::None {
            return false;
        }
        let segment = match instruction.memory_segment() {
            iced_x86::Register::FS => Some(seg::FS),
            iced_x86::Register::GS => Some(seg::GS),
            _ => None,
        };
        if segment.is_some() {
            self.flags.before_clobber(&mut self.asm);
        }
        if base.is_ip() {
            let distance = instruction.memory_displacement64().wrapping_sub(self.page) as i64;
            let Ok(distance) = i32::try_from(distance) else { return false };
            self.asm.load(host::R14, PAGE);
            if distance != 0 {
                self.asm.lea(true, host::R14, Mem::at(host::R14, distance));
            }
        } else {
            let mem = self.plain_operand(instruction);
            match mem {
                Mem { base: Some(base), index: None, disp: 0 } if wide => self.asm.mov(host::R14, base),
                _ => self.asm.lea(wide, host::R14, mem),
            }
        }
        if let Some(segment) = segment {
            let at = BASES.disp + 8 * (segment - seg::FS) as i32;
            self.asm.alu_mem(true, alu::ADD, host::R14, Mem::frame(at));
        }
        true
    }

    /// The memory operand with host registers; those that are not in one are put into R14 and R15. Not for
    /// RIP-relative ones.
    pub fn plain_operand(&mut self, instruction: &Instruction) -> Mem {
        let mut register = |register: iced_x86::Register, free: u8| {
            let guest = (register != iced_x86::Register::None).then(|| register.number() as u8)?;
            Some(self.in_register(guest, free))
        };
        let base = register(instruction.memory_base(), host::R14);
        let index = register(instruction.memory_index(), host::R15);
        let scale = instruction.memory_index_scale().trailing_zeros() as u8;
        let disp = instruction.memory_displacement64() as i32;
        Mem { base, index: index.map(|index| (index, scale)), disp }
    }

    /// The host register that has a guest register: `free`, which it is loaded to, if none else.
    pub fn in_register(&mut self, guest: u8, free: u8) -> u8 {
        self.host_of(guest).unwrap_or_else(|| {
            let place = self.spilled_at(guest);
            self.asm.load(free, place);
            free
        })
    }

    /// Has the branches of `miss` leave an instruction to the interpreter and go on after it, which is what is emitted
    /// next. To be called when the instruction has been emitted; `recipe` makes the flags of before it.
    pub fn slow(&mut self, miss: impl Into<Miss>, instruction: &Instruction, recipe: Option<Recipe>) {
        let miss = miss.into();
        if miss.is_none() {
            return;
        }
        let Miss { from, single } = miss;
        let site = self.site(instruction, Kind::Rare);
        let flags_in_host = matches!(self.flags.place, Place::Host | Place::Both);
        let back = self.asm.here();
        let kind = ColdKind::Slow { single, site, recipe, rsp: 0, flags_in_host, back };
        self.cold.push(Cold { from, kind });
    }

    /// The recipe that the rare way of an access needs: call when it has been found.
    pub fn slow_recipe(&self) -> Option<Recipe> {
        if self.flags.place == Place::Recipe { self.flags.recipe } else { None }
    }

    /// Sees to it that the XMM registers are loaded, or the YMM registers.
    pub fn need_vectors(&mut self, instruction: &Instruction, upper: bool) {
        let level = if upper { 2 } else { 1 };
        if self.vectors >= level {
            return;
        }
        self.flags.need_frame(&mut self.asm);
        self.flags.before_clobber(&mut self.asm);
        self.asm.alu_mem_imm(false, alu::CMP, VECTORS, level);
        let from = self.asm.jcc(cond::B, 0);
        let site = self.site(instruction, Kind::Last);
        let back = self.asm.here();
        self.cold.push(Cold { from: [from, 0], kind: ColdKind::LoadVectors { site, upper, back } });
        self.vectors = level;
    }

    /// Goes to another page; the flags are in the frame.
    pub fn far(&mut self, distance: i32) {
        self.asm.load(host::R14, PAGE);
        self.asm.lea(true, host::R14, Mem::at(host::R14, distance));
        self.look_up();
    }
}
