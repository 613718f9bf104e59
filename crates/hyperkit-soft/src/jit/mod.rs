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

/// Bytes of code memory of a processor, by default.
const CODE_BYTES: usize = 192 << 20;

/// Which tiers run, and what translations may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tiers {
    /// How often a block is interpreted before it is translated; `None`: always.
    pub translate_after: Option<u32>,
    /// Most bytes of code that a processor keeps. When fewer than 64 KiB of them are left, all translations go.
    pub code_bytes: usize,
    /// Whether translations may use BMI2, where the host has it.
    pub bmi2: bool,
    /// Whether they may use WRGSBASE, where the host lets programs execute it.
    pub fsgsbase: bool,
}

impl Tiers {
    /// Both, as fast as can be.
    pub const BOTH: Tiers =
        Tiers { translate_after: Some(THRESHOLD), code_bytes: CODE_BYTES, bmi2: true, fsgsbase: true };
    /// The interpreter alone.
    pub const INTERPRETER: Tiers = Tiers { translate_after: None, ..Tiers::BOTH };
    /// Everything is translated before its first execution.
    pub const FORCED: Tiers = Tiers { translate_after: Some(0), ..Tiers::BOTH };
    /// The same with what every x86-64 host has.
    pub const PLAIN: Tiers = Tiers { bmi2: false, fsgsbase: false, ..Tiers::FORCED };
    /// The same with so little code memory that there is never more than one translation.
    pub const CRAMPED: Tiers = Tiers { code_bytes: 64 << 10, ..Tiers::FORCED };
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
