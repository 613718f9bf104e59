//! What instructions do, by running them.

use std::sync::Arc;

use hyperkit_mem::{GuestAddr, GuestRam};
use iced_x86::code_asm::*;

use crate::cpu::{CodeSize, Cpu};
use crate::decode::blocks::Key;
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

#[test]
fn code_that_changes_a_later_instruction_of_its_own_block_sees_the_change() {
    let cpu = run(|a| {
        let mut target = a.create_label();
        a.mov(ecx, 3).unwrap();
        a.lea(rdi, qword_ptr(target)).unwrap();
        a.mov(byte_ptr(rdi + 1), 42).unwrap(); // the immediate of the next instruction
        a.set_label(&mut target).unwrap();
        a.mov(eax, 7).unwrap();
        a.add(ecx, 1).unwrap();
    });
    assert_eq!((cpu.regs[0], cpu.regs[1]), (42, 4));
}

#[test]
fn code_changed_after_it_ran_runs_as_changed() {
    let mut cpu = with_code(&[0xb8, 7, 0, 0, 0, 0x0f, 0x0b]); // mov eax,7; ud2
    for value in [7, 8, 9] {
        cpu.store::<u8>(CODE + 1, value).unwrap();
        cpu.rip = CODE;
        finish(&mut cpu);
        assert_eq!(cpu.regs[0], u64::from(value));
    }
}

#[test]
fn code_changed_by_a_device_runs_as_changed() {
    let mut cpu = with_code(&[0xb8, 7, 0, 0, 0, 0x0f, 0x0b]);
    finish(&mut cpu);
    cpu.ram.write(GuestAddr(CODE + 1), &[11]).unwrap();
    cpu.rip = CODE;
    finish(&mut cpu);
    assert_eq!(cpu.regs[0], 11);
}

#[test]
fn data_beside_code_does_not_drop_it() {
    let mut cpu = with_code(&[0xb8, 7, 0, 0, 0, 0x0f, 0x0b]);
    finish(&mut cpu);
    let key = Key::new(CODE, cpu.code_size);
    cpu.store::<u64>(CODE + 0x800, 1).unwrap();
    assert!(cpu.blocks.find(key, 0).is_some());
    cpu.store::<u8>(CODE, 0xb8).unwrap();
    assert!(cpu.blocks.find(key, 0).is_none());
}

#[test]
fn an_instruction_across_two_pages_follows_changes_of_either() {
    let mut cpu = with_code(&[]);
    let at = CODE + 0xffd;
    cpu.ram.write(GuestAddr(at), &[0xb8, 1, 0, 0, 0, 0x0f, 0x0b]).unwrap(); // mov eax,1: 3 bytes and 2
    for (offset, value, expected) in [(4, 0, 1), (1, 5, 5), (4, 1, 0x0100_0005), (4, 0, 5)] {
        cpu.store::<u8>(at + offset, value).unwrap();
        cpu.rip = at;
        finish(&mut cpu);
        assert_eq!(cpu.regs[0], expected);
    }
}

/// Turns paging on, with the first 2 MiB mapped to themselves and nothing else.
fn page(cpu: &mut Cpu) {
    for (at, entry) in [(0x10_0000, 0x10_1003u64), (0x10_1000, 0x10_2003), (0x10_2000, 0x83)] {
        cpu.ram.write(GuestAddr(at), &entry.to_le_bytes()).unwrap();
    }
    cpu.cr3 = 0x10_0000;
    cpu.cr4 |= crate::system::cr4::PAE;
    cpu.cr0 |= crate::system::cr0::PG;
    cpu.refresh();
    cpu.flush_tlb();
}

#[test]
fn a_repeated_move_that_faults_keeps_its_progress() {
    let mut cpu = machine(|a| {
        a.mov(rsi, 0x2_0000i64).unwrap();
        a.mov(rdi, 0x1f_fff0i64).unwrap();
        a.mov(ecx, 3).unwrap();
        a.rep().movsq().unwrap();
    });
    page(&mut cpu);
    let (rip, fault) = cpu.run_to_fault(1000).unwrap();
    let write_of_absent_page = Fault { vector: vector::PF, error: Some(2), after: false };
    assert_eq!((rip, fault, cpu.cr2), (CODE + 25, write_of_absent_page, 0x20_0000));
    assert_eq!((cpu.regs[1], cpu.regs[6], cpu.regs[7]), (1, 0x2_0010, 0x20_0000));
}

