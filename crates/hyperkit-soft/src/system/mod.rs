//! Everything privileged: modes, segments, exceptions, control and model-specific registers, CPUID.

pub mod breakpoints;
pub mod clock;
pub mod control;
pub mod cpuid;
pub mod delivery;
pub mod descriptor;
pub mod flags;
pub mod interrupts;
pub mod limits;
mod lower;
pub mod mode;
pub mod msr;
pub mod operand;
pub mod ports;
mod random;
mod rendezvous;
pub mod segments;
pub mod stack;
pub mod state;
mod syscall;
pub mod tables;
#[cfg(test)]
mod tests;
pub mod transfer;

pub use lower::lower;
pub use mode::{cr0, cr4, efer};

use crate::cpu::Cpu;
use crate::op::{Flow, Op};
use crate::trap::Trap;

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
