//! Breakpoints of the debug registers: DR0 to DR3 with DR7, and what they report in DR6. Spec: SDM vol. 3B §17.2.
//!
//! While any is enabled the interpreter executes one instruction at a time. Pages with data breakpoints are in no TLB, so
//! that every access to them takes the slow path and is looked at.

use crate::cpu::Cpu;
use crate::flags::bit;
use crate::system::cr4;

/// Index of DR7 in [`Cpu::debug`].
const DR7: usize = 5;

/// DR7: L0 to G3.
const ENABLES: u64 = 0xff;

/// What a breakpoint waits for, as DR7 encodes it (SDM vol. 3B §17.2.4).
mod condition {
    pub const EXECUTION: u64 = 0;
    pub const WRITE: u64 = 1;
    pub const PORT: u64 = 2;
    pub const READ_WRITE: u64 = 3;
}

/// An enabled breakpoint.
#[derive(Debug, Clone, Copy)]
struct Breakpoint {
    /// Its bit in DR6.
    bit: u8,
    condition: u64,
    first: u64,
    bytes: u64,
}

impl Cpu {
    /// Whether any breakpoint is enabled.
    #[inline]
    pub fn is_armed(&self) -> bool {
        self.debug[DR7] & ENABLES != 0
    }

    fn breakpoints(&self) -> impl Iterator<Item = Breakpoint> + use<> {
        let (dr7, addresses) = (self.debug[DR7], self.debug);
        (0..4).filter(move |n| dr7 >> (n * 2) & 3 != 0).map(move |n| {
            let kind = dr7 >> (16 + n * 4);
            let bytes = [1, 2, 8, 4][(kind >> 2 & 3) as usize];
            let first = addresses[n] & !(bytes - 1);
            Breakpoint { bit: 1 << n, condition: kind & 3, first, bytes }
        })
    }

    /// The breakpoints, as DR6 has them, on the instruction at RIP. None if RFLAGS.RF is set.
    pub fn execution_hits(&self) -> u8 {
        if self.flags.rest & bit::RF != 0 {
            return 0;
        }
        let linear = self.rip_linear();
        let here = |breakpoint: &Breakpoint| {
            breakpoint.condition == condition::EXECUTION && breakpoint.first == linear
        };
        self.breakpoints().filter(here).fold(0, |hits, breakpoint| hits | breakpoint.bit)
    }

    /// Notes an access to memory: the instruction is followed by #DB if there is a breakpoint on any of its bytes.
    #[cold]
    pub fn note_access(&mut self, linear: u64, bytes: u64, writes: bool) {
        for breakpoint in self.breakpoints() {
            let waits = match breakpoint.condition {
                condition::WRITE => writes,
                condition::READ_WRITE => true,
                _ => false,
            };
            let touches = linear.wrapping_sub(breakpoint.first) < breakpoint.bytes
                || breakpoint.first.wrapping_sub(linear) < bytes;
            if waits && touches {
                self.debug_hits |= breakpoint.bit;
            }
        }
    }

    /// Notes an access to an I/O port.
    #[cold]
    pub fn note_port(&mut self, port: u16, bytes: u64) {
        if self.cr4 & cr4::DE == 0 {
            return;
        }
        for breakpoint in self.breakpoints().filter(|breakpoint| breakpoint.condition == condition::PORT) {
            let touches = u64::from(port).wrapping_sub(breakpoint.first) < breakpoint.bytes
                || breakpoint.first.wrapping_sub(u64::from(port)) < bytes;
            if touches {
                self.debug_hits |= breakpoint.bit;
            }
        }
    }

    /// Whether there is a data breakpoint in a page.
    pub fn has_breakpoint(&self, linear: u64) -> bool {
        self.is_armed()
            && self.breakpoints().any(|breakpoint| {
                breakpoint.condition != condition::EXECUTION && (breakpoint.first ^ linear) >> 12 == 0
            })
    }

    /// A debug register was written.
    pub fn debug_changed(&mut self) {
        // What was set when an exception returned long ago is not for the next instruction.
        self.flags.rest &= !bit::RF;
        self.debug_hits = 0;
        self.flush_tlb();
    }
}
