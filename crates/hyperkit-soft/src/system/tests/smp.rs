//! Two processors of one machine, in every tier: start-up, code that one writes and the other runs, LOCK, fences.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use hyperkit_bus::Bus;
use hyperkit_hv::{CpuModel, Exit, Tsc, Vcpu, Vm};
use hyperkit_mem::{GuestAddr, GuestRam};
use iced_x86::code_asm::*;

use super::switch::{RESULT, Result32, assemble, long_mode, ram};
use crate::SoftVm;
use crate::jit::Tiers;
use crate::vm::SoftVcpu;

pub const ALL_TIERS: [Tiers; 3] = [Tiers::INTERPRETER, Tiers::BOTH, Tiers::FORCED];

/// How the two are translated, beside the usual ways: with hardly any code memory, and on hosts that offer little.
pub const MORE_TIERS: [Tiers; 2] =
    [Tiers { code_bytes: 72 << 10, ..Tiers::BOTH }, Tiers { translate_after: Some(2), ..Tiers::PLAIN }];

/// Starts the second processor at 0x7000 in real mode, by INIT and SIPI.
pub fn start_second(a: &mut CodeAssembler) {
    a.mov(ecx, 0x1b).unwrap();
    a.mov(eax, 0xfee0_0d00u32 as i32).unwrap(); // x2APIC
    a.xor(edx, edx).unwrap();
    a.wrmsr().unwrap();
    a.mov(ecx, 0x830).unwrap();
    a.mov(edx, 1).unwrap(); // to processor 1:
    a.mov(eax, 0x4500).unwrap(); // INIT
    a.wrmsr().unwrap();
    a.mov(eax, 0x4607).unwrap(); // start at page 7
    a.wrmsr().unwrap();
}

/// Runs the first processor at 0x9000 in 64-bit mode, and the second from where the first has it start, until the first
/// writes to the test device; gives what it wrote.
pub fn run_both(ram: &Arc<GuestRam>, first: &[u8], second: &[u8], tiers: Tiers) -> u64 {
    run_and_count(ram, first, second, tiers).0
}

/// The same, with how often all translations of each went.
pub fn run_and_count(ram: &Arc<GuestRam>, first: &[u8], second: &[u8], tiers: Tiers) -> (u64, [u32; 2]) {
    let state = long_mode(ram, first);
    ram.write(GuestAddr(0x7000), second).unwrap();
    let vm = SoftVm::with_tiers(Arc::clone(ram), CpuModel { vcpus: 2, tsc: Tsc::of_host() }, tiers).unwrap();
    let result = Arc::new(AtomicU64::new(0));
    let mut bus = Bus::default();
    let device = Result32(Arc::clone(&result), vm.kick(0));
    bus.ports.insert(RESULT, 4, Arc::new(Mutex::new(device))).unwrap();
    let (mut zero, mut one) = (vm.take(0).unwrap(), vm.take(1).unwrap());
    let generations = |zero: &SoftVcpu, one: &SoftVcpu| [zero, one].map(|of| of.cpu.blocks.jit.generation());
    let before = generations(&zero, &one);
    zero.set_state(&state).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| assert_eq!(one.run(&bus).unwrap(), Exit::Kicked));
        assert_eq!(zero.run(&bus).unwrap(), Exit::Kicked);
        vm.kick(1).kick();
    });
    let after = generations(&zero, &one);
    (result.load(Ordering::SeqCst), [after[0] - before[0], after[1] - before[1]])
}

/// Code at 0x7000 that brings the second processor to 64-bit mode with the first one's tables, global pages and
/// CR0.WP, and to 0xb000 with interrupts off and its APIC on; `write` makes what is there.
pub fn second_in_64_bit_mode(ram: &GuestRam, write: impl FnOnce(&mut CodeAssembler)) -> Vec<u8> {
    ram.write(GuestAddr(0x5100), &[0x1f, 0, 0, 0x50, 0, 0]).unwrap(); // what LGDT loads
    ram.write(GuestAddr(0x5108), &[0xff, 0x0f, 0, 0x60, 0, 0]).unwrap(); // and LIDT
    let long = assemble(64, 0xb000, |a| {
        a.mov(eax, 0x18).unwrap();
        a.mov(ds, ax).unwrap();
        a.mov(ss, ax).unwrap();
        a.mov(esp, 0xf000).unwrap();
        for (register, value) in [(0x1b, 0xfee0_0c00u32 as i32), (0x80f, 0x1ff)] {
            a.mov(ecx, register).unwrap();
            a.mov(eax, value).unwrap();
            a.xor(edx, edx).unwrap();
            a.wrmsr().unwrap();
        }
        write(a);
    });
    ram.write(GuestAddr(0xb000), &long).unwrap();
    assemble(16, 0x7000, |a| {
        a.xor(ax, ax).unwrap();
        a.mov(ds, ax).unwrap();
        a.lgdt(dword_ptr(0x5100)).unwrap();
        a.lidt(dword_ptr(0x5108)).unwrap();
        a.mov(eax, 0xa0).unwrap(); // PAE, PGE
        a.mov(cr4, eax).unwrap();
        a.mov(eax, 0x1_0000).unwrap();
        a.mov(cr3, eax).unwrap();
        a.mov(ecx, 0xc000_0080u32).unwrap();
        a.mov(eax, 0x100).unwrap(); // LME
        a.xor(edx, edx).unwrap();
        a.wrmsr().unwrap();
        a.mov(eax, 0x8001_0011u32).unwrap(); // PG, WP, ET, PE
        a.mov(cr0, eax).unwrap();
        a.db(&[0x66, 0xea, 0x00, 0xb0, 0, 0, 0x08, 0]).unwrap(); // jmp far dword 8:b000
    })
}

