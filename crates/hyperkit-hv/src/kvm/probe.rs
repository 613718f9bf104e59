//! How fast the KVM of this host is: hardware runs a loop at billions of instructions a second, a KVM that merely
//! emulates at a few million, and on the latter our own software CPU is the better choice.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use hyperkit_bus::Bus;
use hyperkit_mem::{GuestAddr, GuestRam};

use super::KvmVm;
use crate::state::x86_64::{Segment, gpr};
use crate::{CpuModel, Tsc, Vm, VmError, X86State};

/// How long the loop runs at most.
const PROBE_MAX: Duration = Duration::from_millis(20);
/// `dec ecx; jnz -3; hlt`-like loop in real mode: two instructions a turn.
const CODE: [u8; 5] = [0x66, 0x49, 0x75, 0xfc, 0xf4];
/// Turns: as many as the fastest hardware does in that time, so that it does not sit in HLT.
const TURNS: u64 = 60_000_000;

/// What [`speed`] found.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Speed {
    /// Guest instructions per microsecond on a tight loop.
    pub mips: f64,
}

impl Speed {
    /// Whether it is hardware that runs the guest. The slowest processors with VT-x do more than 1,000 MIPS, the
    /// emulators that we know less than 10.
    pub fn is_hardware(self) -> bool {
        self.mips >= 200.0
    }
}

/// Runs a loop on KVM for at most 20 ms.
///
/// # Errors
/// [`VmError`] when KVM is not available or does not run the loop.
pub fn speed() -> Result<Speed, VmError> {
    let failed = |error: &dyn std::fmt::Display| VmError::Unavailable {
        engine: crate::EngineKind::Kvm,
        why: format!("it does not run a simple loop: {error}"),
    };
    let ram = Arc::new(GuestRam::new(1 << 20).map_err(|error| failed(&error))?);
    ram.write(GuestAddr(0x1000), &CODE).map_err(|error| failed(&error))?;
    let vm = KvmVm::new(ram, &CpuModel { vcpus: 1, tsc: Tsc { khz: 1_000_000 } })?;
    let mut vcpu = vm.take_vcpu(0)?;
    let mut state = X86State::after_reset();
    state.segments[1] = Segment { selector: 0, base: 0, limit: 0xffff, rights: 0x9b };
    (state.rip, state.gpr[gpr::RCX]) = (0x1000, TURNS);
    vcpu.set_state(&state).map_err(|error| failed(&error))?;
    let kick = vm.kick(0);
    let began = Instant::now();
    // HLT sleeps in the kernel, so both the fast and the slow end come from the kick; poll for the former.
    let timer = thread::spawn(move || {
        thread::sleep(PROBE_MAX);
        kick.kick();
    });
    let ended = vcpu.run(&Bus::default());
    let elapsed = began.elapsed();
    let _ = timer.join();
    ended.map_err(|error| failed(&error))?;
    let left = vcpu.state().map_err(|error| failed(&error))?.gpr[gpr::RCX] & 0xffff_ffff;
    let turns = TURNS - left.min(TURNS);
    Ok(Speed { mips: turns as f64 * 2.0 / elapsed.as_micros().max(1) as f64 })
}
