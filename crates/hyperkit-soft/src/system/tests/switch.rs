//! Whole programs through the engine's contract: mode switches, interrupts, sleep.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hyperkit_bus::{Bus, Device};
use hyperkit_hv::{CpuModel, Exit, Kick, Tsc, Vm, X86State};
use hyperkit_mem::{GuestAddr, GuestRam};
use iced_x86::code_asm::*;

use crate::SoftVm;
use crate::jit::Tiers;

/// Where the test device is.
pub const RESULT: u64 = 0xf0;

/// Keeps what is written to it and ends the run.
pub struct Result32(pub Arc<AtomicU64>, pub Arc<dyn Kick>);

impl Device for Result32 {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        let mut bytes = [0; 8];
        bytes[..data.len()].copy_from_slice(data);
        self.0.store(u64::from_le_bytes(bytes), Ordering::SeqCst);
        self.1.kick();
    }
}

/// Runs until the program writes to the test device; returns what it wrote.
pub fn run(ram: &Arc<GuestRam>, state: &X86State) -> u64 {
    run_in(ram, state, Tiers::BOTH)
}

/// The same with a choice of tiers.
pub fn run_in(ram: &Arc<GuestRam>, state: &X86State, tiers: Tiers) -> u64 {
    let model = CpuModel { vcpus: 1, tsc: Tsc::of_host() };
    run_on(&SoftVm::with_tiers(Arc::clone(ram), model, tiers).unwrap(), state)
}

/// The same on a machine.
pub fn run_on(vm: &SoftVm, state: &X86State) -> u64 {
    let result = Arc::new(AtomicU64::new(u64::MAX));
    let mut bus = Bus::default();
    let device = Result32(Arc::clone(&result), vm.kick(0));
    bus.ports.insert(RESULT, 4, Arc::new(Mutex::new(device))).unwrap();
    let mut vcpu = vm.take_vcpu(0).unwrap();
    vcpu.set_state(state).unwrap();
    assert_eq!(vcpu.run(&bus).unwrap(), Exit::Kicked, "{:#x?}", vcpu.state().unwrap());
    result.load(Ordering::SeqCst)
}

pub fn ram() -> Arc<GuestRam> {
    Arc::new(GuestRam::new(4 << 20).unwrap())
}

pub fn put_u64(ram: &GuestRam, at: u64, value: u64) {
    ram.write(GuestAddr(at), &value.to_le_bytes()).unwrap();
}

/// Null, 64-bit code, 32-bit code, data.
fn gdt(ram: &GuestRam, at: u64) {
    for (n, descriptor) in
        [0, 0x00af_9a00_0000_ffff, 0x00cf_9a00_0000_ffff, 0x00cf_9200_0000_ffff].into_iter().enumerate()
    {
        put_u64(ram, at + n as u64 * 8, descriptor);
    }
}

/// Identity map of the first GiB.
fn page_tables(ram: &GuestRam, at: u64) {
    put_u64(ram, at, (at + 0x1000) | 3);
    put_u64(ram, at + 0x1000, (at + 0x2000) | 3);
    for n in 0..512 {
        put_u64(ram, at + 0x2000 + n * 8, n << 21 | 0x83);
    }
}

pub fn assemble(bits: u32, at: u64, write: impl FnOnce(&mut CodeAssembler)) -> Vec<u8> {
    let mut code = CodeAssembler::new(bits).unwrap();
    write(&mut code);
    code.assemble(at).unwrap()
}

