//! Virtual-8086 mode, call gates, and what of hardware task switches is refused, in 32-bit protected mode.

use hyperkit_hv::X86State;
use hyperkit_hv::state::x86_64::{DescriptorTable, Segment};
use hyperkit_mem::GuestRam;
use iced_x86::code_asm::*;

use super::switch::{RESULT, put_u64, ram, run};
use crate::flags::bit;

const GDT: u64 = 0x1000;
const IDT: u64 = 0x2000;
const TSS: u64 = 0x3000;
const INNER_STACK: u64 = 0x9000;
const KERNEL: u64 = 0x1_0000;
const HANDLER: u64 = 0x1_4000;
const USER: u64 = 0x2_0000;
/// Selectors.
const CODE_0: u64 = 0x08;
const DATA_0: u64 = 0x10;
const CODE_3: u64 = 0x1b;
const DATA_3: u64 = 0x23;
const TSS_SELECTOR: u64 = 0x28;
const GATE: u64 = 0x33;
const TASK_GATE: u64 = 0x3b;

fn write(ram: &GuestRam, bits: u32, at: u64, code: impl FnOnce(&mut CodeAssembler)) {
    let mut assembler = CodeAssembler::new(bits).unwrap();
    code(&mut assembler);
    ram.write(hyperkit_mem::GuestAddr(at), &assembler.assemble(at).unwrap()).unwrap();
}

fn interrupt_gate(ram: &GuestRam, vector: u64, kind: u64, dpl: u64, handler: u64) {
    let gate = handler & 0xffff | CODE_0 << 16 | (0x80 | dpl << 5 | kind) << 40 | (handler >> 16) << 48;
    put_u64(ram, IDT + vector * 8, gate);
}

/// At privilege level 0 in 32-bit protected mode, with descriptors of both levels, a TSS and a call gate to
/// [`HANDLER`] that copies two values.
fn protected(ram: &GuestRam) -> X86State {
    let tss = 0x67 | (TSS & 0xff_ffff) << 16 | 0x8b << 40;
    let call_gate = HANDLER & 0xffff | CODE_0 << 16 | 2 << 32 | 0xec << 40 | (HANDLER >> 16) << 48;
    let task_gate = TSS_SELECTOR << 16 | 0xe5 << 40;
    let table = [
        0,
        0x00cf_9a00_0000_ffff,
        0x00cf_9200_0000_ffff,
        0x00cf_fa00_0000_ffff,
        0x00cf_f200_0000_ffff,
        tss,
        call_gate,
        task_gate,
    ];
    for (n, descriptor) in table.into_iter().enumerate() {
        put_u64(ram, GDT + n as u64 * 8, descriptor);
    }
    put_u64(ram, TSS + 4, INNER_STACK | DATA_0 << 32);
    let mut state = X86State::pvh(KERNEL as u32, 0);
    for segment in &mut state.segments {
        segment.selector = DATA_0 as u16;
    }
    state.segments[1].selector = CODE_0 as u16;
    state.gdtr = DescriptorTable { base: GDT, limit: 0x3f };
    state.idtr = DescriptorTable { base: IDT, limit: 0x7ff };
    state.tr = Segment { selector: TSS_SELECTOR as u16, base: TSS, limit: 0x67, rights: 0x8b };
    state.gpr[4] = 0x8000;
    state
}

/// Code that enters virtual-8086 mode at 2000:0 with DS = 1234 and the stack at 3000:1000.
fn enter_v86(a: &mut CodeAssembler, iopl: i32) {
    for value in [0, 0, 0x1234, 0, 0x3000, 0x1000, 0x2_0002 | iopl << 12, 0x2000, 0] {
        a.push(value).unwrap();
    }
    a.iretd().unwrap();
}

#[test]
fn virtual_8086_code_runs_and_its_interrupts_reach_the_kernel() {
    let ram = ram();
    let state = protected(&ram);
    write(&ram, 32, KERNEL, |a| enter_v86(a, 3));
    write(&ram, 16, USER, |a| {
        a.mov(bx, ds).unwrap();
        a.pushf().unwrap();
        a.pop(cx).unwrap();
        a.cli().unwrap(); // allowed with IOPL 3
        a.int(0x20).unwrap();
    });
    interrupt_gate(&ram, 0x20, 0xe, 3, HANDLER);
    write(&ram, 32, HANDLER, |a| {
        // eip, cs, eflags, esp, ss, es, ds
        a.mov(eax, dword_ptr(esp + 8)).unwrap();
        a.shr(eax, 17).unwrap();
        a.and(eax, 1).unwrap(); // VM
        a.add(eax, dword_ptr(esp + 4)).unwrap(); // 2000
        a.add(eax, dword_ptr(esp + 12)).unwrap(); // 1000
        a.add(eax, dword_ptr(esp + 16)).unwrap(); // 3000
        a.add(eax, dword_ptr(esp + 24)).unwrap(); // 1234
        a.add(eax, ebx).unwrap(); // 1234
        a.mov(ebx, ds).unwrap();
        a.add(eax, ebx).unwrap(); // 0: taken away
        a.cmp(esp, (INNER_STACK - 36) as i32).unwrap();
        let mut fine = a.create_label();
        a.je(fine).unwrap();
        a.xor(eax, eax).unwrap();
        a.set_label(&mut fine).unwrap();
        a.out(RESULT as i32, eax).unwrap();
        a.hlt().unwrap();
    });
    assert_eq!(run(&ram, &state), 1 + 0x2000 + 0x1000 + 0x3000 + 2 * 0x1234);
}

