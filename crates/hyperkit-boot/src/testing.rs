//! Makes small ELF kernels out of machine code, for tests.

/// An ELF with a PVH entry: `code` (32-bit, at its first byte) is loaded at `addr` and followed by `bss_bytes` of
/// zeros.
pub fn pvh_elf(code: &[u8], addr: u64, bss_bytes: u64) -> Vec<u8> {
    const HEADERS_BYTES: u64 = 64 + 2 * 56;
    const NOTE_BYTES: u64 = 20;
    let code_offset = HEADERS_BYTES + NOTE_BYTES;
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(16, 0);
    for half in [2u16, 62] {
        elf.extend(half.to_le_bytes()); // executable, x86-64
    }
    elf.extend(1u32.to_le_bytes());
    for word in [addr, 64, 0] {
        elf.extend(word.to_le_bytes()); // entry, program headers, section headers
    }
    elf.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 2, 0, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    let code_bytes = code.len() as u64;
    let headers = [
        (1u32, 7u32, code_offset, addr, code_bytes, code_bytes + bss_bytes),
        (4, 4, HEADERS_BYTES, 0, NOTE_BYTES, NOTE_BYTES),
    ];
    for (kind, flags, offset, paddr, file_bytes, memory_bytes) in headers {
        elf.extend(kind.to_le_bytes());
        elf.extend(flags.to_le_bytes());
        for word in [offset, paddr, paddr, file_bytes, memory_bytes, 4] {
            elf.extend(word.to_le_bytes());
        }
    }
    for word in [4u32, 4, 18] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(b"Xen\0");
    elf.extend((addr as u32).to_le_bytes());
    elf.extend(code);
    elf
}
