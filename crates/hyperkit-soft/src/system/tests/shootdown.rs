//! TLB shootdown (SDM vol. 3A §4.10.5): one processor changes a translation that another uses, tells it by an interrupt, and
//! relies on nothing stale from the moment that the other has acknowledged it.

use std::sync::Arc;

use hyperkit_mem::{GuestAddr, GuestRam};
use iced_x86::code_asm::*;

use super::smp::{ALL_TIERS, MORE_TIERS, run_both, second_in_64_bit_mode, start_second};
use super::switch::{RESULT, assemble, gate, put_u64, ram};
use crate::jit::Tiers;

/// How often the translation changes.
const ROUNDS: u32 = 40;
/// What the first processor says when the second does nothing for long.
const GIVEN_UP: u64 = 0xffff_ffff;
/// Vector of the interrupt.
const VECTOR: u64 = 0x41;

/// What the two tell each other, each in a cache line of its own: the round, that it is acknowledged, how often the second
/// has used the page, what it saw that it must not, page faults, and how many of them may be over.
const ROUND: u64 = 0x3000;
const ACKNOWLEDGED: u64 = 0x3080;
const USES: u64 = 0x3100;
const STALE: u64 = 0x3180;
const FAULTS: u64 = 0x3200;
const ALLOWED: u64 = 0x3280;
/// Where the second counts what code it ran, by what the code says.
const RAN: u64 = 0x3400;

/// What nobody writes but to a page that is no longer mapped.
const POISON: i32 = 0x7e57_0bad;

/// The page whose translation changes.
#[derive(Debug, Clone, Copy)]
struct Page {
    /// Its address.
    linear: u64,
    /// Where its entry is in the tables.
    entry: u64,
    /// The entry's lowest bits.
    bits: u32,
    /// Physical addresses for the entry, of which one is used in turn.
    frames: [u32; 2],
    /// Where in them the page's linear address is.
    offset: u32,
}

/// 4 KiB in the second GiB.
const SMALL: Page =
    Page { linear: 0x4000_0000, entry: 0x1_5000, bits: 3, frames: [0x3_0000, 0x3_1000], offset: 0 };
/// The same, global.
const GLOBAL: Page = Page { bits: 0x103, ..SMALL };
/// In a page of 2 MiB.
const LARGE: Page =
    Page { linear: 0x4023_0000, entry: 0x1_4008, bits: 0x83, frames: [0, 0x20_0000], offset: 0x3_0000 };

/// How the second processor forgets the old translation.
type Forget = fn(&mut CodeAssembler, Page);

fn invlpg(a: &mut CodeAssembler, page: Page) {
    a.mov(eax, page.linear as u32).unwrap();
    a.invlpg(byte_ptr(rax)).unwrap();
}

fn reload_cr3(a: &mut CodeAssembler, _page: Page) {
    a.mov(rax, cr3).unwrap();
    a.mov(cr3, rax).unwrap();
}

fn toggle_pge(a: &mut CodeAssembler, _page: Page) {
    a.mov(rax, cr4).unwrap();
    a.btc(eax, 7).unwrap();
    a.mov(cr4, rax).unwrap();
    a.btc(eax, 7).unwrap();
    a.mov(cr4, rax).unwrap();
}

/// Waits until `[at]` has come to R10, and goes to `give_up` when it does not for long.
fn wait_for(a: &mut CodeAssembler, at: u64, give_up: CodeLabel) {
    let (mut wait, mut done) = (a.create_label(), a.create_label());
    a.mov(ecx, 200_000_000).unwrap();
    a.set_label(&mut wait).unwrap();
    a.cmp(dword_ptr(at), r10d).unwrap();
    a.jae(done).unwrap();
    a.pause().unwrap();
    a.dec(ecx).unwrap();
    a.jne(wait).unwrap();
    a.jmp(give_up).unwrap();
    a.set_label(&mut done).unwrap();
}

/// Waits until the second has used the page another 20 times.
fn wait_for_uses(a: &mut CodeAssembler, give_up: CodeLabel) {
    a.mov(r10d, dword_ptr(USES)).unwrap();
    a.add(r10d, 20).unwrap();
    wait_for(a, USES, give_up);
}

