//! Tests of edges, masks and registers.

use super::*;

fn program(apic: &mut IoApic, pin: u32, low: u32, high: u32) {
    apic.write(0, 0x11 + 2 * pin);
    apic.write(0x10, high);
    apic.write(0, 0x10 + 2 * pin);
    apic.write(0x10, low);
}

#[test]
fn edge_fires_on_the_rise_only_and_is_lost_while_masked() {
    let mut apic = IoApic::default();
    program(&mut apic, 4, 0x1_0024, 2 << 24);
    assert_eq!(apic.set_line(4, true), None);
    program(&mut apic, 4, 0x24, 2 << 24);
    assert_eq!(apic.set_line(4, true), None, "no new edge");
    apic.set_line(4, false);
    let message = apic.set_line(4, true).unwrap();
    assert_eq!((message.vector, message.to, message.level), (0x24, Destination::Physical(2), false));
}

#[test]
fn level_line_that_is_high_fires_on_unmasking() {
    let mut apic = IoApic::default();
    program(&mut apic, 9, 0x1_8031, 0);
    assert_eq!(apic.set_line(9, true), None);
    apic.write(0, 0x10 + 18);
    assert_eq!(apic.write(0x10, 0x8031).unwrap().vector, 0x31);
    assert_eq!(apic.read(0x10) & 1 << 14, 1 << 14, "remote IRR");
    apic.write(0x10, 0x8031);
    assert_eq!(apic.read(0x10) & 1 << 14, 1 << 14, "writing does not clear remote IRR");
    assert_eq!(apic.end_of_interrupt(0x31).len(), 1);
    apic.set_line(9, false);
    assert_eq!(apic.end_of_interrupt(0x31).len(), 0);
}

#[test]
fn registers_that_do_not_exist_read_as_zero() {
    let mut apic = IoApic::default();
    for select in [0x03, 0x0f, 0x40, 0xff] {
        apic.write(0, select);
        assert_eq!(apic.write(0x10, u32::MAX), None);
        assert_eq!(apic.read(0x10), 0, "{select:#x}");
    }
    apic.write(0, 1);
    assert_eq!(apic.read(0x10), 0x0017_0011);
    assert_eq!(apic.set_line(24, true), None);
    assert_eq!(apic.set_line(u32::MAX, true), None);
}
