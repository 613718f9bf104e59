//! Linux kernels that unpack themselves. Spec: Linux `Documentation/x86/boot.rst`, protocol 2.12 and later.

use hyperkit_hv::X86State;
use hyperkit_hv::state::x86_64::{DescriptorTable, Segment, gpr};
use hyperkit_mem::{GuestAddr, GuestRam, PAGE_BYTES};

use super::{Entry, Initrd, Loaded};
use crate::{BootError, Image, layout, memory_map};

const HEADER_START: usize = 0x1f1;
/// Bytes of the zero page that a setup header may reach.
const HEADER_END_MAX: usize = 0x290;
const VERSION_MIN: u16 = 0x020c;
const LOADED_HIGH: u8 = 1;
/// `xloadflags`: there is a 64-bit entry 0x200 bytes into the kernel.
const KERNEL_64: u16 = 1;
const ENTRY_64: u64 = 0x200;
/// `type_of_loader` of a loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;

/// Selectors that the protocol asks for.
const BOOT_CS: u16 = 0x10;
const BOOT_DS: u16 = 0x18;
const TSS: u16 = 0x20;

/// The setup header as found in the file, at its place in a zero page.
pub(super) struct SetupHeader {
    page: Box<[u8; PAGE_BYTES as usize]>,
}

impl SetupHeader {
    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.page[at], self.page[at + 1]])
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from(self.u16(at)) | u32::from(self.u16(at + 2)) << 16
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from(self.u32(at)) | u64::from(self.u32(at + 4)) << 32
    }

    fn has_64_bit_entry(&self) -> bool {
        self.u16(0x236) & KERNEL_64 != 0
    }
}

/// Whether a file that begins with `start` claims to be a bzImage.
pub(super) fn is_one(start: &[u8]) -> bool {
    start.get(0x1fe..0x200) == Some(&[0x55, 0xaa]) && start.get(0x202..0x206) == Some(b"HdrS")
}

/// Loads the protected-mode part.
pub(super) fn load(ram: &GuestRam, image: &Image, start: &[u8]) -> Result<Loaded, BootError> {
    let header = parse(start)?;
    let setup_sectors = match header.page[0x1f1] {
        0 => 4,
        n => u64::from(n),
    };
    let offset = (setup_sectors + 1) * 512;
    let bytes = match image.bytes().checked_sub(offset) {
        None | Some(0) => return refuse("it is cut off".into()),
        Some(bytes) => bytes,
    };
    if u64::from(header.u32(0x1f4)) * 16 > bytes.next_multiple_of(16) {
        return refuse("it is cut off".into());
    }
    // The kernel unpacks itself at its preferred address and needs `init_size` bytes from there.
    let (preferred, init_bytes) = (header.u64(0x258), u64::from(header.u32(0x260)));
    let loaded_end = layout::KERNEL.0.saturating_add(bytes);
    let end = preferred.max(layout::KERNEL.0).saturating_add(init_bytes).max(loaded_end);
    let ram_end = memory_map::low_ram_end(ram);
    if end > ram_end {
        return Err(BootError::KernelTooBig { end, ram_end });
    }
    image.copy_to(ram, layout::KERNEL, offset, bytes).map_err(BootError::Read)?;
    let initrd_limit = u64::from(header.u32(0x22c)) + 1;
    let cmdline_max = (header.u32(0x238) as usize).min(layout::CMDLINE_MAX);
    Ok(Loaded { end, initrd_limit, cmdline_max, entry: Entry::Linux { header } })
}

fn parse(start: &[u8]) -> Result<SetupHeader, BootError> {
    let mut header = SetupHeader { page: Box::new([0; PAGE_BYTES as usize]) };
    let end = 0x202 + usize::from(start[0x201]);
    let end = end.min(HEADER_END_MAX);
    let Some(bytes) = start.get(HEADER_START..end) else {
        return refuse("its setup header is cut off".into());
    };
    header.page[HEADER_START..end].copy_from_slice(bytes);
    let version = header.u16(0x206);
    if version < VERSION_MIN {
        let (major, minor) = (version >> 8, version & 0xff);
        return refuse(format!("its boot protocol is {major}.{minor:02}, at least 2.12 is needed"));
    }
    if header.page[0x211] & LOADED_HIGH == 0 {
        return refuse("it is a zImage, which loads below 1 MiB".into());
    }
    Ok(header)
}

