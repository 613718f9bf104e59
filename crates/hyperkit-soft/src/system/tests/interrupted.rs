//! Interrupts at whatever instruction their time comes: the program they interrupt does not notice them, in any tier.

use std::sync::Arc;

use hyperkit_hv::{CpuModel, Tsc};
use hyperkit_mem::GuestAddr;
use iced_x86::code_asm::*;

use super::switch::{RESULT, assemble, gate, long_mode, ram, run_on};
use crate::SoftVm;
use crate::jit::Tiers;

/// Where the handler counts.
const COUNT: i32 = 0x4000;
const DATA: u64 = 0x4_0000;

/// Arms the timer for a time that differs from one call to the next. Changes RAX, RCX, RDX.
fn arm(a: &mut CodeAssembler) {
    a.rdtsc().unwrap();
    a.mov(ecx, eax).unwrap();
    a.and(ecx, 0x3fff).unwrap();
    a.shl(rdx, 32).unwrap();
    a.or(rax, rdx).unwrap();
    a.lea(rax, ptr(rax + rcx + 2000)).unwrap();
    a.mov(rdx, rax).unwrap();
    a.shr(rdx, 32).unwrap();
    a.mov(ecx, 0x6e0).unwrap();
    a.wrmsr().unwrap();
}

/// Turns the local APIC on, its timer by TSC deadlines with vector 40.
fn prepare(a: &mut CodeAssembler) {
    for (register, value) in [(0x1b, 0xfee0_0d00u32), (0x80f, 0x1ff), (0x832, 0x4_0040)] {
        a.mov(ecx, register).unwrap();
        a.mov(eax, value as i32).unwrap();
        a.xor(edx, edx).unwrap();
        a.wrmsr().unwrap();
    }
    arm(a);
}

/// Everything whose state an interrupt could lose: flags across instructions, partial registers, the stack, memory that
/// is read and written by one instruction, repeated moves, vectors, calls.
fn work(a: &mut CodeAssembler) {
    let (mut top, mut f, mut over) = (a.create_label(), a.create_label(), a.create_label());
    a.xor(eax, eax).unwrap();
    a.mov(ebx, 1).unwrap();
    a.mov(r8d, 20_000).unwrap();
    a.set_label(&mut top).unwrap();
    a.add(rax, rbx).unwrap();
    a.adc(rbx, rax).unwrap();
    a.rcl(rax, 3).unwrap();
    a.sbb(bl, ah).unwrap();
    a.push(rax).unwrap();
    a.call(f).unwrap();
    a.pop(rdx).unwrap();
    a.setc(dl).unwrap();
    a.xor(rbx, rdx).unwrap();
    a.mov(edi, DATA as i32 + 0x800).unwrap();
    a.mov(esi, DATA as i32).unwrap();
    a.mov(ecx, 9).unwrap();
    a.rep().movsq().unwrap();
    a.movq(xmm0, rbx).unwrap();
    a.paddd(xmm1, xmm0).unwrap();
    a.dec(r8d).unwrap();
    a.jne(top).unwrap();
    a.jmp(over).unwrap();
    a.set_label(&mut f).unwrap();
    a.xadd(qword_ptr(DATA as i32 + 0x10), rax).unwrap();
    a.add(qword_ptr(DATA as i32 + 0x18), rbx).unwrap();
    a.adc(rax, qword_ptr(DATA as i32 + 0x18)).unwrap();
    a.ret().unwrap();
    a.set_label(&mut over).unwrap();
    a.movq(rdx, xmm1).unwrap();
    a.add(rax, rdx).unwrap();
    a.add(rax, qword_ptr(DATA as i32 + 0x810)).unwrap();
    a.mov(rdx, rax).unwrap();
    a.shr(rdx, 32).unwrap();
    a.xor(eax, edx).unwrap();
}

/// What the program computes in some tiers, or in lockstep, and how often it was interrupted.
fn outcome(interrupted: bool, tiers: Option<Tiers>) -> (u64, u32) {
    let ram = ram();
    let model = CpuModel { vcpus: 1, tsc: Tsc { khz: 2_500_000 } };
    let vm = match tiers {
        Some(tiers) => SoftVm::with_tiers(Arc::clone(&ram), model, tiers),
        None => SoftVm::in_lockstep(Arc::clone(&ram), model),
    };
    let code = assemble(64, 0x9000, |a| {
        if interrupted {
            prepare(a);
            a.sti().unwrap();
        }
        work(a);
        a.out(RESULT as i32, eax).unwrap();
        a.hlt().unwrap();
    });
    let mut state = long_mode(&ram, &code);
    state.cr4 |= 0x600;
    gate(&ram, 0x40, 0xa000);
    let handler = assemble(64, 0xa000, |a| {
        [rax, rcx, rdx].into_iter().for_each(|register| a.push(register).unwrap());
        a.inc(dword_ptr(COUNT)).unwrap();
        arm(a);
        a.mov(ecx, 0x80b).unwrap(); // end of interrupt
        a.xor(eax, eax).unwrap();
        a.xor(edx, edx).unwrap();
        a.wrmsr().unwrap();
        [rdx, rcx, rax].into_iter().for_each(|register| a.pop(register).unwrap());
        a.iretq().unwrap();
    });
    ram.write(GuestAddr(0xa000), &handler).unwrap();
    let result = run_on(&vm.unwrap(), &state);
    (result, ram.read_u32(GuestAddr(COUNT as u64)).unwrap())
}

#[test]
fn a_program_does_not_notice_interrupts_wherever_they_come() {
    let (expected, none) = outcome(false, Some(Tiers::INTERPRETER));
    assert_eq!(none, 0);
    for tiers in [Tiers::INTERPRETER, Tiers::BOTH, Tiers::FORCED] {
        for n in 0..5 {
            let (result, count) = outcome(true, Some(tiers));
            assert_eq!(result, expected, "{tiers:?}, run {n}, {count} interrupts");
            assert!(count > 20, "{tiers:?}: {count}");
        }
    }
}

#[test]
fn in_lockstep_interrupts_come_at_the_same_instructions_each_time() {
    let (expected, _) = outcome(false, Some(Tiers::INTERPRETER));
    let (result, count) = outcome(true, None);
    assert_eq!(result, expected, "{count} interrupts");
    assert!((20..20_000).contains(&count), "{count} interrupts in about 600,000 instructions");
    assert_eq!(outcome(true, None), (result, count), "its clock goes by what is executed");
}
