//! Tests of everything privileged.

mod breakpoints;
mod delivery;
mod evicted;
mod interrupted;
mod legacy;
mod offered;
mod registers;
mod shootdown;
mod smp;
mod stack;
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

/// Assembles code for an address, and puts it there.
fn assembled(cpu: &Cpu, bits: u32, at: u64, write: impl FnOnce(&mut iced_x86::code_asm::CodeAssembler)) {
    let mut assembler = iced_x86::code_asm::CodeAssembler::new(bits).unwrap();
    write(&mut assembler);
    cpu.ram.write(GuestAddr(at), &assembler.assemble(at).unwrap()).unwrap();
}
