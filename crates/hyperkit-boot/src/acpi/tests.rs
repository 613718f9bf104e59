//! The ACPI tables, taken apart again.

use super::*;

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// Follows the pointers as a guest does; checks every checksum on the way.
fn find(signature: &[u8; 4], vcpus: u32, n_virtio: usize) -> Vec<u8> {
    let (start, bytes) = build(vcpus, n_virtio);
    let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte));
    let at = |addr: u64| {
        let table = &bytes[(addr - start.0) as usize..];
        let table = &table[..u32_at(table, 4) as usize];
        assert_eq!(sum(table), 0, "checksum of {:?}", std::str::from_utf8(&table[..4]));
        table.to_vec()
    };
    assert_eq!(&bytes[..8], b"RSD PTR ");
    assert_eq!((sum(&bytes[..20]), sum(&bytes[..36])), (0, 0));
    let xsdt = at(u64_at(&bytes, 24));
    let listed: Vec<Vec<u8>> = xsdt[36..].chunks_exact(8).map(|addr| at(u64_at(addr, 0))).collect();
    let dsdt = at(u64_at(listed.iter().find(|table| table.starts_with(b"FACP")).unwrap(), 140));
    listed.into_iter().chain([dsdt]).find(|table| table.starts_with(signature)).unwrap()
}

#[test]
fn every_vcpu_is_in_the_madt_in_the_form_its_id_needs() {
    let madt = find(b"APIC", 300, 0);
    let mut rest = &madt[44..];
    let (mut lapics, mut x2apics, mut ioapics) = (0, 0, 0);
    while let [kind, len, ..] = *rest {
        match kind {
            0 => lapics += 1,
            9 => x2apics += 1,
            1 => ioapics += 1,
            other => panic!("entry {other}"),
        }
        rest = &rest[usize::from(len)..];
    }
    assert_eq!((lapics, x2apics, ioapics), (255, 45, 1));
}

#[test]
fn fadt_names_the_power_registers_of_a_hardware_reduced_machine() {
    let fadt = find(b"FACP", 1, 0);
    assert_eq!(u32_at(&fadt, 112) & (1 << 20 | 1 << 10), 1 << 20 | 1 << 10);
    for (at, port) in
        [(244, layout::POWER_PORT), (256, layout::POWER_PORT + 1), (116, layout::POWER_PORT + 2)]
    {
        assert_eq!(fadt[at..at + 2], [1, 8]);
        assert_eq!(u64_at(&fadt, at + 4), u64::from(port));
    }
}

/// What `iasl -d` makes of the DSDT with one device: checked once by eye, kept as bytes.
#[test]
fn dsdt_has_the_bytes_that_a_disassembler_accepted() {
    let dsdt = find(b"DSDT", 1, 1);
    let expected: &[u8] = &[
        0x10, 0x46, 0x07, b'\\', b'_', b'S', b'B', b'_', // Scope (\_SB)
        0x5b, 0x82, 0x31, b'C', b'O', b'M', b'1', // Device (COM1)
        0x08, b'_', b'H', b'I', b'D', 0x0c, 0x41, 0xd0, 0x05, 0x01, // EisaId ("PNP0501")
        0x08, b'_', b'U', b'I', b'D', 0x00, //
        0x08, b'_', b'C', b'R', b'S', 0x11, 0x16, 0x0a, 0x13, //
        0x47, 0x01, 0xf8, 0x03, 0xf8, 0x03, 0x01, 0x08, // IO (Decode16, 0x3f8, 0x3f8, 1, 8)
        0x89, 0x06, 0x00, 0x03, 0x01, 0x04, 0x00, 0x00, 0x00, // Interrupt (Edge, ActiveHigh) { 4 }
        0x79, 0x00, //
        0x5b, 0x82, 0x3a, b'V', b'I', b'0', b'0', // Device (VI00)
        0x08, b'_', b'H', b'I', b'D', 0x0d, b'L', b'N', b'R', b'O', b'0', b'0', b'0', b'5', 0x00, //
        0x08, b'_', b'U', b'I', b'D', 0x00, //
        0x08, b'_', b'C', b'R', b'S', 0x11, 0x1a, 0x0a, 0x17, //
        0x86, 0x09, 0x00, 0x01, 0x00, 0x00, 0x00, 0xd0, 0x00, 0x02, 0x00, 0x00, // Memory32Fixed
        0x89, 0x06, 0x00, 0x03, 0x01, 0x05, 0x00, 0x00, 0x00, // Interrupt { 5 }
        0x79, 0x00, //
        0x08, b'\\', b'_', b'S', b'5', b'_', 0x12, 0x07, 0x04, 0x0a, 0x05, 0x00, 0x00, 0x00,
    ];
    assert_eq!(dsdt[36..], *expected, "{:02x?}", &dsdt[36..]);
}

/// The oracle: ACPICA's own disassembler reads every table without a complaint.
#[test]
fn disassembler_finds_no_fault() {
    let dir = tempfile::tempdir().unwrap();
    let iasl = |args: &[&str]| std::process::Command::new("iasl").args(args).current_dir(dir.path()).output();
    if iasl(&["-v"]).is_err() {
        println!("SKIP: iasl (package acpica-tools) is not installed");
        return;
    }
    for signature in [b"DSDT", b"FACP", b"APIC"] {
        let file = format!("{}.dat", std::str::from_utf8(signature).unwrap());
        std::fs::write(dir.path().join(&file), find(signature, 4, layout::VIRTIO_MMIO_SLOTS)).unwrap();
        let output = iasl(&["-d", &file]).unwrap();
        let said =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        assert!(!said.contains("Error") && !said.contains("Warning") && !said.contains("Invalid"), "{said}");
    }
    let source = std::fs::read_to_string(dir.path().join("DSDT.dsl")).unwrap();
    assert_eq!(source.matches("LNRO0005").count(), layout::VIRTIO_MMIO_SLOTS);
    assert!(source.contains("EisaId (\"PNP0501\")"), "{source}");
}

#[test]
fn more_than_fits_is_refused() {
    let ram = GuestRam::new(1 << 20).unwrap();
    assert!(write_tables(&ram, 1, layout::VIRTIO_MMIO_SLOTS + 1).is_err());
    assert!(write_tables(&ram, 1 << 20, 0).is_err());
}