#[test]
fn a_read_modify_write_of_an_absent_page_faults_as_a_write_and_keeps_the_flags() {
    let mut cpu = machine(|a| {
        a.mov(rbx, 0x20_0000i64).unwrap();
        a.stc().unwrap();
        a.add(dword_ptr(rbx), 1).unwrap();
    });
    page(&mut cpu);
    let (_, fault) = cpu.run_to_fault(1000).unwrap();
    assert_eq!((fault.vector, fault.error, cpu.flags.cf()), (vector::PF, Some(2), true));
}

#[test]
fn an_instruction_that_continues_on_an_absent_page_faults_there() {
    let mut cpu = with_code(&[]);
    cpu.ram.write(GuestAddr(0x1f_fffe), &[0xb8, 1]).unwrap(); // the first bytes of mov eax, imm32
    page(&mut cpu);
    cpu.rip = 0x1f_fffe;
    let (rip, fault) = cpu.run_to_fault(1000).unwrap();
    assert_eq!((rip, fault.vector, cpu.cr2), (0x1f_fffe, vector::PF, 0x20_0000));
}

#[test]
fn overlapping_forward_moves_repeat_their_pattern() {
    let cpu = run(|a| {
        a.mov(rsi, 0x2_0000i64).unwrap();
        a.mov(byte_ptr(rsi), 0x5a).unwrap();
        a.lea(rdi, qword_ptr(rsi + 1)).unwrap();
        a.mov(ecx, 6000).unwrap();
        a.rep().movsb().unwrap();
    });
    let mut bytes = vec![0; 6002];
    cpu.ram.read(GuestAddr(0x2_0000), &mut bytes).unwrap();
    assert!(bytes[..6001].iter().all(|byte| *byte == 0x5a));
    assert_eq!((bytes[6001], cpu.regs[1]), (0, 0));
}

#[test]
fn single_steps_trap_after_every_instruction() {
    let mut cpu = machine(|a| {
        a.mov(eax, 1).unwrap();
        a.add(eax, 2).unwrap();
    });
    cpu.flags.rest |= crate::flags::bit::TF;
    let step = Fault { vector: vector::DB, error: None, after: true };
    assert_eq!(cpu.run_to_fault(100), Some((CODE + 5, step)));
    assert_eq!(cpu.regs[0], 1);
    assert_eq!(cpu.run_to_fault(100), Some((CODE + 10, step)));
    assert_eq!((cpu.regs[0], cpu.debug[4] & 1 << 14), (3, 1 << 14));
}

#[test]
fn a_fault_in_a_fused_pair_is_one_of_its_first_instruction() {
    let mut cpu = machine(|a| {
        let mut end = a.create_label();
        a.mov(rbx, 0x20_0000i64).unwrap();
        a.nop().unwrap();
        a.cmp(dword_ptr(rbx), 1).unwrap();
        a.je(end).unwrap();
        a.set_label(&mut end).unwrap();
        a.nop().unwrap();
    });
    page(&mut cpu);
    let retired = cpu.retired;
    let (rip, fault) = cpu.run_to_fault(100).unwrap();
    assert_eq!((rip, fault.vector), (CODE + 11, vector::PF));
    assert_eq!(cpu.retired - retired, 2);
}

#[test]
fn division_faults_exactly_where_the_quotient_does_not_fit() {
    let divide = |high: u64, low: u64, divisor: u64| {
        let mut cpu = machine(|a| a.div(rcx).unwrap());
        (cpu.regs[2], cpu.regs[0], cpu.regs[1]) = (high, low, divisor);
        let (_, fault) = cpu.run_to_fault(10).unwrap();
        (fault.vector == vector::UD).then(|| (cpu.regs[0], cpu.regs[2]))
    };
    assert_eq!(divide(4, 7, 5), Some(((4u128 << 64 | 7).div_euclid(5) as u64, 1)));
    assert_eq!(divide(5, 0, 5), None);
    assert_eq!(divide(0, 1, 0), None);
}
