//! Branches, calls and returns: how a block ends.

use iced_x86::{FlowControl, Instruction, Mnemonic, OpKind, Register};

use super::access::Miss;
use super::asm::{Mem, alu, cond, host};
use super::cold::{Cold, ColdKind};
use super::emit::{Emit, LINKED};
use super::flags::{ALL, Place, Recipe, SAVED_OF, SAVED_SHIFT};
use super::frame::{FLAGS, PAGE, SCRATCH};
use super::helpers::Kind;
use super::trace::Follow;

/// RSP.
const RSP: u8 = 4;

/// Saved flags by the condition that looks at them alone: OF, CF, ZF, CF or ZF, SF, PF.
const ALONE: [(u8, u16); 6] = [
    (0, SAVED_OF as u16),
    (2, saved(1)),
    (4, saved(1 << 6)),
    (6, saved(0x41)),
    (8, saved(1 << 7)),
    (10, saved(1 << 2)),
];

/// Where the frame has flags of the low byte of RFLAGS.
const fn saved(rflags: u16) -> u16 {
    rflags << SAVED_SHIFT
}

impl Emit<'_> {
    /// Ends the block with a branch. False, with nothing emitted, if it is of a kind that is left to the interpreter.
    pub fn branch(&mut self, instruction: &Instruction) -> bool {
        let short = instruction.op0_kind() == OpKind::NearBranch64;
        let target = instruction.near_branch_target().wrapping_sub(self.page) as i64;
        if short && !in_reach(target) {
            return false;
        }
        match instruction.flow_control() {
            FlowControl::ConditionalBranch if instruction.is_jcc_short_or_near() && short => {
                self.jcc(instruction, target);
            }
            FlowControl::UnconditionalBranch if short => self.go(target),
            FlowControl::Call if short && instruction.is_call_near() => self.call(instruction, target),
            FlowControl::IndirectBranch | FlowControl::IndirectCall => return self.indirect(instruction),
            FlowControl::Return if instruction.mnemonic() == Mnemonic::Ret => {
                return self.ret(instruction);
            }
            _ => return false,
        }
        true
    }

    /// Ends the block by going to the guest's code at this distance from the page.
    pub fn go(&mut self, target: i64) {
        if self.flags.place == Place::Recipe {
            self.flags.need_host(&mut self.asm, ALL);
        }
        if LINKED.contains(&target) || self.turn_to(target).is_some() {
            if self.turn_to(target).is_none() {
                self.exchange();
            }
            let from = self.asm.jmp(0);
            self.branch_to(from, target);
            return;
        }
        self.flags.need_frame(&mut self.asm);
        self.exchange();
        self.far(target as i32);
    }

    /// Goes on in the trace after the branch that ends one of its blocks.
    pub fn pass(&mut self, instruction: &Instruction, follow: Follow) {
        match follow {
            Follow::Call => return self.call_within(instruction),
            Follow::Return { to, popped } => return self.return_within(instruction, to, popped),
            Follow::Around { popped } => {
                let head = self.parts[0].rip;
                self.return_within(instruction, head, popped);
                return self.go(head.wrapping_sub(self.page) as i64);
            }
            _ => {}
        }
        if instruction.flow_control() != FlowControl::ConditionalBranch {
            return;
        }
        let condition = self.condition(instruction);
        let (inverted, other) = match follow {
            Follow::Target => (1, instruction.next_ip()),
            _ => (0, instruction.near_branch_target()),
        };
        let from = self.asm.jcc(condition ^ inverted, 0);
        self.leave_to(from, other.wrapping_sub(self.page) as i64);
    }

    /// Sees to it that the host can tell whether a conditional branch is taken; by which condition.
    fn condition(&mut self, instruction: &Instruction) -> u8 {
        let mut condition = (instruction.condition_code() as u8).wrapping_sub(1) & 15;
        let alone = ALONE.into_iter().find(|(even, _)| *even == condition & !1);
        match (self.flags.place, alone) {
            (Place::Frame, Some((_, mask))) => {
                self.asm.test_mem(FLAGS, mask);
                condition = if condition & 1 == 0 { cond::NE } else { cond::E };
            }
            _ => self.flags.need_host(&mut self.asm, ALL),
        }
        condition
    }

    fn jcc(&mut self, instruction: &Instruction, target: i64) {
        let condition = self.condition(instruction);
        let from = self.asm.jcc(condition, 0);
        self.leave_to(from, target);
        let next = instruction.next_ip().wrapping_sub(self.page) as i64;
        self.go(next);
    }

    /// Pushes the address after `instruction`; gives the branches to the rare way.
    fn push_return(&mut self, instruction: &Instruction) -> Miss {
        let found = self.on_stack(-8, true);
        let at = self.fold(found.at);
        let next = instruction.next_ip().wrapping_sub(self.page) as i32;
        self.asm.load(host::R14, PAGE);
        self.asm.lea(true, host::R14, Mem::at(host::R14, next));
        self.asm.store(at, host::R14);
        self.asm.lea(true, host::R13, Mem::at(host::R13, -8));
        found.miss
    }

    fn call(&mut self, instruction: &Instruction, target: i64) {
        self.flags.need_frame_through(&mut self.asm, host::R14);
        let miss = self.push_return(instruction);
        self.redo(miss, instruction, 0);
        self.go(target);
    }

    /// A call after which the trace goes on with what is called. If it is left to the interpreter, the trace is left.
    fn call_within(&mut self, instruction: &Instruction) {
        self.flags.before_write(&mut self.asm, 1 << RSP);
        let miss = self.push_return(instruction);
        let recipe = self.slow_recipe();
        self.redo_with(miss, instruction, 0, recipe);
    }

    /// A return after which the trace goes on at `to`, if it leads there.
    fn return_within(&mut self, instruction: &Instruction, to: u64, popped: bool) {
        let drop = instruction.stack_pointer_increment();
        self.flags.before_write(&mut self.asm, 1 << RSP);
        if !popped {
            self.asm.lea(true, host::R13, Mem::at(host::R13, drop));
            return;
        }
        let found = self.on_stack(0, false);
        let recipe = self.slow_recipe();
        self.redo_with(found.miss, instruction, 0, recipe);
        self.flags.before_clobber_through(&mut self.asm, host::R14);
        self.asm.load(host::R14, found.at);
        self.asm.lea(true, host::R13, Mem::at(host::R13, drop));
        self.asm.alu_mem(true, alu::SUB, host::R14, PAGE);
        self.asm.alu_imm(true, alu::CMP, host::R14, to.wrapping_sub(self.page) as i32);
        let from = self.asm.jcc(cond::NE, 0);
        let site = self.site(instruction, Kind::Branch);
        self.state.in_usual_places(site);
        let rest = self.total - self.before - 1;
        let kind = ColdKind::Elsewhere { site, rsp: -drop, rest, recipe: self.slow_recipe() };
        self.cold.push(Cold { from: [from, 0], kind });
    }

    /// The branches of `miss` leave the instruction, which ends the block, to the interpreter, after `rsp` is added
    /// to the guest's RSP. The flags are in the frame.
    pub fn redo(&mut self, miss: impl Into<Miss>, instruction: &Instruction, rsp: i32) {
        self.redo_with(miss, instruction, rsp, None);
    }

    /// The same; if there is a `recipe` it makes the flags.
    fn redo_with(
        &mut self,
        miss: impl Into<Miss>,
        instruction: &Instruction,
        rsp: i32,
        recipe: Option<Recipe>,
    ) {
        let miss = miss.into();
        if miss.is_none() {
            return;
        }
        let Miss { from, single } = miss;
        let near = !matches!(instruction.mnemonic(), Mnemonic::Cli | Mnemonic::Sti | Mnemonic::Popfq);
        let site = self.site(instruction, if near { Kind::Branch } else { Kind::Last });
        let back = self.asm.here();
        let kind = ColdKind::Slow { single, site, recipe, rsp, flags_in_host: false, back };
        self.cold.push(Cold { from, kind });
    }

    /// The branch at `from` has not found its target in the table: looks once more, then does as [`Emit::redo`] does.
    fn missed(&mut self, from: usize, instruction: &Instruction, rsp: i32) {
        let site = self.site(instruction, Kind::Branch);
        self.state.in_usual_places(site);
        self.cold.push(Cold { from: [from, 0], kind: ColdKind::Missed { site, rsp, rest: 0 } });
    }

    /// The target, or where it is, goes to R14. False if that is not done here.
    fn indirect(&mut self, instruction: &Instruction) -> bool {
        let calls = instruction.flow_control() == FlowControl::IndirectCall;
        let register = instruction.op0_register();
        let in_register = instruction.op0_kind() == OpKind::Register;
        let near =
            if calls { instruction.is_call_near_indirect() } else { instruction.is_jmp_near_indirect() };
        if !near || (in_register && !register.is_gpr64()) {
            return false;
        }
        if !in_register && instruction.memory_size().size() != 8 {
            return false;
        }
        self.flags.need_frame(&mut self.asm);
        if in_register {
            let guest = register.number() as u8;
            match self.host_of(guest) {
                Some(register) => self.asm.mov(host::R14, register),
                None => self.load_spilled(host::R14, guest),
            }
        } else {
            if !self.address(instruction) {
                return false;
            }
            let from = self.check(8, false, false);
            self.redo(from, instruction, 0);
            let mem = Mem { base: Some(host::R15), index: Some((host::R14, 0)), disp: 0 };
            self.asm.load(host::R14, mem);
        }
        if calls {
            self.asm.store(SCRATCH, host::R14);
            let miss = self.push_return(instruction);
            self.redo(miss, instruction, 0);
            self.asm.load(host::R14, SCRATCH);
        }
        self.exchange();
        let miss = self.look_up();
        self.missed(miss, instruction, if calls { 8 } else { 0 });
        true
    }

    fn ret(&mut self, instruction: &Instruction) -> bool {
        if instruction.stack_pointer_increment() < 8 || instruction.has_operand_size() {
            return false;
        }
        let drop = instruction.stack_pointer_increment();
        self.flags.need_frame_through(&mut self.asm, host::R14);
        let found = self.on_stack(0, false);
        self.redo(found.miss, instruction, 0);
        self.asm.load(host::R14, found.at);
        self.asm.lea(true, host::R13, Mem::at(host::R13, drop));
        self.exchange();
        let miss = self.look_up();
        self.missed(miss, instruction, -drop);
        true
    }
}

/// Whether a distance from the page, and what follows it, fits a displacement.
fn in_reach(distance: i64) -> bool {
    (-(1 << 30)..1 << 30).contains(&distance)
}

trait OperandSize {
    fn has_operand_size(&self) -> bool;
}

impl OperandSize for Instruction {
    /// A return with 16-bit operand.
    fn has_operand_size(&self) -> bool {
        use iced_x86::Code::{Retnw, Retnw_imm16};
        matches!(self.code(), Retnw | Retnw_imm16) || self.op0_register() == Register::CS
    }
}
