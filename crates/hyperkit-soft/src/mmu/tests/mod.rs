//! Tests of page walks, faults and the slow paths.

mod pcid;

use std::sync::Arc;

use hyperkit_hv::X86State;
use hyperkit_mem::{GuestAddr, GuestRam};

use crate::cpu::Cpu;
use crate::mem::Access;
use crate::system::mode::{TLB_SMAP, TLB_SUPERVISOR, TLB_USER};
use crate::system::{cr0, cr4, efer};
use crate::trap::vector;

const P: u64 = 1;
const W: u64 = 2;
const U: u64 = 4;
const A: u64 = 0x20;
const D: u64 = 0x40;
const PS: u64 = 0x80;
const G: u64 = 0x100;
const NX: u64 = 1 << 63;

/// Where the tables of every test are: one page per level, in the order of the walk.
const TABLES: [u64; 4] = [0x1_0000, 0x1_1000, 0x1_2000, 0x1_3000];
const PAGE: u64 = 0x2_0000;
/// Its indices in the four tables are all different.
const LINEAR: u64 = 1 << 39 | 2 << 30 | 3 << 21 | 4 << 12;

fn put(ram: &GuestRam, at: u64, entry: u64) {
    ram.write(GuestAddr(at), &entry.to_le_bytes()).unwrap();
}

fn entry_at(level: usize) -> u64 {
    TABLES[level] + (LINEAR >> (39 - 9 * level) & 0x1ff) * 8
}

/// Four-level paging; `LINEAR` maps `PAGE` with these flags in the last entry and full rights above.
fn long(leaf: u64) -> (Arc<GuestRam>, Box<Cpu>) {
    let ram = Arc::new(GuestRam::new(8 << 20).unwrap());
    for level in 0..3 {
        put(&ram, entry_at(level), TABLES[level + 1] | P | W | U);
    }
    put(&ram, entry_at(3), PAGE | leaf);
    let mut cpu = Cpu::for_tests(Arc::clone(&ram));
    let mut state = cpu.give_state();
    state.cr0 |= cr0::PG | cr0::WP;
    state.cr3 = TABLES[0];
    state.cr4 |= cr4::PAE | cr4::PGE;
    state.efer |= efer::NXE;
    cpu.take_state(&state);
    (ram, cpu)
}

/// The error code of the fault, or `None` if there is a translation.
fn fault(cpu: &mut Cpu, access: Access, index: usize) -> Option<u16> {
    cpu.use_tlb(index);
    match cpu.translate(LINEAR + 5, access) {
        Ok(phys) => {
            assert_eq!(phys, PAGE + 5);
            None
        }
        Err(_) => {
            let fault = cpu.fault.take().unwrap();
            assert_eq!((fault.vector, cpu.cr2), (vector::PF, LINEAR + 5));
            fault.error
        }
    }
}

#[test]
fn without_paging_linear_addresses_are_physical() {
    let ram = Arc::new(GuestRam::new(8 << 20).unwrap());
    let mut cpu = Cpu::for_tests(Arc::clone(&ram));
    cpu.store::<u64>(0x1ffc, 0x1122_3344_5566_7788).unwrap();
    assert_eq!(ram.read_u64(GuestAddr(0x1ffc)).unwrap(), 0x1122_3344_5566_7788);
    assert_eq!(cpu.load::<u128>(0x1ff8).unwrap(), 0x1122_3344_5566_7788 << 32);
    assert_eq!(cpu.fetch_page(0x3123).unwrap().phys, 0x3000);
    assert_eq!(cpu.load::<u32>(64 << 20).unwrap(), u32::MAX, "no RAM and no device there");
}

