//! Tests of everything privileged.

mod delivery;
mod offered;
mod registers;
mod switch;

use std::sync::Arc;

use hyperkit_mem::{GuestAddr, GuestRam};

use crate::cpu::Cpu;

fn cpu() -> Box<Cpu> {
    Cpu::for_tests(Arc::new(GuestRam::new(4 << 20).unwrap()))
}

fn write_u64(cpu: &Cpu, at: u64, value: u64) {
    cpu.ram.write(GuestAddr(at), &value.to_le_bytes()).unwrap();
}

fn read_u64(cpu: &Cpu, at: u64) -> u64 {
    cpu.ram.read_u64(GuestAddr(at)).unwrap()
}
