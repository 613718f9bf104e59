//! Traces with calls in them: what is called, and where it returns to, must be what the guest makes of it.

use std::collections::HashMap;

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::generate::{Program, layout};
use crate::machine::{self, End};
use hyperkit_soft::jit::Tiers;

/// Vectors of exceptions.
const UD: u8 = 6;
const PF: u8 = 14;

/// Both tiers, with traces of what was executed a few times.
const SOON: Tiers = Tiers { translate_after: Some(3), ..Tiers::BOTH };

const STACK_TOP: u64 = layout::STACK + 2 * layout::PAGE;

/// A program that starts with these RSP, R14 and R15.
fn assembled(
    (stack, pointer, turns): (u64, u64, u64),
    assemble: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Program {
    let mut code = CodeAssembler::new(64).expect("64 bits");
    assemble(&mut code).expect("instructions that exist");
    let code = code.assemble(layout::CODE).expect("labels that exist");
    let mut registers = [0; 16];
    (registers[4], registers[14], registers[15]) = (stack, pointer, turns);
    Program { code, registers, text: String::new() }
}

/// Runs such a program: all tiers must leave the same.
fn agreed(start: (u64, u64, u64), assemble: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>) -> End {
    let program = assembled(start, assemble);
    let expected = machine::run(&program, Tiers::INTERPRETER);
    for tiers in [Tiers::FORCED, SOON, Tiers::BOTH, Tiers::PLAIN, Tiers::CRAMPED] {
        let got = machine::run(&program, tiers);
        if got != expected {
            panic!("{tiers:?}: {}", crate::difference(&program, &expected, &got));
        }
    }
    expected
}

/// Fibonacci's twentieth number by recursion.
fn fibonacci(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut fib, mut leaf, mut start) = (a.create_label(), a.create_label(), a.create_label());
    a.jmp(start)?;
    a.set_label(&mut fib)?;
    a.cmp(rdi, 2)?;
    a.jb(leaf)?;
    a.push(rdi)?;
    a.dec(rdi)?;
    a.call(fib)?;
    a.pop(rdi)?;
    a.push(rax)?;
    a.sub(rdi, 2)?;
    a.call(fib)?;
    a.pop(rcx)?;
    a.add(rax, rcx)?;
    a.ret()?;
    a.set_label(&mut leaf)?;
    a.mov(rax, rdi)?;
    a.ret()?;
    a.set_label(&mut start)?;
    a.mov(edi, 20)?;
    a.call(fib)?;
    a.ud2()
}

#[test]
fn recursion_agrees() {
    let end = agreed((STACK_TOP, 0, 0), fibonacci);
    assert_eq!((end.registers[0], end.registers[4]), (6765, STACK_TOP));
}

/// A loop that calls the function that it is in: its begin is come to from inside what it calls, too.
#[test]
fn recursion_out_of_a_loop_agrees() {
    let end = agreed((STACK_TOP, 0, 0), |a| {
        let (mut function, mut again) = (a.create_label(), a.create_label());
        let (mut out, mut start) = (a.create_label(), a.create_label());
        a.jmp(start)?;
        a.set_label(&mut function)?;
        a.push(rbx)?;
        a.mov(ebx, edi)?;
        a.add(r8, rsp)?;
        a.inc(rax)?;
        a.test(ebx, ebx)?;
        a.je(out)?;
        a.set_label(&mut again)?;
        a.lea(edi, ptr(rbx - 1))?;
        a.call(function)?;
        a.dec(ebx)?;
        a.jne(again)?;
        a.set_label(&mut out)?;
        a.pop(rbx)?;
        a.ret()?;
        a.set_label(&mut start)?;
        a.mov(edi, 11)?;
        a.call(function)?;
        a.ud2()
    });
    assert_eq!((end.registers[0], end.registers[4]), (1 << 11, STACK_TOP));
}

/// Registers, RIP and flags wherever the processor looks whether somebody wants attention, by instructions retired.
fn looks(program: &Program, tiers: Tiers) -> HashMap<u64, (u64, Vec<u64>, u64)> {
    let mut cpu = machine::ready(program);
    cpu.set_tiers(tiers);
    cpu.attention.ask(hyperkit_soft::attention::want::KICK);
    let mut looks = HashMap::new();
    while cpu.run_to_fault(1).is_none() {
        looks.insert(cpu.retired, (cpu.rip, cpu.regs[..16].to_vec(), cpu.flags.rflags()));
    }
    looks
}

#[test]
fn between_call_and_return_an_interrupt_finds_what_the_interpreter_has() {
    let program = assembled((STACK_TOP, 0, 0), fibonacci);
    let expected = looks(&program, Tiers::INTERPRETER);
    let got = looks(&program, SOON);
    let mut seen = 0;
    for (retired, state) in &got {
        if let Some(expected) = expected.get(retired) {
            assert_eq!(state, expected, "after {retired}");
            seen += 1;
        }
    }
    assert!(seen >= 10, "{seen} of {} places", got.len());
}