#[test]
fn rights_of_a_page_decide_who_may_do_what() {
    use Access::{Fetch, Read, Write};
    const SUP: usize = TLB_SUPERVISOR;
    let cases: &[(u64, Access, usize, Option<u16>)] = &[
        (0, Read, SUP, Some(0)),
        (0, Write, SUP, Some(2)),
        (0, Read, TLB_USER, Some(4)),
        (0, Write, TLB_USER, Some(6)),
        (0, Fetch, TLB_USER, Some(0x14)),
        (P, Read, SUP, None),
        (P, Write, SUP, Some(3)),
        (P | W, Write, SUP, None),
        (P | W, Read, TLB_USER, Some(5)),
        (P | W, Write, TLB_USER, Some(7)),
        (P | W, Fetch, TLB_USER, Some(0x15)),
        (P | U, Read, TLB_USER, None),
        (P | U, Write, TLB_USER, Some(7)),
        (P | W | U, Write, TLB_USER, None),
        (P | W | U | NX, Fetch, TLB_USER, Some(0x15)),
        (P | NX, Fetch, SUP, Some(0x11)),
        (P | U, Fetch, SUP, None),
        (P | U, Read, TLB_SMAP, Some(1)),
        (P | W | U, Write, TLB_SMAP, Some(3)),
        (P | W | U, Write, SUP, None),
        (P | 1 << 50, Read, SUP, Some(9)),
        (P | 1 << 50, Write, TLB_USER, Some(0xf)),
    ];
    for (leaf, access, index, expected) in cases {
        let (_, mut cpu) = long(*leaf);
        assert_eq!(fault(&mut cpu, *access, *index), *expected, "{leaf:#x} {access:?} {index}");
    }
}

#[test]
fn smep_keeps_the_supervisor_from_running_user_pages() {
    let (_, mut cpu) = long(P | U);
    cpu.cr4 |= cr4::SMEP;
    assert_eq!(fault(&mut cpu, Access::Fetch, TLB_SUPERVISOR), Some(0x11));
}

#[test]
fn without_wp_the_supervisor_writes_read_only_pages() {
    let (_, mut cpu) = long(P);
    cpu.cr0 &= !cr0::WP;
    assert_eq!(fault(&mut cpu, Access::Write, TLB_SUPERVISOR), None);
}

#[test]
fn nx_is_reserved_while_efer_does_not_enable_it() {
    let (_, mut cpu) = long(P | NX);
    cpu.efer &= !efer::NXE;
    assert_eq!(fault(&mut cpu, Access::Read, TLB_SUPERVISOR), Some(9));
}

#[test]
fn rights_are_the_least_of_all_levels() {
    let (ram, mut cpu) = long(P | W | U);
    put(&ram, entry_at(1), TABLES[2] | P | U);
    assert_eq!(fault(&mut cpu, Access::Write, TLB_USER), Some(7));
    put(&ram, entry_at(1), TABLES[2] | P | W);
    assert_eq!(fault(&mut cpu, Access::Read, TLB_USER), Some(5));
    put(&ram, entry_at(1), TABLES[2] | P | W | U | NX);
    assert_eq!(fault(&mut cpu, Access::Fetch, TLB_USER), Some(0x15));
}

#[test]
fn accessed_and_dirty_are_set_as_the_page_is_used() {
    let (ram, mut cpu) = long(P | W);
    let entry = |level| ram.read_u64(GuestAddr(entry_at(level))).unwrap();
    cpu.load::<u8>(LINEAR).unwrap();
    assert_eq!((entry(3), entry(0) & (A | D)), (PAGE | P | W | A, A));
    cpu.store::<u8>(LINEAR, 1).unwrap();
    assert_eq!((entry(3), entry(2) & (A | D)), (PAGE | P | W | A | D, A));
}

#[test]
fn a_refused_access_leaves_the_page_unmarked() {
    let (ram, mut cpu) = long(P);
    assert!(cpu.store::<u8>(LINEAR, 1).is_err());
    assert_eq!(ram.read_u64(GuestAddr(entry_at(3))).unwrap(), PAGE | P);
}

#[test]
fn an_address_that_is_not_canonical_is_a_protection_fault() {
    let (_, mut cpu) = long(P);
    assert!(cpu.load::<u8>(1 << 47).is_err());
    assert_eq!(cpu.fault.map(|fault| (fault.vector, fault.error)), Some((vector::GP, Some(0))));
}

