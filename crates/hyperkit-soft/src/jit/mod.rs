//! The second tier: translation of hot blocks to code of the host.
//!
//! This is the seam where translators for host architectures go. There is one, for x86-64 hosts; elsewhere, and where
//! the host lets nobody execute memory that was written, the interpreter does all the work.

pub mod buffer;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod x86_64;

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub use x86_64::{Exchange, Jit};

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
mod none;

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
pub use none::{Exchange, Jit};

/// Executions after which a block is translated.
const THRESHOLD: u32 = 32;

/// Which tiers run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tiers {
    /// How often a block is interpreted before it is translated; `None`: always.
    pub translate_after: Option<u32>,
}

impl Tiers {
    /// The interpreter alone.
    pub const INTERPRETER: Tiers = Tiers { translate_after: None };
    /// Both, as fast as can be.
    pub const BOTH: Tiers = Tiers { translate_after: Some(THRESHOLD) };
    /// Everything is translated before its first execution.
    pub const FORCED: Tiers = Tiers { translate_after: Some(0) };
}

/// How translated code was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// Something may want attention; [`crate::cpu::Cpu::rip`] is that of the next instruction.
    Look,
    /// The instruction at this RIP raised the exception in [`crate::cpu::Cpu::fault`].
    Fault(u64),
    /// There is no translation at [`crate::cpu::Cpu::rip`], or the way to it is not known.
    Miss,
    /// The same, through a link that can be made to lead to it.
    Link(Loose),
}

/// A link that leads nowhere yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loose {
    /// Its number.
    pub link: u32,
    /// The generation of translations that it is of.
    pub generation: u32,
}
