//! Rings as a driver lays them out, and broken ones.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::testing::Ring;

const RAM_BYTES: u64 = 1 << 20;
const BASE: GuestAddr = GuestAddr(0x1000);

fn ring(size: u16, modern: bool) -> (Arc<GuestRam>, Ring, Queue) {
    let ram = Arc::new(GuestRam::new(RAM_BYTES).unwrap());
    let ring = Ring::new(&ram, BASE, size, 0x8000, modern);
    let queue = ring.queue();
    (ram, ring, queue)
}

fn read_all(chain: &Chain, ram: &GuestRam) -> Vec<u8> {
    let mut bytes = vec![0; chain.readable_bytes() as usize];
    chain.reader(ram).read_exact(&mut bytes).unwrap();
    bytes
}

#[test]
fn device_reads_what_the_driver_put_and_driver_reads_what_the_device_wrote() {
    let (ram, mut ring, mut queue) = ring(8, false);
    let head = ring.add(&[b"ab", b"", b"cde"], &[2, 3]);
    let chain = queue.pop(&ram).unwrap().unwrap();
    assert_eq!((chain.head(), read_all(&chain, &ram)), (head, b"abcde".to_vec()));
    let mut writer = chain.writer(&ram);
    assert_eq!(writer.remaining(), 5);
    writer.write_all(b"WXYZ").unwrap();
    let written = writer.written();
    queue.push_used(&ram, chain, written);
    let used = ring.take_used().unwrap();
    assert_eq!((used.head, used.len, used.bytes), (head, 4, b"WXYZ".to_vec()));
    assert_eq!(queue.pop(&ram), Ok(None));
}

#[test]
fn indirect_chain_reads_like_a_direct_one() {
    let (ram, mut ring, mut queue) = ring(2, true);
    ring.add_indirect(&[b"one", b"two", b"three"], &[7]);
    let chain = queue.pop(&ram).unwrap().unwrap();
    assert_eq!(read_all(&chain, &ram), b"onetwothree");
    assert_eq!(chain.writable_bytes(), 7);
}

#[test]
fn split_reader_ends_where_its_part_ends() {
    let (ram, mut ring, mut queue) = ring(8, false);
    ring.add(&[b"hea", b"derbo", b"dy"], &[]);
    let chain = queue.pop(&ram).unwrap().unwrap();
    let mut header = chain.reader(&ram);
    let mut body = header.split_off(6).unwrap();
    assert_eq!(&header.read_array::<6>().unwrap(), b"header");
    assert_eq!(header.read(&mut [0; 4]), 0);
    assert_eq!(body.segments().map(|segment| segment.len).collect::<Vec<_>>(), [2, 2]);
    body.skip(1);
    assert_eq!(body.read_array::<4>(), Err(ChainError::TooShort { have: 3, need: 4 }));
    assert_eq!(&body.read_array::<3>().unwrap(), b"ody");
}

#[test]
fn chain_put_back_is_taken_again() {
    let (ram, mut ring, mut queue) = ring(4, true);
    let head = ring.add(&[b"x"], &[]);
    let chain = queue.pop(&ram).unwrap().unwrap();
    queue.put_back(chain);
    assert_eq!(queue.pop(&ram).unwrap().unwrap().head(), head);
}

#[test]
fn added_chains_appear_together_when_published() {
    let (ram, mut ring, mut queue) = ring(4, true);
    ring.add(&[], &[4]);
    ring.add(&[], &[4]);
    for _ in 0..2 {
        let chain = queue.pop(&ram).unwrap().unwrap();
        queue.add_used(&ram, chain, 0);
    }
    assert_eq!(ring.take_used(), None);
    queue.publish_used(&ram);
    assert!(ring.take_used().is_some() && ring.take_used().is_some());
}

#[test]
fn positions_wrap_past_65535() {
    let (ram, mut ring, mut queue) = ring(4, true);
    for i in 0..70_000u32 {
        ring.add(&[&i.to_le_bytes()], &[]);
        let chain = queue.pop(&ram).unwrap().unwrap();
        assert_eq!(read_all(&chain, &ram), i.to_le_bytes());
        queue.push_used(&ram, chain, 0);
        assert!(queue.needs_notification(&ram), "the driver asked for the next one, at {i}");
        assert!(ring.take_used().is_some());
    }
}

fn complete_one(ram: &GuestRam, queue: &mut Queue) {
    let chain = queue.pop(ram).unwrap().unwrap();
    queue.push_used(ram, chain, 0);
}

#[test]
fn interrupt_is_withheld_until_the_event_index_is_passed() {
    let (ram, mut ring, mut queue) = ring(4, true);
    ring.set_used_event(1);
    let mut wanted = Vec::new();
    for _ in 0..3 {
        ring.add(&[b"x"], &[]);
        complete_one(&ram, &mut queue);
        wanted.push(queue.needs_notification(&ram));
    }
    assert_eq!(wanted, [false, true, false]);
    assert!(!queue.needs_notification(&ram), "nothing was added since");
}

#[test]
fn interrupt_is_withheld_by_the_no_interrupt_flag() {
    let (ram, mut ring, mut queue) = ring(4, false);
    let mut wanted = Vec::new();
    for no_interrupt in [true, false] {
        ring.set_no_interrupt(no_interrupt);
        ring.add(&[b"x"], &[]);
        complete_one(&ram, &mut queue);
        wanted.push(queue.needs_notification(&ram));
    }
    assert_eq!(wanted, [false, true]);
}