/// Makes the entry what RAX says, tells the second processor of the round in R12, and waits for it to acknowledge.
fn change_and_tell(a: &mut CodeAssembler, page: Page, give_up: CodeLabel) {
    a.mov(qword_ptr(page.entry), rax).unwrap();
    a.mov(dword_ptr(ROUND), r12d).unwrap();
    a.mov(ecx, 0x830).unwrap();
    a.mov(edx, 1).unwrap();
    a.mov(eax, 0x4000 | VECTOR as i32).unwrap();
    a.wrmsr().unwrap();
    a.mov(r10d, r12d).unwrap();
    wait_for(a, ACKNOWLEDGED, give_up);
}

/// The first processor's code: a round each of `write`, with its number in R12 and the frames of before and from now on in
/// R14 and R15; then it says what `last` leaves in EAX.
fn first(
    page: Page,
    write: impl FnOnce(&mut CodeAssembler, CodeLabel),
    last: impl FnOnce(&mut CodeAssembler),
) -> Vec<u8> {
    assemble(64, 0x9000, |a| {
        let (mut round, mut give_up, mut say) = (a.create_label(), a.create_label(), a.create_label());
        start_second(a);
        a.xor(r12d, r12d).unwrap();
        a.xor(r13d, r13d).unwrap();
        a.mov(r14d, page.frames[1]).unwrap();
        a.mov(r15d, page.frames[0]).unwrap();
        a.set_label(&mut round).unwrap();
        wait_for_uses(a, give_up);
        a.inc(r12d).unwrap();
        a.xchg(r14, r15).unwrap();
        write(a, give_up);
        a.cmp(r12d, ROUNDS).unwrap();
        a.jb(round).unwrap();
        last(a);
        a.jmp(say).unwrap();
        a.set_label(&mut give_up).unwrap();
        a.mov(eax, GIVEN_UP as u32).unwrap();
        a.set_label(&mut say).unwrap();
        a.out(RESULT as i32, eax).unwrap();
        a.hlt().unwrap();
    })
}

/// The second processor's code: `use_page` for ever, with its address in RBX.
fn second(ram: &GuestRam, page: Page, use_page: impl FnOnce(&mut CodeAssembler)) -> Vec<u8> {
    second_in_64_bit_mode(ram, |a| {
        let mut top = a.create_label();
        a.mov(ebx, page.linear as u32).unwrap();
        a.sti().unwrap();
        a.set_label(&mut top).unwrap();
        use_page(a);
        a.inc(dword_ptr(USES)).unwrap();
        a.jmp(top).unwrap();
    })
}

/// RAM with the page mapped to its first frame, and a handler of the interrupt that forgets its translation.
fn mapped(page: Page, forget: Forget) -> Arc<GuestRam> {
    let ram = ram();
    put_u64(&ram, 0x1_1008, 0x1_4003); // the second GiB
    put_u64(&ram, 0x1_4000, 0x1_5003); // its first 2 MiB
    put_u64(&ram, page.entry, u64::from(page.frames[0] | page.bits));
    gate(&ram, VECTOR, 0xa000);
    let handler = assemble(64, 0xa000, |a| {
        a.push(rax).unwrap();
        a.push(rcx).unwrap();
        a.push(rdx).unwrap();
        forget(a, page);
        a.xor(eax, eax).unwrap();
        a.xor(edx, edx).unwrap();
        a.mov(ecx, 0x80b).unwrap();
        a.wrmsr().unwrap(); // end of interrupt
        a.mov(eax, dword_ptr(ROUND)).unwrap();
        a.mov(dword_ptr(ACKNOWLEDGED), eax).unwrap();
        a.pop(rdx).unwrap();
        a.pop(rcx).unwrap();
        a.pop(rax).unwrap();
        a.iretq().unwrap();
    });
    ram.write(GuestAddr(0xa000), &handler).unwrap();
    ram
}

