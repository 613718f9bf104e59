//! Interpreter and translator side by side: the same programs must leave the same registers, flags, memory and count of
//! instructions, also where code writes to code.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

mod eviction;

use std::sync::Arc;

use hyperkit_mem::{GuestAddr, GuestRam};
use hyperkit_soft::cpu::Cpu;
use hyperkit_soft::jit::Tiers;
use hyperkit_soft::trap::vector;
use iced_x86::IcedError;
use iced_x86::code_asm::*;

const CODE: u64 = 0x1_0000;
const DATA: u64 = 0x10_0000;
const STACK: u64 = 0x8_0000;
const RAM: u64 = 2 << 20;

type Program = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// What a program leaves.
#[derive(Debug, PartialEq)]
struct Left {
    regs: Vec<u64>,
    rflags: u64,
    xmm: Vec<u8>,
    fault: (u64, u8),
    retired: u64,
    memory: Vec<u8>,
}

fn run(program: Program, tiers: Tiers) -> Left {
    finish(&mut ready(program, tiers))
}

/// A processor with a program before it.
fn ready(program: Program, tiers: Tiers) -> Box<Cpu> {
    let mut code = CodeAssembler::new(64).expect("64 bits");
    program(&mut code).expect("instructions that exist");
    let ram = Arc::new(GuestRam::new(RAM).expect("two megabytes"));
    let code = code.assemble(CODE).expect("labels that exist");
    ram.write(GuestAddr(CODE), &code).expect("the code lies in RAM");
    let mut cpu = Cpu::for_tests(Arc::clone(&ram));
    cpu.set_tiers(tiers);
    (cpu.rip, cpu.regs[4]) = (CODE, STACK);
    cpu
}

/// Runs a program to its end.
fn finish(cpu: &mut Cpu) -> Left {
    let (rip, fault) = cpu.run_to_fault(u64::MAX).expect("the program ends in a fault");
    let mut memory = vec![0; RAM as usize];
    cpu.ram.read(GuestAddr(0), &mut memory).expect("all of RAM");
    Left {
        regs: cpu.regs[..16].to_vec(),
        rflags: cpu.flags.rflags(),
        xmm: cpu.fx.0[24..28].iter().chain(&cpu.fx.0[160..416]).copied().collect(),
        fault: (rip, fault.vector),
        retired: cpu.retired,
        memory,
    }
}

/// How programs are translated, beside the interpreter.
const WAYS: [Tiers; 6] = [
    Tiers::FORCED,
    Tiers::BOTH,
    Tiers::PLAIN,
    Tiers { bmi2: false, ..Tiers::BOTH },
    Tiers { fsgsbase: false, ..Tiers::BOTH },
    Tiers::CRAMPED,
];

/// Runs a program on every choice of tiers and gives what all of them leave.
fn agreed(program: Program) -> Left {
    let interpreted = run(program, Tiers::INTERPRETER);
    for tiers in WAYS {
        let translated = run(program, tiers);
        if translated != interpreted {
            let at = (0..RAM as usize).find(|at| translated.memory[*at] != interpreted.memory[*at]);
            assert_eq!(translated.regs, interpreted.regs, "{tiers:?}");
            panic!(
                "{tiers:?}: flags {:#x} {:#x}, fault {:x?} {:x?}, retired {} {}, memory differs at {at:x?}",
                translated.rflags,
                interpreted.rflags,
                translated.fault,
                interpreted.fault,
                translated.retired,
                interpreted.retired
            );
        }
    }
    interpreted
}

#[test]
fn loops_over_all_registers_agree() {
    let left = agreed(|a| {
        let mut top = a.create_label();
        a.mov(rcx, 5000u64)?;
        a.mov(r13, DATA)?;
        a.mov(rax, 0x9e37_79b9_7f4a_7c15u64)?;
        a.set_label(&mut top)?;
        for register in [rbx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r14, r15] {
            a.add(register, rax)?;
            a.rol(rax, 7)?;
            a.xor(rax, register)?;
        }
        a.mov(r15d, eax)?;
        a.and(r15d, 0xff8)?;
        a.adc(qword_ptr(r13 + r15), r14)?;
        a.setc(byte_ptr(r13 + r15 + 0x1000))?;
        a.xadd(qword_ptr(r13 + 8), r12)?;
        a.push(r14)?;
        a.pop(r8)?;
        a.inc(r11)?;
        a.dec(rcx)?;
        a.jne(top)?;
        a.ud2()
    });
    assert_eq!(left.fault.1, vector::UD);
}

