//! The address map of the board, all of it.
//!
//! | addresses | what |
//! |---|---|
//! | `0x500` | GDT for kernels entered by the Linux boot protocol |
//! | `0x1000` | PVH start info, module list, memory map |
//! | `0x7000` | zero page (Linux `struct boot_params`) |
//! | `0x9000`–`0xefff` | page tables that map the first 4 GiB one to one |
//! | `0x20000` | command line |
//! | `0x9fc00`–`0xfffff` | reserved; ACPI tables from `0xe0000`; reset code at `0xffff0` |
//! | `0x100000`–RAM or 3 GiB | kernel low, initial RAM disk at the top |
//! | `0xd000_0000` + 0x200 each | virtio-mmio slots, GSI 5 and up |
//! | `0xfec0_0000`, `0xfee0_0000` | I/O APIC, local APIC |
//! | 4 GiB and up | RAM beyond 3 GiB |
//!
//! | ports | what | GSI |
//! |---|---|---|
//! | `0x64` | i8042 command, for its reset line alone | |
//! | `0x70`, `0x71` | CMOS clock | |
//! | `0x3f8`–`0x3ff` | serial port | 4 |
//! | `0x600`–`0x602` | ACPI sleep control, sleep status, reset | |

use hyperkit_mem::GuestAddr;

/// Global descriptor table.
pub const GDT: GuestAddr = GuestAddr(0x500);
/// PVH start info and what it points to; one page.
pub const START_INFO: GuestAddr = GuestAddr(0x1000);
/// Linux boot parameters; one page.
pub const ZERO_PAGE: GuestAddr = GuestAddr(0x7000);
/// Six pages of page tables.
pub const PAGE_TABLES: GuestAddr = GuestAddr(0x9000);
/// The kernel's command line.
pub const CMDLINE: GuestAddr = GuestAddr(0x2_0000);
/// Longest command line in bytes, without its end: more is cut off by Linux (`COMMAND_LINE_SIZE`).
pub const CMDLINE_MAX: usize = 2047;
/// Where conventional memory ends.
pub const LOW_MEMORY_END: u64 = 0x9_fc00;
/// ACPI tables; firmware searches here for their root, too.
pub const ACPI: GuestAddr = GuestAddr(0xe_0000);
/// Room for ACPI tables.
pub const ACPI_BYTES: u64 = 0x1_f000;
/// Where a processor in real mode goes to reset the machine (f000:fff0).
pub const RESET_VECTOR: GuestAddr = GuestAddr(0xf_fff0);
/// Kernels are loaded from here on.
pub const KERNEL: GuestAddr = GuestAddr(0x10_0000);

/// First virtio-mmio slot.
pub const VIRTIO_MMIO: u64 = 0xd000_0000;
/// Size of a slot.
pub const VIRTIO_MMIO_BYTES: u64 = 0x200;
/// Number of slots.
pub const VIRTIO_MMIO_SLOTS: usize = 19;
/// Interrupt of the first slot; the others follow.
pub const VIRTIO_MMIO_GSI: u32 = 5;

/// I/O APIC.
pub const IOAPIC: u64 = 0xfec0_0000;
/// Local APIC of each processor.
pub const LAPIC: u64 = 0xfee0_0000;

/// Command port of the keyboard controller.
pub const I8042_COMMAND_PORT: u16 = 0x64;
/// Index and data port of the CMOS clock.
pub const RTC_PORT: u16 = 0x70;
/// Serial port, 8 ports.
pub const SERIAL_PORT: u16 = 0x3f8;
/// Interrupt of the serial port.
pub const SERIAL_GSI: u32 = 4;
/// ACPI sleep control, sleep status and reset register, 3 ports.
pub const POWER_PORT: u16 = 0x600;
/// Sleep type that powers the machine off, written to the sleep control register (ACPI 6.4 §4.8.3.7).
pub const SLEEP_TYPE_OFF: u8 = 5;
/// What resets the machine when written to the reset register.
pub const RESET_VALUE: u8 = 1;

/// Address and interrupt of a virtio-mmio slot below [`VIRTIO_MMIO_SLOTS`].
pub fn virtio_mmio_slot(slot: usize) -> (u64, u32) {
    debug_assert!(slot < VIRTIO_MMIO_SLOTS);
    (VIRTIO_MMIO + VIRTIO_MMIO_BYTES * slot as u64, VIRTIO_MMIO_GSI + slot as u32)
}
