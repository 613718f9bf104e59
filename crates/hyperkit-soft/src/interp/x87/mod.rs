//! The x87 unit: arithmetic runs on the host's own, on the guest's whole state; control is done here.
//!
//! The pointers to the last instruction (FIP, FDP) hold the offsets of the last one that was not a control
//! instruction; FOP, the selectors FCS and FDS read as 0, as on processors that deprecate them.
//!
//! An exception that the guest has unmasked is left pending (ES) and raised as #MF by the next waiting
//! instruction, whatever CR0.NE says: there is no FERR# pin to raise an external interrupt with.
//!
//! On hosts that are not x86-64 nothing is offered.

#[cfg(target_arch = "x86_64")]
mod control;
#[cfg(target_arch = "x86_64")]
mod host;
#[cfg(target_arch = "x86_64")]
mod lower;
#[cfg(target_arch = "x86_64")]
mod quick;

use iced_x86::Instruction;

use crate::decode::Context;
use crate::op::Op;

/// The op of an instruction of this family; `None` for any other.
#[cfg(target_arch = "x86_64")]
pub fn lower(instruction: &Instruction, context: &Context) -> Option<Op> {
    lower::lower(instruction, context)
}

/// No instruction of this family is offered on this host.
#[cfg(not(target_arch = "x86_64"))]
pub fn lower(_instruction: &Instruction, _context: &Context) -> Option<Op> {
    None
}