#[test]
fn accesses_near_one_another_agree_across_pages() {
    agreed(|a| {
        let mut top = a.create_label();
        a.mov(rbx, DATA)?;
        a.mov(r14, DATA + 0x2000)?;
        a.mov(rcx, 2000u64)?;
        a.set_label(&mut top)?;
        a.add(qword_ptr(rbx + 8), rcx)?;
        a.mov(rax, qword_ptr(rbx))?;
        a.xor(dword_ptr(rbx + 61), eax)?;
        a.push(rax)?;
        a.push(r14)?;
        a.mov(r8, qword_ptr(rsp + 8))?;
        a.pop(r9)?;
        a.pop(r10)?;
        a.add(r14, 24)?;
        a.mov(qword_ptr(r14 - 8), r9)?;
        a.movzx(edx, byte_ptr(r14 + 1))?;
        a.adc(rdx, r8)?;
        a.mov(rbx, rbx)?;
        a.add(qword_ptr(rbx + 16), rdx)?;
        a.lea(rbx, qword_ptr(rbx + 5))?;
        a.mov(qword_ptr(rbx + 32), r10)?;
        a.sub(rsp, 8)?;
        a.dec(rcx)?;
        a.jne(top)?;
        a.ud2()
    });
}

#[test]
fn accesses_one_right_after_the_other_agree_across_pages() {
    agreed(|a| {
        let (mut top, mut function) = (a.create_label(), a.create_label());
        a.mov(rbx, DATA + 0x1fff)?;
        a.mov(rsi, DATA)?;
        a.mov(r9, STACK)?;
        a.mov(rcx, 3000u64)?;
        a.set_label(&mut top)?;
        // Pushes and pops, with what reads, writes and keeps flags between them.
        a.cmp(rcx, 1500)?;
        a.push(rcx)?;
        a.push(r10)?;
        a.lea(rax, qword_ptr(rax + rcx * 2))?;
        a.push(rax)?;
        a.setb(dl)?;
        a.pop(r8)?;
        a.adc(r8, 3)?;
        a.pop(r10)?;
        a.pop(r11)?;
        // One address through two registers, which goes over pages' ends.
        a.mov(edi, ecx)?;
        a.and(edi, 0xfff)?;
        a.add(r10, qword_ptr(rsi + rdi * 2 + 1))?;
        a.imul_2(r10, r11)?;
        a.mov(qword_ptr(rsi + rdi * 2 + 1), r10)?;
        a.inc(rdi)?;
        a.xor(dword_ptr(rsi + rdi * 2 + 9), r10d)?;
        a.add(dword_ptr(rbx), ecx)?;
        a.mov(al, byte_ptr(rbx + 4))?;
        a.sub(rbx, 1)?;
        a.adc(byte_ptr(rbx - 1), al)?;
        a.call(function)?;
        a.sub(rsp, 24)?;
        a.dec(rcx)?;
        a.jne(top)?;
        a.mov(rax, r9)?;
        a.ud2()?;
        a.set_label(&mut function)?;
        a.push(rbp)?;
        a.push(rbx)?;
        a.mov(rbp, rsp)?;
        a.xor(rbx, qword_ptr(rbp + 16))?;
        a.add(rbx, 7)?;
        a.pop(rbx)?;
        a.pop(rbp)?;
        a.ret()
    });
}