#[test]
fn virtual_8086_code_without_the_privilege_is_stopped() {
    for code in [[0xfa, 0x90], [0xcd, 0x20], [0x9c, 0x90], [0xcf, 0x90]] {
        let ram = ram();
        let state = protected(&ram);
        write(&ram, 32, KERNEL, |a| enter_v86(a, 0));
        ram.write(hyperkit_mem::GuestAddr(USER), &code).unwrap();
        interrupt_gate(&ram, 0x20, 0xe, 3, KERNEL);
        interrupt_gate(&ram, 13, 0xe, 0, HANDLER);
        write(&ram, 32, HANDLER, |a| {
            a.mov(eax, dword_ptr(esp)).unwrap(); // error code
            a.add(eax, dword_ptr(esp + 4)).unwrap(); // eip
            a.add(eax, 77).unwrap();
            a.out(RESULT as i32, eax).unwrap();
            a.hlt().unwrap();
        });
        assert_eq!(run(&ram, &state), 77, "{code:x?}");
    }
}

/// Goes to privilege level 3 at [`USER`], with I/O allowed.
fn enter_user(a: &mut CodeAssembler) {
    for value in [DATA_3 as i32, 0x7000, 0x3002, CODE_3 as i32, USER as i32] {
        a.push(value).unwrap();
    }
    a.iretd().unwrap();
}

#[test]
fn a_call_gate_switches_the_stack_and_copies_parameters() {
    let ram = ram();
    let state = protected(&ram);
    write(&ram, 32, KERNEL, enter_user);
    write(&ram, 32, USER, |a| {
        a.push(0x100).unwrap();
        a.push(0x23).unwrap();
        a.db(&[0x9a, 0, 0, 0, 0, GATE as u8, 0]).unwrap(); // call far
        a.mov(ecx, cs).unwrap();
        a.add(eax, ecx).unwrap(); // 1b
        a.add(eax, esp).unwrap(); // 7000: the parameters are gone
        a.out(RESULT as i32, eax).unwrap();
        a.hlt().unwrap();
    });
    write(&ram, 32, HANDLER, |a| {
        a.mov(eax, dword_ptr(esp + 8)).unwrap(); // 23
        a.add(eax, dword_ptr(esp + 12)).unwrap(); // 100
        a.mov(ecx, cs).unwrap();
        a.shl(ecx, 16).unwrap();
        a.add(eax, ecx).unwrap(); // 8 << 16
        a.retf_1(8).unwrap();
    });
    assert_eq!(run(&ram, &state), 0x8_0000 + 0x123 + 0x1b + 0x7000);
}

#[test]
fn hardware_task_switches_are_refused() {
    // jmp and call to a task gate and to a TSS, and a task gate in the IDT: #GP that names what was meant.
    let far = |opcode: u8, selector: u64| [opcode, 0, 0, 0, 0, selector as u8, 0];
    let cases = [
        (far(0xea, TASK_GATE).to_vec(), TASK_GATE & !3),
        (far(0x9a, TASK_GATE).to_vec(), TASK_GATE & !3),
        (far(0xea, TSS_SELECTOR).to_vec(), TSS_SELECTOR),
        (far(0x9a, TSS_SELECTOR).to_vec(), TSS_SELECTOR),
        (vec![0xcd, 0x21], 0x21 << 3 | 2),
    ];
    for (code, error) in cases {
        let ram = ram();
        let state = protected(&ram);
        ram.write(hyperkit_mem::GuestAddr(KERNEL), &code).unwrap();
        put_u64(&ram, IDT + 0x21 * 8, TSS_SELECTOR << 16 | 0xe5 << 40);
        interrupt_gate(&ram, 13, 0xe, 0, HANDLER);
        write(&ram, 32, HANDLER, |a| {
            a.pop(eax).unwrap();
            a.out(RESULT as i32, eax).unwrap();
            a.hlt().unwrap();
        });
        assert_eq!(run(&ram, &state), error, "{code:x?}");
    }
}

#[test]
fn a_task_return_is_refused() {
    let ram = ram();
    let mut state = protected(&ram);
    state.rflags |= bit::NT;
    write(&ram, 32, KERNEL, |a| a.iretd().unwrap());
    interrupt_gate(&ram, 13, 0xe, 0, HANDLER);
    write(&ram, 32, HANDLER, |a| {
        a.pop(eax).unwrap();
        a.add(eax, 5).unwrap();
        a.out(RESULT as i32, eax).unwrap();
        a.hlt().unwrap();
    });
    assert_eq!(run(&ram, &state), 5);
}
