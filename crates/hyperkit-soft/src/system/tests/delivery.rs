//! Exceptions and interrupts through a 64-bit IDT, without paging.

use hyperkit_hv::Exit;
use hyperkit_hv::state::x86_64::DescriptorTable;

use super::{cpu, read_u64, write_u64};
use crate::cpu::{Cpu, seg};
use crate::flags::bit;
use crate::system::Next;
use crate::system::delivery::Event;
use crate::trap::{Fault, vector};

const GDT: u64 = 0x1000;
const IDT: u64 = 0x2000;
const TSS: u64 = 0x3000;
const RSP0: u64 = 0x8008;
const IST1: u64 = 0x9000;
const HANDLERS: u64 = 0x1_0000;
const USER_RSP: u64 = 0xa000;
const USER_RIP: u64 = 0x5555;

const KERNEL_CODE: u64 = 0x00af_9b00_0000_ffff;
const USER_CODE: u64 = 0x00af_fb00_0000_ffff;
const USER_DATA: u64 = 0x00cf_f300_0000_ffff;

/// At privilege level 3, with a TSS and gates for the vectors given; bits 32-39 of a gate's extra are its IST.
fn user(gates: &[(u8, u64)]) -> Box<Cpu> {
    let mut cpu = cpu();
    for (number, descriptor) in [(1, KERNEL_CODE), (2, USER_CODE), (3, USER_DATA)] {
        write_u64(&cpu, GDT + number * 8, descriptor);
    }
    write_u64(&cpu, TSS + 4, RSP0);
    write_u64(&cpu, TSS + 0x24, IST1);
    for (vector, extra) in gates {
        let handler = HANDLERS + u64::from(*vector) * 16;
        let gate = handler & 0xffff | 8 << 16 | 0x8e00 << 32 | (handler >> 16) << 48 | extra;
        write_u64(&cpu, IDT + u64::from(*vector) * 16, gate);
    }
    let mut state = cpu.give_state();
    state.gdtr = DescriptorTable { base: GDT, limit: 31 };
    state.idtr = DescriptorTable { base: IDT, limit: 0xfff };
    state.tr.base = TSS;
    state.tr.limit = 0x67;
    state.segments[seg::CS].selector = 0x13;
    state.segments[seg::CS].rights = 0xa0fb;
    state.segments[seg::SS].selector = 0x1b;
    state.segments[seg::SS].rights = 0xc0f3;
    state.gpr[4] = USER_RSP;
    state.rip = USER_RIP;
    state.rflags = bit::IF | bit::TF | 2;
    cpu.take_state(&state);
    cpu
}

fn handler(vector: u8) -> u64 {
    HANDLERS + u64::from(vector) * 16
}

fn raise(cpu: &mut Cpu, vector: u8, error: Option<u16>) -> Next {
    let _ = cpu.raise(Fault { vector, error, after: false });
    cpu.deliver_fault(USER_RIP)
}

#[test]
fn a_fault_in_user_code_enters_the_kernel_on_its_aligned_stack() {
    let mut cpu = user(&[(vector::GP, 0)]);
    assert_eq!(raise(&mut cpu, vector::GP, Some(0x18)), Next::Run);
    assert_eq!((cpu.rip, cpu.cpl), (handler(vector::GP), 0));
    let rsp = cpu.regs[4];
    assert_eq!(rsp, (RSP0 & !15) - 48);
    let frame: Vec<u64> = (0..6).map(|n| read_u64(&cpu, rsp + n * 8)).collect();
    let flags = bit::IF | bit::TF | bit::RF | 2;
    assert_eq!(frame, [0x18, USER_RIP, 0x13, flags, USER_RSP, 0x1b]);
    assert_eq!(cpu.flags.rest & (bit::IF | bit::TF), 0);
    assert_eq!(cpu.segments[seg::SS].selector, 0);
}

#[test]
fn iretq_goes_back_to_where_the_fault_was() {
    let mut cpu = user(&[(vector::UD, 0)]);
    assert_eq!(raise(&mut cpu, vector::UD, None), Next::Run);
    let op = crate::decode::operand::op(
        crate::system::undefined,
        &iced_x86::Instruction::default(),
        &crate::decode::Context { block_rip: 0, code_size: cpu.code_size },
    );
    crate::system::delivery::iret(&mut cpu, &crate::op::Op { aux: 8, ..op }).unwrap();
    assert_eq!((cpu.rip, cpu.cpl, cpu.regs[4]), (USER_RIP, 3, USER_RSP));
    assert_eq!(cpu.flags.rest & (bit::IF | bit::TF), bit::IF | bit::TF);
    assert_eq!(cpu.segments[seg::CS].selector, 0x13);
}

#[test]
fn the_interrupt_stack_table_replaces_the_stack() {
    let mut cpu = user(&[(vector::NMI, 1 << 32)]);
    let event = Event { vector: vector::NMI, error: None, rip: 7, software: false, resume: false };
    assert_eq!(cpu.deliver(event), Next::Run);
    assert_eq!(cpu.regs[4], IST1 - 40);
    assert_eq!(read_u64(&cpu, IST1 - 40), 7);
}

#[test]
fn a_software_interrupt_needs_a_gate_of_its_privilege() {
    for (dpl, expected) in [(0, vector::GP), (3u64, 0x80)] {
        let mut cpu = user(&[(0x80, dpl << 45), (vector::GP, 0)]);
        let event = Event { vector: 0x80, error: None, rip: 7, software: true, resume: false };
        assert_eq!(cpu.deliver(event), Next::Run);
        assert_eq!(cpu.rip, handler(expected), "{dpl}");
        if dpl == 0 {
            assert_eq!(read_u64(&cpu, cpu.regs[4]), 0x80 << 3 | 2, "names the entry of the IDT");
        }
    }
}

#[test]
fn a_fault_while_delivering_a_page_fault_is_a_double_fault() {
    let mut cpu = user(&[(vector::DF, 0)]);
    assert_eq!(raise(&mut cpu, vector::PF, Some(4)), Next::Run);
    assert_eq!(cpu.rip, handler(vector::DF));
    assert_eq!((read_u64(&cpu, cpu.regs[4]), read_u64(&cpu, cpu.regs[4] + 8)), (0, USER_RIP));
}

#[test]
fn an_undefined_instruction_without_a_gate_is_a_protection_fault() {
    let mut cpu = user(&[(vector::GP, 0), (vector::NP, 0)]);
    write_u64(&cpu, IDT + 6 * 16, 0x0e00 << 32 | 8 << 16);
    assert_eq!(raise(&mut cpu, vector::UD, None), Next::Run);
    assert_eq!(cpu.rip, handler(vector::NP));
    assert_eq!(read_u64(&cpu, cpu.regs[4]), 6 << 3 | 2 | 1);
}

#[test]
fn a_double_fault_that_cannot_be_delivered_shuts_down() {
    let mut cpu = user(&[]);
    assert_eq!(raise(&mut cpu, vector::GP, Some(0)), Next::Exit(Exit::TripleFault));
    let mut cpu = user(&[(vector::DF, 0)]);
    cpu.idtr.limit = 0;
    assert_eq!(raise(&mut cpu, vector::UD, None), Next::Exit(Exit::TripleFault));
}
