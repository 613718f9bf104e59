//! Which of the guest's registers are in host registers while a trace runs.
//!
//! Between translations that is the same always ([`super::frame`]). A trace that is a loop exchanges registers in the frame that
//! it uses for ones that it uses less: where it is entered, and back wherever it is left.

use iced_x86::{Instruction, InstructionInfoFactory, InstructionInfoOptions, Mnemonic};

use super::asm::{Mem, host};
use super::emit::Emit;
use super::frame::{self, SPILLED_GUEST};
use crate::cpu::Cpu;

/// Registers that can go to the frame: no instruction has them for operands without naming them, but LEAVE.
const MOVABLE: [u8; 6] = [8, 12, 13, 14, 15, RBP];

/// RBP.
const RBP: u8 = 5;

/// Pairs of the guest's registers that have each other's places.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Places([(u8, u8); 3]);

impl Places {
    /// The best ones for a loop of these instructions.
    pub fn of_loop<'a>(instructions: impl Iterator<Item = &'a Instruction>) -> Places {
        let mut uses = [0u32; 16];
        let mut info = InstructionInfoFactory::new();
        let mut leaves = false;
        for instruction in instructions {
            leaves |= matches!(instruction.mnemonic(), Mnemonic::Leave | Mnemonic::Enter);
            let used = info.info_options(instruction, InstructionInfoOptions::NO_MEMORY_USAGE);
            for register in used.used_registers().iter().map(|used| used.register()) {
                if register.is_gpr() {
                    uses[register.full_register().number()] += 1;
                }
            }
        }
        let used = |register: &u8| uses[usize::from(*register)];
        let mut wanted = SPILLED_GUEST;
        wanted.sort_by_key(|register| std::cmp::Reverse(used(register)));
        let mut others: Vec<u8> =
            MOVABLE.into_iter().filter(|register| *register != RBP || !leaves).collect();
        others.sort_by_key(used);
        let mut places = Places::default();
        for (pair, (wanted, other)) in places.0.iter_mut().zip(wanted.into_iter().zip(others)) {
            if used(&wanted) > used(&other) {
                *pair = (wanted, other);
            }
        }
        places
    }

    /// Whether they are those that hold between translations.
    pub fn is_usual(&self) -> bool {
        *self == Places::default()
    }

    fn usual(&self, guest: u8) -> u8 {
        let pair = self.0.iter().find(|pair| pair.0 != pair.1 && (pair.0 == guest || pair.1 == guest));
        pair.map_or(guest, |pair| if pair.0 == guest { pair.1 } else { pair.0 })
    }

    /// The host register that holds a guest register, if one does.
    pub fn host_of(&self, guest: u8) -> Option<u8> {
        frame::host_of(self.usual(guest))
    }

    /// Exchanges the registers of a processor that was given those of a trace as if they were in their usual places, or is about to
    /// give them back.
    #[inline]
    pub fn exchange(&self, cpu: &mut Cpu) {
        if self.is_usual() {
            return;
        }
        for (a, b) in self.0 {
            cpu.regs.swap(usize::from(a), usize::from(b));
        }
    }
}

impl Emit<'_> {
    /// The host register that holds a guest register, if one does.
    pub fn host_of(&self, guest: u8) -> Option<u8> {
        self.places.host_of(guest)
    }

    /// Where the frame has a guest register that is not in a host register.
    pub fn spilled_at(&self, guest: u8) -> Mem {
        frame::spilled_at(self.places.usual(guest))
    }

    /// Loads a guest register that is in the frame.
    pub fn load_spilled(&mut self, to: u8, guest: u8) {
        let place = self.spilled_at(guest);
        self.asm.load(to, place);
    }

    /// Stores one.
    pub fn store_spilled(&mut self, guest: u8, from: u8) {
        let place = self.spilled_at(guest);
        self.asm.store(place, from);
    }

    /// Goes over from the usual places to those of the trace, or back. Overwrites R15, but not RFLAGS.
    pub fn exchange(&mut self) {
        for (wanted, other) in self.places.0.into_iter().filter(|pair| pair.0 != pair.1) {
            let (place, Some(register)) = (frame::spilled_at(wanted), frame::host_of(other)) else {
                continue;
            };
            self.asm.mov(host::R15, register);
            self.asm.load(register, place);
            self.asm.store(place, host::R15);
        }
    }
}
