//! Code that is run rarely, behind the rest of a translation.

use super::access::Single;
use super::asm::{Asm, Mem, alu, cond, host};
use super::chains::{self, Chain};
use super::emit::Emit;
use super::flags::{self, Place, Recipe, Tracker};
use super::frame::PAGE;

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
        /// Instructions that were given back to the budget, and are to be taken again then.
        rest: u32,
    },
    /// A return does not lead where the trace goes on, but to the distance in R14 from the page.
    Elsewhere {
        /// The site of the return, with registers in their usual places.
        site: u32,
        /// What to add to the guest's RSP if that is left to the interpreter.
        rsp: i32,
        /// Instructions that were counted and are not executed.
        rest: u32,
        /// How to make the flags, if they are not in the frame.
        recipe: Option<Recipe>,
    },
    /// Accesses through a window, when it is not to be had.
    Chain(Chain),
    /// A window that would last is not to be had.
    Void {
        /// Which.
        slot: u8,
        /// Where the code goes on.
        back: usize,
    },
    /// The budget is used up.
    Due {
        /// The site.
        site: u32,
        /// The window whose address R15 has afterwards, and where the code goes on then.
        window: Option<(u8, usize)>,
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
        /// Number of the instruction.
        number: u32,
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

impl Emit<'_> {
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

    /// A return that leaves the trace.
    fn elsewhere(&mut self, site: u32, rsp: i32, rest: u32, recipe: Option<Recipe>) {
        if recipe.is_some() {
            Tracker { place: Place::Recipe, recipe }.remake(&mut self.asm);
            flags::save(&mut self.asm);
        }
        self.asm.alu_mem(true, alu::ADD, host::R14, PAGE);
        if rest != 0 {
            self.asm.alu_mem_imm(true, alu::ADD, self.other_budget(), rest as i32);
        }
        self.exchange();
        let from = self.look_up();
        self.cold.push(Cold { from: [from, 0], kind: ColdKind::Missed { site, rsp, rest } });
    }

    fn rare_miss(&mut self, site: u32, rsp: i32, rest: u32) {
        let from = second_entry(&mut self.asm);
        self.asm.land(from);
        if rest != 0 {
            self.asm.alu_mem_imm(true, alu::SUB, self.other_budget(), rest as i32);
        }
        let back = self.asm.here();
        self.rare(ColdKind::Slow { single: None, site, recipe: None, rsp, flags_in_host: false, back });
    }

    fn rare(&mut self, kind: ColdKind) {
        let stubs = self.state.stubs;
        match kind {
            slow @ ColdKind::Slow { .. } => self.slow_way(slow),
            ColdKind::Missed { site, rsp, rest } => self.rare_miss(site, rsp, rest),
            ColdKind::Elsewhere { site, rsp, rest, recipe } => self.elsewhere(site, rsp, rest, recipe),
            ColdKind::Chain(chain) => self.chain(chain),
            ColdKind::Void { slot, back } => {
                self.void(slot);
                let target = self.asm.base + back;
                self.asm.jmp(target);
            }
            ColdKind::Due { site, window } => {
                self.asm.mov_imm32(host::R14, site);
                self.asm.jmp(stubs.look);
                if let Some((slot, back)) = window {
                    self.resumes.push((site, self.asm.here()));
                    chains::reload(&mut self.asm, slot);
                    let target = self.asm.base + back;
                    self.asm.jmp(target);
                }
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
            ColdKind::Side { distance, number, rest, place } => {
                self.before = number;
                self.flags = Tracker::at(place);
                if rest != 0 {
                    self.give_back(rest);
                }
                if self.turn_to(distance).is_none() {
                    self.exchange();
                }
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

    fn slow_way(&mut self, kind: ColdKind) {
        let ColdKind::Slow { single, site, recipe, rsp, flags_in_host, back } = kind else { return };
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
        let stub = self.state.stubs.interpret;
        self.asm.jmp(stub);
        if flags_in_host {
            self.resumes.push((site, self.asm.here()));
            flags::restore(&mut self.asm, flags::ALL);
            let target = self.asm.base + back;
            self.asm.jmp(target);
        } else {
            self.resumes.push((site, back));
        }
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