#[test]
fn pages_of_two_mebibytes_and_one_gibibyte_are_found() {
    let (ram, mut cpu) = long(P | W);
    put(&ram, entry_at(2), 0x20_0000 | P | W | PS);
    assert_eq!(
        cpu.translate(LINEAR + 0x1_2345, Access::Read),
        Ok(0x20_0000 + (LINEAR & 0x1f_f000) + 0x1_2345)
    );
    put(&ram, entry_at(1), P | W | PS);
    assert_eq!(cpu.translate(LINEAR, Access::Write), Ok(LINEAR & 0x3fff_ffff));
    put(&ram, entry_at(1), 1 << 13 | P | W | PS);
    assert!(cpu.translate(LINEAR, Access::Read).is_err());
    assert_eq!(cpu.fault.unwrap().error, Some(9), "address bits below the page size are reserved");
}

#[test]
fn a_translation_is_kept_until_it_is_invalidated() {
    let (ram, mut cpu) = long(P | W);
    cpu.store::<u8>(LINEAR, 7).unwrap();
    put(&ram, entry_at(3), 0x3_0000 | P | W);
    assert_eq!(cpu.load::<u8>(LINEAR).unwrap(), 7);
    cpu.flush_page(LINEAR + 0x123);
    assert_eq!(cpu.load::<u8>(LINEAR).unwrap(), 0);
}

#[test]
fn only_global_translations_survive_a_change_of_address_space() {
    for (flags, expected) in [(P | W, 0), (P | W | G, 7)] {
        let (ram, mut cpu) = long(flags);
        cpu.store::<u8>(LINEAR, 7).unwrap();
        put(&ram, entry_at(3), 0x3_0000 | flags);
        cpu.flush_local();
        assert_eq!(cpu.load::<u8>(LINEAR).unwrap(), expected, "{flags:#x}");
        cpu.flush_tlb();
        assert_eq!(cpu.load::<u8>(LINEAR).unwrap(), 0);
    }
}

#[test]
fn invalidating_one_address_forgets_the_whole_large_page() {
    let (ram, mut cpu) = long(P);
    put(&ram, entry_at(2), 0x20_0000 | P | W | PS);
    let other = LINEAR ^ 0x10_0000;
    cpu.store::<u8>(other, 7).unwrap();
    put(&ram, entry_at(2), 0x40_0000 | P | W | PS);
    assert_eq!(cpu.load::<u8>(other).unwrap(), 7);
    cpu.flush_page(LINEAR);
    assert_eq!(cpu.load::<u8>(other).unwrap(), 0);
}

#[test]
fn a_store_across_pages_writes_nothing_if_the_second_page_faults() {
    let (ram, mut cpu) = long(P | W);
    assert!(cpu.store::<u64>(LINEAR + 0xffc, u64::MAX).is_err());
    assert_eq!((cpu.cr2, cpu.fault.unwrap().error), (LINEAR + 0x1000, Some(2)));
    assert_eq!(ram.read_u32(GuestAddr(PAGE + 0xffc)).unwrap(), 0);
    put(&ram, entry_at(3) + 8, 0x3_0000 | P | W);
    cpu.store::<u64>(LINEAR + 0xffc, 0x1122_3344_5566_7788).unwrap();
    assert_eq!(ram.read_u32(GuestAddr(PAGE + 0xffc)).unwrap(), 0x5566_7788);
    assert_eq!(cpu.load::<u32>(LINEAR + 0x1000).unwrap(), 0x1122_3344);
}

#[test]
fn pages_with_decoded_code_are_written_through_the_slow_path() {
    let (ram, mut cpu) = long(P | W);
    cpu.store::<u8>(LINEAR, 1).unwrap();
    assert!(cpu.writable(LINEAR, 1).is_some());
    let page = ram.page_index(GuestAddr(PAGE)).unwrap();
    assert!(cpu.protect_code(page));
    assert!(cpu.writable(LINEAR, 1).is_none());
    cpu.store::<u8>(LINEAR, 2).unwrap();
    assert!(cpu.writable(LINEAR, 1).is_none());
    assert_eq!(cpu.load::<u8>(LINEAR).unwrap(), 2);
}

