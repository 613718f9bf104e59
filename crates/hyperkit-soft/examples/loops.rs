//! How many million instructions a second each tier executes in three loops: arithmetic with memory and
//! branches, recursive calls, and dependent loads.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement, not a library")]

use std::sync::Arc;

use hyperkit_mem::{GuestAddr, GuestRam};
use hyperkit_soft::cpu::Cpu;
use hyperkit_soft::jit::Tiers;
use iced_x86::IcedError;
use iced_x86::code_asm::*;

const CODE: u64 = 0x1_0000;
const DATA: u64 = 0x10_0000;
const STACK: u64 = 0x8_0000;
const NODES: u64 = 4096;

type Program = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// 21 instructions an iteration, 28 % of them on memory.
fn arithmetic(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut top, mut skip) = (a.create_label(), a.create_label());
    a.mov(rdi, DATA)?;
    a.mov(ecx, 2_000_000)?;
    a.mov(rax, 0x9e37_79b9_7f4a_7c15u64)?;
    a.set_label(&mut top)?;
    a.mov(rdx, rax)?;
    a.shr(rdx, 33)?;
    a.xor(rax, rdx)?;
    a.imul_3(rax, rax, 0x2545_f491)?;
    a.mov(ebx, eax)?;
    a.and(ebx, 0xff8)?;
    a.mov(r8, qword_ptr(rdi + rbx))?;
    a.add(r8, rax)?;
    a.mov(qword_ptr(rdi + rbx), r8)?;
    a.push(r8)?;
    a.lea(r9, qword_ptr(r8 + rcx * 4 + 17))?;
    a.cmp(r9, rax)?;
    a.cmovb(r9, rdx)?;
    a.pop(r10)?;
    a.add(qword_ptr(rdi + 64), r10)?;
    a.test(r9, 1)?;
    a.je(skip)?;
    a.sub(rax, r9)?;
    a.add(rax, 3)?;
    a.set_label(&mut skip)?;
    a.movzx(r11d, byte_ptr(rdi + 65))?;
    a.sub(ecx, 1)?;
    a.jne(top)?;
    a.ud2()
}

/// fib(32).
fn recursion(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut fib, mut leaf, mut end) = (a.create_label(), a.create_label(), a.create_label());
    a.mov(edi, 32)?;
    a.call(fib)?;
    a.jmp(end)?;
    a.set_label(&mut fib)?;
    a.cmp(edi, 2)?;
    a.jb(leaf)?;
    a.push(rbx)?;
    a.push(rdi)?;
    a.sub(edi, 1)?;
    a.call(fib)?;
    a.pop(rdi)?;
    a.mov(rbx, rax)?;
    a.sub(edi, 2)?;
    a.call(fib)?;
    a.add(rax, rbx)?;
    a.pop(rbx)?;
    a.ret()?;
    a.set_label(&mut leaf)?;
    a.mov(eax, edi)?;
    a.ret()?;
    a.set_label(&mut end)?;
    a.ud2()
}

/// A walk through a list whose nodes lie all over 256 KiB.
fn chase(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut top, mut next) = (a.create_label(), a.create_label());
    a.mov(rsi, DATA)?;
    a.mov(ecx, 10_000_000)?;
    a.set_label(&mut top)?;
    a.mov(rsi, qword_ptr(rsi))?;
    a.test(rsi, rsi)?;
    a.jne(next)?;
    a.mov(rsi, DATA)?;
    a.set_label(&mut next)?;
    a.dec(ecx)?;
    a.jne(top)?;
    a.ud2()
}

/// Processor time of this thread, which other load on the host does not count in.
fn seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e9
}

fn measure(name: &str, tiers: Tiers, program: Program) {
    let mut code = CodeAssembler::new(64).unwrap();
    program(&mut code).unwrap();
    let ram = Arc::new(GuestRam::new(16 << 20).unwrap());
    ram.write(GuestAddr(CODE), &code.assemble(CODE).unwrap()).unwrap();
    for node in 0..NODES {
        let at = |n: u64| DATA + (n.wrapping_mul(1597) % NODES) * 64;
        ram.write(GuestAddr(at(node)), &at((node + 1) % NODES).to_le_bytes()).unwrap();
    }
    let mut cpu = Cpu::for_tests(ram);
    cpu.set_tiers(tiers);
    let mut best = f64::MAX;
    let mut executed = 0;
    for _ in 0..8 {
        (cpu.rip, cpu.regs[4], cpu.retired) = (CODE, STACK, 0);
        let began = seconds();
        cpu.run_to_fault(u64::MAX).expect("the program ends with UD2");
        best = best.min(seconds() - began);
        executed = cpu.retired;
    }
    let mips = executed as f64 / best / 1e6;
    println!("{name:12} {executed:11} instructions {best:8.3} s {mips:7.0} MIPS");
}

fn main() {
    for (name, tiers) in [("interpreted", Tiers::INTERPRETER), ("translated", Tiers::BOTH)] {
        println!("{name}:");
        measure("arithmetic", tiers, arithmetic);
        measure("recursion", tiers, recursion);
        measure("chase", tiers, chase);
    }
}
