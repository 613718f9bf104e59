//! CLI, STI, PUSHFQ and POPFQ where they do nothing but change flags: what a kernel does around every lock. The rest of
//! what is privileged is left to the interpreter.

use std::mem::offset_of;

use iced_x86::{Code, Instruction, Mnemonic};

use super::asm::{Mem, alu, cond, host};
use super::emit::Emit;
use super::flags::{SAVED_OF, SAVED_SHIFT};
use super::frame::{CPU, FLAGS, SCRATCH, cpu_at};
use crate::cpu::Cpu;
use crate::flags::{Flags, bit};
use crate::system::interrupts::Interrupts;

/// Where a TLB check has found what is accessed.
const FOUND: Mem = Mem { base: Some(host::R15), index: Some((host::R14, 0)), disp: 0 };

/// Places of the processor, whose address is in R15.
const REST: Mem = cpu_at(host::R15, offset_of!(Cpu, flags) + offset_of!(Flags, rest));
const LEVEL: Mem = cpu_at(host::R15, offset_of!(Cpu, cpl));
const SHADOW: Mem = cpu_at(host::R15, offset_of!(Cpu, shadow));
const DEFERRED: Mem = cpu_at(host::R15, offset_of!(Cpu, interrupts) + offset_of!(Interrupts, deferred));

impl Emit<'_> {
    /// Emits one of these that ends its block, but for going on with the next. False, with nothing emitted, if it is none.
    pub fn system(&mut self, instruction: &Instruction) -> bool {
        match instruction.code() {
            Code::Cli => self.cli(instruction),
            Code::Sti => self.sti(instruction),
            Code::Popfq => self.popf(instruction),
            _ => return false,
        }
        true
    }

    /// `cmp byte [mem], 0`; gives the branch that is taken if it is not.
    fn unless_zero(&mut self, mem: Mem) -> usize {
        self.asm.reg_mem(false, &[0x80], alu::CMP, mem);
        self.asm.out.push(0);
        self.asm.jcc(cond::NE, 0)
    }

    fn cli(&mut self, instruction: &Instruction) {
        self.flags.need_frame(&mut self.asm);
        self.flags.before_clobber(&mut self.asm);
        self.asm.load(host::R15, CPU);
        let outer = self.unless_zero(LEVEL);
        self.asm.alu_mem_imm(false, alu::AND, REST, !(bit::IF as i32));
        self.redo([outer, 0], instruction, 0);
    }

    fn sti(&mut self, instruction: &Instruction) {
        self.flags.need_frame(&mut self.asm);
        self.flags.before_clobber(&mut self.asm);
        self.asm.load(host::R15, CPU);
        let outer = self.unless_zero(LEVEL);
        let waits = self.unless_zero(DEFERRED);
        self.asm.alu_mem_imm(false, alu::OR, REST, bit::IF as i32);
        // If the budget is used up before the next instruction, that one still comes first.
        self.asm.reg_mem(false, &[0xc6], 0, SHADOW);
        self.asm.out.push(1);
        self.redo([outer, waits], instruction, 0);
    }

    fn popf(&mut self, instruction: &Instruction) {
        self.flags.need_frame(&mut self.asm);
        self.asm.mov(host::R14, host::R13);
        let missed = self.check(8, false, false);
        self.redo(missed, instruction, 0);
        self.asm.load(host::R14, FOUND);
        self.asm.store(SCRATCH, host::R14);
        self.asm.load(host::R15, CPU);
        let outer = self.unless_zero(LEVEL);
        self.asm.alu_imm(false, alu::AND, host::R14, !((bit::ARITHMETIC | 2) as i32));
        self.asm.alu_mem(false, alu::XOR, host::R14, REST);
        let test = |emit: &mut Self, mask: i32| {
            emit.asm.reg_reg(false, &[0xf7], 0, host::R14);
            emit.asm.bytes(&mask.to_le_bytes());
        };
        test(self, !(bit::IF as i32));
        let others = self.asm.jcc(cond::NE, 0);
        self.redo([outer, others], instruction, 0);
        test(self, bit::IF as i32);
        let same = self.asm.jcc(cond::E, 0);
        let waits = self.unless_zero(DEFERRED);
        self.redo([waits, 0], instruction, 0);
        // xor dword [rest], r14d
        self.asm.reg_mem(false, &[alu::XOR << 3 | 1], host::R14, REST);
        self.asm.land(same);
        self.asm.load(host::R14, SCRATCH);
        self.asm.mov32(host::R15, host::R14);
        self.asm.shr32(host::R15, bit::OF.trailing_zeros() as u8);
        self.asm.alu_imm(false, alu::AND, host::R15, SAVED_OF as i32);
        self.asm.shl32(host::R14, SAVED_SHIFT);
        self.asm.alu(false, alu::OR, host::R14, host::R15);
        self.asm.store(FLAGS, host::R14);
        self.asm.lea(true, host::R13, Mem::at(host::R13, 8));
    }

    /// PUSHFQ. False, with nothing emitted, for anything else.
    pub fn pushf(&mut self, instruction: &Instruction) -> bool {
        if instruction.mnemonic() != Mnemonic::Pushfq {
            return false;
        }
        self.flags.need_frame(&mut self.asm);
        self.flags.before_clobber(&mut self.asm);
        self.asm.load(host::R15, CPU);
        self.asm.load32(host::R15, REST);
        let hidden = bit::ARITHMETIC | bit::VM | bit::RF;
        self.asm.alu_imm(false, alu::AND, host::R15, !(hidden as i32));
        self.asm.load32(host::R14, FLAGS);
        self.asm.shr32(host::R14, SAVED_SHIFT);
        self.asm.alu_imm(false, alu::AND, host::R14, (bit::ARITHMETIC & 0xff) as i32);
        self.asm.alu(false, alu::OR, host::R15, host::R14);
        self.asm.load32(host::R14, FLAGS);
        self.asm.alu_imm(false, alu::AND, host::R14, SAVED_OF as i32);
        self.asm.shl32(host::R14, bit::OF.trailing_zeros() as u8);
        self.asm.alu(false, alu::OR, host::R14, host::R15);
        self.asm.alu_imm(false, alu::OR, host::R14, 2);
        self.asm.store(SCRATCH, host::R14);
        self.asm.lea(true, host::R14, Mem::at(host::R13, -8));
        let from = self.check(8, true, false);
        self.asm.lea(true, host::R15, FOUND);
        self.asm.load(host::R14, SCRATCH);
        self.asm.store(Mem::at(host::R15, 0), host::R14);
        self.asm.lea(true, host::R13, Mem::at(host::R13, -8));
        self.slow(from, instruction, None);
        true
    }
}
