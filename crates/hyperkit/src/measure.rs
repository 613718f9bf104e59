//! How fast an engine is here: a short loop in a machine of its own.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use hyperkit_bus::Bus;
use hyperkit_hv::{CpuModel, EngineKind, Tsc, X86State};
use hyperkit_mem::{GuestAddr, GuestRam};

use crate::machine::BuildError;
use crate::{EngineChoice, engine};

/// Adds, compares, loads and stores in a ring: about what compiled code does. 32-bit code.
const CODE: &[u8] = &[
    0x8b, 0x04, 0x8d, 0x00, 0x20, 0x00, 0x00, // mov eax, [0x2000 + ecx*4]
    0x01, 0xd8, // add eax, ebx
    0x89, 0x04, 0x8d, 0x00, 0x20, 0x00, 0x00, // mov [0x2000 + ecx*4], eax
    0x83, 0xc3, 0x07, // add ebx, 7
    0x41, // inc ecx
    0x83, 0xe1, 0x3f, // and ecx, 63
    0x39, 0xd8, // cmp eax, ebx
    0x75, 0xe5, // jne to the start
    0xeb, 0xe3, // jmp to the start
];

/// Million instructions a second that `kind` retires on a loop, measured for about `time`.
///
/// # Errors
/// [`BuildError`] when the engine is not to be had. An engine that does not count gives 0.
pub fn measure(kind: EngineKind, time: Duration) -> Result<f64, BuildError> {
    let ram = Arc::new(GuestRam::new(1 << 20)?);
    ram.write(GuestAddr(0x1000), CODE).expect("the code fits a mebibyte");
    let vm =
        engine::make(EngineChoice::Exactly(kind), ram, CpuModel { vcpus: 1, tsc: Tsc { khz: 1_000_000 } })?;
    let mut vcpu = vm.take_vcpu(0)?;
    vcpu.set_state(&X86State::pvh(0x1000, 0))?;
    let kick = vm.kick(0);
    let timer = thread::spawn(move || {
        thread::sleep(time);
        kick.kick();
    });
    let began = Instant::now();
    let ran = vcpu.run(&Bus::default());
    let seconds = began.elapsed().as_secs_f64();
    // A panic of the timer would only mean that the run ended otherwise.
    let _ = timer.join();
    ran?;
    Ok(vcpu.retired().unwrap_or(0) as f64 / seconds / 1e6)
}
