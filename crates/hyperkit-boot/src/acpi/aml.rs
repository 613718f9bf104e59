//! The few AML terms that the tables need. Spec: ACPI 6.4 §20.2 (AML) and §6.4 (resources).

const NAME_OP: u8 = 0x08;
const BYTE_PREFIX: u8 = 0x0a;
const WORD_PREFIX: u8 = 0x0b;
const DWORD_PREFIX: u8 = 0x0c;
const STRING_PREFIX: u8 = 0x0d;
const SCOPE_OP: u8 = 0x10;
const BUFFER_OP: u8 = 0x11;
const PACKAGE_OP: u8 = 0x12;
const EXT_PREFIX: u8 = 0x5b;
const DEVICE_OP: u8 = 0x82;
const ROOT: u8 = b'\\';

/// `Name (name, value)`.
pub(super) fn name(name: &[u8; 4], value: &[u8]) -> Vec<u8> {
    [&[NAME_OP], &name[..], value].concat()
}

/// `Name (\name, value)`.
pub(super) fn root_name(name: &[u8; 4], value: &[u8]) -> Vec<u8> {
    [&[NAME_OP, ROOT], &name[..], value].concat()
}

/// `Scope (\name) { … }`.
pub(super) fn root_scope(name: &[u8; 4], terms: &[u8]) -> Vec<u8> {
    [&[SCOPE_OP][..], &with_length(&[&[ROOT], &name[..], terms].concat())].concat()
}

/// `Device (name) { … }`.
pub(super) fn device(name: &[u8; 4], terms: &[u8]) -> Vec<u8> {
    [&[EXT_PREFIX, DEVICE_OP][..], &with_length(&[&name[..], terms].concat())].concat()
}

/// An integer in its shortest form.
pub(super) fn integer(value: u32) -> Vec<u8> {
    let bytes = value.to_le_bytes();
    match value {
        0 | 1 => vec![value as u8],
        2..=0xff => vec![BYTE_PREFIX, bytes[0]],
        0x100..=0xffff => vec![WORD_PREFIX, bytes[0], bytes[1]],
        _ => [&[DWORD_PREFIX][..], &bytes].concat(),
    }
}

/// A string.
pub(super) fn string(text: &str) -> Vec<u8> {
    [&[STRING_PREFIX][..], text.as_bytes(), &[0]].concat()
}

/// `EisaId ("PNPxxxx")` of `PNP` and a number (ACPI 6.4 §19.6.37).
pub(super) fn eisa_pnp(number: u16) -> Vec<u8> {
    let [high, low] = number.to_be_bytes();
    vec![DWORD_PREFIX, 0x41, 0xd0, high, low]
}

/// `Package { … }` of integers.
pub(super) fn package(elements: &[u32]) -> Vec<u8> {
    let mut contents = vec![elements.len() as u8];
    contents.extend(elements.iter().flat_map(|&element| integer(element)));
    [&[PACKAGE_OP][..], &with_length(&contents)].concat()
}

/// `ResourceTemplate { … }`.
pub(super) fn resources(descriptors: &[Vec<u8>]) -> Vec<u8> {
    let mut list = descriptors.concat();
    list.extend([0x79, 0]); // end tag; a checksum of 0 is taken as right
    let size = integer(list.len() as u32);
    [&[BUFFER_OP][..], &with_length(&[size, list].concat())].concat()
}

/// `IO (Decode16, port, port, 1, n_ports)`.
pub(super) fn io_ports(port: u16, n_ports: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0x47, 1, low, high, low, high, 1, n_ports]
}

/// `Memory32Fixed (ReadWrite, start, bytes)`.
pub(super) fn memory(start: u32, bytes: u32) -> Vec<u8> {
    [&[0x86, 9, 0, 1][..], &start.to_le_bytes(), &bytes.to_le_bytes()].concat()
}

/// `Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) { gsi }`.
pub(super) fn edge_interrupt(gsi: u32) -> Vec<u8> {
    const CONSUMER_EDGE: u8 = 0b11;
    [&[0x89, 6, 0, CONSUMER_EDGE, 1][..], &gsi.to_le_bytes()].concat()
}

/// Puts a package length, which counts itself, before `contents` (ACPI 6.4 §20.2.4).
fn with_length(contents: &[u8]) -> Vec<u8> {
    let n_bytes = match contents.len() {
        0..=62 => 1,
        63..=0xffd => 2,
        0xffe..=0xf_fffc => 3,
        _ => 4,
    };
    let length = contents.len() + n_bytes;
    let mut bytes = match n_bytes {
        1 => vec![length as u8],
        _ => vec![((n_bytes - 1) << 6 | length & 0xf) as u8],
    };
    bytes.extend((1..n_bytes).map(|index| (length >> (8 * index - 4)) as u8));
    bytes.extend(contents);
    bytes
}
