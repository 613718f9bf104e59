//! RSDP, XSDT, FADT and MADT.

use crate::layout;

/// What the tables say they were made by.
const OEM_ID: &[u8; 6] = b"CORACL";
const OEM_TABLE_ID: &[u8; 8] = b"HYPERKIT";
const HEADER_BYTES: usize = 36;

/// A table: the header all have in common, then `body` (ACPI 6.4 §5.2.6).
pub(super) fn table(signature: &[u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
    bytes.extend(signature);
    bytes.extend(((HEADER_BYTES + body.len()) as u32).to_le_bytes());
    bytes.extend([revision, 0]);
    bytes.extend(OEM_ID);
    bytes.extend(OEM_TABLE_ID);
    bytes.extend(1u32.to_le_bytes());
    bytes.extend(b"HYKT");
    bytes.extend(1u32.to_le_bytes());
    bytes.extend(body);
    bytes[9] = checksum(&bytes);
    bytes
}

/// What makes the sum of `bytes` zero, their own checksum being zero so far.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte)).wrapping_neg()
}

pub(super) const RSDP_BYTES: usize = 36;

/// Root pointer, revision 2 (ACPI 6.4 §5.2.5.3).
pub(super) fn rsdp(xsdt: u64) -> [u8; RSDP_BYTES] {
    let mut bytes = [0; RSDP_BYTES];
    bytes[..8].copy_from_slice(b"RSD PTR ");
    bytes[9..15].copy_from_slice(OEM_ID);
    bytes[15] = 2;
    bytes[20..24].copy_from_slice(&(RSDP_BYTES as u32).to_le_bytes());
    bytes[24..32].copy_from_slice(&xsdt.to_le_bytes());
    bytes[8] = checksum(&bytes[..20]);
    bytes[32] = checksum(&bytes);
    bytes
}

/// Addresses of the other tables (ACPI 6.4 §5.2.8).
pub(super) fn xsdt(tables: &[u64]) -> Vec<u8> {
    let body: Vec<u8> = tables.iter().flat_map(|addr| addr.to_le_bytes()).collect();
    table(b"XSDT", 1, &body)
}

/// Flags of the FADT (ACPI 6.4 §5.2.9, table 5.10).
mod flag {
    pub(super) const WBINVD: u32 = 1 << 0;
    pub(super) const POWER_BUTTON_IS_A_DEVICE: u32 = 1 << 4;
    pub(super) const SLEEP_BUTTON_IS_A_DEVICE: u32 = 1 << 5;
    pub(super) const RESET_REGISTER: u32 = 1 << 10;
    pub(super) const HARDWARE_REDUCED: u32 = 1 << 20;
}

/// IA-PC boot flags (ACPI 6.4 §5.2.9.3): no VGA, no CMOS clock driver (the clock has no interrupt).
const NO_VGA: u16 = 1 << 2;
const NO_CMOS_RTC: u16 = 1 << 5;

/// Fixed description table, revision 6.4 (ACPI 6.4 §5.2.9).
pub(super) fn fadt(dsdt: u64) -> Vec<u8> {
    const BYTES: usize = 276 - HEADER_BYTES;
    let mut body = vec![0; BYTES];
    let mut put = |at: usize, bytes: &[u8]| {
        body[at - HEADER_BYTES..at - HEADER_BYTES + bytes.len()].copy_from_slice(bytes);
    };
    let flags = flag::WBINVD
        | flag::POWER_BUTTON_IS_A_DEVICE
        | flag::SLEEP_BUTTON_IS_A_DEVICE
        | flag::RESET_REGISTER
        | flag::HARDWARE_REDUCED;
    put(109, &(NO_VGA | NO_CMOS_RTC).to_le_bytes());
    put(112, &flags.to_le_bytes());
    put(116, &port(layout::POWER_PORT + 2));
    put(128, &[layout::RESET_VALUE]);
    put(131, &[4]); // minor version
    put(140, &dsdt.to_le_bytes());
    put(244, &port(layout::POWER_PORT));
    put(256, &port(layout::POWER_PORT + 1));
    put(268, b"HYPERKIT"); // hypervisor vendor
    table(b"FACP", 6, &body)
}

/// Generic address of an 8-bit port (ACPI 6.4 §5.2.3.2).
fn port(port: u16) -> [u8; 12] {
    const SYSTEM_IO: u8 = 1;
    const BYTE_ACCESS: u8 = 1;
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&[SYSTEM_IO, 8, 0, BYTE_ACCESS]);
    bytes[4..6].copy_from_slice(&port.to_le_bytes());
    bytes
}

/// Processors and I/O APIC (ACPI 6.4 §5.2.12).
pub(super) fn madt(vcpus: u32) -> Vec<u8> {
    const ENABLED: u32 = 1;
    /// First APIC id that only the x2APIC form can hold.
    const X2APIC_FIRST: u32 = 255;
    let mut body = Vec::new();
    body.extend((layout::LAPIC as u32).to_le_bytes());
    body.extend(0u32.to_le_bytes()); // no PICs
    for id in 0..vcpus {
        if id < X2APIC_FIRST {
            body.extend([0, 8, id as u8, id as u8]);
            body.extend(ENABLED.to_le_bytes());
        } else {
            body.extend([9, 16, 0, 0]);
            for word in [id, ENABLED, id] {
                body.extend(word.to_le_bytes());
            }
        }
    }
    body.extend([1, 12, 0, 0]); // I/O APIC, id 0
    body.extend((layout::IOAPIC as u32).to_le_bytes());
    body.extend(0u32.to_le_bytes()); // its first GSI
    table(b"APIC", 5, &body)
}
