//! Programs and initramfs images for the guests of benchmarks.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::run::{root, run};

/// A folder that goes away with the benchmark.
pub struct Folder(PathBuf);

impl Folder {
    /// Makes the folder.
    pub fn new() -> Result<Folder> {
        let path = std::env::temp_dir().join(format!("coracle-bench-{}", std::process::id()));
        std::fs::create_dir_all(&path).with_context(|| format!("{} cannot be made", path.display()))?;
        Ok(Folder(path))
    }

    /// Where it is.
    pub fn path(&self) -> &std::path::Path {
        &self.0
    }

    /// Writes a file in it; returns its path.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<String> {
        let path = self.0.join(name);
        std::fs::write(&path, bytes).with_context(|| format!("{} cannot be written", path.display()))?;
        Ok(path.display().to_string())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// An ELF program of two system calls: sync, and reboot with LINUX_REBOOT_CMD_POWER_OFF.
pub fn poweroff_program() -> Vec<u8> {
    let code: &[u8] = &[
        0xb8, 162, 0, 0, 0, 0x0f, 0x05, // mov eax, 162 (sync); syscall
        0xbf, 0xad, 0xde, 0xe1, 0xfe, // mov edi, 0xfee1dead
        0xbe, 0x69, 0x19, 0x12, 0x28, // mov esi, 0x28121969
        0xba, 0xdc, 0xfe, 0x21, 0x43, // mov edx, 0x4321fedc
        0xb8, 169, 0, 0, 0, 0x0f, 0x05, // mov eax, 169 (reboot); syscall
        0xeb, 0xfe, // jmp .
    ];
    const BASE: u64 = 0x40_0000;
    let total = 120 + code.len() as u64;
    let mut elf = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let u16s =
        |elf: &mut Vec<u8>, values: &[u16]| values.iter().for_each(|value| elf.extend(value.to_le_bytes()));
    let u64s =
        |elf: &mut Vec<u8>, values: &[u64]| values.iter().for_each(|value| elf.extend(value.to_le_bytes()));
    u16s(&mut elf, &[2, 62, 1, 0]);
    u64s(&mut elf, &[BASE + 120, 64, 0]);
    u16s(&mut elf, &[0, 0, 64, 56, 1, 0, 0, 0]);
    u16s(&mut elf, &[1, 0, 5, 0]); // PT_LOAD, read and execute
    u64s(&mut elf, &[0, BASE, BASE, total, total, 0x1000]);
    elf.extend(code);
    elf
}

/// An initramfs (newc) with `/init` and `/dev/console`.
pub fn initramfs(init: &[u8]) -> Vec<u8> {
    let mut cpio = Vec::new();
    let mut put = |name: &str, mode: u32, device: (u32, u32), bytes: &[u8]| {
        let fields =
            [0, mode, 0, 0, 1, 0, bytes.len() as u32, 0, 0, device.0, device.1, name.len() as u32 + 1, 0];
        cpio.extend(b"070701");
        cpio.extend(fields.map(|field| format!("{field:08x}")).concat().bytes());
        cpio.extend(name.bytes().chain([0]));
        cpio.resize(cpio.len().next_multiple_of(4), 0);
        cpio.extend(bytes);
        cpio.resize(cpio.len().next_multiple_of(4), 0);
    };
    put("dev", 0o040_755, (0, 0), &[]);
    put("dev/console", 0o020_600, (5, 1), &[]);
    put("init", 0o100_755, (0, 0), init);
    put("TRAILER!!!", 0, (0, 0), &[]);
    cpio
}

/// Builds `guest/loops`, static, and gives its path.
pub fn loops_program() -> Result<PathBuf> {
    let target = root().join("target/guest-loops");
    let mut cargo =
        crate::run::cargo(&["build", "--quiet", "--package", "guest-loops", "--profile", "guest"]);
    cargo.args(["--target", "x86_64-unknown-linux-gnu", "--target-dir"]).arg(&target);
    run(cargo.env("RUSTFLAGS", "-C target-feature=+crt-static -C relocation-model=static"))?;
    Ok(target.join("x86_64-unknown-linux-gnu/guest/guest-loops"))
}
