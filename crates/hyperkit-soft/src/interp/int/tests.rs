//! What instructions do, by running them.

use std::sync::Arc;

use hyperkit_mem::{GuestAddr, GuestRam};
use iced_x86::code_asm::*;

use crate::cpu::{CodeSize, Cpu};
use crate::trap::{Fault, vector};

const CODE: u64 = 0x1_0000;
const STACK: u64 = 0x8_0000;

/// A processor in 64-bit mode about to run what `assemble` writes; UD2 follows it.
fn machine(assemble: impl FnOnce(&mut CodeAssembler)) -> Box<Cpu> {
    let mut code = CodeAssembler::new(64).unwrap();
    assemble(&mut code);
    code.ud2().unwrap();
    with_code(&code.assemble(CODE).unwrap())
}

fn with_code(code: &[u8]) -> Box<Cpu> {
    let ram = Arc::new(GuestRam::new(2 << 20).unwrap());
    ram.write(GuestAddr(CODE), code).unwrap();
    let mut cpu = Cpu::for_tests(ram);
    cpu.rip = CODE;
    cpu.regs[4] = STACK;
    cpu
}

/// Runs to the UD2 at the end.
fn finish(cpu: &mut Cpu) {
    let (rip, fault) = cpu.run_to_fault(1_000_000).expect("the code ends");
    assert_eq!(fault.vector, vector::UD, "{fault:x?} at {rip:#x}");
}

fn run(assemble: impl FnOnce(&mut CodeAssembler)) -> Box<Cpu> {
    let mut cpu = machine(assemble);
    finish(&mut cpu);
    cpu
}

#[test]
fn narrow_writes_keep_the_rest_and_32_bit_writes_clear_it() {
    let cpu = run(|a| {
        a.mov(rax, -1i64).unwrap();
        a.mov(rbx, rax).unwrap();
        a.mov(rcx, rax).unwrap();
        a.mov(ax, 0x1234i32).unwrap();
        a.mov(bh, 0i32).unwrap();
        a.mov(ecx, ecx).unwrap();
    });
    assert_eq!(cpu.regs[0], 0xffff_ffff_ffff_1234);
    assert_eq!(cpu.regs[3], 0xffff_ffff_ffff_00ff);
    assert_eq!(cpu.regs[1], 0xffff_ffff);
}

#[test]
fn loop_over_memory_sums() {
    let cpu = run(|a| {
        let mut top = a.create_label();
        a.mov(rdi, 0x2_0000i64).unwrap();
        a.mov(ecx, 10).unwrap();
        a.xor(eax, eax).unwrap();
        a.set_label(&mut top).unwrap();
        a.mov(qword_ptr(rdi + rcx * 8), rcx).unwrap();
        a.add(rax, qword_ptr(rdi + rcx * 8)).unwrap();
        a.dec(ecx).unwrap();
        a.jne(top).unwrap();
    });
    assert_eq!(cpu.regs[0], 55);
}

#[test]
fn recursion_through_call_and_ret() {
    let cpu = run(|a| {
        let (mut fib, mut leaf, mut end) = (a.create_label(), a.create_label(), a.create_label());
        a.mov(edi, 15).unwrap();
        a.call(fib).unwrap();
        a.jmp(end).unwrap();
        a.set_label(&mut fib).unwrap();
        a.cmp(edi, 2).unwrap();
        a.jb(leaf).unwrap();
        a.push(rdi).unwrap();
        a.sub(edi, 1).unwrap();
        a.call(fib).unwrap();
        a.pop(rdi).unwrap();
        a.push(rax).unwrap();
        a.sub(edi, 2).unwrap();
        a.call(fib).unwrap();
        a.pop(rdx).unwrap();
        a.add(rax, rdx).unwrap();
        a.ret().unwrap();
        a.set_label(&mut leaf).unwrap();
        a.mov(eax, edi).unwrap();
        a.ret().unwrap();
        a.set_label(&mut end).unwrap();
        a.nop().unwrap();
    });
    assert_eq!(cpu.regs[0], 610);
    assert_eq!(cpu.regs[4], STACK);
}

#[test]
fn a_return_to_an_address_that_is_not_canonical_faults_at_the_ret() {
    let mut cpu = machine(|a| {
        a.mov(rax, 0x8000_0000_0000i64).unwrap();
        a.push(rax).unwrap();
        a.ret().unwrap();
    });
    let (rip, fault) = cpu.run_to_fault(100).unwrap();
    assert_eq!((rip, fault), (CODE + 11, Fault { vector: vector::GP, error: Some(0), after: false }));
    assert_eq!(cpu.regs[4], STACK - 8);
}

#[test]
fn near_branches_in_16_bit_code_wrap_at_64_kib() {
    let mut cpu = with_code(&[0xeb, 0xf0, 0x0f, 0x0b]); // jmp -16
    cpu.code_size = CodeSize::Bits16;
    cpu.seg_base[1] = CODE;
    cpu.rip = 0;
    cpu.ram.write(GuestAddr(CODE + 0xfff2), &[0xb0, 7, 0x0f, 0x0b]).unwrap(); // mov al,7; ud2
    let (rip, fault) = cpu.run_to_fault(100).unwrap();
    assert_eq!((rip, fault.vector, cpu.regs[0]), (0xfff4, vector::UD, 7));
}