/// A loop that calls a function; `body` is the function, `r15` the turns. RBX counts what comes after the call.
fn loop_of_calls(
    start: (u64, u64, u64),
    before: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>,
    body: impl Fn(&mut CodeAssembler, CodeLabel) -> Result<(), IcedError>,
) -> End {
    agreed(start, |a| {
        let (mut top, mut function) = (a.create_label(), a.create_label());
        let mut elsewhere = a.create_label();
        a.set_label(&mut top)?;
        before(a)?;
        a.call(function)?;
        a.lea(rbx, qword_ptr(rbx + 1))?; // leaves flags
        a.set_label(&mut elsewhere)?;
        a.pushfq()?;
        a.pop(rdx)?;
        a.imul_3(rsi, rsi, 31)?;
        a.add(rsi, rdx)?;
        a.dec(r15)?;
        a.jne(top)?;
        a.ud2()?;
        a.set_label(&mut function)?;
        body(a, elsewhere)
    })
}

#[test]
fn a_return_goes_where_the_stack_says() {
    let end = loop_of_calls(
        (STACK_TOP, 0, 20_000),
        |a| a.xor(eax, eax),
        |a, elsewhere| {
            let (mut on, mut same) = (a.create_label(), a.create_label());
            a.test(r15d, 7)?;
            a.jne(on)?;
            a.lea(rcx, ptr(elsewhere))?;
            a.mov(qword_ptr(rsp), rcx)?; // to another place, past the count
            a.set_label(&mut on)?;
            a.test(r15d, 8)?;
            a.je(same)?;
            a.add(r8d, r15d)?; // can be made again
            a.ret()?;
            a.set_label(&mut same)?;
            a.sbb(r9d, r15d)?; // cannot
            a.ret()
        },
    );
    assert_eq!((end.registers[3], end.registers[4]), (20_000 - 2500, STACK_TOP));
}

#[test]
fn a_return_address_that_another_register_points_to_is_found_changed() {
    let end = loop_of_calls(
        (STACK_TOP, STACK_TOP - 8, 500),
        |a| a.nop(),
        |a, elsewhere| {
            a.lea(rcx, ptr(elsewhere))?;
            a.mov(rax, qword_ptr(r14))?;
            a.test(r15d, 3)?;
            a.cmove(rax, rcx)?;
            a.mov(qword_ptr(r14), rax)?;
            a.ret()
        },
    );
    assert_eq!(end.registers[3], 500 - 125);
}

#[test]
fn a_return_takes_arguments_with_it() {
    let end = loop_of_calls(
        (STACK_TOP, 0, 700),
        |a| {
            a.push(r15)?;
            a.push(rbx)
        },
        |a, _| {
            a.add(rdi, qword_ptr(rsp + 16))?;
            a.ret_1(16)
        },
    );
    assert_eq!((end.registers[7], end.registers[4]), (700 * 701 / 2, STACK_TOP));
}

#[test]
fn a_function_that_pops_its_return_address_agrees() {
    let end = loop_of_calls(
        (STACK_TOP, 0, 300),
        |a| a.nop(),
        |a, _| {
            let mut next = a.create_label();
            a.call(next)?;
            a.set_label(&mut next)?;
            a.pop(rax)?;
            a.pop(rcx)?;
            a.push(rcx)?;
            a.push(rax)?;
            a.pop(rax)?;
            a.ret()
        },
    );
    assert_eq!((end.registers[3], end.registers[4]), (300, STACK_TOP));
}

/// A function that calls itself, and another one each time, until the stack ends.
fn endless(stack: u64) -> End {
    agreed((stack, 0, 0), |a| {
        let (mut deeper, mut leaf) = (a.create_label(), a.create_label());
        a.set_label(&mut deeper)?;
        a.inc(rbx)?;
        a.call(leaf)?;
        a.call(deeper)?;
        a.ud2()?;
        a.set_label(&mut leaf)?;
        a.lea(rax, qword_ptr(rax + rbx))?;
        a.ret()
    })
}

#[test]
fn a_call_whose_push_faults_has_done_nothing() {
    let end = endless(STACK_TOP);
    assert_eq!(end.fault.map(|(rip, vector, _)| (rip, vector)), Some((layout::CODE + 3, PF)));
    assert_eq!((end.registers[4], end.cr2), (layout::STACK, layout::STACK - 8));
    // The same with return addresses on both sides of pages' ends.
    let end = endless(STACK_TOP - 4);
    assert_eq!(end.fault.map(|(rip, vector, _)| (rip, vector)), Some((layout::CODE + 3, PF)));
    assert_eq!((end.registers[4], end.cr2), (layout::STACK + 4, layout::STACK - 4));
}

