//! A kernel of unknown origin: an ELF or bzImage loader must refuse or load it. The first byte says whether there is an
//! initial RAM disk.
#![no_main]

use std::sync::{Arc, LazyLock};

use hyperkit_boot::{BootConfig, boot};
use hyperkit_mem::GuestRam;
use libfuzzer_sys::fuzz_target;

/// Used again and again: nothing is read from it that was not written for the kernel at hand.
static RAM: LazyLock<Arc<GuestRam>> =
    LazyLock::new(|| Arc::new(GuestRam::new(64 << 20).expect("64 MiB are to be had")));

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, kernel)) = bytes.split_first() else { return };
    let config = BootConfig {
        kernel: kernel.to_vec().into(),
        initrd: (kind & 1 != 0).then(|| vec![1; 100].into()),
        cmdline: "console=ttyS0".to_owned(),
        vcpus: 1 + u32::from(kind >> 1 & 3),
        virtio_mmio_devices: usize::from(kind >> 3 & 3),
    };
    let _refused_or_loaded = boot(&RAM, &config);
});
