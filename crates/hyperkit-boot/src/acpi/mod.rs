//! ACPI tables of a hardware-reduced machine: processors, I/O APIC, serial port, virtio-mmio slots, power.
//!
//! There is no legacy hardware behind them: no PM timer, PIC, PIT or fixed registers. Spec: ACPI 6.4.

mod aml;
mod dsdt;
mod tables;

use hyperkit_mem::{GuestAddr, GuestRam};

use crate::{BootError, layout};

/// No processor entry is shorter than 8 bytes, so that more cannot fit.
const VCPUS_MAX: u32 = (layout::ACPI_BYTES / 8) as u32;

/// Writes all tables and returns the address of their root, the RSDP.
pub(crate) fn write_tables(ram: &GuestRam, vcpus: u32, n_virtio: usize) -> Result<GuestAddr, BootError> {
    if n_virtio > layout::VIRTIO_MMIO_SLOTS {
        return Err(BootError::AcpiTooBig { asked: n_virtio });
    }
    if vcpus > VCPUS_MAX {
        return Err(BootError::AcpiTooBig { asked: vcpus as usize });
    }
    let (start, bytes) = build(vcpus, n_virtio);
    if bytes.len() as u64 > layout::ACPI_BYTES {
        return Err(BootError::AcpiTooBig { asked: vcpus as usize });
    }
    ram.write(start, &bytes)?;
    Ok(start)
}

/// The tables as they lie in memory from [`layout::ACPI`], the RSDP first.
fn build(vcpus: u32, n_virtio: usize) -> (GuestAddr, Vec<u8>) {
    let start = layout::ACPI.0;
    let mut bytes = vec![0; tables::RSDP_BYTES];
    let mut add = |table: Vec<u8>| {
        let at = bytes.len().next_multiple_of(16);
        bytes.resize(at, 0);
        bytes.extend(table);
        start + at as u64
    };
    let dsdt = add(dsdt::dsdt(n_virtio));
    let fadt = add(tables::fadt(dsdt));
    let madt = add(tables::madt(vcpus));
    let xsdt = add(tables::xsdt(&[fadt, madt]));
    bytes[..tables::RSDP_BYTES].copy_from_slice(&tables::rsdp(xsdt));
    (GuestAddr(start), bytes)
}

#[cfg(test)]
mod tests;