/// Writes the zero page, a GDT and, for the 64-bit entry, page tables, and gives the state at the entry.
pub(super) fn enter(
    ram: &GuestRam,
    header: &SetupHeader,
    initrd: Option<Initrd>,
    rsdp: GuestAddr,
) -> Result<X86State, BootError> {
    let mut page = header.page.clone();
    let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x70, &rsdp.0.to_le_bytes());
    put(0x1fa, &0xffffu16.to_le_bytes()); // video mode "normal"
    put(0x210, &[LOADER_UNDEFINED]);
    put(0x214, &(layout::KERNEL.0 as u32).to_le_bytes());
    if let Some(initrd) = initrd {
        put(0x218, &(initrd.addr as u32).to_le_bytes());
        put(0x21c, &(initrd.bytes as u32).to_le_bytes());
    }
    put(0x228, &(layout::CMDLINE.0 as u32).to_le_bytes());
    put(0x250, &[0; 8]); // no setup data
    let entries = memory_map::entries(ram);
    put(0x1e8, &[entries.len() as u8]);
    for (index, entry) in entries.iter().enumerate() {
        let at = 0x2d0 + 20 * index;
        put(at, &entry.start.to_le_bytes());
        put(at + 8, &entry.bytes.to_le_bytes());
        put(at + 16, &entry.kind.to_le_bytes());
    }
    ram.write(layout::ZERO_PAGE, &page[..])?;
    if header.has_64_bit_entry() { long_mode(ram) } else { protected_mode(ram) }
}

fn protected_mode(ram: &GuestRam) -> Result<X86State, BootError> {
    let mut state = X86State::pvh(layout::KERNEL.0 as u32, 0);
    set_segments(ram, &mut state, 0xc09b)?;
    state.gpr[gpr::RSI] = layout::ZERO_PAGE.0;
    Ok(state)
}

fn long_mode(ram: &GuestRam) -> Result<X86State, BootError> {
    let mut state = X86State::pvh(0, 0);
    set_segments(ram, &mut state, 0xa09b)?;
    write_page_tables(ram)?;
    state.rip = layout::KERNEL.0 + ENTRY_64;
    state.gpr[gpr::RSI] = layout::ZERO_PAGE.0;
    state.cr3 = layout::PAGE_TABLES.0;
    state.cr4 = 0x20; // PAE
    state.cr0 = 0x8000_0011; // PG, ET, PE
    state.efer = 0x500; // LMA, LME
    Ok(state)
}

/// Flat segments, in the registers and in a GDT, with these rights for code.
fn set_segments(ram: &GuestRam, state: &mut X86State, code_rights: u16) -> Result<(), BootError> {
    let segment = |selector, rights| Segment { selector, base: 0, limit: u32::MAX, rights };
    let code = segment(BOOT_CS, code_rights);
    let data = segment(BOOT_DS, 0xc093);
    state.segments = [data; 6];
    state.segments[1] = code;
    state.tr = Segment { selector: TSS, base: 0, limit: 0x67, rights: 0x8b };
    let gdt = [0, 0, descriptor(code_rights), descriptor(0xc093), 0x8b00_0000_0067, 0];
    for (index, entry) in gdt.iter().enumerate() {
        ram.write(GuestAddr(layout::GDT.0 + 8 * index as u64), &entry.to_le_bytes())?;
    }
    state.gdtr = DescriptorTable { base: layout::GDT.0, limit: (8 * gdt.len() - 1) as u16 };
    Ok(())
}

/// A flat segment descriptor (SDM vol. 3A §3.4.5).
fn descriptor(rights: u16) -> u64 {
    0x000f_0000_0000_ffff | u64::from(rights & 0xf0ff) << 40
}

/// Maps the first 4 GiB one to one with pages of 2 MiB (SDM vol. 3A §4.5).
fn write_page_tables(ram: &GuestRam) -> Result<(), BootError> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 0x80;
    let table = |index: u64| layout::PAGE_TABLES.0 + PAGE_BYTES * index;
    let put = |at: u64, entry: u64| ram.write(GuestAddr(at), &entry.to_le_bytes());
    put(table(0), table(1) | PRESENT_WRITABLE)?;
    for gib in 0..4 {
        put(table(1) + 8 * gib, table(2 + gib) | PRESENT_WRITABLE)?;
        for page in 0..512 {
            put(table(2 + gib) + 8 * page, (gib << 30) | (page << 21) | LARGE | PRESENT_WRITABLE)?;
        }
    }
    Ok(())
}

fn refuse<T>(why: String) -> Result<T, BootError> {
    Err(BootError::BzImage { why })
}
