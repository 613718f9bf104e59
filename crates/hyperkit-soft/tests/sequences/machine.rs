//! A processor with paging on that runs a generated program.

use std::sync::Arc;

use hyperkit_mem::{GuestAddr, GuestRam};
use hyperkit_soft::cpu::Cpu;
use hyperkit_soft::jit::Tiers;

use crate::generate::{Program, layout};

/// Physical addresses of the tables: the top one, then the others a page apart.
const TABLES: u64 = 0x8_0000;
const RAM_BYTES: u64 = 1 << 20;
/// More than any program retires.
const INSTRUCTIONS_MAX: u64 = 2_000_000;
/// AF, which programs leave undefined.
const AF: u64 = 1 << 4;
const PRESENT: u64 = 1;
const WRITABLE: u64 = 2;

/// What a program came to.
#[derive(Debug, PartialEq, Eq)]
pub struct End {
    /// RIP, vector, error code of the exception that ended it.
    pub fault: Option<(u64, u8, Option<u16>)>,
    /// The address of a page fault.
    pub cr2: u64,
    /// RAX … R15.
    pub registers: [u64; 16],
    /// RFLAGS without AF.
    pub rflags: u64,
    /// x87 and SSE.
    pub vectors: Vec<u8>,
    /// All of RAM.
    pub memory: Vec<u8>,
    /// Instructions.
    pub retired: u64,
}

/// Runs a program with these tiers.
pub fn run(program: &Program, tiers: Tiers) -> End {
    let mut cpu = ready(program);
    cpu.set_tiers(tiers);
    end(&mut cpu)
}

/// A processor with a program before it.
pub fn ready(program: &Program) -> Box<Cpu> {
    let ram = Arc::new(GuestRam::new(RAM_BYTES).expect("a megabyte is to be had"));
    let fill: Vec<u8> = (0..0x3_0000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 21) as u8).collect();
    ram.write(GuestAddr(layout::DATA), &fill).expect("data lie in RAM");
    ram.write(GuestAddr(layout::CODE), &program.code).expect("code lies in RAM");
    map(&ram);
    let mut cpu = Cpu::for_tests(Arc::clone(&ram));
    let mut state = cpu.give_state();
    state.gpr = program.registers;
    state.rip = layout::CODE;
    state.rflags = 2;
    state.cr3 = TABLES;
    state.cr0 |= 1 << 31 | 1 << 16; // PG, WP
    state.cr4 |= 1 << 5; // PAE
    cpu.take_state(&state);
    cpu
}

/// Runs the program to its end.
pub fn end(cpu: &mut Cpu) -> End {
    let fault = cpu.run_to_fault(INSTRUCTIONS_MAX).map(|(rip, fault)| (rip, fault.vector, fault.error));
    let mut memory = vec![0; RAM_BYTES as usize];
    cpu.ram.read(GuestAddr(0), &mut memory).expect("RAM can be read");
    let mut registers = [0; 16];
    registers.copy_from_slice(&cpu.regs[..16]);
    let rflags = cpu.flags.rflags() & !AF;
    // FOP, FIP and FDP are kept or not, as on processors.
    let mut vectors = cpu.fx.0[..416].to_vec();
    vectors[6..24].fill(0);
    End { fault, cr2: cpu.cr2, registers, rflags, vectors, memory, retired: cpu.retired }
}

/// Page tables for [`layout`], one for one but for the alias.
fn map(ram: &GuestRam) {
    use layout::{ALIAS, CODE, DATA, MORE, PAGE, READ_ONLY, STACK};
    let put =
        |at: u64, value: u64| ram.write(GuestAddr(at), &value.to_le_bytes()).expect("tables lie in RAM");
    for level in 0..3 {
        let table = TABLES + level * PAGE;
        put(table, (table + PAGE) | PRESENT | WRITABLE);
    }
    let page = |linear: u64, physical: u64, rights: u64| {
        put(TABLES + 3 * PAGE + linear / PAGE * 8, physical | PRESENT | rights);
    };
    for n in 0..3 {
        page(DATA + n * PAGE, DATA + n * PAGE, WRITABLE);
    }
    for n in 0..2 {
        page(MORE + n * PAGE, MORE + n * PAGE, WRITABLE);
        page(STACK + n * PAGE, STACK + n * PAGE, WRITABLE);
        page(CODE + n * PAGE, CODE + n * PAGE, WRITABLE);
    }
    page(READ_ONLY, READ_ONLY, 0);
    page(ALIAS, CODE, WRITABLE);
}