#[test]
fn loops_with_windows_that_last_agree() {
    agreed(|a| {
        let (mut outer, mut top) = (a.create_label(), a.create_label());
        a.mov(rbx, DATA + 0xfb0)?; // goes over the page's end
        a.mov(rsi, DATA + 0x3000)?; // goes before its begin
        a.mov(rdi, DATA + 0x4000)?;
        a.mov(edx, 5)?;
        a.mov(r12d, 40)?;
        a.set_label(&mut outer)?;
        a.mov(ecx, 100)?;
        a.set_label(&mut top)?;
        a.add(qword_ptr(rsi + 8), rcx)?;
        a.push(rcx)?;
        a.xor(rax, qword_ptr(rsi + 16))?;
        a.add(dword_ptr(rbx + 12), eax)?;
        a.add(rax, qword_ptr(rbx + 0x20))?;
        a.rol(qword_ptr(rdi + rdx * 4), 3)?;
        a.adc(rax, qword_ptr(rdi + rdx * 4))?;
        a.pop(r8)?;
        a.mov(qword_ptr(rsi + 16), rax)?;
        a.dec(ecx)?;
        a.test(ecx, 3)?;
        a.jne(top)?;
        a.inc(r9)?;
        a.test(ecx, ecx)?;
        a.jne(top)?;
        a.add(rbx, 8)?;
        a.sub(rsi, 16)?;
        a.inc(edx)?;
        a.dec(r12d)?;
        a.jne(outer)?;
        a.ud2()
    });
}

#[test]
fn a_loop_that_runs_into_its_begin_agrees() {
    agreed(|a| {
        let (mut before, mut top, mut out) = (a.create_label(), a.create_label(), a.create_label());
        a.mov(rsi, DATA + 0xfb0)?;
        a.mov(r10d, 3000)?;
        a.jmp(top)?; // which is executed once more than what is before it
        a.set_label(&mut before)?;
        a.add(qword_ptr(rsi + 0x20), r9)?;
        a.cmp(r10d, 7)?;
        a.je(out)?;
        a.set_label(&mut top)?;
        a.add(r9, qword_ptr(rsi + 8))?;
        a.push(r9)?;
        a.xor(qword_ptr(rsi + 0x48), r10)?;
        a.pop(r11)?;
        a.lea(r9, qword_ptr(r9 + r11 + 5))?;
        a.dec(r10d)?;
        a.jmp(before)?;
        a.set_label(&mut out)?;
        a.ud2()
    });
}

#[test]
fn a_loop_with_registers_in_places_of_its_own_faults_where_it_belongs() {
    let left = agreed(|a| {
        let mut top = a.create_label();
        a.mov(r9, DATA)?;
        a.mov(r10d, 1)?;
        a.mov(r11d, 3000)?;
        a.mov(r14d, 0x1234)?;
        a.set_label(&mut top)?;
        a.add(r10, qword_ptr(r9 + 4))?;
        a.rol(r10, 5)?;
        a.xor(qword_ptr(r9 + r11), r10)?;
        a.inc(r9)?;
        a.mov(eax, r10d)?;
        a.xor(edx, edx)?;
        a.sub(r11d, 1)?;
        a.div(r11d)?; // at last by zero
        a.test(r10d, 7)?;
        a.jne(top)?;
        a.add(r14, r11)?;
        a.jmp(top)
    });
    assert_eq!((left.fault.1, left.regs[11], left.regs[9]), (vector::DE, 0, DATA + 3000));
}

#[test]
fn flags_that_nobody_reads_agree_where_loads_overwrite_what_made_them() {
    agreed(|a| {
        let (mut top, mut on) = (a.create_label(), a.create_label());
        a.mov(rsi, DATA)?;
        a.mov(ecx, 4000)?;
        a.set_label(&mut top)?;
        a.lea(rdi, qword_ptr(rsi + rcx * 2))?;
        a.and(edx, 0x1ffe)?;
        a.movzx(edx, word_ptr(rsi + rdx))?; // nobody reads the flags of AND
        a.cmp(edx, ecx)?;
        a.jb(on)?;
        a.mov(edx, dword_ptr(rdi - 1))?; // those of CMP are read
        a.adc(r8d, edx)?;
        a.set_label(&mut on)?;
        a.add(dword_ptr(rdi), 0x5bd1)?;
        a.xor(edx, r8d)?;
        a.mov(edx, r8d)?;
        a.sub(ecx, 1)?;
        a.jne(top)?;
        a.ud2()
    });
}

