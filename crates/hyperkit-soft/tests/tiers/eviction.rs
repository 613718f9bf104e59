//! Code memory that is used up again and again while a program runs: what was translated goes, and nothing else changes.

use hyperkit_soft::jit::Tiers;
use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::{DATA, Left, finish, ready};

/// Functions of the program: far more than the code memory below has room for.
const FUNCTIONS: u64 = 700;
/// How often all of them are called.
const ROUNDS: u32 = 12;
/// Code memory, of which 64 KiB are kept free.
const CODE_BYTES: usize = 256 << 10;

/// Calls many functions, directly and through a register, some of which are changed between the calls.
fn many_functions(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut functions: Vec<CodeLabel> = (0..FUNCTIONS).map(|_| a.create_label()).collect();
    let mut top = a.create_label();
    a.mov(r12d, ROUNDS)?;
    a.mov(rsi, DATA)?;
    a.set_label(&mut top)?;
    for (n, function) in functions.iter().enumerate() {
        if n % 3 == 0 {
            a.lea(r14, ptr(*function))?;
            a.call(r14)?;
        } else {
            a.call(*function)?;
        }
        if n % 50 == 49 {
            // The last byte of an immediate operand of one of them, so far back that it may be gone or not.
            a.lea(r14, ptr(functions[n - n / 2]))?;
            a.mov(byte_ptr(r14 + 5), r12b)?;
        }
    }
    a.dec(r12d)?;
    a.jne(top)?;
    a.ud2()?;
    for (n, function) in functions.iter_mut().enumerate() {
        let (mut again, mut on) = (a.create_label(), a.create_label());
        a.set_label(function)?;
        a.add(rax, 0x0135_79bd_i32.wrapping_mul(n as i32 + 1) & 0xff_ffff | 0x100_0000)?; // 48 05 …
        a.xor(rax, qword_ptr(rsi + 8 * n as i32))?;
        a.mov(ecx, 3 + n as u32 % 40)?;
        a.set_label(&mut again)?;
        a.rol(rax, 5)?;
        a.adc(qword_ptr(rsi + 8 * n as i32), rax)?;
        a.dec(ecx)?;
        a.jne(again)?;
        a.test(al, 1)?;
        a.je(on)?;
        a.push(rax)?;
        a.cvtsi2sd(xmm0, rcx)?;
        a.addsd(xmm1, xmm0)?;
        a.pop(rbx)?;
        a.add(rdx, rbx)?;
        a.set_label(&mut on)?;
        a.ret()?;
    }
    Ok(())
}

/// What the program leaves, and how often all translations went.
fn run(tiers: Tiers) -> (Left, u32) {
    let mut cpu = ready(many_functions, tiers);
    let before = cpu.blocks.jit.generation();
    let left = finish(&mut cpu);
    (left, cpu.blocks.jit.generation() - before)
}

#[test]
fn a_program_goes_on_unchanged_when_the_code_memory_is_used_up() {
    let (expected, _) = run(Tiers::INTERPRETER);
    for tiers in [Tiers::FORCED, Tiers::BOTH] {
        let (left, evictions) = run(tiers);
        assert!(left == expected, "{tiers:?}: {:x?}, not {:x?}", left.regs, expected.regs);
        assert_eq!(evictions, 0, "all of it has room: {tiers:?}");
        let cramped = Tiers { code_bytes: CODE_BYTES, ..tiers };
        let (left, evictions) = run(cramped);
        assert!(left == expected, "{cramped:?}: {:x?}, not {:x?}", left.regs, expected.regs);
        assert!(evictions >= ROUNDS / 2, "{evictions} evictions: {cramped:?}");
    }
}

#[test]
fn a_program_goes_on_unchanged_when_each_translation_drops_the_one_before() {
    let (expected, _) = run(Tiers::INTERPRETER);
    let (left, evictions) = run(Tiers::CRAMPED);
    assert!(left == expected, "{:x?}, not {:x?}", left.regs, expected.regs);
    assert!(u64::from(evictions) > FUNCTIONS * u64::from(ROUNDS), "{evictions} evictions");
}
