//! A driver of a whole device behind the MMIO transport.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use hyperkit_bus::{Device, InterruptLine};
use hyperkit_mem::{GuestAddr, GuestRam};

use super::Ring;
use crate::VirtioDevice;
use crate::mmio::{MmioTransport, feature, registers as reg, status};

/// An interrupt line that counts rising edges.
#[derive(Debug, Default)]
pub struct CountingLine(AtomicU32);

impl CountingLine {
    /// Rising edges so far.
    pub fn n_edges(&self) -> u32 {
        self.0.load(Ordering::SeqCst)
    }
}

impl InterruptLine for CountingLine {
    fn set(&self, high: bool) {
        self.0.fetch_add(u32::from(high), Ordering::SeqCst);
    }
}

/// Brings a device up as Linux's virtio_mmio does, and holds the driver's rings.
#[derive(Debug)]
pub struct Driver {
    /// The device's registers.
    pub transport: MmioTransport,
    /// One per queue.
    pub rings: Vec<Ring>,
    /// What the device pulses.
    pub line: Arc<CountingLine>,
    /// Features agreed on.
    pub features: u64,
}

impl Driver {
    /// Probes `device`, accepts its features limited to `wanted` (and version 1), lays out a ring per queue from
    /// `base` with `arena_bytes` of buffers each, and sets DRIVER_OK.
    pub fn start(
        device: Box<dyn VirtioDevice>,
        ram: &Arc<GuestRam>,
        base: GuestAddr,
        arena_bytes: u64,
        wanted: u64,
    ) -> Driver {
        let sizes = device.queue_sizes().to_vec();
        let line = Arc::new(CountingLine::default());
        let transport =
            MmioTransport::new(device, Arc::clone(ram), Arc::clone(&line) as Arc<dyn InterruptLine>);
        let mut driver = Driver { transport, rings: Vec::new(), line, features: 0 };
        driver.negotiate(wanted);
        let modern = driver.features & (feature::EVENT_IDX | feature::INDIRECT_DESC) != 0;
        let mut next = base.0;
        for (index, &size) in sizes.iter().enumerate() {
            let ring = Ring::new(ram, GuestAddr(next), size, arena_bytes, modern);
            next = (next + 26 * u64::from(size) + 64 + arena_bytes).next_multiple_of(4096);
            driver.set_up_queue(index as u32, &ring);
            driver.rings.push(ring);
        }
        driver.add_status(status::DRIVER_OK);
        driver
    }

    fn negotiate(&mut self, wanted: u64) {
        self.write(reg::STATUS, 0);
        self.add_status(status::ACKNOWLEDGE);
        self.add_status(status::DRIVER);
        let mut offered = 0;
        for half in 0..2 {
            self.write(reg::DEVICE_FEATURES_SEL, half);
            offered |= u64::from(self.read(reg::DEVICE_FEATURES)) << (32 * half);
        }
        self.features = offered & (wanted | feature::VERSION_1);
        for half in 0..2 {
            self.write(reg::DRIVER_FEATURES_SEL, half);
            self.write(reg::DRIVER_FEATURES, (self.features >> (32 * half)) as u32);
        }
        self.add_status(status::FEATURES_OK);
        assert_ne!(self.read(reg::STATUS) & status::FEATURES_OK, 0, "the device accepts what it offered");
    }

    fn set_up_queue(&mut self, index: u32, ring: &Ring) {
        let layout = ring.layout();
        self.write(reg::QUEUE_SEL, index);
        self.write(reg::QUEUE_SIZE, u32::from(layout.size));
        let rings = [
            (reg::QUEUE_DESC_LOW, layout.desc),
            (reg::QUEUE_DRIVER_LOW, layout.avail),
            (reg::QUEUE_DEVICE_LOW, layout.used),
        ];
        for (low, addr) in rings {
            self.write(low, addr.0 as u32);
            self.write(low + 4, (addr.0 >> 32) as u32);
        }
        self.write(reg::QUEUE_READY, 1);
    }

    /// Reads a register.
    pub fn read(&mut self, offset: u64) -> u32 {
        let mut word = [0; 4];
        self.transport.read(offset, &mut word);
        u32::from_le_bytes(word)
    }

    /// Writes a register.
    pub fn write(&mut self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes());
    }

    /// Reads `N` bytes of configuration space.
    pub fn config<const N: usize>(&mut self, offset: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.transport.read(reg::CONFIG + offset, &mut bytes);
        bytes
    }

    /// Tells the device of new buffers in queue `index`.
    pub fn notify(&mut self, index: u32) {
        self.write(reg::QUEUE_NOTIFY, index);
    }

    /// Reads and acknowledges the interrupt status.
    pub fn take_interrupt(&mut self) -> u32 {
        let bits = self.read(reg::INTERRUPT_STATUS);
        self.write(reg::INTERRUPT_ACK, bits);
        bits
    }

    /// The device status.
    pub fn status(&mut self) -> u32 {
        self.read(reg::STATUS)
    }

    /// Resets the device.
    pub fn reset(&mut self) {
        self.write(reg::STATUS, 0);
    }

    fn add_status(&mut self, bits: u32) {
        let status = self.read(reg::STATUS);
        self.write(reg::STATUS, status | bits);
    }
}