#[test]
fn an_instruction_on_two_pages_agrees_and_follows_changes_of_its_second_page() {
    let left = agreed(|a| {
        let (mut outer, mut top, mut again) = (a.create_label(), a.create_label(), a.create_label());
        a.xor(r8d, r8d)?; // 3 bytes
        a.mov(edx, 3)?; // 5 bytes
        a.set_label(&mut outer)?;
        a.mov(ecx, 200)?; // 5 bytes
        a.set_label(&mut again)?;
        a.jmp(top)?; // 5 bytes
        a.nops_with_size(0xffd - 18)?;
        a.set_label(&mut top)?;
        a.add(r8, 0x0102_0304)?; // the last four bytes on the second page
        a.dec(ecx)?;
        a.jne(again)?;
        a.mov(rbx, CODE + 0x1000)?;
        a.add(dword_ptr(rbx), 0x11)?;
        a.dec(edx)?;
        a.jne(outer)?;
        a.ud2()
    });
    assert_eq!(left.regs[8], 200 * (3 * 0x0102_0304 + 3 * 0x11));
    assert_eq!(left.memory[CODE as usize + 0xffd..][..3], [0x49, 0x81, 0xc0]);
}

#[test]
fn a_trace_ends_when_any_of_its_blocks_is_written() {
    let left = agreed(|a| {
        let (mut outer, mut top) = (a.create_label(), a.create_label());
        let (mut second, mut skip) = (a.create_label(), a.create_label());
        a.mov(rdx, 2u64)?;
        a.set_label(&mut outer)?;
        a.mov(ecx, 500)?;
        a.set_label(&mut top)?;
        a.add(rax, rcx)?;
        a.test(rax, rax)?;
        a.je(skip)?;
        a.set_label(&mut second)?;
        a.add(r8, 3)?;
        a.set_label(&mut skip)?;
        a.dec(ecx)?;
        a.jne(top)?;
        a.lea(rsi, ptr(second))?;
        a.mov(byte_ptr(rsi + 3), 7)?;
        a.dec(rdx)?;
        a.jne(outer)?;
        a.ud2()
    });
    assert_eq!(left.regs[8], 500 * 3 + 500 * 7);
}

#[test]
fn calls_and_indirect_jumps_agree() {
    agreed(|a| {
        let (mut f, mut top, mut on) = (a.create_label(), a.create_label(), a.create_label());
        a.mov(ecx, 3000)?;
        a.set_label(&mut top)?;
        a.call(f)?;
        a.lea(r14, ptr(f))?;
        a.call(r14)?;
        a.lea(rdx, ptr(on))?;
        a.jmp(rdx)?;
        a.ud2()?;
        a.set_label(&mut on)?;
        a.sub(ecx, 1)?;
        a.jg(top)?;
        a.ud2()?;
        a.set_label(&mut f)?;
        a.add(rbx, rcx)?;
        a.pushfq()?;
        a.pop(rsi)?;
        a.xor(rdi, rsi)?;
        a.ret()
    });
}

#[test]
fn high_bytes_with_memory_agree() {
    agreed(|a| {
        let mut top = a.create_label();
        a.mov(rsi, DATA)?;
        a.mov(edi, 3000)?;
        a.set_label(&mut top)?;
        a.mov(byte_ptr(rsi + rdi), ah)?;
        a.mov(ch, byte_ptr(rsi + rdi * 2))?;
        a.adc(dh, byte_ptr(rsi + 3))?;
        a.sub(byte_ptr(rax + rsi), bh)?;
        a.setb(bl)?;
        a.xchg(byte_ptr(rsi), ch)?;
        a.xadd(byte_ptr(rsi + 1), ah)?;
        a.cmp(byte_ptr(rsi + 1), dh)?;
        a.cmpxchg(byte_ptr(rsi + 7), ah)?;
        a.cmpxchg(byte_ptr(rsi + 8), ch)?;
        a.movzx(ebp, ah)?;
        a.movsx(esp, dh)?;
        a.add(r8, rbp)?;
        a.lea(r9, qword_ptr(rsp + r9 * 2))?;
        a.imul_3(eax, ecx, 0x1_0a3b)?;
        a.and(eax, 0xffff)?;
        a.add(edx, eax)?;
        a.dec(edi)?;
        a.jne(top)?;
        a.ud2()
    });
}

