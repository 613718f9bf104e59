//! MMX, SSE to SSE4.2, AES-NI, PCLMULQDQ and SHA: each instruction is done by the host's own, reached through a
//! table of one-instruction functions. What the host lacks is not offered and stays #UD; on hosts that are not
//! x86-64 that is everything.

mod features;

#[cfg(target_arch = "x86_64")]
mod convert;
#[cfg(target_arch = "x86_64")]
mod float;
#[cfg(target_arch = "x86_64")]
mod immediate;
#[cfg(target_arch = "x86_64")]
mod integer;
#[cfg(target_arch = "x86_64")]
mod lower;
#[cfg(target_arch = "x86_64")]
mod mmx;
#[cfg(target_arch = "x86_64")]
mod moves;
#[cfg(target_arch = "x86_64")]
mod registers;
#[cfg(target_arch = "x86_64")]
mod scattered;
#[cfg(target_arch = "x86_64")]
mod state;
#[cfg(target_arch = "x86_64")]
pub(in crate::interp) mod strings;

use iced_x86::Instruction;

use crate::decode::Context;
use crate::op::Op;

#[cfg(target_arch = "x86_64")]
pub(super) use features::offered;
pub use features::{SimdFeatures, offers};

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
