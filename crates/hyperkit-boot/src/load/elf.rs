//! ELF kernels with a PVH entry: 64-bit, loaded at their physical addresses.
//!
//! Spec: System V ABI, gABI chapters 4 and 5; the note is `XEN_ELFNOTE_PHYS32_ENTRY` of Xen's
//! `public/elfnote.h`.

use hyperkit_mem::{GuestAddr, GuestRam};

use super::{Entry, Loaded};
use crate::{BootError, Image, layout, memory_map};

const HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: usize = 56;
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const MACHINE_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const XEN_PHYS32_ENTRY: u32 = 18;
/// More notes than this are not a kernel's.
const NOTES_BYTES_MAX: u64 = 1 << 20;

struct ProgramHeader {
    kind: u32,
    offset: u64,
    paddr: u64,
    file_bytes: u64,
    memory_bytes: u64,
    align: u64,
}

/// Loads the segments and finds the entry.
pub(super) fn load(ram: &GuestRam, image: &Image) -> Result<Loaded, BootError> {
    let headers = program_headers(image)?;
    let loads = || headers.iter().filter(|header| header.kind == PT_LOAD && header.memory_bytes > 0);
    let entry = find_entry(image, &headers)?;
    let ram_end = memory_map::low_ram_end(ram);
    let mut end = 0;
    for header in loads() {
        end = end.max(check_segment(image, header, ram_end)?);
    }
    let covers = |header: &ProgramHeader| {
        u64::from(entry).checked_sub(header.paddr).is_some_and(|within| within < header.file_bytes)
    };
    if !loads().any(covers) {
        return refuse(format!("its PVH entry {entry:#x} is in none of its segments"));
    }
    for header in loads() {
        image
            .copy_to(ram, GuestAddr(header.paddr), header.offset, header.file_bytes)
            .map_err(BootError::Read)?;
    }
    Ok(Loaded { end, initrd_limit: ram_end, cmdline_max: layout::CMDLINE_MAX, entry: Entry::Pvh { entry } })
}

fn program_headers(image: &Image) -> Result<Vec<ProgramHeader>, BootError> {
    let mut header = [0; HEADER_BYTES];
    image.read_at(0, &mut header).or_else(|_| refuse("its header is cut off".into()))?;
    if header[4] != CLASS_64 || header[5] != LITTLE_ENDIAN {
        return refuse("it is not 64-bit little-endian".into());
    }
    let machine = u16_at(&header, 18);
    if machine != MACHINE_X86_64 {
        return refuse(format!("it is for machine {machine}, not x86-64 ({MACHINE_X86_64})"));
    }
    let (offset, entry_bytes, n_headers) = (u64_at(&header, 32), u16_at(&header, 54), u16_at(&header, 56));
    if usize::from(entry_bytes) != PROGRAM_HEADER_BYTES || n_headers == 0 {
        return refuse(format!("it has {n_headers} program headers of {entry_bytes} bytes"));
    }
    let mut table = vec![0; PROGRAM_HEADER_BYTES * usize::from(n_headers)];
    image.read_at(offset, &mut table).or_else(|_| refuse("its program headers are cut off".into()))?;
    let parse = |bytes: &[u8]| ProgramHeader {
        kind: u32_at(bytes, 0),
        offset: u64_at(bytes, 8),
        paddr: u64_at(bytes, 24),
        file_bytes: u64_at(bytes, 32),
        memory_bytes: u64_at(bytes, 40),
        align: u64_at(bytes, 48),
    };
    Ok(table.chunks_exact(PROGRAM_HEADER_BYTES).map(parse).collect())
}

/// Checks that a segment is in the file and fits into RAM; returns its end there.
fn check_segment(image: &Image, header: &ProgramHeader, ram_end: u64) -> Result<u64, BootError> {
    let ProgramHeader { offset, paddr, file_bytes, memory_bytes, .. } = *header;
    if offset.checked_add(file_bytes).is_none_or(|end| end > image.bytes()) {
        return refuse(format!("the segment for {paddr:#x} is cut off"));
    }
    if file_bytes > memory_bytes {
        return refuse(format!("the segment for {paddr:#x} is larger in the file than in memory"));
    }
    if paddr < layout::KERNEL.0 {
        return refuse(format!("it has a segment at {paddr:#x}, below {}", layout::KERNEL));
    }
    match paddr.checked_add(memory_bytes) {
        Some(end) if end <= ram_end => Ok(end),
        end => Err(BootError::KernelTooBig { end: end.unwrap_or(u64::MAX), ram_end }),
    }
}

fn find_entry(image: &Image, headers: &[ProgramHeader]) -> Result<u32, BootError> {
    for header in headers.iter().filter(|header| header.kind == PT_NOTE) {
        if header.file_bytes > NOTES_BYTES_MAX {
            return refuse(format!("it has {} bytes of notes", header.file_bytes));
        }
        let mut notes = vec![0; header.file_bytes as usize];
        image.read_at(header.offset, &mut notes).or_else(|_| refuse("its notes are cut off".into()))?;
        if let Some(entry) = pvh_note(&notes, header.align) {
            return u32::try_from(entry)
                .or_else(|_| refuse(format!("its PVH entry {entry:#x} is above 4 GiB")));
        }
    }
    refuse("it has no PVH entry (note XEN_ELFNOTE_PHYS32_ENTRY); a Linux needs CONFIG_PVH".into())
}

/// The value of the PVH note among `notes`, each padded to `align`.
fn pvh_note(mut notes: &[u8], align: u64) -> Option<u64> {
    let pad = if align == 8 { 8 } else { 4 };
    loop {
        let (header, rest) = notes.split_at_checked(12)?;
        let (name_bytes, value_bytes) = (u32_at(header, 0) as usize, u32_at(header, 4) as usize);
        let name = rest.get(..name_bytes)?;
        let rest = rest.get(name_bytes.checked_next_multiple_of(pad)?..)?;
        let value = rest.get(..value_bytes)?;
        if name == b"Xen\0" && u32_at(header, 8) == XEN_PHYS32_ENTRY {
            return match value_bytes {
                4 => Some(u64::from(u32_at(value, 0))),
                8 => Some(u64_at(value, 0)),
                _ => None,
            };
        }
        notes = rest.get(value_bytes.checked_next_multiple_of(pad)?..)?;
    }
}

fn refuse<T>(why: String) -> Result<T, BootError> {
    Err(BootError::Elf { why })
}

fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes([bytes[offset], bytes[offset + 1]])
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from(u16_at(bytes, offset)) | u32::from(u16_at(bytes, offset + 2)) << 16
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from(u32_at(bytes, offset)) | u64::from(u32_at(bytes, offset + 4)) << 32
}
