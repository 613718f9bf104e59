//! Which translations a change of CR3 or CR4, INVLPG and INVPCID keep and which they forget: SDM vol. 3A §4.10.4.1.

use hyperkit_mem::GuestRam;

use super::{G, LINEAR, P, PAGE, TABLES, U, W, entry_at, long, put};
use crate::cpu::Cpu;
use crate::decode::blocks::SPACES;
use crate::system::cr4;
use crate::system::mode::{TLB_SMAP, TLB_SUPERVISOR, TLB_USER};
use crate::trap::vector;
use std::sync::Arc;

/// Where the instructions of these tests are put, and the descriptor of INVPCID.
const CODE: u64 = 0x5000;
const DESCRIPTOR: u64 = 0x6000;

const KEEP: u64 = 1 << 63;

/// As [`long`], with `CODE` and `DESCRIPTOR` mapped one to one, globally, and PCIDs on.
fn with_pcids(leaf: u64) -> (Arc<GuestRam>, Box<Cpu>) {
    let (ram, mut cpu) = long(leaf);
    let low = [0x1_4000, 0x1_5000, 0x1_6000];
    put(&ram, TABLES[0], low[0] | P | W | U);
    put(&ram, low[0], low[1] | P | W | U);
    put(&ram, low[1], low[2] | P | W | U);
    put(&ram, low[2] + 8 * (CODE >> 12), CODE | P | W | G);
    put(&ram, low[2] + 8 * (DESCRIPTOR >> 12), DESCRIPTOR | P | W | G);
    execute(&ram, &mut cpu, &[0x0f, 0x22, 0xe0], cpu_cr4(&cpu_bits()));
    (ram, cpu)
}

fn cpu_bits() -> [u64; 5] {
    [cr4::PAE, cr4::PGE, cr4::PCIDE, cr4::OSFXSR, cr4::OSXMMEXCPT]
}

fn cpu_cr4(bits: &[u64]) -> u64 {
    bits.iter().sum()
}

/// Executes one instruction with RAX = `rax`; the vector of its fault, if any.
fn execute(ram: &GuestRam, cpu: &mut Cpu, instruction: &[u8], rax: u64) -> Option<u8> {
    let mut code = instruction.to_vec();
    code.extend([0x0f, 0x0b]); // ud2
    ram.write(hyperkit_mem::GuestAddr(CODE), &code).unwrap();
    cpu.regs[0] = rax;
    cpu.rip = CODE;
    let (at, fault) = cpu.run_to_fault(100).unwrap();
    (at != CODE + instruction.len() as u64 || fault.vector != vector::UD).then_some(fault.vector)
}

fn set_cr3(ram: &GuestRam, cpu: &mut Cpu, low: u64) {
    assert_eq!(execute(ram, cpu, &[0x0f, 0x22, 0xd8], TABLES[0] | low), None);
}

/// INVPCID of a kind, with a PCID and an address.
fn invpcid(ram: &GuestRam, cpu: &mut Cpu, kind: u64, pcid: u64, linear: u64) -> Option<u8> {
    put(ram, DESCRIPTOR, pcid);
    put(ram, DESCRIPTOR + 8, linear);
    execute(ram, cpu, &[0x66, 0x0f, 0x38, 0x82, 0x04, 0x25, 0x00, 0x60, 0x00, 0x00], kind)
}

/// The page that `LINEAR` leads to once its entry has been changed: `PAGE` if the translation was kept, as page numbers.
struct Seen<'a> {
    ram: &'a GuestRam,
    leaf: u64,
}

impl Seen<'_> {
    /// Has the translation of `PAGE` known under the current PCID, then changes the entry.
    fn learn(&self, cpu: &mut Cpu) {
        put(self.ram, entry_at(3), PAGE | self.leaf);
        cpu.load::<u8>(LINEAR).unwrap();
        put(self.ram, entry_at(3), 0x3_0000 | self.leaf);
    }

    fn kept(&self, cpu: &mut Cpu) -> bool {
        self.ram.write(hyperkit_mem::GuestAddr(PAGE), &[7]).unwrap();
        self.ram.write(hyperkit_mem::GuestAddr(0x3_0000), &[8]).unwrap();
        cpu.load::<u8>(LINEAR).unwrap() == 7
    }
}

