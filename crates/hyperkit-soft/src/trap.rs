//! Exceptions on their way from an op to the guest's handler.

use crate::cpu::Cpu;

/// Proof that an exception was raised and waits in [`Cpu::fault`]. Zero-sized, so that results stay in registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct Trap(());

/// Exception vectors (SDM vol. 3A, table 6-1).
#[expect(missing_docs, reason = "the names are the SDM's mnemonics")]
pub mod vector {
    pub const DE: u8 = 0;
    pub const DB: u8 = 1;
    pub const NMI: u8 = 2;
    pub const BP: u8 = 3;
    pub const OF: u8 = 4;
    pub const BR: u8 = 5;
    pub const UD: u8 = 6;
    pub const NM: u8 = 7;
    pub const DF: u8 = 8;
    pub const TS: u8 = 10;
    pub const NP: u8 = 11;
    pub const SS: u8 = 12;
    pub const GP: u8 = 13;
    pub const PF: u8 = 14;
    pub const MF: u8 = 16;
    pub const AC: u8 = 17;
    pub const XM: u8 = 19;
}

/// An exception to deliver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// Vector, see [`vector`].
    pub vector: u8,
    /// Error code, for the vectors that push one.
    pub error: Option<u16>,
    /// A trap: the saved RIP is that of the next instruction (which the op has put into [`Cpu::rip`]), not of
    /// the one that raised it.
    pub after: bool,
}

impl Cpu {
    /// Raises a fault of the current instruction.
    #[cold]
    pub fn raise(&mut self, fault: Fault) -> Trap {
        self.fault = Some(fault);
        Trap(())
    }

    /// #UD.
    #[cold]
    pub fn undefined(&mut self) -> Trap {
        self.raise(Fault { vector: vector::UD, error: None, after: false })
    }

    /// #GP with an error code: 0 or a selector.
    #[cold]
    pub fn protection(&mut self, error: u16) -> Trap {
        self.raise(Fault { vector: vector::GP, error: Some(error), after: false })
    }

    /// #DE, #NM, #MF and the other faults without an error code.
    #[cold]
    pub fn plain_fault(&mut self, vector: u8) -> Trap {
        self.raise(Fault { vector, error: None, after: false })
    }
}
