//! Kernels in all their forms, and broken ones.

use std::io::Write;

use hyperkit_hv::state::x86_64::gpr;
use proptest::prelude::*;

use super::*;
use crate::testing::pvh_elf;

const RAM_BYTES: u64 = 16 << 20;
const CODE: &[u8] = b"kernel code";
const KERNEL_AT: u64 = 0x20_0000;

fn ram() -> GuestRam {
    GuestRam::new(RAM_BYTES).unwrap()
}

fn config(kernel: Vec<u8>) -> BootConfig {
    let cmdline = "console=ttyS0".to_owned();
    BootConfig { kernel: kernel.into(), initrd: None, cmdline, vcpus: 1, virtio_mmio_devices: 2 }
}

fn elf() -> Vec<u8> {
    pvh_elf(CODE, KERNEL_AT, 0x1000)
}

/// A bzImage with one setup sector; `xloadflags` says whether it has a 64-bit entry.
fn bzimage(xloadflags: u16) -> Vec<u8> {
    let mut file = vec![0; 1024 + 0x400];
    file[0x1f1] = 1;
    file[0x1f4..0x1f8].copy_from_slice(&(0x400u32 / 16).to_le_bytes());
    file[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    file[0x201] = 0x66;
    file[0x202..0x206].copy_from_slice(b"HdrS");
    file[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
    file[0x211] = 1;
    file[0x22c..0x230].copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
    file[0x236..0x238].copy_from_slice(&xloadflags.to_le_bytes());
    file[0x238..0x23c].copy_from_slice(&2047u32.to_le_bytes());
    file[0x258..0x260].copy_from_slice(&0x20_0000u64.to_le_bytes());
    file[0x260..0x264].copy_from_slice(&0x10_0000u32.to_le_bytes());
    file[1024..1028].copy_from_slice(b"code");
    file
}

fn read<const N: usize>(ram: &GuestRam, addr: u64) -> [u8; N] {
    let mut bytes = [0; N];
    ram.read(GuestAddr(addr), &mut bytes).unwrap();
    bytes
}

fn u32_in(ram: &GuestRam, addr: u64) -> u64 {
    u64::from(u32::from_le_bytes(read(ram, addr)))
}

fn u64_in(ram: &GuestRam, addr: u64) -> u64 {
    u64::from_le_bytes(read(ram, addr))
}

#[test]
fn pvh_kernel_finds_its_code_command_line_disk_memory_and_tables() {
    let ram = ram();
    let config = BootConfig { initrd: Some(vec![7; 5000].into()), ..config(elf()) };
    let state = boot(&ram, &config).unwrap();
    assert_eq!(state.rip, KERNEL_AT);
    assert_eq!(read(&ram, KERNEL_AT), *CODE.first_chunk::<11>().unwrap());
    let info = state.gpr[gpr::RBX];
    assert_eq!((u32_in(&ram, info), u32_in(&ram, info + 12)), (0x336e_c578, 1));
    let [modules, cmdline, rsdp, map] = [16, 24, 32, 40].map(|at| u64_in(&ram, info + at));
    assert_eq!(&read::<14>(&ram, cmdline), b"console=ttyS0\0");
    assert_eq!(&read::<8>(&ram, rsdp), b"RSD PTR ");
    let (disk, bytes) = (u64_in(&ram, modules), u64_in(&ram, modules + 8));
    assert_eq!((disk, bytes), (RAM_BYTES - 0x2000, 5000));
    assert_eq!(read::<5000>(&ram, disk), [7; 5000]);
    let memory: Vec<_> =
        (0..u32_in(&ram, info + 48)).map(|n| [0, 8, 16].map(|at| u64_in(&ram, map + 24 * n + at))).collect();
    assert_eq!(memory, [[0, 0x9_fc00, 1], [0x9_fc00, 0x6_0400, 2], [0x10_0000, RAM_BYTES - 0x10_0000, 1]]);
}

#[test]
fn bzimage_is_entered_in_long_mode_with_a_zero_page() {
    let ram = ram();
    let config = BootConfig { initrd: Some(vec![7; 100].into()), ..config(bzimage(1)) };
    let state = boot(&ram, &config).unwrap();
    assert_eq!((state.rip, state.efer & 0x500), (0x10_0200, 0x500));
    assert_eq!(&read::<4>(&ram, 0x10_0000), b"code");
    let page = state.gpr[gpr::RSI];
    assert_eq!(&read::<4>(&ram, page + 0x202), b"HdrS");
    assert_eq!(&read::<14>(&ram, u32_in(&ram, page + 0x228)), b"console=ttyS0\0");
    assert_eq!((u32_in(&ram, page + 0x218), u32_in(&ram, page + 0x21c)), (RAM_BYTES - 0x1000, 100));
    assert_eq!(&read::<8>(&ram, u64_in(&ram, page + 0x70)), b"RSD PTR ");
    assert_eq!(read::<1>(&ram, page + 0x1e8), [3]);
    // The mapping of the last page below 4 GiB, by hand.
    let present = |entry: u64| entry & !0xfff;
    let directory = present(u64_in(&ram, present(u64_in(&ram, state.cr3)) + 8 * 3));
    assert_eq!(u64_in(&ram, directory + 8 * 511), 0xffe0_0083);
    let [code, data] = [2, 3].map(|index| u64_in(&ram, state.gdtr.base + 8 * index));
    assert_eq!((code, data), (0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff));
}

#[test]
fn bzimage_without_a_64_bit_entry_is_entered_in_protected_mode() {
    let state = boot(&ram(), &config(bzimage(0))).unwrap();
    assert_eq!((state.rip, state.cr0, state.segments[1].selector), (0x10_0000, 0x11, 0x10));
}

fn refused(config: &BootConfig, message: &str) {
    let error = boot(&ram(), config).unwrap_err().to_string();
    assert!(error.contains(message), "{error:?} does not contain {message:?}");
}

#[test]
fn what_is_no_kernel_is_called_by_its_name() {
    for (bytes, name) in [
        (&b"\xff\xd8\xff\xe0\0\x10JFIF"[..], "is a JPEG image, not a kernel"),
        (b"", "an empty file"),
        (b"Hello.\n", "a text file"),
        (b"#!/bin/sh\n", "a script"),
        (b"070701000", "cpio archive"),
        (b"\xfd7zXZ\0", "unpack it first"),
        (&[0; 100], "a file of zeros"),
        (b"\x01\x02\x03", "unknown kind"),
    ] {
        refused(&config(bytes.to_vec()), name);
    }
}

/// The kernel with `bytes` put at `at`.
fn damaged(mut kernel: Vec<u8>, at: usize, bytes: &[u8]) -> BootConfig {
    kernel[at..at + bytes.len()].copy_from_slice(bytes);
    config(kernel)
}

#[test]
fn damaged_elf_is_refused_with_a_reason() {
    refused(&damaged(elf(), 4, &[1]), "not 64-bit");
    refused(&damaged(elf(), 18, &[183]), "for machine 183");
    refused(&damaged(elf(), 56, &[0]), "0 program headers");
    refused(&damaged(elf(), 32, &[0xff; 8]), "program headers are cut off");
    refused(&damaged(elf(), 176 + 8, &[17]), "no PVH entry");
    refused(&damaged(elf(), 176 + 4, &[0xff; 4]), "no PVH entry");
    refused(&damaged(elf(), 64 + 32, &[0xff; 7]), "cut off");
    refused(&damaged(elf(), 64 + 40, &[1, 0]), "larger in the file");
    refused(&damaged(elf(), 64 + 24, &[0, 0x10, 0]), "below 0x100000");
    refused(&damaged(elf(), 64 + 24, &[0, 0x10, 0x20]), "in none of its segments");
    refused(&damaged(elf(), 64 + 43, &[1]), "but the machine's ends at 0x1000000");
    refused(&config(elf()[..100].to_vec()), "program headers are cut off");
    refused(&config(elf()[..elf().len() - 1].to_vec()), "cut off");
}

#[test]
fn damaged_bzimage_is_refused_with_a_reason() {
    refused(&damaged(bzimage(1), 0x206, &[0x0b, 2]), "boot protocol is 2.11");
    refused(&damaged(bzimage(1), 0x211, &[0]), "zImage");
    refused(&damaged(bzimage(1), 0x1f1, &[60]), "cut off");
    refused(&damaged(bzimage(1), 0x1f6, &[1]), "cut off");
    refused(&damaged(bzimage(1), 0x263, &[1]), "needs memory up to 0x1300000");
    refused(&config(bzimage(1)[..0x240].to_vec()), "cut off");
}

#[test]
fn what_does_not_fit_is_refused() {
    let initrd = vec![1; RAM_BYTES as usize - KERNEL_AT as usize];
    refused(&BootConfig { initrd: Some(initrd.into()), ..config(elf()) }, "does not fit");
    let cmdline = "x".repeat(2048);
    refused(&BootConfig { cmdline, ..config(elf()) }, "has 2048 bytes, the kernel takes at most 2047");
    refused(&BootConfig { cmdline: "a\0b".into(), ..config(elf()) }, "zero byte");
}

#[test]
fn kernel_in_a_file_loads_like_one_in_memory() {
    let mut file = tempfile::tempfile().unwrap();
    let code = [0x90; 300 << 10];
    file.write_all(&pvh_elf(&code, KERNEL_AT, 0)).unwrap();
    let ram = ram();
    let kernel = Image::from_file(file).unwrap();
    boot(&ram, &BootConfig { kernel, ..config(Vec::new()) }).unwrap();
    assert_eq!(read::<{ 300 << 10 }>(&ram, KERNEL_AT), code);
}

#[test]
fn directory_is_not_a_kernel() {
    let file = std::fs::File::open(std::env::temp_dir()).unwrap();
    assert!(matches!(Image::from_file(file), Err(BootError::NotAFile)));
}

proptest! {
    #[test]
    fn hostile_kernels_are_survived(
        linux in any::<bool>(),
        changes in proptest::collection::vec((0usize..0x300, any::<u8>()), 0..12),
        len in 0usize..0x1000,
    ) {
        let mut kernel = if linux { bzimage(1) } else { elf() };
        for (at, byte) in changes {
            if let Some(cell) = kernel.get_mut(at) {
                *cell = byte;
            }
        }
        kernel.truncate(len.max(64));
        let config = BootConfig { initrd: Some(vec![1; 100].into()), ..config(kernel) };
        let _either_way = boot(&ram(), &config);
    }
}
