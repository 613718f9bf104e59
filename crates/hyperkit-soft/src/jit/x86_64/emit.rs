//! The state of one translation that is being made, and what every kind of instruction needs.

use iced_x86::{Instruction, InstructionInfoFactory};

use super::access::{Miss, Single};
use super::asm::{Asm, Mem, alu, cond, host};
use super::flags::{self, Place, Recipe, Tracker};
use super::frame::{BASES, PAGE, SHARES, VECTORS, budget_of, host_of, spilled_at};
use super::helpers::{Kind, Site};
use super::state::{Link, State};
use super::windows::Member;
use crate::cpu::{CodeSize, seg};
use crate::decode::Context;
use crate::op::Op;

/// Code that is run rarely, emitted behind the block.
#[derive(Debug, Clone)]
pub struct Cold {
    /// Displacements of the branches that lead here.
    pub from: [usize; 2],
    /// What is to be done.
    pub kind: ColdKind,
}

/// See [`Cold`].
#[derive(Debug, Clone)]
pub enum ColdKind {
    /// The instruction of a site is left to the interpreter.
    Slow {
        /// What is tried first.
        single: Option<Single>,
        /// The site.
        site: u32,
        /// How to make the flags, if they are nowhere.
        recipe: Option<Recipe>,
        /// What to add to the guest's RSP first.
        rsp: i32,
        /// Whether the code goes on with the flags in RFLAGS.
        flags_in_host: bool,
        /// Where it goes on.
        back: usize,
    },
    /// A jump's target is not in its first entry of the table: the other one is looked at; if it is not there either, the
    /// jump is left to the interpreter.
    Missed {
        /// The site.
        site: u32,
        /// What to add to the guest's RSP then.
        rsp: i32,
    },
    /// The budget is used up.
    Due {
        /// The site.
        site: u32,
    },
    /// A link without a target; `save` if the flags are in RFLAGS.
    Link {
        /// The link.
        link: u32,
        /// See above.
        save: bool,
    },
    /// A branch to another page, at this distance from the current one; `save` as above.
    Far {
        /// Distance of the target from the page.
        distance: i32,
        /// See above.
        save: bool,
    },
    /// The trace is left by a branch to this distance from the page.
    Side {
        /// See above.
        distance: i64,
        /// Instructions that were counted and are not executed.
        rest: u32,
        /// Where the flags are.
        place: Place,
    },
    /// Vector registers are to be loaded; if that cannot be, the instruction of the site is left to the interpreter.
    LoadVectors {
        /// The site.
        site: u32,
        /// Whether with the upper halves of the YMM registers.
        upper: bool,
        /// Where the code goes on.
        back: usize,
    },
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
        self.resumes.push((site, self.asm.here()));
        self.cold.push(Cold { from: [from, 0], kind: ColdKind::Due { site } });
    }

    /// Takes them from the budget, which may become negative; RFLAGS are as before.
    pub fn count_only(&mut self) {
        self.asm.load(host::R14, budget_of(self.share));
        self.asm.lea(true, host::R14, Mem::at(host::R14, -(self.total as i32)));
        self.asm.store(budget_of(self.share), host::R14);
        self.counted = true;
    }

    /// The same the other way round. To another share: this one was taken from a moment ago.
    fn give_back(&mut self, rest: u32) {
        let budget = budget_of((self.share + SHARES as u8 / 2) % SHARES as u8);
        self.asm.load(host::R14, budget);
        self.asm.lea(true, host::R14, Mem::at(host::R14, rest as i32));
        self.asm.store(budget, host::R14);
    }

    /// A branch at displacement `from` that leaves the trace after the current instruction.
    pub fn leave_to(&mut self, from: usize, distance: i64) {
        let rest = self.total - self.before - 1;
        if rest == 0 {
            self.branch_to(from, distance);
            return;
        }
        let kind = ColdKind::Side { distance, rest, place: self.flags.place };
        self.cold.push(Cold { from: [from, 0], kind });
    }

    /// A branch at displacement `from` to where the guest's RIP is `distance` from the page.
    pub fn branch_to(&mut self, from: usize, distance: i64) {
        let save = matches!(self.flags.place, Place::Host | Place::Both);
        let kind = if (0..4096).contains(&distance) {
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
        self.asm.mov32(host::R15, host::R14);
        self.asm.shr32(host::R15, super::lookup::MIX);
        self.asm.alu(false, alu::XOR, host::R15, host::R14);
        self.asm.alu_imm(false, alu::AND, host::R15, super::lookup::INDEX_MASK);
        self.asm.shl32(host::R15, super::lookup::ENTRY_SHIFT);
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
            Some(host_of(guest).unwrap_or_else(|| {
                self.asm.load(free, spilled_at(guest));
                free
            }))
        };
        let base = register(instruction.memory_base(), host::R14);
        let index = register(instruction.memory_index(), host::R15);
        let scale = instruction.memory_index_scale().trailing_zeros() as u8;
        let disp = instruction.memory_displacement64() as i32;
        Mem { base, index: index.map(|index| (index, scale)), disp }
    }

    /// Has the branches of `miss` leave an instruction to the interpreter and go on after it, which is what is emitted
    /// next. To be called when the instruction has been emitted; `recipe` makes the flags of before it.
    pub fn slow(&mut self, miss: impl Into<Miss>, instruction: &Instruction, recipe: Option<Recipe>) {
        let Miss { from, single } = miss.into();
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

    /// Emits the rare code.
    pub fn finish(&mut self) {
        while !self.cold.is_empty() {
            for cold in std::mem::take(&mut self.cold) {
                for from in cold.from.into_iter().filter(|from| *from != 0) {
                    self.asm.land(from);
                }
                self.rare(cold.kind);
            }
        }
    }

    fn rare_miss(&mut self, site: u32, rsp: i32) {
        let from = second_entry(&mut self.asm);
        self.asm.land(from);
        let back = self.asm.here();
        self.rare(ColdKind::Slow { single: None, site, recipe: None, rsp, flags_in_host: false, back });
    }

    fn rare(&mut self, kind: ColdKind) {
        let stubs = self.state.stubs;
        match kind {
            ColdKind::Slow { single, site, recipe, rsp, flags_in_host, back } => {
                if let Some(single) = single {
                    self.single(&single);
                }
                if let Some(recipe) = recipe {
                    Tracker { place: Place::Recipe, recipe: Some(recipe) }.remake(&mut self.asm);
                    flags::save(&mut self.asm);
                }
                if rsp != 0 {
                    self.asm.lea(true, host::R13, Mem::at(host::R13, rsp));
                }
                self.asm.mov_imm32(host::R14, site);
                self.asm.jmp(stubs.interpret);
                if flags_in_host {
                    self.resumes.push((site, self.asm.here()));
                    flags::restore(&mut self.asm, flags::ALL);
                    let target = self.asm.base + back;
                    self.asm.jmp(target);
                } else {
                    self.resumes.push((site, back));
                }
            }
            ColdKind::Missed { site, rsp } => self.rare_miss(site, rsp),
            ColdKind::Due { site } => {
                self.asm.mov_imm32(host::R14, site);
                self.asm.jmp(stubs.look);
            }
            ColdKind::Link { link, save } => {
                let address = self.asm.address();
                self.state.link_mut(link).stub = address;
                if save {
                    flags::save(&mut self.asm);
                }
                self.asm.mov_imm32(host::R14, link);
                self.asm.jmp(stubs.link);
            }
            ColdKind::Far { distance, save } => {
                if save {
                    flags::save(&mut self.asm);
                }
                self.far(distance);
            }
            ColdKind::Side { distance, rest, place } => {
                self.flags = Tracker::at(place);
                self.give_back(rest);
                let from = self.asm.jmp(0);
                self.branch_to(from, distance);
            }
            ColdKind::LoadVectors { site, upper, back } => {
                self.asm.call(if upper { stubs.load_ymm } else { stubs.load_xmm });
                self.asm.reg_reg(false, &[0x85], host::R15, host::R15);
                let target = self.asm.base + back;
                self.asm.jcc(cond::NE, target);
                self.asm.mov_imm32(host::R14, site);
                self.asm.jmp(stubs.interpret);
            }
        }
    }

    /// Goes to another page; the flags are in the frame.
    pub fn far(&mut self, distance: i32) {
        self.asm.load(host::R14, PAGE);
        self.asm.lea(true, host::R14, Mem::at(host::R14, distance));
        self.look_up();
    }
}

/// Goes to the code for the linear address in R14 if that is in the other entry of the pair of that at R15. The
/// displacement of the branch that is taken if not, to be landed somewhere.
pub fn second_entry(asm: &mut Asm) -> usize {
    asm.alu_imm(true, alu::XOR, host::R15, super::lookup::OTHER);
    asm.alu_mem(true, alu::CMP, host::R14, Mem::at(host::R15, 0));
    let from = asm.jcc(cond::NE, 0);
    asm.jmp_mem(Mem::at(host::R15, 8));
    from
}