fn writes_to_running_code_are_seen(tiers: Tiers) {
    let ram = ram();
    let first = assemble(64, 0x9000, |a| {
        start_second(a);
        a.jmp(0xb000).unwrap();
    });
    let spin = assemble(64, 0xb000, |a| {
        a.db(&[0xeb, 0xfe]).unwrap(); // jmp to itself, until processor 1 puts two NOPs here
        a.mov(eax, 99).unwrap();
        a.out(RESULT as i32, eax).unwrap();
        a.hlt().unwrap();
    });
    ram.write(GuestAddr(0xb000), &spin).unwrap();
    let second = assemble(16, 0x7000, |a| {
        a.mov(cx, 0xffff).unwrap();
        let mut wait = a.create_label();
        a.set_label(&mut wait).unwrap();
        a.dec(cx).unwrap();
        a.jne(wait).unwrap();
        a.mov(ax, 0xb00).unwrap();
        a.mov(ds, ax).unwrap();
        a.mov(word_ptr(0), 0x9090).unwrap();
        a.hlt().unwrap();
    });
    assert_eq!(run_both(&ram, &first, &second, tiers), 99, "{tiers:?}");
}

#[test]
fn a_second_processor_starts_and_its_writes_to_running_code_are_seen() {
    ALL_TIERS.into_iter().for_each(writes_to_running_code_are_seen);
}

/// How often the second processor said that it started, of so many times; less when it did not for long.
fn starts(times: u32, tiers: Tiers) -> u64 {
    let first = assemble(64, 0x9000, |a| {
        let (mut again, mut wait, mut done) = (a.create_label(), a.create_label(), a.create_label());
        a.xor(ebx, ebx).unwrap();
        a.set_label(&mut again).unwrap();
        a.mov(byte_ptr(0x3001u64), 0).unwrap();
        start_second(a);
        a.mov(esi, 2_000_000).unwrap();
        a.set_label(&mut wait).unwrap();
        a.pause().unwrap();
        a.dec(esi).unwrap();
        a.je(done).unwrap();
        a.cmp(byte_ptr(0x3001u64), 0).unwrap();
        a.je(wait).unwrap();
        a.inc(ebx).unwrap();
        a.cmp(ebx, times).unwrap();
        a.jb(again).unwrap();
        a.set_label(&mut done).unwrap();
        a.mov(eax, ebx).unwrap();
        a.out(RESULT as i32, eax).unwrap();
        a.hlt().unwrap();
    });
    let second = assemble(16, 0x7000, |a| {
        a.xor(ax, ax).unwrap();
        a.mov(ds, ax).unwrap();
        a.mov(byte_ptr(0x3001), 1).unwrap();
        a.hlt().unwrap();
    });
    run_both(&ram(), &first, &second, tiers)
}

/// A SIPI that comes while INIT is being carried out is not lost with what INIT clears.
#[test]
fn a_second_processor_starts_each_time_that_it_is_told_to() {
    for tiers in ALL_TIERS {
        assert_eq!(starts(20_000, tiers), 20_000, "{tiers:?}");
    }
}

/// Two processors add 1 so often to the four bytes at an address, with LOCK; what is there then.
fn add_from_two(at: u64, times: u32, tiers: Tiers) -> u32 {
    let first = assemble(64, 0x9000, |a| {
        start_second(a);
        let (mut wait, mut again) = (a.create_label(), a.create_label());
        a.set_label(&mut wait).unwrap();
        a.pause().unwrap();
        a.cmp(byte_ptr(0x3001u64), 0).unwrap();
        a.je(wait).unwrap();
        a.mov(ebx, times).unwrap();
        a.mov(rdi, at).unwrap();
        a.set_label(&mut again).unwrap();
        a.lock().inc(dword_ptr(rdi)).unwrap();
        a.dec(ebx).unwrap();
        a.jne(again).unwrap();
        let mut wait = a.create_label();
        a.set_label(&mut wait).unwrap();
        a.pause().unwrap();
        a.cmp(byte_ptr(0x3003u64), 0).unwrap();
        a.je(wait).unwrap();
        a.mov(eax, dword_ptr(at)).unwrap();
        a.out(RESULT as i32, eax).unwrap();
        a.hlt().unwrap();
    });
    let second = assemble(16, 0x7000, |a| {
        let mut again = a.create_label();
        a.xor(ax, ax).unwrap();
        a.mov(ds, ax).unwrap();
        a.mov(byte_ptr(0x3001), 1).unwrap();
        a.mov(ebx, times).unwrap();
        a.mov(di, at as u32).unwrap();
        a.set_label(&mut again).unwrap();
        a.lock().inc(dword_ptr(di)).unwrap();
        a.dec(ebx).unwrap();
        a.jne(again).unwrap();
        a.mov(byte_ptr(0x3003), 1).unwrap();
        a.hlt().unwrap();
    });
    run_both(&ram(), &first, &second, tiers) as u32
}