/// Moves the page between two frames; how often the one that was left is read or written after that was acknowledged.
fn stale_accesses(page: Page, forget: Forget, tiers: Tiers) -> u64 {
    let ram = mapped(page, forget);
    let at = page.offset as i32;
    let first = first(
        page,
        |a, give_up| {
            a.mov(qword_ptr(r15 + at), r12).unwrap();
            a.mov(qword_ptr(r15 + (at + 8)), 0).unwrap();
            a.lea(rax, qword_ptr(r15 + page.bits as i32)).unwrap();
            change_and_tell(a, page, give_up);
            a.mov(qword_ptr(r14 + at), POISON).unwrap();
            a.mov(qword_ptr(r14 + (at + 8)), 0).unwrap();
            wait_for_uses(a, give_up);
            a.add(r13d, dword_ptr(r14 + (at + 8))).unwrap();
        },
        |a| {
            a.mov(eax, dword_ptr(STALE)).unwrap();
            a.add(eax, r13d).unwrap();
        },
    );
    let second = second(&ram, page, |a| {
        a.xor(edx, edx).unwrap();
        a.mov(rax, qword_ptr(rbx)).unwrap();
        a.cmp(rax, POISON).unwrap();
        a.sete(dl).unwrap();
        a.add(dword_ptr(STALE), edx).unwrap();
        a.inc(dword_ptr(rbx + 8)).unwrap();
    });
    run_both(&ram, &first, &second, tiers)
}

#[test]
fn a_page_that_was_moved_is_accessed_where_it_is_now() {
    let ways: [(Page, Forget); 6] = [
        (SMALL, invlpg),
        (SMALL, reload_cr3),
        (GLOBAL, invlpg),
        (GLOBAL, toggle_pge),
        (LARGE, invlpg),
        (LARGE, reload_cr3),
    ];
    for (n, (page, forget)) in ways.into_iter().enumerate() {
        for tiers in ALL_TIERS.into_iter().chain(MORE_TIERS) {
            assert_eq!(stale_accesses(page, forget, tiers), 0, "way {n}, {page:x?}, {tiers:?}");
        }
    }
}

/// The test above sees what is stale: it is, where the second processor forgets nothing, or not enough.
#[test]
fn a_page_that_was_moved_is_accessed_where_it_was_by_who_was_not_told() {
    for tiers in ALL_TIERS {
        let stale = stale_accesses(SMALL, |_, _| {}, tiers);
        assert!(stale > 0 && stale != GIVEN_UP, "{stale}, {tiers:?}");
        let stale = stale_accesses(GLOBAL, reload_cr3, tiers);
        assert!(stale > 0 && stale != GIVEN_UP, "{stale}, a global page, {tiers:?}");
    }
}

/// Takes the right to write away and gives it back; page faults, plus 1000 for each round in which something was written
/// that was no longer allowed.
fn writes_to_a_page_that_becomes_read_only(page: Page, tiers: Tiers) -> u64 {
    let ram = mapped(page, invlpg);
    let at = page.frames[0] + page.offset;
    let first = first(
        page,
        |a, give_up| {
            let mut same = a.create_label();
            a.mov(eax, page.frames[0] | page.bits & !2).unwrap();
            change_and_tell(a, page, give_up);
            a.mov(r9, qword_ptr(u64::from(at))).unwrap();
            a.mov(r10d, r12d).unwrap();
            wait_for(a, FAULTS, give_up);
            a.cmp(r9, qword_ptr(u64::from(at))).unwrap();
            a.je(same).unwrap();
            a.add(r13d, 1000).unwrap();
            a.set_label(&mut same).unwrap();
            a.mov(eax, page.frames[0] | page.bits).unwrap();
            a.mov(qword_ptr(page.entry), rax).unwrap();
            a.mov(dword_ptr(ALLOWED), r12d).unwrap();
        },
        |a| {
            a.mov(eax, dword_ptr(FAULTS)).unwrap();
            a.add(eax, r13d).unwrap();
        },
    );
    let second = second(&ram, page, |a| {
        a.mov(rax, qword_ptr(rbx)).unwrap(); // which may go on: reading is allowed
        a.inc(rax).unwrap();
        a.mov(qword_ptr(rbx), rax).unwrap();
    });
    gate(&ram, 14, 0xa800);
    let handler = assemble(64, 0xa800, |a| {
        let mut wait = a.create_label();
        a.add(rsp, 8).unwrap(); // the error code
        a.push(rax).unwrap();
        a.inc(dword_ptr(FAULTS)).unwrap();
        a.set_label(&mut wait).unwrap();
        a.pause().unwrap();
        a.mov(eax, dword_ptr(ALLOWED)).unwrap();
        a.cmp(eax, dword_ptr(FAULTS)).unwrap();
        a.jb(wait).unwrap();
        a.pop(rax).unwrap();
        a.iretq().unwrap();
    });
    ram.write(GuestAddr(0xa800), &handler).unwrap();
    run_both(&ram, &first, &second, tiers)
}