/// Learns under PCIDs 1 and 2, does something under PCID 2, and tells which of the two were kept.
fn kept_after(leaf: u64, index: usize, action: impl Fn(&GuestRam, &mut Cpu)) -> [bool; 2] {
    let (ram, mut cpu) = with_pcids(leaf);
    let seen = Seen { ram: &ram, leaf };
    let view = |cpu: &mut Cpu| cpu.use_tlb(index);
    let supervisor = |cpu: &mut Cpu| cpu.use_tlb(TLB_SUPERVISOR);
    for pcid in [1, 2] {
        set_cr3(&ram, &mut cpu, pcid | KEEP);
        view(&mut cpu);
        seen.learn(&mut cpu);
        supervisor(&mut cpu);
    }
    action(&ram, &mut cpu);
    view(&mut cpu);
    let second = seen.kept(&mut cpu);
    supervisor(&mut cpu);
    set_cr3(&ram, &mut cpu, 1 | KEEP);
    view(&mut cpu);
    let first = seen.kept(&mut cpu);
    [first, second]
}

#[test]
fn each_rule_of_invalidation_holds() {
    type Action = fn(&GuestRam, &mut Cpu);
    // What is kept of PCID 1 and of PCID 2, which is current; what is kept of a global translation.
    let cases: &[(&str, Action, [bool; 2], bool)] = &[
        ("nothing", |_, _| {}, [true, true], true),
        ("CR3, flushing", |ram, cpu| set_cr3(ram, cpu, 2), [true, false], true),
        ("CR3, keeping", |ram, cpu| set_cr3(ram, cpu, 2 | KEEP), [true, true], true),
        (
            "CR3 of another PCID, flushing",
            |ram, cpu| {
                set_cr3(ram, cpu, 1);
                set_cr3(ram, cpu, 2 | KEEP);
            },
            [false, true],
            true,
        ),
        ("INVLPG", |_, cpu| cpu.flush_page(LINEAR + 0x123), [true, false], false),
        ("INVLPG of another page", |_, cpu| cpu.flush_page(LINEAR + 0x1000), [true, true], true),
        ("INVPCID 0", |ram, cpu| assert_eq!(invpcid(ram, cpu, 0, 1, LINEAR), None), [false, true], true),
        (
            "INVPCID 0, current",
            |ram, cpu| assert_eq!(invpcid(ram, cpu, 0, 2, LINEAR + 9), None),
            [true, false],
            true,
        ),
        ("INVPCID 0, elsewhere", |ram, cpu| assert_eq!(invpcid(ram, cpu, 0, 2, 0), None), [true, true], true),
        ("INVPCID 1", |ram, cpu| assert_eq!(invpcid(ram, cpu, 1, 1, 0), None), [false, true], true),
        ("INVPCID 2", |ram, cpu| assert_eq!(invpcid(ram, cpu, 2, 0, 0), None), [false, false], false),
        ("INVPCID 3", |ram, cpu| assert_eq!(invpcid(ram, cpu, 3, 0, 0), None), [false, false], true),
        (
            "CR4.PGE",
            |ram, cpu| {
                for bits in
                    [&[cr4::PAE, cr4::PCIDE, cr4::OSFXSR][..], &[cr4::PAE, cr4::PCIDE, cr4::PGE, cr4::OSFXSR]]
                {
                    assert_eq!(execute(ram, cpu, &[0x0f, 0x22, 0xe0], cpu_cr4(bits)), None);
                }
            },
            [false, false],
            false,
        ),
    ];
    for (name, action, expected, global) in cases {
        for index in [TLB_SUPERVISOR, TLB_USER] {
            assert_eq!(kept_after(P | W | U, index, action), *expected, "{name} {index}");
            // A global translation that was learnt under PCID 1 is only known there; both have learnt it here.
            assert_eq!(kept_after(P | W | U | G, index, action), [*global; 2], "{name} {index}, global");
        }
        // What SMAP's TLB knows of other address spaces may be forgotten at any time.
        let [_, current] = kept_after(P | W, TLB_SMAP, action);
        assert!(!current || expected[1], "{name} with SMAP");
        assert_eq!(kept_after(P | W | G, TLB_SMAP, action), [*global; 2], "{name} with SMAP, global");
    }
}

