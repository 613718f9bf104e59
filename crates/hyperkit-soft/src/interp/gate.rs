//! Whether x87, MMX, SSE and AVX instructions may run: what CR0, CR4, XCR0 and the mode say about them, in one byte each.
//!
//! Spec: SDM vol. 3A §2.5 (EM, TS, MP, OSFXSR), tables 2-2 and 14-1; vol. 1 §14.3 (AVX).

use crate::cpu::Cpu;
use crate::interp::vex::component;
use crate::trap::{Trap, vector};

/// For each family the vector that its instructions raise, 0 if they run. (#DE has vector 0 and is never raised
/// here.)
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Gate {
    /// Instructions on XMM registers and MXCSR.
    pub sse: u8,
    /// Instructions on MMX registers.
    pub mmx: u8,
    /// x87 instructions.
    pub x87: u8,
    /// WAIT.
    pub wait: u8,
    /// FXSAVE and FXRSTOR.
    pub fxsave: u8,
    /// VEX-encoded instructions on vector registers.
    pub avx: u8,
}

const CR0_MP: u64 = 1 << 1;
const CR0_EM: u64 = 1 << 2;
const CR0_TS: u64 = 1 << 3;
const CR4_OSFXSR: u64 = 1 << 9;
const CR4_OSXSAVE: u64 = 1 << 18;

impl Gate {
    /// What CR0 and CR4 say.
    pub fn of(cr0: u64, cr4: u64) -> Gate {
        let emulated = cr0 & CR0_EM != 0;
        let switched = cr0 & CR0_TS != 0;
        let first = |undefined: bool, unavailable: bool| match (undefined, unavailable) {
            (true, _) => vector::UD,
            (false, true) => vector::NM,
            (false, false) => 0,
        };
        Gate {
            sse: first(emulated || cr4 & CR4_OSFXSR == 0, switched),
            mmx: first(emulated, switched),
            x87: first(false, emulated || switched),
            wait: first(false, switched && cr0 & CR0_MP != 0),
            fxsave: first(false, emulated || switched),
            avx: vector::UD,
        }
    }

    /// The same with AVX, where XCR0 and the mode let it run.
    fn with_avx(self, cr0: u64, enabled: bool) -> Gate {
        let avx = match (enabled, cr0 & CR0_TS != 0) {
            (false, _) => vector::UD,
            (true, true) => vector::NM,
            (true, false) => 0,
        };
        Gate { avx, ..self }
    }
}

impl Cpu {
    /// Recomputes [`Cpu::gate`]; to be called whenever CR0, CR4, XCR0 or the mode changed.
    pub fn refresh_gate(&mut self) {
        let enabled = self.cr4 & CR4_OSXSAVE != 0
            && self.xcr0 & (component::SSE | component::AVX) == component::SSE | component::AVX
            && self.protected();
        self.gate = Gate::of(self.cr0, self.cr4).with_avx(self.cr0, enabled);
    }

    /// Raises #UD or #NM if `vector`, a field of [`Gate`], says so.
    #[inline(always)]
    pub fn pass(&mut self, vector: u8) -> Result<(), Trap> {
        if vector == 0 { Ok(()) } else { Err(self.plain_fault(vector)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(cr0: u64, cr4: u64, expected: [u8; 5]) {
        let gate = Gate::of(cr0, cr4);
        assert_eq!(
            [gate.sse, gate.mmx, gate.x87, gate.wait, gate.fxsave],
            expected,
            "cr0 {cr0:#x} cr4 {cr4:#x}"
        );
    }

    #[test]
    fn control_registers_gate_each_family_as_the_sdm_says() {
        let (ud, nm) = (vector::UD, vector::NM);
        check(0, CR4_OSFXSR, [0, 0, 0, 0, 0]);
        check(0, 0, [ud, 0, 0, 0, 0]);
        check(CR0_EM, CR4_OSFXSR, [ud, ud, nm, 0, nm]);
        check(CR0_TS, CR4_OSFXSR, [nm, nm, nm, 0, nm]);
        check(CR0_TS | CR0_MP, CR4_OSFXSR, [nm, nm, nm, nm, nm]);
        check(CR0_EM | CR0_TS, CR4_OSFXSR, [ud, ud, nm, 0, nm]);
    }
}
