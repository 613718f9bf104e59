//! Why a machine cannot be booted with what it was given.

use hyperkit_mem::OutOfRam;

/// Why a kernel cannot be loaded. Each message is meant to be read after the file's name.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message documents its variant")]
pub enum BootError {
    #[error("cannot be read")]
    Read(#[source] std::io::Error),
    #[error("is not a regular file")]
    NotAFile,
    #[error("is {what}, not a kernel (an x86-64 ELF with a PVH entry, or a bzImage)")]
    NotAKernel { what: &'static str },
    #[error("is an ELF file that cannot be used: {why}")]
    Elf { why: String },
    #[error("is a bzImage that cannot be used: {why}")]
    BzImage { why: String },
    #[error("needs memory up to {end:#x}, but the machine's ends at {ram_end:#x}")]
    KernelTooBig { end: u64, ram_end: u64 },
    #[error(
        "the initial RAM disk of {bytes} bytes does not fit between the kernel's end at {kernel_end:#x} and {limit:#x}"
    )]
    InitrdTooBig { bytes: u64, kernel_end: u64, limit: u64 },
    #[error("the initial RAM disk cannot be read")]
    Initrd(#[source] std::io::Error),
    #[error("the command line has {bytes} bytes, the kernel takes at most {max}")]
    CmdlineTooLong { bytes: usize, max: usize },
    #[error("the command line contains a zero byte")]
    CmdlineNul,
    #[error("{asked} vCPUs or devices do not fit into the ACPI tables")]
    AcpiTooBig { asked: usize },
    #[error("does not fit into memory")]
    OutOfRam(#[from] OutOfRam),
}