#[test]
fn a_return_whose_pop_faults_has_done_nothing() {
    let end = loop_of_calls(
        (STACK_TOP, STACK_TOP - 4, 400),
        |a| a.nop(),
        |a, _| {
            a.cmp(r15d, 17)?;
            a.cmove(rsp, r14)?;
            a.ret()
        },
    );
    assert_eq!(end.fault.map(|(_, vector, _)| vector), Some(PF));
    assert_eq!((end.registers[4], end.registers[15], end.cr2), (STACK_TOP - 4, 17, STACK_TOP));
}

#[test]
fn return_addresses_across_pages_agree() {
    let end = loop_of_calls(
        (layout::STACK + layout::PAGE + 1200, 0, 600),
        |a| a.sub(rsp, 3),
        |a, _| {
            a.push(rbx)?;
            a.add(rdi, qword_ptr(rsp + 8))?;
            a.pop(rcx)?;
            a.ret()
        },
    );
    assert_eq!((end.fault.map(|(_, vector, _)| vector), end.registers[3]), (Some(UD), 600));
}

/// A loop whose call ends `over` bytes past the end of a page.
fn call_at_the_end_of_a_page(over: usize) {
    let end = agreed((STACK_TOP, 0, 200), |a| {
        let (mut top, mut function) = (a.create_label(), a.create_label());
        let mut again = a.create_label();
        a.jmp(top)?; // 5 bytes
        a.set_label(&mut function)?;
        a.add(rax, 3)?; // 4 bytes
        a.ret()?;
        a.set_label(&mut again)?;
        a.nops_with_size(0x1000 - 10 - 5 + over)?;
        a.set_label(&mut top)?;
        a.call(function)?;
        a.lea(rbx, qword_ptr(rbx + 1))?;
        a.dec(r15)?;
        a.jne(again)?;
        a.ud2()
    });
    assert_eq!((end.registers[3], end.registers[0]), (200, 600), "{over}");
}

#[test]
fn calls_at_the_end_of_a_page_agree() {
    (0..6).for_each(call_at_the_end_of_a_page);
}

#[test]
fn a_function_that_was_changed_is_called_as_it_is() {
    for region in [layout::CODE, layout::ALIAS] {
        let end = agreed((STACK_TOP, region, 600), |a| {
            let (mut top, mut function) = (a.create_label(), a.create_label());
            let (mut on, mut own) = (a.create_label(), a.create_label());
            a.lea(r8, ptr(function))?;
            a.sub(r8, layout::CODE as i32)?;
            a.add(r8, r14)?;
            a.jmp(top)?;
            a.set_label(&mut function)?;
            a.add(edi, 1)?; // 83 c7 01
            a.test(r15d, 31)?;
            a.jne(own)?;
            a.mov(byte_ptr(r8 + 2), r15b)?; // changes itself
            a.set_label(&mut own)?;
            a.ret()?;
            a.set_label(&mut top)?;
            a.test(r15d, 63)?;
            a.jne(on)?;
            a.mov(byte_ptr(r8 + 2), bl)?; // is changed right before it is called
            a.set_label(&mut on)?;
            a.call(function)?;
            a.lea(rbx, qword_ptr(rbx + 1))?;
            a.dec(r15)?;
            a.jne(top)?;
            a.ud2()
        });
        assert_eq!((end.registers[3], end.fault.map(|fault| fault.1)), (600, Some(UD)));
    }
}

#[test]
fn a_return_to_what_was_just_changed_finds_it() {
    let end = agreed((STACK_TOP, layout::CODE, 400), |a| {
        let (mut top, mut function) = (a.create_label(), a.create_label());
        a.set_label(&mut top)?;
        a.call(function)?; // 5 bytes
        a.add(edi, 1)?; // 83 c7 01
        a.dec(r15)?;
        a.jne(top)?;
        a.ud2()?;
        a.set_label(&mut function)?;
        a.mov(byte_ptr(r14 + 7), r15b)?;
        a.ret()
    });
    let expected: i32 = (1..=400i32).map(|n| i32::from(n as i8)).sum();
    assert_eq!(end.registers[7] as u32, expected as u32);
}

#[test]
fn stacks_that_code_lies_on_agree() {
    // The return address is pushed onto the page of the code: it must not be written without a note.
    let end = loop_of_calls(
        (layout::CODE + 0x800, 0, 300),
        |a| a.nop(),
        |a, _| {
            a.add(rdi, qword_ptr(rsp))?;
            a.ret()
        },
    );
    assert_eq!(end.registers[3], 300);
}
