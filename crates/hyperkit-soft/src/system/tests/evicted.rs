//! Two processors whose code memory is used up again and again, while each writes to the other's code.

use hyperkit_mem::{GuestAddr, GuestRam};
use iced_x86::code_asm::*;

use super::smp::{run_and_count, second_in_64_bit_mode, start_second};
use super::switch::{RESULT, assemble, ram};
use crate::jit::Tiers;

/// Where the functions are that both call, and how far from each other: four to a page.
const FUNCTIONS: u64 = 0x4_0000;
const APART: u64 = 0x400;
const COUNT: u64 = 24;
/// How often each calls them.
const ROUNDS: u32 = 400;
/// Where the second says that it is done, and what both add to.
const DONE: u64 = 0x3000;
const SHARED: u64 = 0x3080;

/// Functions of two blocks and a loop, on a table of the caller's at R8.
fn put_functions(ram: &GuestRam) {
    for n in 0..COUNT {
        let code = assemble(64, FUNCTIONS + n * APART, |a| {
            let (mut again, mut on) = (a.create_label(), a.create_label());
            a.mov(ecx, 3 + n as u32).unwrap();
            a.set_label(&mut again).unwrap();
            a.add(rax, qword_ptr(r8 + 8 * n)).unwrap();
            a.rol(rax, 3).unwrap();
            a.adc(qword_ptr(r8 + 8 * n), rax).unwrap();
            a.dec(ecx).unwrap();
            a.jne(again).unwrap();
            a.test(al, 1).unwrap();
            a.je(on).unwrap();
            a.lock().inc(qword_ptr(SHARED)).unwrap();
            a.set_label(&mut on).unwrap();
            a.lock().inc(qword_ptr(SHARED)).unwrap();
            a.ret().unwrap();
        });
        ram.write(GuestAddr(FUNCTIONS + n * APART), &code).unwrap();
    }
}

/// Calls all of them so often, from a table of its own, and writes what is there already to the first byte of some.
fn call_all(a: &mut CodeAssembler, table: u32, odd: bool) {
    let mut round = a.create_label();
    a.mov(r8d, table).unwrap();
    a.mov(eax, table).unwrap();
    a.mov(r9d, ROUNDS).unwrap();
    a.set_label(&mut round).unwrap();
    for n in 0..COUNT {
        let function = FUNCTIONS + n * APART;
        a.mov(ebx, function as u32).unwrap();
        a.call(rbx).unwrap();
        if n % 4 == u64::from(odd) {
            a.mov(byte_ptr(rbx), 0xb9).unwrap(); // mov ecx
        }
    }
    a.dec(r9d).unwrap();
    a.jne(round).unwrap();
}

/// What both come to together, and how often all translations of each went.
fn run(tiers: Tiers) -> (u64, [u32; 2]) {
    let ram = ram();
    put_functions(&ram);
    let first = assemble(64, 0x9000, |a| {
        let mut wait = a.create_label();
        start_second(a);
        call_all(a, 0x2_0000, false);
        a.set_label(&mut wait).unwrap();
        a.pause().unwrap();
        a.cmp(dword_ptr(DONE), 1).unwrap();
        a.jne(wait).unwrap();
        a.add(rax, qword_ptr(SHARED)).unwrap();
        a.xor(rax, qword_ptr(SHARED + 8)).unwrap();
        a.mov(rcx, rax).unwrap();
        a.shr(rcx, 32).unwrap();
        a.xor(eax, ecx).unwrap();
        a.out(RESULT as i32, eax).unwrap();
        a.hlt().unwrap();
    });
    let second = second_in_64_bit_mode(&ram, |a| {
        call_all(a, 0x2_1000, true);
        a.mov(qword_ptr(SHARED + 8), rax).unwrap();
        a.mov(dword_ptr(DONE), 1).unwrap();
        a.hlt().unwrap();
    });
    run_and_count(&ram, &first, &second, tiers)
}

#[test]
fn two_processors_go_on_unchanged_when_their_code_memory_is_used_up() {
    let (expected, _) = run(Tiers::INTERPRETER);
    for tiers in [Tiers::BOTH, Tiers::FORCED] {
        assert_eq!(run(tiers), (expected, [0, 0]), "all of it has room: {tiers:?}");
        for code_bytes in [72 << 10, 64 << 10] {
            let cramped = Tiers { code_bytes, ..tiers };
            let (result, evictions) = run(cramped);
            assert_eq!(result, expected, "{cramped:?}");
            assert!(evictions.iter().all(|count| *count > 10), "{evictions:?} evictions: {cramped:?}");
        }
    }
}
