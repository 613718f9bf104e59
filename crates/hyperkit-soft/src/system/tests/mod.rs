//! Tests of everything privileged.

mod offered;

use std::sync::Arc;

use hyperkit_mem::GuestRam;

use crate::cpu::Cpu;

fn cpu() -> Box<Cpu> {
    Cpu::for_tests(Arc::new(GuestRam::new(4 << 20).unwrap()))
}
