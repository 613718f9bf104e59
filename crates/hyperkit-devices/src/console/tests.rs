//! The console as its driver sees it: bytes both ways and the size of the window.

use std::sync::mpsc::{Receiver, channel};

use proptest::prelude::*;

use super::*;
use crate::testing::Driver;

fn console() -> (Console, ConsoleHandle, Receiver<Vec<u8>>) {
    let (sender, receiver) = channel();
    let output = move |bytes: &[u8]| sender.send(bytes.to_vec()).unwrap();
    let (console, handle) = Console::new(Box::new(output), WindowSize { columns: 80, rows: 25 });
    (console, handle, receiver)
}

fn printed(output: &Receiver<Vec<u8>>) -> Vec<u8> {
    output.try_iter().flatten().collect()
}

#[test]
fn what_the_guest_prints_comes_out_in_order() {
    let (console, _handle, output) = console();
    let mut driver = Driver::new(console);
    let long = vec![b'x'; 3 * OUTPUT_BYTES];
    driver.call(TRANSMIT, &[b"login", b": "], &[]);
    driver.call(TRANSMIT, &[&long], &[]);
    assert_eq!(printed(&output), [&b"login: "[..], &long].concat());
}

#[test]
fn emergency_character_comes_out_without_a_driver() {
    let (mut console, _handle, output) = console();
    console.write_config(config::EMERG_WRITE_OFFSET, &[b'!', 0, 0, 0]);
    assert_eq!(printed(&output), b"!");
}

#[test]
fn typed_bytes_wait_for_buffers_and_fill_them() {
    let (console, handle, _output) = console();
    assert_eq!(handle.write(b"root\n"), 5);
    let mut driver = Driver::new(console);
    assert_eq!(driver.call(RECEIVE, &[], &[2, 1]).bytes, b"roo");
    assert_eq!(driver.call(RECEIVE, &[], &[16]).bytes, b"t\n");
    driver.send(RECEIVE, &[], &[16]);
    handle.write(b"pw");
    assert_eq!(driver.wait_used(RECEIVE).bytes, b"pw");
}

#[test]
fn input_beyond_the_limit_is_not_accepted() {
    let (_console, handle, _output) = console();
    assert_eq!(handle.write(&vec![0; INPUT_BYTES_MAX + 1]), INPUT_BYTES_MAX);
    assert_eq!(handle.write(b"x"), 0);
}

#[test]
fn new_size_is_announced_and_read() {
    let (console, handle, _output) = console();
    let driver = Driver::new(console);
    handle.resize(WindowSize { columns: 132, rows: 50 });
    assert_eq!(driver.interrupt.n_config_changed(), 1);
    let mut size = [0; 4];
    driver.device.read_config(0, &mut size);
    assert_eq!(size, [132, 0, 50, 0]);
}

#[test]
fn waiting_input_and_size_survive_a_snapshot() {
    let (first, handle, _output) = console();
    let mut driver = Driver::new(first);
    handle.write(b"abc");
    handle.resize(WindowSize { columns: 1, rows: 2 });
    let (second, _handle, output) = console();
    driver.migrate(second);
    assert_eq!(driver.call(RECEIVE, &[], &[8]).bytes, b"abc");
    driver.call(TRANSMIT, &[b"out"], &[]);
    assert_eq!(printed(&output), b"out");
    assert!(driver.device.restore(&[1, 0, 0]).is_err());
}

#[test]
fn buffers_without_room_and_without_end_are_refused() {
    for (queue, addr, len) in [(RECEIVE, 0, 0), (TRANSMIT, 0, 2 << 20)] {
        let (console, handle, _output) = console();
        let mut driver = Driver::new(console);
        handle.write(b"x");
        driver.send_raw(queue, &[(addr, len, 0, 0)]);
        assert_eq!(driver.interrupt.n_needs_reset(), 1, "queue {queue}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn hostile_chains_are_survived(
        queue in 0u16..2,
        chain in proptest::collection::vec((0..64u64 << 20, 0u32..9000, 0u16..4, 0u16..8), 6),
    ) {
        let (console, handle, output) = console();
        let mut driver = Driver::new(console);
        handle.write(b"x");
        driver.send_raw(queue, &chain);
        driver.restart();
        printed(&output);
        driver.call(TRANSMIT, &[b"alive"], &[]);
        prop_assert_eq!(printed(&output), b"alive");
    }
}
