//! The portable state, in and out.

use hyperkit_hv::X86State;

use crate::cpu::{Cpu, seg};
use crate::interp::vex::component;
use crate::system::msr::{SAVED, index};

impl Cpu {
    /// The architectural state.
    pub fn give_state(&mut self) -> X86State {
        let local = self.interrupts.shared().apics.local(self.interrupts.id);
        let (cr8, apic_base) = (local.cr8(), local.base());
        drop(local);
        let msrs = SAVED.iter().filter_map(|number| Some((*number, self.read_msr(*number)?))).collect();
        let mut gpr = [0; 16];
        gpr.copy_from_slice(&self.regs[..16]);
        X86State {
            gpr,
            rip: self.rip,
            rflags: self.flags.rflags(),
            segments: self.segments,
            ldtr: self.ldtr,
            tr: self.tr,
            gdtr: self.gdtr,
            idtr: self.idtr,
            cr0: self.cr0,
            cr2: self.cr2,
            cr3: self.cr3,
            cr4: self.cr4,
            cr8,
            debug: self.debug,
            efer: self.efer,
            apic_base,
            msrs,
            fxsave: self.fx.0.to_vec(),
            upper: self.upper.0.to_vec(),
            xcr0: self.xcr0,
            halted: self.halted,
        }
    }

    /// Replaces the whole state: the architecture, the local APIC's base and priority, the MSRs. MSRs that do not
    /// exist here are passed over: another engine may have listed more than the guest was offered.
    pub fn replace_state(&mut self, state: &X86State) {
        self.take_state(state);
        let mut local = self.interrupts.shared().apics.local(self.interrupts.id);
        let _same_or_refused = local.set_base(state.apic_base);
        local.set_cr8(state.cr8 & 15);
        drop(local);
        for &(number, value) in &state.msrs {
            if number == index::TSC {
                self.take_tsc(value);
            } else {
                let _unknown = self.write_msr(number, value);
            }
        }
        self.apic_changed();
        self.look_for_interrupts();
    }

    /// Takes over the counter. It is one for all processors: the bootstrap processor's counts.
    fn take_tsc(&mut self, value: u64) {
        self.msr.tsc_adjust = 0;
        if self.interrupts.id == 0 {
            self.interrupts.shared().set_ticks(value);
        }
    }

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
        self.upper.0.fill(0);
        let bytes = state.upper.len().min(256);
        self.upper.0[..bytes].copy_from_slice(&state.upper[..bytes]);
        self.xcr0 = state.xcr0 & component::ALL | component::X87;
        self.halted = state.halted;
        self.cpl = (state.segments[seg::SS].rights >> 5 & 3) as u8;
        self.shadow = false;
        self.fault = None;
        self.refresh();
        self.flush_tlb();
        self.enter_pcid(self.pcid());
    }
}
