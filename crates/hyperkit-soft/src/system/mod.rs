//! Everything privileged: modes, segments, exceptions, control and model-specific registers, CPUID.

pub mod interrupts;
pub mod mode;
pub mod msr;
pub mod state;

pub use mode::{cr0, cr4, efer};

use iced_x86::Instruction;

use crate::cpu::Cpu;
use crate::decode::Context;
use crate::op::{Flow, Op};
use crate::trap::Trap;

/// The op of a system instruction; `None` for any other.
pub fn lower(_instruction: &Instruction, _context: &Context) -> Option<Op> {
    None
}

/// An instruction that this processor does not have.
pub fn undefined(cpu: &mut Cpu, _op: &Op) -> Result<Flow, Trap> {
    Err(cpu.undefined())
}

/// What the run loop does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Go on at [`Cpu::rip`].
    Run,
    /// Leave `run`.
    Exit(hyperkit_hv::Exit),
}

impl Cpu {
    /// Delivers the exception in [`Cpu::fault`], raised by the instruction at `rip`: through the IDT, with double
    /// and triple faults.
    pub fn deliver_fault(&mut self, _rip: u64) -> Next {
        Next::Exit(hyperkit_hv::Exit::TripleFault)
    }

    /// Between blocks, when attention is wanted or time is up: timers, interrupts, kicks, written code pages.
    pub fn look_up(&mut self) -> Next {
        Next::Run
    }

    /// In HLT: sleeps until there is something to do.
    pub fn sleep(&mut self) -> Next {
        Next::Run
    }
}