#[test]
fn code_goes_from_real_through_protected_to_64_bit_mode() {
    let ram = ram();
    gdt(&ram, 0x5000);
    ram.write(GuestAddr(0x5100), &[0x1f, 0, 0, 0x50, 0, 0]).unwrap(); // what LGDT loads
    page_tables(&ram, 0x1_0000);
    let real = assemble(16, 0x7000, |a| {
        a.xor(ax, ax).unwrap();
        a.mov(ds, ax).unwrap();
        a.lgdt(dword_ptr(0x5100)).unwrap();
        a.mov(eax, cr0).unwrap();
        a.or(eax, 1).unwrap();
        a.mov(cr0, eax).unwrap();
        a.db(&[0x66, 0xea, 0x00, 0x80, 0, 0, 0x10, 0]).unwrap(); // jmp far dword 10:8000
    });
    let protected = assemble(32, 0x8000, |a| {
        a.mov(eax, 0x18).unwrap();
        a.mov(ds, ax).unwrap();
        a.mov(ss, ax).unwrap();
        a.mov(eax, 0x20).unwrap();
        a.mov(cr4, eax).unwrap();
        a.mov(eax, 0x1_0000).unwrap();
        a.mov(cr3, eax).unwrap();
        a.mov(ecx, 0xc000_0080u32 as i32).unwrap();
        a.rdmsr().unwrap();
        a.or(eax, 0x100).unwrap();
        a.wrmsr().unwrap();
        a.mov(eax, cr0).unwrap();
        a.or(eax, i32::MIN).unwrap();
        a.mov(cr0, eax).unwrap();
        a.db(&[0xea, 0x00, 0x90, 0, 0, 0x08, 0]).unwrap(); // jmp far 8:9000
    });
    let long = assemble(64, 0x9000, |a| {
        a.mov(rax, 0x1_0000_0003u64).unwrap();
        a.mov(rcx, rax).unwrap();
        a.shr(rcx, 32).unwrap();
        a.add(eax, ecx).unwrap();
        a.out(RESULT as i32, eax).unwrap();
        a.hlt().unwrap();
    });
    for (at, code) in [(0x7000, real), (0x8000, protected), (0x9000, long)] {
        ram.write(GuestAddr(at), &code).unwrap();
    }
    let mut state = X86State::after_reset();
    state.segments[1].selector = 0;
    state.segments[1].base = 0;
    state.rip = 0x7000;
    assert_eq!(run(&ram, &state), 4);
}

/// 64-bit code at 0x9000 with the tables above, an IDT at 0x6000 and a stack.
pub fn long_mode(ram: &GuestRam, code: &[u8]) -> X86State {
    gdt(ram, 0x5000);
    page_tables(ram, 0x1_0000);
    ram.write(GuestAddr(0x9000), code).unwrap();
    let mut state = X86State::pvh(0x9000, 0);
    state.cr0 = 0x8000_0011;
    state.cr3 = 0x1_0000;
    state.cr4 = 0x20;
    state.efer = 0x500;
    for segment in &mut state.segments {
        segment.selector = 0x18;
    }
    state.segments[1].selector = 0x8;
    state.segments[1].rights = 0xa09b;
    state.gdtr.base = 0x5000;
    state.gdtr.limit = 0x1f;
    state.idtr.base = 0x6000;
    state.idtr.limit = 0xfff;
    state.gpr[4] = 0x8000;
    state
}

pub fn gate(ram: &GuestRam, vector: u64, handler: u64) {
    put_u64(ram, 0x6000 + vector * 16, handler & 0xffff | 8 << 16 | 0x8e00 << 32 | (handler >> 16) << 48);
}

#[test]
fn halt_sleeps_until_the_deadline_timer_interrupts() {
    let ram = ram();
    let ticks = u64::from(Tsc::of_host().khz) * 30; // 30 ms
    let code = assemble(64, 0x9000, |a| {
        a.mov(ecx, 0x1b).unwrap();
        a.mov(eax, 0xfee0_0d00u32 as i32).unwrap(); // x2APIC
        a.xor(edx, edx).unwrap();
        a.wrmsr().unwrap();
        a.mov(ecx, 0x80f).unwrap();
        a.mov(eax, 0x1ff).unwrap();
        a.wrmsr().unwrap();
        a.mov(ecx, 0x832).unwrap();
        a.mov(eax, 0x4_0040).unwrap(); // TSC-deadline, vector 40
        a.wrmsr().unwrap();
        a.rdtsc().unwrap();
        a.shl(rdx, 32).unwrap();
        a.or(rax, rdx).unwrap();
        a.mov(rdx, ticks).unwrap();
        a.add(rax, rdx).unwrap();
        a.mov(rdx, rax).unwrap();
        a.shr(rdx, 32).unwrap();
        a.mov(ecx, 0x6e0).unwrap();
        a.wrmsr().unwrap();
        a.sti().unwrap();
        a.hlt().unwrap();
        a.mov(eax, ebx).unwrap();
        a.out(RESULT as i32, eax).unwrap();
        a.hlt().unwrap();
    });
    let state = long_mode(&ram, &code);
    gate(&ram, 0x40, 0xa000);
    let handler = assemble(64, 0xa000, |a| {
        a.mov(ebx, 77).unwrap();
        a.iretq().unwrap();
    });
    ram.write(GuestAddr(0xa000), &handler).unwrap();
    let began = Instant::now();
    assert_eq!(run(&ram, &state), 77);
    assert!(began.elapsed() >= Duration::from_millis(29), "{:?}", began.elapsed());
}