#[test]
fn a_pcid_that_comes_back_after_many_others_knows_nothing_stale() {
    let (ram, mut cpu) = with_pcids(P | W);
    let seen = Seen { ram: &ram, leaf: P | W };
    set_cr3(&ram, &mut cpu, 1);
    seen.learn(&mut cpu);
    for pcid in 2..=SPACES as u64 {
        set_cr3(&ram, &mut cpu, pcid | KEEP);
        assert!(!seen.kept(&mut cpu), "{pcid} begins with nothing");
    }
    set_cr3(&ram, &mut cpu, 1 | KEEP);
    assert!(seen.kept(&mut cpu), "so many fit");
    for pcid in 0..SPACES as u64 {
        set_cr3(&ram, &mut cpu, (100 + pcid) | KEEP);
    }
    set_cr3(&ram, &mut cpu, 1 | KEEP);
    assert!(!seen.kept(&mut cpu), "its place was taken");
}

#[test]
fn code_found_under_one_pcid_is_not_run_under_another() {
    let (ram, mut cpu) = with_pcids(P | W);
    let (here, there) = ([0xb8, 7, 0, 0, 0, 0x0f, 0x0b], [0xb8, 9, 0, 0, 0, 0x0f, 0x0b]);
    ram.write(hyperkit_mem::GuestAddr(PAGE), &here).unwrap();
    ram.write(hyperkit_mem::GuestAddr(0x3_0000), &there).unwrap();
    let run = |cpu: &mut Cpu| {
        cpu.rip = LINEAR;
        cpu.run_to_fault(100).unwrap();
        cpu.regs[0]
    };
    set_cr3(&ram, &mut cpu, 1);
    assert_eq!(run(&mut cpu), 7);
    put(&ram, entry_at(3), 0x3_0000 | P | W);
    set_cr3(&ram, &mut cpu, 2);
    assert_eq!(run(&mut cpu), 9);
    put(&ram, entry_at(3), PAGE | P | W);
    assert_eq!(invpcid(&ram, &mut cpu, 0, 2, LINEAR), None);
    assert_eq!(run(&mut cpu), 7);
}

#[test]
fn what_the_manual_forbids_is_a_protection_fault() {
    let (ram, mut cpu) = with_pcids(P | W);
    let gp = Some(vector::GP);
    assert_eq!(invpcid(&ram, &mut cpu, 4, 0, 0), gp, "no such kind");
    assert_eq!(invpcid(&ram, &mut cpu, 1, 0x1000, 0), gp, "reserved bits of the descriptor");
    assert_eq!(invpcid(&ram, &mut cpu, 0, 1, 1 << 47), gp, "not canonical");
    assert_eq!(execute(&ram, &mut cpu, &[0x0f, 0x22, 0xd8], TABLES[0] | 1 << 62), gp, "reserved bit of CR3");
    assert_eq!(execute(&ram, &mut cpu, &[0x0f, 0x22, 0xc0], 0x33), gp, "paging stays on");
    set_cr3(&ram, &mut cpu, 5);
    let (without, with) = (cr4::PAE | cr4::OSFXSR, cr4::PAE | cr4::OSFXSR | cr4::PCIDE);
    assert_eq!(execute(&ram, &mut cpu, &[0x0f, 0x22, 0xe0], without), None);
    assert_eq!(execute(&ram, &mut cpu, &[0x0f, 0x22, 0xe0], with), gp, "CR3 still names a PCID");
    assert_eq!(
        execute(&ram, &mut cpu, &[0x0f, 0x22, 0xd8], TABLES[0] | KEEP),
        gp,
        "bit 63 is reserved again"
    );
    assert_eq!(invpcid(&ram, &mut cpu, 1, 5, 0), gp, "only PCID 0 exists");
    assert_eq!(invpcid(&ram, &mut cpu, 1, 0, 0), None);
    cpu.cpl = 3;
    cpu.use_tlb(TLB_SUPERVISOR);
    assert_eq!(invpcid(&ram, &mut cpu, 2, 0, 0), gp, "privileged");
}
