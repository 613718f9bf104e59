//! The devices that the guest cannot find by itself, and the sleep state for power-off.

use super::{aml, tables};
use crate::layout;

/// The table for this many virtio-mmio devices.
pub(super) fn dsdt(n_virtio: usize) -> Vec<u8> {
    let mut devices = serial();
    for slot in 0..n_virtio {
        devices.extend(virtio_mmio(slot));
    }
    let mut body = aml::root_scope(b"_SB_", &devices);
    body.extend(aml::root_name(b"_S5_", &aml::package(&[u32::from(layout::SLEEP_TYPE_OFF), 0, 0, 0])));
    tables::table(b"DSDT", 2, &body)
}

fn serial() -> Vec<u8> {
    let resources =
        aml::resources(&[aml::io_ports(layout::SERIAL_PORT, 8), aml::edge_interrupt(layout::SERIAL_GSI)]);
    let terms = [
        aml::name(b"_HID", &aml::eisa_pnp(0x0501)),
        aml::name(b"_UID", &aml::integer(0)),
        aml::name(b"_CRS", &resources),
    ];
    aml::device(b"COM1", &terms.concat())
}

fn virtio_mmio(slot: usize) -> Vec<u8> {
    let (start, gsi) = layout::virtio_mmio_slot(slot);
    let memory = aml::memory(start as u32, layout::VIRTIO_MMIO_BYTES as u32);
    let terms = [
        aml::name(b"_HID", &aml::string("LNRO0005")),
        aml::name(b"_UID", &aml::integer(slot as u32)),
        aml::name(b"_CRS", &aml::resources(&[memory, aml::edge_interrupt(gsi)])),
    ];
    let digit = |value: usize| b"0123456789ABCDEF"[value & 0xf];
    aml::device(&[b'V', b'I', digit(slot >> 4), digit(slot)], &terms.concat())
}
