//! #SS for what is not on the stack, #GP for the same elsewhere; the limits of segments outside 64-bit mode.

use iced_x86::code_asm::*;

use super::{assembled, cpu, write_u64};
use crate::cpu::{CodeSize, Cpu, seg};
use crate::jit::Tiers;
use crate::trap::vector;

const CODE: u64 = 0x1_0000;
/// Page tables for the first 2 MiB.
const TABLES: u64 = 0x30_0000;
const OUTSIDE: u64 = 1 << 63;

/// Executes code with RSP, RBP and RBX as given: the exception's vector and error code.
fn raised(tiers: Tiers, pointers: [u64; 3], write: impl FnOnce(&mut CodeAssembler)) -> (u8, Option<u16>) {
    let mut cpu = cpu();
    assembled(&cpu, 64, CODE, write);
    for (at, entry) in [(0, TABLES + 0x1003), (0x1000, TABLES + 0x2003), (0x2000, 0x83)] {
        write_u64(&cpu, TABLES + at, entry);
    }
    let mut state = cpu.give_state();
    state.cr3 = TABLES;
    state.cr4 |= 1 << 5; // PAE
    state.cr0 |= 1 << 31; // PG
    cpu.take_state(&state);
    cpu.set_tiers(tiers);
    cpu.rip = CODE;
    (cpu.regs[4], cpu.regs[5], cpu.regs[3]) = (pointers[0], pointers[1], pointers[2]);
    let (rip, fault) = cpu.run_to_fault(1000).unwrap();
    assert_eq!(rip, CODE, "{fault:?}");
    assert_eq!(cpu.regs[4], pointers[0], "RSP is as before");
    (fault.vector, fault.error)
}

type Code = fn(&mut CodeAssembler);

#[test]
fn addresses_that_are_not_canonical_are_stack_faults_on_the_stack() {
    let stack: &[Code] = &[
        |a| a.push(rax).unwrap(),
        |a| a.pop(rax).unwrap(),
        |a| a.pushfq().unwrap(),
        |a| a.ret().unwrap(),
        |a| a.call(CODE + 0x100).unwrap(),
        |a| a.leave().unwrap(),
        |a| a.enter(8, 0).unwrap(),
        |a| a.mov(rax, qword_ptr(rsp)).unwrap(),
        |a| a.mov(dword_ptr(rbp + 8), ecx).unwrap(),
        |a| a.movups(xmm0, xmmword_ptr(rsp + 16)).unwrap(),
        |a| a.add(qword_ptr(rbp), 1).unwrap(),
        |a| a.push(qword_ptr(rsp)).unwrap(),
        |a| a.iretq().unwrap(),
        |a| a.retf().unwrap(),
    ];
    for tiers in [Tiers::INTERPRETER, Tiers::FORCED] {
        for (n, code) in stack.iter().enumerate() {
            let raised = raised(tiers, [OUTSIDE; 3], *code);
            assert_eq!(raised, (vector::SS, Some(0)), "{n} {tiers:?}");
        }
        let elsewhere: &[Code] = &[
            |a| a.mov(rax, qword_ptr(rbx)).unwrap(),
            |a| a.mov(dword_ptr(rbx + 8), ecx).unwrap(),
            |a| a.mov(eax, dword_ptr(rbp).fs()).unwrap(),
            |a| a.push(qword_ptr(rbx)).unwrap(),
            |a| a.jmp(qword_ptr(rbx)).unwrap(),
        ];
        for (n, code) in elsewhere.iter().enumerate() {
            let raised = raised(tiers, [0x8000, OUTSIDE, OUTSIDE], *code);
            assert_eq!(raised, (vector::GP, Some(0)), "{n} {tiers:?}");
        }
        // Not aligned, but canonical.
        let raised = raised(tiers, [0x8008; 3], |a| a.movaps(xmm0, xmmword_ptr(rsp)).unwrap());
        assert_eq!(raised, (vector::GP, Some(0)));
    }
}

/// 32-bit code, in protected mode at privilege level 0.
fn legacy(write: impl FnOnce(&mut CodeAssembler)) -> Box<Cpu> {
    let mut cpu = cpu();
    assembled(&cpu, 32, CODE, write);
    cpu.code_size = CodeSize::Bits32;
    cpu.rip = CODE;
    (cpu.regs[4], cpu.regs[5], cpu.regs[3]) = (0x8000, 0x8000, 0x3000);
    (cpu.regs[6], cpu.regs[7], cpu.regs[1]) = (0x2ff0, 0x2ff8, 32);
    cpu
}

/// Runs to the `ud2` after the code, or the exception before it.
fn vector_of(cpu: &mut Cpu) -> u8 {
    cpu.run_to_fault(1000).unwrap().1.vector
}

