//! Arbitrary code in long mode with memory taken as it is, interpreted and translated: it may fault, never panic.
#![no_main]

use std::sync::Arc;

use hyperkit_mem::{GuestAddr, GuestRam};
use hyperkit_soft::cpu::Cpu;
use hyperkit_soft::jit::Tiers;
use libfuzzer_sys::fuzz_target;

/// Where the code begins, with RAM on both sides.
const CODE: u64 = 0x8000;
const RAM_BYTES: usize = 1 << 20;
const INSTRUCTIONS_MAX: u64 = 500;
/// Faults are stepped over by a byte, so that what follows is reached.
const FAULTS_MAX: u32 = 16;

fuzz_target!(|code: &[u8]| {
    let code = &code[..code.len().min(0x200)];
    run(code, Tiers::INTERPRETER);
    run(code, Tiers::FORCED);
});

fn run(code: &[u8], tiers: Tiers) {
    let ram = Arc::new(GuestRam::new(RAM_BYTES as u64).expect("a megabyte is to be had"));
    // INT3 all around: zeros are instructions, and their translation would be all that is fuzzed.
    ram.write(GuestAddr(0), &[0xcc; RAM_BYTES]).expect("all of it is RAM");
    ram.write(GuestAddr(CODE), code).expect("the code lies in RAM");
    let mut cpu = Cpu::for_tests(ram);
    cpu.set_tiers(tiers);
    for (n, register) in cpu.regs[..16].iter_mut().enumerate() {
        *register = 0x1000 * (n as u64 + 1);
    }
    cpu.rip = CODE;
    for _ in 0..FAULTS_MAX {
        let Some((rip, _)) = cpu.run_to_fault(INSTRUCTIONS_MAX) else { return };
        if !(CODE..CODE + code.len() as u64).contains(&rip) {
            return;
        }
        cpu.rip = rip + 1;
    }
}