#[test]
fn a_page_fault_handler_can_repair_the_page_and_return() {
    let ram = ram();
    let code = assemble(64, 0x9000, |a| {
        a.mov(rbx, 0x4000_0000u64).unwrap(); // the second GiB, not mapped
        a.mov(dword_ptr(rbx + 4), 1234).unwrap();
        a.mov(eax, dword_ptr(0x20_0004)).unwrap();
        a.out(RESULT as i32, eax).unwrap();
        a.hlt().unwrap();
    });
    let state = long_mode(&ram, &code);
    gate(&ram, 14, 0xa000);
    let handler = assemble(64, 0xa000, |a| {
        a.add(rsp, 8).unwrap();
        a.mov(rcx, cr2).unwrap();
        a.mov(qword_ptr(0x1_1008), 0x1_4003).unwrap(); // directory of the second GiB
        a.mov(qword_ptr(0x1_4000), 0x20_0083).unwrap(); // 2 MiB at 2 MiB
        a.iretq().unwrap();
    });
    ram.write(GuestAddr(0xa000), &handler).unwrap();
    assert_eq!(run(&ram, &state), 1234);
}

#[test]
fn a_triple_fault_ends_the_run() {
    let ram = ram();
    let code = assemble(64, 0x9000, |a| a.ud2().unwrap());
    let mut state = long_mode(&ram, &code);
    state.idtr.limit = 0;
    let vm = SoftVm::new(Arc::clone(&ram), CpuModel { vcpus: 1, tsc: Tsc::of_host() }).unwrap();
    let mut vcpu = vm.take_vcpu(0).unwrap();
    vcpu.set_state(&state).unwrap();
    assert_eq!(vcpu.run(&Bus::default()).unwrap(), Exit::TripleFault);
    assert_eq!(vcpu.state().unwrap().rip, 0x9000);
}

#[test]
fn a_kick_from_another_thread_wakes_a_sleeping_processor() {
    let ram = ram();
    let code = assemble(64, 0x9000, |a| a.hlt().unwrap());
    let state = long_mode(&ram, &code);
    let vm = SoftVm::new(Arc::clone(&ram), CpuModel { vcpus: 1, tsc: Tsc::of_host() }).unwrap();
    let mut vcpu = vm.take_vcpu(0).unwrap();
    vcpu.set_state(&state).unwrap();
    let kick = vm.kick(0);
    let kicker = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        kick.kick();
    });
    assert_eq!(vcpu.run(&Bus::default()).unwrap(), Exit::Kicked);
    assert!(vcpu.state().unwrap().halted);
    kicker.join().unwrap();
}

#[test]
fn a_saved_machine_goes_on_in_another() {
    let ram = ram();
    let model = CpuModel { vcpus: 1, tsc: Tsc::of_host() };
    let vm = SoftVm::new(Arc::clone(&ram), model.clone()).unwrap();
    let bytes = vm.save();
    let other = SoftVm::new(ram, model).unwrap();
    other.restore(&bytes).unwrap();
    assert!(other.restore(&bytes[..bytes.len() - 3]).is_err());
    assert!(other.restore(&[9]).is_err());
    assert!(other.restore(&[]).is_err());
}

