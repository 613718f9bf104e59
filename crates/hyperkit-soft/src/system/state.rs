//! The portable state, in and out.

use hyperkit_hv::X86State;

use crate::cpu::{Cpu, seg};

impl Cpu {
    /// Replaces the architectural state, forgets every translation.
    pub fn take_state(&mut self, state: &X86State) {
        self.regs[..16].copy_from_slice(&state.gpr);
        self.rip = state.rip;
        self.flags.set_rflags(state.rflags);
        self.segments = state.segments;
        self.ldtr = state.ldtr;
        self.tr = state.tr;
        self.gdtr = state.gdtr;
        self.idtr = state.idtr;
        self.cr0 = state.cr0;
        self.cr2 = state.cr2;
        self.cr3 = state.cr3;
        self.cr4 = state.cr4;
        self.debug = state.debug;
        self.efer = state.efer;
        let bytes = state.fxsave.len().min(512);
        self.fx.0[..bytes].copy_from_slice(&state.fxsave[..bytes]);
        self.fx.0[26..28].fill(0); // reserved bits of MXCSR, with which the host's LDMXCSR would fault
        self.halted = state.halted;
        self.cpl = (state.segments[seg::SS].rights >> 5 & 3) as u8;
        self.shadow = false;
        self.fault = None;
        self.refresh();
        self.flush_tlb(false);
    }
}