/// Accesses through DS or ES to 0x2ffc and 0x2ffd, of 4 bytes: inside a limit of 0x2fff, and over it.
const DATA: [(Code, Code); 5] = [
    (|a| a.mov(eax, dword_ptr(ebx - 4)).unwrap(), |a| a.mov(eax, dword_ptr(ebx - 3)).unwrap()),
    (|a| a.mov(dword_ptr(0x2ffc), eax).unwrap(), |a| a.mov(dword_ptr(0x2ffd), eax).unwrap()),
    (|a| a.add(byte_ptr(ebx - 1), al).unwrap(), |a| a.add(byte_ptr(ebx), al).unwrap()),
    (|a| a.fld(qword_ptr(ebx - 8)).unwrap(), |a| a.fld(qword_ptr(ebx - 7)).unwrap()),
    (
        |a| {
            a.mov(ecx, 8).unwrap();
            a.rep().stosb().unwrap();
        },
        |a| a.rep().stosb().unwrap(),
    ),
];

#[test]
fn accesses_over_the_limit_of_a_data_segment_fault() {
    for (n, (inside, over)) in DATA.into_iter().enumerate() {
        for (code, expected) in [(inside, vector::UD), (over, vector::GP)] {
            let mut cpu = legacy(|a| {
                code(a);
                a.ud2().unwrap();
            });
            cpu.segments[seg::DS].limit = 0x2fff;
            cpu.segments[seg::ES].limit = 0x2fff;
            assert_eq!(vector_of(&mut cpu), expected, "{n}");
        }
    }
}

#[test]
fn a_repeated_instruction_that_meets_the_limit_has_done_what_is_below() {
    let mut cpu = legacy(|a| {
        a.rep().movsb().unwrap();
        a.ud2().unwrap();
    });
    cpu.segments[seg::ES].limit = 0x2fff;
    assert_eq!(vector_of(&mut cpu), vector::GP);
    assert_eq!((cpu.regs[1], cpu.regs[7]), (24, 0x3000));
}

#[test]
fn the_stack_has_a_limit_too() {
    let codes: [Code; 4] = [
        |a| a.push(eax).unwrap(),
        |a| a.call(CODE + 0x100).unwrap(),
        |a| a.mov(eax, dword_ptr(ebp - 4)).unwrap(),
        |a| a.pop(eax).unwrap(),
    ];
    for (n, code) in codes.into_iter().enumerate() {
        for (limit, rights, expected) in [
            (0x9000, 0xc093, vector::UD),
            (0x7ffe, 0xc093, vector::SS),
            (0x7000, 0xc097, vector::UD), // expands down: what is above the limit is in it
            (0x8003, 0xc097, vector::SS),
        ] {
            let mut cpu = legacy(|a| {
                code(a);
                a.ud2().unwrap();
            });
            cpu.ram.write(hyperkit_mem::GuestAddr(CODE + 0x100), &[0x0f, 0x0b]).unwrap();
            cpu.segments[seg::SS].limit = limit;
            cpu.segments[seg::SS].rights = rights;
            assert_eq!(vector_of(&mut cpu), expected, "{n} {limit:#x} {rights:#x}");
        }
    }
}

#[test]
fn types_and_null_selectors_are_checked() {
    let load: Code = |a| a.mov(eax, dword_ptr(ebx)).unwrap();
    let store: Code = |a| a.mov(dword_ptr(ebx), eax).unwrap();
    for (rights, loads, stores) in [
        (0xc093, vector::UD, vector::UD),
        (0xc091, vector::UD, vector::GP), // read-only data
        (0xc09b, vector::UD, vector::GP), // readable code
        (0xc099, vector::GP, vector::GP), // code that is only executed
        (0, vector::GP, vector::GP),      // null
    ] {
        for (code, expected) in [(load, loads), (store, stores)] {
            let mut cpu = legacy(|a| {
                code(a);
                a.ud2().unwrap();
            });
            cpu.segments[seg::DS].rights = rights;
            assert_eq!(vector_of(&mut cpu), expected, "{rights:#x}");
        }
    }
}

#[test]
fn lea_and_64_bit_code_know_no_limits() {
    let mut cpu = legacy(|a| {
        a.lea(eax, dword_ptr(ebx + 0x1000)).unwrap();
        a.ud2().unwrap();
    });
    cpu.segments[seg::DS].limit = 0xff;
    assert_eq!(vector_of(&mut cpu), vector::UD);
    let mut long = super::cpu();
    assembled(&long, 64, CODE, |a| {
        a.mov(eax, dword_ptr(rbx)).unwrap();
        a.ud2().unwrap();
    });
    long.rip = CODE;
    long.regs[3] = 0x3000;
    long.segments[seg::DS].limit = 0xff;
    assert_eq!(vector_of(&mut long), vector::UD);
}
