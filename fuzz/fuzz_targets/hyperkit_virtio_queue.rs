//! A hostile driver: rings of arbitrary bytes under the console and block devices.
#![no_main]

use std::sync::Arc;

use hyperkit_devices::block::{Block, Memory};
use hyperkit_devices::console::{Console, WindowSize};
use hyperkit_mem::{GuestAddr, GuestRam};
use hyperkit_virtio::testing::{RecordingInterrupt, Ring};
use hyperkit_virtio::{Activation, VirtioDevice};
use libfuzzer_sys::fuzz_target;

/// Where the first ring begins, and how far apart they are. Descriptors, both rings and some buffers lie below.
const RINGS: u64 = 0x1000;
const APART: u64 = 0x8000;
const ARENA_BYTES: u64 = 0x1000;

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    let (console, keyboard) = Console::new(Box::new(|_| {}), WindowSize::default());
    let mut device: Box<dyn VirtioDevice> = if kind & 1 == 0 {
        Box::new(console)
    } else {
        Box::new(Block::new(Arc::new(Memory::new(vec![0; 1 << 16], false)), "fuzz"))
    };
    keyboard.write(b"typed");
    let ram = Arc::new(GuestRam::new(1 << 20).expect("a megabyte is to be had"));
    let sizes = device.queue_sizes().to_vec();
    let base = |n: usize| GuestAddr(RINGS + APART * n as u64);
    let rings: Vec<Ring> =
        (0..sizes.len()).map(|n| Ring::new(&ram, base(n), 16, ARENA_BYTES, kind & 2 != 0)).collect();
    device.activate(Activation {
        ram: Arc::clone(&ram),
        queues: rings.iter().map(|ring| Some(ring.queue())).collect(),
        features: device.features(),
        interrupt: Arc::new(RecordingInterrupt::default()),
    });
    for change in bytes.chunks(0x300) {
        for n in 0..rings.len() {
            ram.write(base(n), change).expect("the rings lie in RAM");
            device.notify(n as u16);
        }
        keyboard.write(b"more");
    }
    device.reset();
});
