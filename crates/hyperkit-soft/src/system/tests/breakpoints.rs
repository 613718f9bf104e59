//! DR0 to DR3: what stops where, and what DR6 and RFLAGS.RF say about it.

use iced_x86::code_asm::*;

use super::{assembled, cpu};
use crate::cpu::Cpu;
use crate::flags::bit;
use crate::jit::Tiers;
use crate::trap::{Fault, vector};

const CODE: u64 = 0x1_0000;
const DATA: u64 = 0x2_0000;
const DR6: usize = 4;
const DR7: usize = 5;

/// L0, waiting for `condition` on 2^… bytes as DR7 encodes the length.
fn first(condition: u64, length: u64) -> u64 {
    0x401 | condition << 16 | length << 18
}

/// A processor before this code, with DR0 and DR7 as given.
fn armed(tiers: Tiers, address: u64, control: u64, write: impl FnOnce(&mut CodeAssembler)) -> Box<Cpu> {
    let mut cpu = cpu();
    assembled(&cpu, 64, CODE, write);
    cpu.set_tiers(tiers);
    cpu.rip = CODE;
    cpu.regs[4] = 0x8000;
    cpu.debug[0] = address;
    cpu.debug[DR7] = control;
    cpu.debug_changed();
    cpu
}

/// Runs to the next exception: how far from the start of the code, and which.
fn next(cpu: &mut Cpu) -> (u64, u8) {
    let (rip, Fault { vector, .. }) = cpu.run_to_fault(10_000).unwrap();
    (rip - CODE, vector)
}

#[test]
fn an_instruction_with_a_breakpoint_is_not_executed_before_rf_is_set() {
    for tiers in [Tiers::INTERPRETER, Tiers::FORCED] {
        let mut cpu = armed(tiers, CODE + 1, first(0, 0), |a| {
            a.nop().unwrap();
            a.inc(eax).unwrap();
            a.nop().unwrap();
            a.ud2().unwrap();
        });
        assert_eq!(next(&mut cpu), (1, vector::DB));
        assert_eq!((cpu.regs[0], cpu.debug[DR6] & 0xf), (0, 1));
        assert_eq!(next(&mut cpu), (1, vector::DB), "it stays where it is");
        cpu.flags.rest |= bit::RF;
        assert_eq!(next(&mut cpu), (4, vector::UD));
        assert_eq!(cpu.regs[0], 1);
        assert_eq!(cpu.flags.rest & bit::RF, 0, "RF covers one instruction");
        cpu.rip = CODE;
        assert_eq!(next(&mut cpu), (1, vector::DB));
    }
}

#[test]
fn a_data_breakpoint_is_reported_after_the_instruction() {
    let program = |a: &mut CodeAssembler| {
        a.mov(ebx, DATA as i32).unwrap(); // 5 bytes
        a.mov(eax, dword_ptr(rbx)).unwrap(); // 2
        a.mov(byte_ptr(rbx + 4), al).unwrap(); // 3
        a.mov(byte_ptr(rbx + 3), al).unwrap(); // 3
        a.lock().add(dword_ptr(rbx - 2), eax).unwrap(); // 4
        a.push(qword_ptr(rbx)).unwrap(); // 2
        a.ud2().unwrap();
    };
    let mut cpu = armed(Tiers::FORCED, DATA, first(1, 3), program);
    assert_eq!([next(&mut cpu), next(&mut cpu), next(&mut cpu)], [(13, 1), (17, 1), (19, 6)], "writes");
    let mut cpu = armed(Tiers::FORCED, DATA + 1, first(3, 3), program);
    let all = [next(&mut cpu), next(&mut cpu), next(&mut cpu), next(&mut cpu), next(&mut cpu)];
    assert_eq!(all, [(7, 1), (13, 1), (17, 1), (19, 1), (19, 6)], "writes and reads");
    assert_eq!(cpu.debug[DR6] & 0xf, 1);
}

#[test]
fn a_loop_that_is_translated_stops_once_a_breakpoint_is_set() {
    let mut cpu = armed(Tiers { translate_after: Some(3), ..Tiers::BOTH }, DATA, 0x400, |a| {
        let mut again = a.create_label();
        a.mov(ecx, 1000).unwrap(); // 5
        a.mov(ebx, DATA as i32).unwrap(); // 5
        a.set_label(&mut again).unwrap();
        a.mov(dword_ptr(rbx), ecx).unwrap(); // 2, to 12
        a.dec(ecx).unwrap(); // 2
        a.jne(again).unwrap(); // 2
        a.cmp(esi, 1).unwrap();
        let mut end = a.create_label();
        a.je(end).unwrap();
        a.mov(esi, 1).unwrap();
        a.mov(eax, first(1, 3) as i32).unwrap();
        a.mov(dr7, rax).unwrap();
        a.mov(ecx, 1000).unwrap();
        a.jmp(again).unwrap();
        a.set_label(&mut end).unwrap();
        a.ud2().unwrap();
    });
    assert_eq!(next(&mut cpu), (12, vector::DB));
    assert_eq!((cpu.regs[6], cpu.regs[1]), (1, 1000), "in the first turn after it was set");
    cpu.debug[DR7] = 0x400;
    cpu.debug_changed();
    assert_eq!(next(&mut cpu).1, vector::UD, "and runs on when it is gone");
}

#[test]
fn repeated_string_instructions_stop_in_the_middle() {
    let mut cpu = armed(Tiers::FORCED, DATA + 5, first(1, 0), |a| {
        a.mov(edi, DATA as i32).unwrap(); // 5
        a.mov(ecx, 100).unwrap(); // 5
        a.rep().stosb().unwrap();
        a.ud2().unwrap();
    });
    assert_eq!(next(&mut cpu), (10, vector::DB), "to be gone on with");
    assert_eq!((cpu.regs[1], cpu.regs[7]), (94, DATA + 6));
    assert_eq!(next(&mut cpu), (12, vector::UD));
    assert_eq!(cpu.regs[1], 0);
}

#[test]
fn ports_have_breakpoints_if_cr4_says_so() {
    for (de, expected) in [(1 << 3, (3, vector::DB)), (0, (3, vector::UD))] {
        let mut cpu = armed(Tiers::INTERPRETER, 0x80, first(2, 0), |a| {
            a.nop().unwrap();
            a.out(0x80, al).unwrap();
            a.ud2().unwrap();
        });
        cpu.cr4 |= de;
        assert_eq!(next(&mut cpu), expected);
    }
}

#[test]
fn traps_wait_for_the_instruction_after_a_load_of_ss() {
    let program = |a: &mut CodeAssembler| {
        a.mov(ebx, DATA as i32).unwrap(); // 5
        a.mov(ss, word_ptr(rbx)).unwrap(); // 2
        a.nop().unwrap();
        a.nop().unwrap();
        a.ud2().unwrap();
    };
    let mut cpu = armed(Tiers::FORCED, DATA, first(3, 1), program);
    assert_eq!(next(&mut cpu), (8, vector::DB), "a breakpoint on its operand");
    let mut cpu = armed(Tiers::FORCED, 0, 0x400, program);
    cpu.flags.rest |= bit::TF;
    let all = [next(&mut cpu), next(&mut cpu), next(&mut cpu)];
    assert_eq!(all, [(5, vector::DB), (8, vector::DB), (9, vector::DB)], "single steps");
    assert_eq!(cpu.debug[DR6] & 1 << 14, 1 << 14);
}
