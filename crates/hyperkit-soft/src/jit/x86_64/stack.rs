//! PUSH, POP and LEAVE, with 64-bit operands.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::access::FOUND;
use super::asm::{Mem, host};
use super::emit::Emit;
use super::frame::SCRATCH;

/// RSP.
const RSP: u8 = 4;

/// RBP.
const RBP: u8 = 5;

impl Emit<'_> {
    /// Emits an instruction of these. False, with nothing emitted, if it is none or of a kind that is left to the
    /// interpreter.
    pub fn stack(&mut self, instruction: &Instruction) -> bool {
        match instruction.mnemonic() {
            Mnemonic::Push if instruction.stack_pointer_increment() == -8 => self.push(instruction),
            Mnemonic::Pop if instruction.stack_pointer_increment() == 8 => self.pop(instruction),
            Mnemonic::Leave if instruction.code() == iced_x86::Code::Leaveq => {
                self.leave(instruction);
                true
            }
            _ => false,
        }
    }

    fn push(&mut self, instruction: &Instruction) -> bool {
        match instruction.op0_kind() {
            OpKind::Register if instruction.op0_register().is_gpr() => {}
            OpKind::Immediate8to64 | OpKind::Immediate32to64 => {}
            OpKind::Memory if instruction.memory_size().size() == 8 => return self.push_memory(instruction),
            _ => return false,
        }
        self.flags.before_write(&mut self.asm, 1 << RSP);
        let found = self.on_stack(-8, true);
        let recipe = self.slow_recipe();
        if instruction.op0_kind() == OpKind::Register {
            let guest = instruction.op0_register().number() as u8;
            match self.host_of(guest) {
                Some(register) => self.asm.store(found.at, register),
                None => {
                    let at = self.fold(found.at);
                    self.load_spilled(host::R14, guest);
                    self.asm.store(at, host::R14);
                }
            }
        } else {
            let value = instruction.try_immediate(0).unwrap_or(0) as i32;
            self.asm.reg_mem(true, &[0xc7], 0, found.at);
            self.asm.bytes(&value.to_le_bytes());
        }
        self.asm.lea(true, host::R13, Mem::at(host::R13, -8));
        self.slow(found.miss, instruction, recipe);
        true
    }

    fn push_memory(&mut self, instruction: &Instruction) -> bool {
        self.flags.before_write(&mut self.asm, 1 << RSP);
        // Two checks: what the first one needs must hold for the second.
        self.flags.need_frame(&mut self.asm);
        if !self.address(instruction) {
            return false;
        }
        let read = self.check(8, false, false);
        self.asm.load(host::R14, FOUND);
        self.asm.store(SCRATCH, host::R14);
        self.asm.lea(true, host::R14, Mem::at(host::R13, -8));
        let write = self.check(8, true, false);
        self.asm.lea(true, host::R15, FOUND);
        self.asm.load(host::R14, SCRATCH);
        self.asm.store(Mem::at(host::R15, 0), host::R14);
        self.asm.lea(true, host::R13, Mem::at(host::R13, -8));
        self.slow([read[0], write[0]], instruction, None);
        true
    }

    fn pop(&mut self, instruction: &Instruction) -> bool {
        if instruction.op0_kind() != OpKind::Register || !instruction.op0_register().is_gpr() {
            return false;
        }
        let guest = instruction.op0_register().number() as u8;
        self.flags.before_write(&mut self.asm, 1 << RSP | 1 << guest);
        let found = self.on_stack(0, false);
        let recipe = self.slow_recipe();
        self.asm.lea(true, host::R13, Mem::at(host::R13, 8));
        match self.host_of(guest) {
            Some(register) => self.asm.load(register, found.at),
            None => {
                self.asm.load(host::R14, found.at);
                self.store_spilled(guest, host::R14);
            }
        }
        self.slow(found.miss, instruction, recipe);
        true
    }

    fn leave(&mut self, instruction: &Instruction) {
        self.flags.before_write(&mut self.asm, 1 << RSP | 1 << RBP);
        self.asm.mov(host::R14, RBP);
        let from = self.check(8, false, false);
        let recipe = self.slow_recipe();
        self.asm.lea(true, host::R13, Mem::at(RBP, 8));
        self.asm.load(RBP, FOUND);
        self.slow(from, instruction, recipe);
    }
}
