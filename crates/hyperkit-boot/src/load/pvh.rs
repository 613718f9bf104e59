//! Entering a kernel by PVH. Spec: Xen's `docs/misc/pvh.pandoc` and `public/arch-x86/hvm/start_info.h`.

use hyperkit_hv::X86State;
use hyperkit_mem::{GuestAddr, GuestRam};

use super::Initrd;
use crate::{BootError, layout, memory_map};

const MAGIC: u32 = 0x336e_c578;
const VERSION: u32 = 1;
const START_INFO_BYTES: u64 = 56;
const MODULE_BYTES: u64 = 32;

/// Writes the start info and gives the state at the entry.
pub(super) fn enter(
    ram: &GuestRam,
    entry: u32,
    initrd: Option<Initrd>,
    rsdp: GuestAddr,
) -> Result<X86State, BootError> {
    let start_info = layout::START_INFO.0;
    let modules = start_info + START_INFO_BYTES;
    let map = modules + MODULE_BYTES;
    let entries = memory_map::entries(ram);
    let mut bytes = Vec::new();
    for word in [MAGIC, VERSION, 0, u32::from(initrd.is_some())] {
        bytes.extend(word.to_le_bytes());
    }
    let modules = if initrd.is_some() { modules } else { 0 };
    for address in [modules, layout::CMDLINE.0, rsdp.0, map, entries.len() as u64] {
        bytes.extend(address.to_le_bytes());
    }
    let Initrd { addr, bytes: initrd_bytes } = initrd.unwrap_or(Initrd { addr: 0, bytes: 0 });
    for word in [addr, initrd_bytes, 0, 0] {
        bytes.extend(word.to_le_bytes());
    }
    for entry in entries {
        for word in [entry.start, entry.bytes, u64::from(entry.kind)] {
            bytes.extend(word.to_le_bytes());
        }
    }
    ram.write(layout::START_INFO, &bytes)?;
    Ok(X86State::pvh(entry, start_info as u32))
}
