//! The serial port as a driver works it.

use std::sync::Mutex;

use proptest::prelude::*;

use super::*;

/// Remembers the level and counts rising edges.
#[derive(Default)]
struct Line(Mutex<(bool, u32)>);

impl InterruptLine for Line {
    fn set(&self, high: bool) {
        let mut state = self.0.lock().unwrap();
        state.1 += u32::from(high && !state.0);
        state.0 = high;
    }
}

struct Port {
    serial: Serial,
    sent: Arc<Mutex<Vec<u8>>>,
    line: Arc<Line>,
}

fn port() -> Port {
    let sent = Arc::new(Mutex::new(Vec::new()));
    let line = Arc::new(Line::default());
    let log = Arc::clone(&sent);
    let sink = Box::new(move |bytes: &[u8]| log.lock().unwrap().extend(bytes));
    Port { serial: Serial::new(sink, Arc::clone(&line) as Arc<dyn InterruptLine>), sent, line }
}

impl Port {
    fn read(&mut self, offset: u64) -> u8 {
        let mut byte = [0];
        self.serial.read(offset, &mut byte);
        byte[0]
    }

    fn write(&mut self, offset: u64, value: u8) {
        self.serial.write(offset, &[value]);
    }

    fn n_edges(&self) -> u32 {
        self.line.0.lock().unwrap().1
    }
}

#[test]
fn what_the_guest_writes_comes_out() {
    let mut port = port();
    for &byte in b"hi\n" {
        assert_eq!(port.read(reg::LSR) & LSR_TRANSMITTER_IDLE, LSR_TRANSMITTER_IDLE);
        port.write(reg::DATA, byte);
    }
    assert_eq!(*port.sent.lock().unwrap(), b"hi\n");
}

#[test]
fn what_arrives_is_read_in_order_with_an_interrupt() {
    let mut port = port();
    port.write(reg::IER, IER_RECEIVED);
    assert_eq!(port.serial.receive(b"ok"), 2);
    assert_eq!((port.n_edges(), port.read(reg::IIR_FCR)), (1, IIR_RECEIVED));
    let mut read = Vec::new();
    while port.read(reg::LSR) & LSR_RECEIVED != 0 {
        read.push(port.read(reg::DATA));
    }
    assert_eq!((read, port.read(reg::IIR_FCR)), (b"ok".to_vec(), IIR_NONE));
}

#[test]
fn transmitter_interrupts_when_allowed_and_after_each_byte_until_identified() {
    let mut port = port();
    port.write(reg::IER, IER_TRANSMIT_EMPTY);
    assert_eq!((port.n_edges(), port.read(reg::IIR_FCR)), (1, IIR_TRANSMIT_EMPTY));
    assert_eq!(port.read(reg::IIR_FCR), IIR_NONE);
    port.write(reg::DATA, b'x');
    assert_eq!((port.n_edges(), port.read(reg::IIR_FCR)), (2, IIR_TRANSMIT_EMPTY));
}

#[test]
fn loopback_keeps_bytes_and_wires_the_modem_lines() {
    // how Linux's autoconfig() tells a UART from nothing
    let mut port = port();
    port.write(reg::MCR, MCR_LOOPBACK | 0x0a);
    assert_eq!(port.read(reg::MSR) & 0xf0, 0x90);
    port.write(reg::DATA, 0x55);
    assert_eq!((port.read(reg::DATA), port.sent.lock().unwrap().len()), (0x55, 0));
}

#[test]
fn fifo_and_scratch_registers_identify_a_16550a() {
    let mut port = port();
    port.write(reg::IIR_FCR, FCR_ENABLE);
    assert_eq!(port.read(reg::IIR_FCR) & 0xc0, 0xc0);
    port.write(reg::SCR, 0xa5);
    assert_eq!(port.read(reg::SCR), 0xa5);
    port.write(reg::LCR, LCR_DIVISOR_LATCH);
    port.write(reg::DATA, 1);
    assert_eq!((port.read(reg::DATA), port.sent.lock().unwrap().len()), (1, 0));
}

#[test]
fn guest_that_does_not_read_holds_the_sender_back() {
    let mut port = port();
    assert_eq!(port.serial.receive(&[0; INPUT_MAX + 1]), INPUT_MAX);
    assert_eq!(port.serial.receive(b"x"), 0);
    port.read(reg::DATA);
    assert_eq!(port.serial.receive(b"xy"), 1);
}

#[test]
fn restored_port_goes_on_and_repeats_its_interrupt() {
    let mut old = port();
    old.write(reg::IER, IER_RECEIVED);
    old.write(reg::SCR, 3);
    old.serial.receive(b"z");
    let mut new = port();
    new.serial.restore(&old.serial.save()).unwrap();
    assert_eq!((new.n_edges(), new.read(reg::DATA), new.read(reg::SCR)), (1, b'z', 3));
    assert!(new.serial.restore(&[]).is_err());
    assert!(new.serial.restore(&[VERSION; INPUT_MAX + 9]).is_err());
}

proptest! {
    #[test]
    fn any_access_is_survived(accesses in proptest::collection::vec((0u64..8, any::<u8>(), any::<bool>()), 0..100)) {
        let mut port = port();
        for (offset, value, write) in accesses {
            if write {
                port.write(offset, value);
            } else {
                port.serial.read(offset, &mut vec![0; usize::from(value % 9)]);
            }
        }
        let saved = port.serial.save();
        let mut other = super::tests::port();
        other.serial.restore(&saved).unwrap();
        prop_assert_eq!(other.serial.save(), saved);
    }
}