#[test]
fn an_interrupt_comes_right_after_the_instruction_in_the_shadow_of_sti() {
    let ram = ram();
    let code = assemble(64, 0x9000, |a| {
        a.mov(ecx, 0x1b).unwrap();
        a.mov(eax, 0xfee0_0d00u32 as i32).unwrap(); // x2APIC
        a.xor(edx, edx).unwrap();
        a.wrmsr().unwrap();
        a.mov(ecx, 0x80f).unwrap();
        a.mov(eax, 0x1ff).unwrap();
        a.wrmsr().unwrap();
        a.mov(ecx, 0x83f).unwrap();
        a.mov(eax, 0x40).unwrap(); // to itself, vector 40
        a.wrmsr().unwrap();
        a.xor(ebx, ebx).unwrap();
        a.sti().unwrap();
        for _ in 0..8 {
            a.inc(ebx).unwrap();
        }
        a.mov(eax, 100).unwrap();
        a.out(RESULT as i32, eax).unwrap();
        a.hlt().unwrap();
    });
    let state = long_mode(&ram, &code);
    gate(&ram, 0x40, 0xa000);
    let handler = assemble(64, 0xa000, |a| {
        a.mov(eax, ebx).unwrap();
        a.out(RESULT as i32, eax).unwrap();
        a.hlt().unwrap();
    });
    ram.write(GuestAddr(0xa000), &handler).unwrap();
    assert_eq!(run(&ram, &state), 1);
}

/// Stores that take the fast path of either tier are recorded, in every round anew.
fn check_recording(tiers: Tiers) {
    let ram = ram();
    let code = assemble(64, 0x9000, |a| {
        let (mut again, mut turn) = (a.create_label(), a.create_label());
        a.set_label(&mut again).unwrap();
        a.mov(ecx, 100).unwrap();
        a.set_label(&mut turn).unwrap();
        a.mov(eax, dword_ptr(0x4_0000u64)).unwrap();
        a.mov(dword_ptr(0x4_2000u64), eax).unwrap();
        a.inc(dword_ptr(0x4_4ff0u64)).unwrap();
        a.mov(qword_ptr(0x4_6ffcu64), rax).unwrap();
        a.lock().inc(qword_ptr(0x4_8000u64)).unwrap();
        a.movups(xmmword_ptr(0x4_9010u64), xmm0).unwrap();
        a.dec(ecx).unwrap();
        a.jne(turn).unwrap();
        a.out(RESULT as i32, eax).unwrap();
        a.jmp(again).unwrap();
    });
    let mut state = long_mode(&ram, &code);
    state.cr4 |= 0x600;
    let model = CpuModel { vcpus: 1, tsc: Tsc::of_host() };
    let vm = SoftVm::with_tiers(Arc::clone(&ram), model, tiers).unwrap();
    let mut bus = Bus::default();
    let device = Result32(Arc::new(AtomicU64::new(0)), vm.kick(0));
    bus.ports.insert(RESULT, 4, Arc::new(Mutex::new(device))).unwrap();
    let mut vcpu = vm.take_vcpu(0).unwrap();
    vcpu.set_state(&state).unwrap();
    assert_eq!(vcpu.run(&bus).unwrap(), Exit::Kicked);
    ram.dirty().start();
    for round in 0..3 {
        assert_eq!(vcpu.run(&bus).unwrap(), Exit::Kicked);
        let pages = ram.dirty().take();
        let data: Vec<usize> = pages.into_iter().filter(|page| *page >= 0x40).collect();
        assert_eq!(data, [0x42, 0x44, 0x46, 0x47, 0x48, 0x49], "round {round}, {tiers:?}");
    }
    ram.dirty().stop();
    assert_eq!(vcpu.run(&bus).unwrap(), Exit::Kicked);
    assert!(ram.dirty().take().is_empty());
}

#[test]
fn writes_are_recorded_while_a_processor_runs_and_found_again_after_each_round() {
    for tiers in [Tiers::INTERPRETER, Tiers::BOTH, Tiers::FORCED] {
        check_recording(tiers);
    }
}
