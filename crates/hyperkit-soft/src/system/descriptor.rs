//! Descriptors and how they are found. Spec: SDM vol. 3A §3.4.5 and §3.5.

use hyperkit_hv::state::x86_64::Segment;

use crate::cpu::Cpu;
use crate::trap::{Fault, Trap};

/// Bits of [`Segment::rights`].
#[expect(missing_docs, reason = "the names are the SDM's")]
pub mod rights {
    pub const ACCESSED: u16 = 1 << 0;
    /// Data: writable. Code: readable.
    pub const WRITABLE: u16 = 1 << 1;
    /// Data: expands down. Code: conforming.
    pub const CONFORMING: u16 = 1 << 2;
    pub const CODE: u16 = 1 << 3;
    /// Code or data, not a system segment.
    pub const SEGMENT: u16 = 1 << 4;
    pub const PRESENT: u16 = 1 << 7;
    pub const LONG: u16 = 1 << 13;
    pub const BIG: u16 = 1 << 14;
    pub const GRANULAR: u16 = 1 << 15;
}

/// Types of system descriptors.
#[expect(missing_docs, reason = "the names are the SDM's")]
pub mod kind {
    pub const TSS_16: u16 = 1;
    pub const LDT: u16 = 2;
    pub const TSS_16_BUSY: u16 = 3;
    pub const CALL_GATE_16: u16 = 4;
    pub const TASK_GATE: u16 = 5;
    pub const TSS: u16 = 9;
    pub const TSS_BUSY: u16 = 11;
    pub const CALL_GATE: u16 = 12;
}

/// The eight bytes of a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor(pub u64);

impl Descriptor {
    /// Base address; of a system descriptor in IA-32e mode its low half.
    pub fn base(self) -> u64 {
        self.0 >> 16 & 0xff_ffff | self.0 >> 32 & 0xff00_0000
    }

    /// Limit in bytes.
    pub fn limit(self) -> u32 {
        let raw = (self.0 & 0xffff | self.0 >> 32 & 0xf_0000) as u32;
        if self.rights() & rights::GRANULAR != 0 { raw << 12 | 0xfff } else { raw }
    }

    /// Rights as in [`Segment::rights`].
    pub fn rights(self) -> u16 {
        (self.0 >> 40) as u16 & 0xf0ff
    }

    /// Descriptor privilege level.
    pub fn dpl(self) -> u8 {
        (self.0 >> 45 & 3) as u8
    }

    /// Type of a system descriptor.
    pub fn kind(self) -> u16 {
        self.rights() & 0xf
    }

    /// Whether all the rights in `mask` are there.
    pub fn has(self, mask: u16) -> bool {
        self.rights() & mask == mask
    }

    /// Whether it is a code segment.
    pub fn is_code(self) -> bool {
        self.has(rights::SEGMENT | rights::CODE)
    }

    /// Whether it is a data segment that may be written.
    pub fn is_writable_data(self) -> bool {
        self.rights() & (rights::SEGMENT | rights::CODE | rights::WRITABLE)
            == rights::SEGMENT | rights::WRITABLE
    }

    /// Whether it is a code segment that runs at its caller's privilege.
    pub fn is_conforming(self) -> bool {
        self.is_code() && self.has(rights::CONFORMING)
    }

    /// The segment register that it makes.
    pub fn segment(self, selector: u16) -> Segment {
        Segment { selector, base: self.base(), limit: self.limit(), rights: self.rights() }
    }
}

/// A descriptor in its table.
#[derive(Debug, Clone, Copy)]
pub struct Found {
    /// Linear address.
    pub at: u64,
    /// Its bytes.
    pub descriptor: Descriptor,
}

impl Cpu {
    /// A fault whose error code names a selector.
    #[cold]
    pub fn selector_fault(&mut self, vector: u8, selector: u16) -> Trap {
        self.raise(Fault { vector, error: Some(selector & !3), after: false })
    }

    /// Reads the descriptor of a selector that is not null; `fault` is the vector if it is outside its table.
    pub fn find_descriptor(&mut self, selector: u16, fault: u8) -> Result<Found, Trap> {
        let (base, limit) = if selector & 4 == 0 {
            (self.gdtr.base, u32::from(self.gdtr.limit))
        } else if self.ldtr.rights & rights::PRESENT != 0 && self.ldtr.selector & !3 != 0 {
            (self.ldtr.base, self.ldtr.limit)
        } else {
            return Err(self.selector_fault(fault, selector));
        };
        if u32::from(selector | 7) > limit {
            return Err(self.selector_fault(fault, selector));
        }
        let at = base.wrapping_add(u64::from(selector & !7));
        let descriptor = Descriptor(self.load_system(at)?);
        Ok(Found { at, descriptor })
    }

    /// The upper half of the base of a 16-byte system descriptor; only in IA-32e mode.
    pub fn upper_base(&mut self, found: &Found) -> Result<u64, Trap> {
        if !self.long_mode() {
            return Ok(0);
        }
        let high: u32 = self.load_system(found.at + 8)?;
        Ok(u64::from(high) << 32)
    }

    /// Sets the accessed bit of a descriptor.
    pub fn mark_accessed(&mut self, found: &mut Found) -> Result<(), Trap> {
        if !found.descriptor.has(rights::ACCESSED) {
            found.descriptor.0 |= 1 << 40;
            let byte = (found.descriptor.0 >> 40) as u8;
            self.as_supervisor(|cpu| cpu.store::<u8>(found.at + 5, byte))?;
        }
        Ok(())
    }

    /// Loads with the rights of an implicit supervisor access.
    pub fn load_system<T: crate::mem::Width>(&mut self, linear: u64) -> Result<T, Trap> {
        self.as_supervisor(|cpu| cpu.load::<T>(linear))
    }

    /// #NP or #SS for a descriptor that is not present.
    pub fn check_present(&mut self, descriptor: Descriptor, selector: u16, fault: u8) -> Result<(), Trap> {
        if descriptor.has(rights::PRESENT) { Ok(()) } else { Err(self.selector_fault(fault, selector)) }
    }

    /// Checks an instruction pointer against the code segment it is for: #GP(0).
    pub fn check_target(&mut self, code: Descriptor, rip: u64) -> Result<(), Trap> {
        let fine = if self.long_mode() && code.has(rights::LONG) {
            canonical(rip)
        } else {
            rip <= u64::from(code.limit())
        };
        if fine { Ok(()) } else { Err(self.protection(0)) }
    }
}

/// Whether bits 63 to 47 of an address are equal.
pub fn canonical(linear: u64) -> bool {
    ((linear as i64) << 16 >> 16) as u64 == linear
}

/// Whether a selector names no descriptor.
pub fn is_null(selector: u16) -> bool {
    selector & !3 == 0
}

/// Privilege level that a selector asks for.
pub fn rpl(selector: u16) -> u8 {
    (selector & 3) as u8
}
