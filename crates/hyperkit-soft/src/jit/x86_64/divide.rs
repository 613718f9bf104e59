//! DIV and IDIV of 32 and 64 bits, where it is plain that they do not fault; the rest is left to the interpreter.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::asm::{Mem, alu, cond, host};
use super::emit::Emit;

/// `sar reg, bits - 1`
fn sign(emit: &mut Emit, wide: bool, register: u8) {
    emit.asm.reg_reg(wide, &[0xc1], 7, register);
    emit.asm.out.push(if wide { 63 } else { 31 });
}

impl Emit<'_> {
    /// Emits an instruction of these. False, with nothing emitted, if it is none or of a kind that is left to the
    /// interpreter. The flags, which are undefined, stay as they are.
    pub fn divide(&mut self, instruction: &Instruction) -> bool {
        let signed = match instruction.mnemonic() {
            Mnemonic::Div => false,
            Mnemonic::Idiv => true,
            _ => return false,
        };
        let in_register = instruction.op0_kind() == OpKind::Register;
        let size =
            if in_register { instruction.op0_register().size() } else { instruction.memory_size().size() };
        if size < 4 {
            return false;
        }
        let wide = size == 8;
        self.flags.need_frame(&mut self.asm);
        let mut from = [0; 2];
        if in_register {
            let guest = instruction.op0_register().number() as u8;
            match self.host_of(guest) {
                Some(register) => self.asm.mov(host::R15, register),
                None => self.load_spilled(host::R15, guest),
            }
        } else {
            if !self.address(instruction) {
                return false;
            }
            from[0] = self.check(size as u32, false, false)[0];
            let found = Mem { base: Some(host::R15), index: Some((host::R14, 0)), disp: 0 };
            if wide { self.asm.load(host::R15, found) } else { self.asm.load32(host::R15, found) }
        }
        self.flags.before_clobber(&mut self.asm);
        if signed {
            from[1] = self.check_signed(wide, &mut from[0]);
        } else {
            // The quotient fits if the upper half is below the divisor.
            self.asm.reg_reg(wide, &[0x39], host::R15, host::RDX); // cmp rdx, r15
            from[1] = self.asm.jcc(cond::AE, 0);
        }
        self.asm.reg_reg(wide, &[0xf7], if signed { 7 } else { 6 }, host::R15);
        self.slow(from, instruction, None);
        true
    }

    /// Lets pass a dividend that is the sign extension of its lower half, by neither 0 nor -1.
    fn check_signed(&mut self, wide: bool, first: &mut usize) -> usize {
        let (asm, r14, r15) = (&mut self.asm, host::R14, host::R15);
        if wide {
            asm.mov(r14, host::RAX)
        } else {
            asm.mov32(r14, host::RAX)
        }
        sign(self, wide, r14);
        let asm = &mut self.asm;
        // Any difference of the upper half from the sign, or a divisor for which divisor + 1 is at most 1: one test.
        asm.alu(wide, alu::XOR, r14, host::RDX);
        let differs = asm.jcc(cond::NE, 0);
        asm.lea(wide, r14, Mem::at(r15, 1));
        asm.alu_imm(wide, alu::CMP, r14, 1);
        let over = asm.jcc(cond::A, 0);
        asm.land(differs);
        let rare = asm.jmp(0);
        asm.land(over);
        if *first == 0 {
            *first = rare;
            return 0;
        }
        rare
    }
}