#[test]
fn locked_additions_of_two_processors_are_never_lost() {
    // Aligned; inside 8 bytes; across 8 bytes; across pages; on the page of the code that does it.
    for (at, times) in
        [(0x4000, 200_000), (0x4001, 100_000), (0x4005, 2_000), (0x4fff, 2_000), (0x7f00, 20_000)]
    {
        for tiers in ALL_TIERS {
            assert_eq!(add_from_two(at, times, tiers), 2 * times, "{at:#x}, {tiers:?}");
        }
    }
}

/// What each processor writes in a round, and what it tells the other by; each in a line of the cache of its own.
const WRITTEN: [i32; 2] = [0x4000, 0x4080];
const SEEN: [i32; 2] = [0x4100, 0x4180];
const READY: [i32; 2] = [0x4200, 0x4280];
const DONE: [i32; 2] = [0x4300, 0x4380];

/// One side of the round in ESI: both begin together, write theirs, and look at the other's.
fn write_and_look(a: &mut CodeAssembler, me: usize, order: fn(&mut CodeAssembler)) {
    let other = 1 - me;
    for (mine, theirs) in [(READY[me], READY[other]), (DONE[me], DONE[other])] {
        let mut wait = a.create_label();
        a.mov(dword_ptr(mine), esi).unwrap();
        a.set_label(&mut wait).unwrap();
        a.pause().unwrap();
        a.cmp(dword_ptr(theirs), esi).unwrap();
        a.jb(wait).unwrap();
        if mine == READY[me] {
            a.mov(dword_ptr(WRITTEN[me]), esi).unwrap();
            order(a);
            a.mov(eax, dword_ptr(WRITTEN[other])).unwrap();
            a.mov(dword_ptr(SEEN[me]), eax).unwrap();
        }
    }
}

/// In how many of so many rounds neither processor saw what the other had written before it looked (SDM vol. 3A §8.2.3.4).
fn unseen(rounds: i32, order: fn(&mut CodeAssembler), tiers: Tiers) -> u64 {
    let first = assemble(64, 0x9000, |a| {
        start_second(a);
        let (mut round, mut fine) = (a.create_label(), a.create_label());
        a.xor(esi, esi).unwrap();
        a.xor(ebx, ebx).unwrap();
        a.set_label(&mut round).unwrap();
        a.inc(esi).unwrap();
        write_and_look(a, 0, order);
        a.cmp(dword_ptr(SEEN[0]), esi).unwrap();
        a.jae(fine).unwrap();
        a.cmp(dword_ptr(SEEN[1]), esi).unwrap();
        a.jae(fine).unwrap();
        a.inc(ebx).unwrap();
        a.set_label(&mut fine).unwrap();
        a.cmp(esi, rounds).unwrap();
        a.jb(round).unwrap();
        a.mov(eax, ebx).unwrap();
        a.out(RESULT as i32, eax).unwrap();
        a.hlt().unwrap();
    });
    let second = assemble(16, 0x7000, |a| {
        let mut round = a.create_label();
        a.xor(ax, ax).unwrap();
        a.mov(ds, ax).unwrap();
        a.xor(esi, esi).unwrap();
        a.set_label(&mut round).unwrap();
        a.inc(esi).unwrap();
        write_and_look(a, 1, order);
        a.cmp(esi, rounds).unwrap();
        a.jb(round).unwrap();
        a.hlt().unwrap();
    });
    run_both(&ram(), &first, &second, tiers)
}

#[test]
fn a_store_before_a_fence_or_a_locked_instruction_is_seen_by_who_looks_after_it() {
    let orders: [fn(&mut CodeAssembler); 2] =
        [|a| a.mfence().unwrap(), |a| a.lock().inc(dword_ptr(0x4400)).unwrap()];
    for (order, tiers) in orders.into_iter().flat_map(|order| ALL_TIERS.map(|tiers| (order, tiers))) {
        assert_eq!(unseen(2000, order, tiers), 0, "{tiers:?}");
    }
}
