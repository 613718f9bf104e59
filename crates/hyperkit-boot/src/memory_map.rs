//! What the kernel is told of its memory.

use hyperkit_mem::GuestRam;

use crate::layout;

/// Types of memory, as in BIOS call `e820` and in PVH.
const RAM: u32 = 1;
const RESERVED: u32 = 2;

/// A run of addresses and what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) start: u64,
    pub(crate) bytes: u64,
    pub(crate) kind: u32,
}

/// The machine's memory in ascending order; all that is not listed is the device window.
pub(crate) fn entries(ram: &GuestRam) -> Vec<Entry> {
    let kernel = layout::KERNEL.0;
    let mut entries = vec![
        Entry { start: 0, bytes: layout::LOW_MEMORY_END, kind: RAM },
        Entry { start: layout::LOW_MEMORY_END, bytes: kernel - layout::LOW_MEMORY_END, kind: RESERVED },
    ];
    for region in ram.regions() {
        let start = region.start.0.max(kernel);
        let end = region.start.0 + region.bytes;
        if start < end {
            entries.push(Entry { start, bytes: end - start, kind: RAM });
        }
    }
    entries
}

/// Where the RAM below 4 GiB ends.
pub(crate) fn low_ram_end(ram: &GuestRam) -> u64 {
    ram.regions().first().map_or(0, |region| region.start.0 + region.bytes)
}