#[test]
fn empty_queue_asks_for_a_notification_and_a_busy_one_does_not() {
    let (ram, mut ring, mut queue) = ring(4, true);
    ring.add(&[b"x"], &[]);
    assert!(ring.device_wants_notification());
    complete_one(&ram, &mut queue);
    ring.add(&[b"x"], &[]);
    assert!(!ring.device_wants_notification(), "the device has not said that it ran dry");
    complete_one(&ram, &mut queue);
    assert_eq!(queue.pop(&ram), Ok(None));
    ring.add(&[b"x"], &[]);
    assert!(ring.device_wants_notification());
}

#[test]
fn restored_queue_goes_on_where_it_was() {
    let (ram, mut ring, mut queue) = ring(4, true);
    ring.add(&[b"x"], &[]);
    complete_one(&ram, &mut queue);
    let second = ring.add(&[b"y"], &[]);
    let mut restored = ring.queue();
    restored.set_positions(queue.positions());
    assert_eq!(restored.pop(&ram).unwrap().unwrap().head(), second);
}

#[test]
fn rings_that_cannot_be_are_refused() {
    let (ram, ring, _) = ring(4, true);
    let good = ring.layout();
    for layout in [
        QueueLayout { size: 0, ..good },
        QueueLayout { size: 3, ..good },
        QueueLayout { desc: GuestAddr(0x1008), ..good },
        QueueLayout { avail: GuestAddr(0x2001), ..good },
        QueueLayout { used: GuestAddr(0x2002), ..good },
        QueueLayout { desc: GuestAddr(RAM_BYTES - 16), ..good },
        QueueLayout { used: GuestAddr(u64::MAX - 3), ..good },
    ] {
        assert!(Queue::new(&ram, layout).is_err(), "{layout:?}");
    }
}

/// Sets up descriptors from (addr, len, flags, next), offers 0 and expects the error, once.
fn refused(descriptors: &[(u64, u32, u16, u16)], expected: ChainError) {
    let (ram, mut ring, mut queue) = ring(4, true);
    for (index, &(addr, len, flags, next)) in descriptors.iter().enumerate() {
        ring.write_descriptor(index as u16, addr, len, flags, next);
    }
    ring.make_available(0);
    assert_eq!(queue.pop(&ram), Err(expected));
    assert_eq!(queue.pop(&ram), Ok(None), "told once");
}

#[test]
fn chains_against_the_rules_are_refused() {
    refused(&[(0, 1, NEXT, 1), (0, 1, NEXT, 0)], ChainError::Loop { size: 4 });
    refused(&[(0, 1, NEXT, 4)], ChainError::OutOfRange { index: 4, size: 4 });
    refused(&[(0, 1, NEXT | WRITE, 1), (0, 1, 0, 0)], ChainError::Order { index: 1 });
    let past = hyperkit_mem::OutOfRam { addr: GuestAddr(RAM_BYTES - 1), len: 2 };
    refused(&[(RAM_BYTES - 1, 2, 0, 0)], ChainError::OutOfRam(past));
    let wrap = hyperkit_mem::OutOfRam { addr: GuestAddr(u64::MAX), len: 16 };
    refused(&[(u64::MAX, 16, INDIRECT, 0)], ChainError::OutOfRam(wrap));
    refused(&[(0, 15, INDIRECT, 0)], ChainError::IndirectLength { bytes: 15, max: 1024 });
    refused(&[(0, 0, INDIRECT, 0)], ChainError::IndirectLength { bytes: 0, max: 1024 });
    refused(&[(0, 16, INDIRECT | NEXT, 1)], ChainError::Indirect { index: 0 });
    // An indirect table that is the descriptor table itself: nested.
    refused(&[(BASE.0, 16, INDIRECT, 0)], ChainError::Indirect { index: 0 });
}

#[test]
fn available_index_that_jumps_is_refused() {
    let (ram, mut ring, mut queue) = ring(4, true);
    ring.set_avail_index(5);
    assert_eq!(queue.pop(&ram), Err(ChainError::AvailableIndex { available: 5, size: 4 }));
}

proptest! {
    #[test]
    fn hostile_memory_is_survived(
        seed in proptest::collection::vec(any::<u8>(), 4096),
        descriptors in proptest::collection::vec((0..RAM_BYTES * 2, 0u32..0x3000, 0u16..8, 0u16..10), 8),
        avail_index in any::<u16>(),
        event_idx in any::<bool>(),
    ) {
        let (ram, mut ring, mut queue) = ring(8, event_idx);
        ram.write(GuestAddr(0x9000), &seed).unwrap();
        for (index, &(addr, len, flags, next)) in descriptors.iter().enumerate() {
            ring.write_descriptor(index as u16, addr, len, flags, next);
        }
        ring.set_avail_index(avail_index % 12);
        // Bytes the device writes may hit the ring and make more chains available, so the test sets the end.
        for _ in 0..64 {
            let Ok(Some(chain)) = queue.pop(&ram) else { break };
            prop_assert!(chain.readable().len() + chain.writable().len() <= usize::from(INDIRECT_MAX) + 8);
            let mut reader = chain.reader(&ram);
            let mut page = [0; 4096];
            while reader.read(&mut page) > 0 {}
            let mut writer = chain.writer(&ram);
            writer.write(&seed);
            let written = writer.written();
            queue.push_used(&ram, chain, written);
            queue.needs_notification(&ram);
        }
    }
}
