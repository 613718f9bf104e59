//! From files to RAM contents and the first vCPU's registers.

mod bzimage;
mod elf;
mod pvh;

use hyperkit_hv::X86State;
use hyperkit_mem::{GuestAddr, GuestRam, PAGE_BYTES};

use crate::{BootError, Image, acpi, layout, memory_map, sniff};

/// What to boot.
#[derive(Debug, Clone)]
pub struct BootConfig {
    /// The kernel.
    pub kernel: Image,
    /// The initial RAM disk.
    pub initrd: Option<Image>,
    /// The kernel's command line.
    pub cmdline: String,
    /// Number of vCPUs, with APIC ids from 0.
    pub vcpus: u32,
    /// Number of virtio-mmio slots that hold a device, from slot 0.
    pub virtio_mmio_devices: usize,
}

/// Where a loaded kernel is, and how to enter it.
struct Loaded {
    /// First address after it, with the memory it needs to unpack itself.
    end: u64,
    /// Highest address that an initial RAM disk may reach.
    initrd_limit: u64,
    cmdline_max: usize,
    entry: Entry,
}

enum Entry {
    Pvh { entry: u32 },
    Linux { header: bzimage::SetupHeader },
}

/// An initial RAM disk in RAM.
#[derive(Debug, Clone, Copy)]
struct Initrd {
    addr: u64,
    bytes: u64,
}

/// Puts everything that a kernel needs into fresh RAM and returns the state in which vCPU 0 starts.
///
/// # Errors
/// [`BootError`] names the first thing that is wrong with what was given.
pub fn boot(ram: &GuestRam, config: &BootConfig) -> Result<X86State, BootError> {
    let loaded = load_kernel(ram, &config.kernel)?;
    let cmdline = config.cmdline.as_bytes();
    if cmdline.contains(&0) {
        return Err(BootError::CmdlineNul);
    }
    if cmdline.len() > loaded.cmdline_max {
        return Err(BootError::CmdlineTooLong { bytes: cmdline.len(), max: loaded.cmdline_max });
    }
    ram.write(layout::CMDLINE, cmdline)?;
    ram.write(GuestAddr(layout::CMDLINE.0 + cmdline.len() as u64), &[0])?;
    let initrd = match &config.initrd {
        Some(image) => load_initrd(ram, image, &loaded)?,
        None => None,
    };
    let rsdp = acpi::write_tables(ram, config.vcpus, config.virtio_mmio_devices)?;
    ram.write(layout::RESET_VECTOR, &reset_code())?;
    match loaded.entry {
        Entry::Pvh { entry } => pvh::enter(ram, entry, initrd, rsdp),
        Entry::Linux { header } => bzimage::enter(ram, &header, initrd, rsdp),
    }
}

/// What stands in for firmware: writes to the reset register, then halts.
///
/// Linux, on a machine that is hardware-reduced, takes EFI for granted when it resets (`reboot_init`), and without
/// it goes back to real mode and jumps to the reset vector, never trying the ACPI register.
fn reset_code() -> [u8; 9] {
    let [low, high] = (layout::POWER_PORT + 2).to_le_bytes();
    // mov dx, port; mov al, value; out dx, al; hlt; jmp to the hlt
    [0xba, low, high, 0xb0, layout::RESET_VALUE, 0xee, 0xf4, 0xeb, 0xfd]
}

fn load_kernel(ram: &GuestRam, kernel: &Image) -> Result<Loaded, BootError> {
    let start = kernel.start(sniff::BYTES).map_err(BootError::Read)?;
    if start.starts_with(b"\x7fELF") {
        elf::load(ram, kernel)
    } else if bzimage::is_one(&start) {
        bzimage::load(ram, kernel, &start)
    } else {
        Err(BootError::NotAKernel { what: sniff::name(&start) })
    }
}

/// Puts the initial RAM disk as high as it goes, away from the kernel that unpacks itself upwards.
fn load_initrd(ram: &GuestRam, image: &Image, loaded: &Loaded) -> Result<Option<Initrd>, BootError> {
    let bytes = image.bytes();
    if bytes == 0 {
        return Ok(None);
    }
    let limit = loaded.initrd_limit.min(memory_map::low_ram_end(ram));
    let addr = limit
        .checked_sub(bytes)
        .map(|addr| addr & !(PAGE_BYTES - 1))
        .filter(|&addr| addr >= loaded.end)
        .ok_or(BootError::InitrdTooBig { bytes, kernel_end: loaded.end, limit })?;
    image.copy_to(ram, GuestAddr(addr), 0, bytes).map_err(BootError::Initrd)?;
    Ok(Some(Initrd { addr, bytes }))
}

#[cfg(test)]
mod tests;