#[test]
fn a_page_that_was_made_read_only_is_not_written_any_more() {
    for page in [SMALL, GLOBAL, LARGE] {
        for tiers in ALL_TIERS.into_iter().chain(MORE_TIERS) {
            let faults = writes_to_a_page_that_becomes_read_only(page, tiers);
            assert_eq!(faults, u64::from(ROUNDS), "{page:x?}, {tiers:?}");
        }
    }
}

/// A function that says 0 or 1 in EAX after a loop; all of them have the same length.
fn saying(answer: u32) -> Vec<u8> {
    assemble(64, 0, |a| {
        let mut again = a.create_label();
        a.mov(ecx, 5).unwrap();
        a.set_label(&mut again).unwrap();
        a.mov(eax, answer).unwrap();
        a.dec(ecx).unwrap();
        a.jne(again).unwrap();
        a.ret().unwrap();
    })
}

/// Moves a page of code between frames with different code; how often code of before ran in a round after it was
/// acknowledged that it goes.
fn stale_code(page: Page, forget: Forget, tiers: Tiers) -> u64 {
    let ram = mapped(page, forget);
    for (answer, frame) in page.frames.into_iter().enumerate() {
        let at = GuestAddr(u64::from(frame + page.offset));
        ram.write(at, &saying(answer as u32)).unwrap();
    }
    let first = first(
        page,
        |a, give_up| {
            a.lea(rax, qword_ptr(r15 + page.bits as i32)).unwrap();
            change_and_tell(a, page, give_up);
            // A call may have been interrupted between the answer and its being counted.
            wait_for_uses(a, give_up);
            a.mov(r8d, r12d).unwrap();
            a.and(r8d, 1).unwrap();
            a.xor(r8d, 1).unwrap(); // what the code of before says
            a.mov(r9d, dword_ptr(r8 * 4 + RAN)).unwrap();
            wait_for_uses(a, give_up);
            a.mov(eax, dword_ptr(r8 * 4 + RAN)).unwrap();
            a.sub(eax, r9d).unwrap();
            a.add(r13d, eax).unwrap();
        },
        |a| a.mov(eax, r13d).unwrap(),
    );
    let second = second(&ram, page, |a| {
        a.call(rbx).unwrap();
        a.inc(dword_ptr(rax * 4 + RAN)).unwrap();
    });
    run_both(&ram, &first, &second, tiers)
}

#[test]
fn a_page_of_code_that_was_moved_is_executed_where_it_is_now() {
    let ways: [(Page, Forget); 4] =
        [(SMALL, invlpg), (SMALL, reload_cr3), (GLOBAL, toggle_pge), (LARGE, invlpg)];
    for (n, (page, forget)) in ways.into_iter().enumerate() {
        for tiers in ALL_TIERS.into_iter().chain(MORE_TIERS) {
            assert_eq!(stale_code(page, forget, tiers), 0, "way {n}, {page:x?}, {tiers:?}");
        }
    }
}

/// The test above sees code that is stale.
#[test]
fn a_page_of_code_that_was_moved_is_executed_where_it_was_by_who_was_not_told() {
    for tiers in ALL_TIERS {
        let stale = stale_code(SMALL, |_, _| {}, tiers);
        assert!(stale > 0 && stale != GIVEN_UP, "{stale}, {tiers:?}");
    }
}