#[test]
fn vectors_agree() {
    agreed(|a| {
        let mut top = a.create_label();
        a.mov(ecx, 1000)?;
        a.mov(rdi, DATA)?;
        a.cvtsi2sd(xmm1, rdi)?;
        a.set_label(&mut top)?;
        a.cvtsi2sd(xmm0, ecx)?;
        a.divsd(xmm1, xmm0)?;
        a.sqrtsd(xmm2, xmm1)?;
        a.addpd(xmm3, xmm2)?;
        a.movups(xmmword_ptr(rdi + rcx), xmm3)?;
        a.paddd(xmm5, xmmword_ptr(rdi))?;
        a.pshufd(xmm6, xmm5, 0x1b)?;
        a.sub(ecx, 1)?;
        a.jne(top)?;
        a.ud2()
    });
}

#[test]
fn a_fault_comes_where_it_belongs() {
    let left = agreed(|a| {
        let mut top = a.create_label();
        a.mov(ecx, 100)?;
        a.set_label(&mut top)?;
        a.mov(eax, ecx)?;
        a.cdq()?;
        a.lea(ebx, ptr(rcx - 1))?;
        a.cmp(ebx, 7)?;
        a.idiv(ebx)?;
        a.sub(ecx, 1)?;
        a.jmp(top)
    });
    assert_eq!(left.fault.1, vector::DE);
}

/// A loop that adds a constant, and changes that constant in its own code: behind it, and in the block that runs.
#[test]
fn code_that_changes_itself_is_followed() {
    let left = agreed(|a| {
        let (mut top, mut changed) = (a.create_label(), a.create_label());
        a.mov(ecx, 300)?;
        a.lea(rdi, ptr(changed))?;
        a.set_label(&mut top)?;
        a.mov(byte_ptr(rdi + 2), cl)?;
        a.set_label(&mut changed)?;
        a.add(ebx, 1)?; // 83 c3 01
        a.sub(ecx, 1)?;
        a.jne(top)?;
        a.ud2()
    });
    let expected: i64 = (1..=300i64).map(|n| i64::from(n as i8)).sum();
    assert_eq!(left.regs[3] as u32, expected as u32);
}

/// Programs of random bytes, by default; `TIERS_PROGRAMS` says how many.
const PROGRAMS: u64 = 3000;

/// Whatever the guest executes, the host survives it.
#[test]
fn random_bytes_do_no_harm() {
    let programs =
        std::env::var("TIERS_PROGRAMS").ok().and_then(|text| text.parse().ok()).unwrap_or(PROGRAMS);
    let ram = Arc::new(GuestRam::new(RAM).expect("two megabytes"));
    let mut cpu = Cpu::for_tests(Arc::clone(&ram));
    cpu.set_tiers(Tiers::FORCED);
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..programs {
        let code: Vec<u8> = (0..32).flat_map(|_| next().to_le_bytes()).collect();
        ram.write(GuestAddr(CODE), &code).expect("the code lies in RAM");
        let fresh = Cpu::for_tests(Arc::clone(&ram));
        (cpu.cpl, cpu.gate, cpu.seg_base) = (fresh.cpl, fresh.gate, fresh.seg_base);
        cpu.rip = CODE;
        for register in &mut cpu.regs[..16] {
            *register = next() % RAM;
        }
        for _ in 0..20 {
            let Some((rip, _)) = cpu.run_to_fault(2000) else { break };
            if !(CODE..CODE + 0x100).contains(&rip) {
                break;
            }
            cpu.rip = rip + 1;
        }
    }
}