/// 32-bit code with paging; `wide` chooses PAE.
fn legacy(ram: &Arc<GuestRam>, wide: bool) -> Box<Cpu> {
    let mut cpu = Cpu::new(Arc::clone(ram));
    let mut state = X86State::pvh(0, 0);
    state.cr0 |= cr0::PG;
    state.cr3 = TABLES[0];
    state.cr4 = if wide { cr4::PAE } else { cr4::PSE };
    cpu.take_state(&state);
    cpu
}

#[test]
fn thirty_two_bit_paging_finds_small_and_large_pages() {
    let ram = Arc::new(GuestRam::new(8 << 20).unwrap());
    ram.write(GuestAddr(TABLES[0] + 4), &((TABLES[1] | P | W) as u32).to_le_bytes()).unwrap();
    ram.write(GuestAddr(TABLES[1] + 8), &((PAGE | P | W) as u32).to_le_bytes()).unwrap();
    ram.write(GuestAddr(TABLES[0] + 8), &((0x40_0000 | P | PS) as u32).to_le_bytes()).unwrap();
    let mut cpu = legacy(&ram, false);
    assert_eq!(cpu.translate(0x40_2034, Access::Write), Ok(PAGE + 0x34));
    assert_eq!(cpu.translate(0x81_2345, Access::Read), Ok(0x41_2345));
    assert_eq!(ram.read_u32(GuestAddr(TABLES[1] + 8)).unwrap() as u64, PAGE | P | W | A | D);
    assert!(cpu.translate(0xc0_0000, Access::Fetch).is_err());
    assert_eq!(cpu.fault.unwrap().error, Some(0), "fetches are not told apart without NX");
}

#[test]
fn pae_paging_goes_through_four_pointers() {
    let ram = Arc::new(GuestRam::new(8 << 20).unwrap());
    put(&ram, TABLES[0] + 3 * 8, TABLES[1] | P);
    put(&ram, TABLES[1] + 5 * 8, TABLES[2] | P | W);
    put(&ram, TABLES[2] + 6 * 8, PAGE | P | W);
    let mut cpu = legacy(&ram, true);
    assert_eq!(cpu.translate(3 << 30 | 5 << 21 | 6 << 12 | 7, Access::Write), Ok(PAGE + 7));
    assert!(cpu.translate(0, Access::Read).is_err());
}

/// Where code that [`moved_code`] moves to is.
const OTHER: u64 = 0x2_1000;

/// A processor that has run `mov eax, 7` at `LINEAR`, which since leads to `mov eax, 9`.
fn moved_code(leaf: u64) -> Box<Cpu> {
    let (ram, mut cpu) = long(leaf);
    ram.write(GuestAddr(PAGE), &[0xb8, 7, 0, 0, 0, 0x0f, 0x0b]).unwrap();
    ram.write(GuestAddr(OTHER), &[0xb8, 9, 0, 0, 0, 0x0f, 0x0b]).unwrap();
    assert_eq!(run_moved(&mut cpu), 7);
    put(&ram, entry_at(3), OTHER | leaf | A);
    cpu
}

fn run_moved(cpu: &mut Cpu) -> u64 {
    cpu.rip = LINEAR;
    let (at, fault) = cpu.run_to_fault(100).unwrap();
    assert_eq!((at, fault.vector), (LINEAR + 5, vector::UD));
    cpu.regs[0]
}

#[test]
fn code_is_fetched_anew_after_a_change_of_address_space_unless_global() {
    for (leaf, expected) in [(P | W, 9), (P | W | G, 7)] {
        let mut cpu = moved_code(leaf);
        cpu.flush_local();
        assert_eq!(run_moved(&mut cpu), expected);
    }
}

#[test]
fn code_is_fetched_anew_after_its_page_is_invalidated() {
    for leaf in [P | W, P | W | G] {
        let mut cpu = moved_code(leaf);
        cpu.flush_page(LINEAR + 4096);
        cpu.flush_local();
        cpu.flush_page(LINEAR + 2);
        assert_eq!(run_moved(&mut cpu), 9);
        cpu.flush_tlb();
        assert_eq!(run_moved(&mut cpu), 9);
    }
}
