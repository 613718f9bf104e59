//! Whether anybody will look at the flags: they need not be kept where the next instruction that has to do with them overwrites
//! them all, and nothing before it can fault or leave the translation.

use iced_x86::{FlowControl, Instruction, Mnemonic};

use super::classify::{self, Writes, flag_use};
use super::emit::Emit;
use super::flags::{Place, Tracker};

impl Emit<'_> {
    /// Registers of `mask` are about to be written by the current instruction, which is on registers alone and does not
    /// overwrite all flags. May overwrite R15.
    pub fn before_write(&mut self, mask: u16) {
        if self.flags.needs(mask) && self.flags_die() {
            self.flags = Tracker::at(Place::Frame);
        } else {
            self.flags.before_write(&mut self.asm, mask);
        }
    }

    /// Whether nobody looks at the flags that there are after the current instruction.
    pub fn flags_die(&mut self) -> bool {
        let parts = self.parts;
        let instructions = parts.iter().flat_map(|part| &part.instructions);
        for instruction in instructions.skip(self.before as usize + 1) {
            if classify::is_nop(instruction) {
                continue;
            }
            let usage = flag_use(instruction);
            if usage.reads != 0 || usage.writes == Writes::Some || !self.stays(instruction) {
                return false;
            }
            if usage.writes == Writes::All {
                return true;
            }
        }
        false
    }

    /// Whether an instruction is translated to one that neither faults nor leaves.
    fn stays(&mut self, instruction: &Instruction) -> bool {
        if instruction.flow_control() != FlowControl::Next || self.is_undefined(instruction) {
            return false;
        }
        if instruction.mnemonic() == Mnemonic::Lea {
            return instruction.op0_register().size() > 2 && self.addressable(instruction);
        }
        classify::is_integer(instruction) && self.is_on_registers(instruction)
    }
}
