//! A driver for tests: rings in memory, a device on them, and what it said.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hyperkit_mem::{GuestAddr, GuestRam};
use hyperkit_virtio::testing::{RecordingInterrupt, Ring, Used};
use hyperkit_virtio::{Activation, Features, VirtioDevice};

/// Memory of each ring's buffers.
const ARENA_BYTES: u64 = 4 << 20;

/// A device and its driver's rings.
pub(crate) struct Driver<D> {
    pub(crate) ram: Arc<GuestRam>,
    pub(crate) rings: Vec<Ring>,
    pub(crate) interrupt: Arc<RecordingInterrupt>,
    pub(crate) device: D,
}

impl<D: VirtioDevice> Driver<D> {
    /// Resets nothing, lays out rings and activates the device with all the features it offers.
    pub(crate) fn new(device: D) -> Driver<D> {
        let features = device.features();
        Driver::with_features(device, features)
    }

    /// The same with these features.
    pub(crate) fn with_features(device: D, features: Features) -> Driver<D> {
        let sizes = device.queue_sizes().to_vec();
        let ram = Arc::new(GuestRam::new(32 << 20).unwrap());
        let place = |i: usize| GuestAddr(0x10_0000 + i as u64 * (ARENA_BYTES + 0x10_0000));
        let ring = |(i, &size)| Ring::new(&ram, place(i), size, ARENA_BYTES, true);
        let rings = sizes.iter().enumerate().map(ring).collect();
        let mut driver = Driver { ram, rings, interrupt: Arc::default(), device };
        driver.activate(features, None);
        driver
    }

    /// Activates the device, with queues at their start or at `positions`.
    pub(crate) fn activate(&mut self, features: Features, positions: Option<&[(u16, u16)]>) {
        let queues = self.rings.iter().enumerate().map(|(i, ring)| {
            let mut queue = ring.queue();
            if let Some(positions) = positions {
                queue.set_positions(positions[i]);
            }
            Some(queue)
        });
        self.device.activate(Activation {
            ram: Arc::clone(&self.ram),
            queues: queues.collect(),
            features,
            interrupt: self.interrupt.clone(),
        });
    }

    /// Lets the driver begin again: reset, empty rings, activation.
    pub(crate) fn restart(&mut self) {
        self.device.reset();
        for ring in &mut self.rings {
            let old = ring.layout();
            *ring = Ring::new(&self.ram, old.desc, old.size, ARENA_BYTES, old.event_idx);
        }
        self.activate(self.device.features(), None);
    }

    /// Moves the driver to another device of the same kind, as a snapshot does.
    pub(crate) fn migrate(&mut self, mut to: D) {
        let positions = self.device.queue_positions();
        let state = self.device.save();
        to.restore(&state).unwrap();
        self.device = to;
        let features = self.device.features();
        self.activate(features, Some(&positions));
    }

    /// Adds a chain to queue `index` and notifies, if the device asked for it.
    pub(crate) fn send(&mut self, index: u16, readable: &[&[u8]], writable: &[u32]) {
        let ring = &mut self.rings[usize::from(index)];
        ring.add(readable, writable);
        if ring.device_wants_notification() {
            self.device.notify(index);
        }
    }

    /// Waits for the next chain that queue `index` gives back.
    pub(crate) fn wait_used(&mut self, index: u16) -> Used {
        let mut used = None;
        until("a chain is given back", || {
            used = self.rings[usize::from(index)].take_used();
            used.is_some()
        });
        used.unwrap()
    }

    /// Sends and waits for the answer.
    pub(crate) fn call(&mut self, index: u16, readable: &[&[u8]], writable: &[u32]) -> Used {
        self.send(index, readable, writable);
        self.wait_used(index)
    }

    /// Offers `descriptors` as (address, length, flags, next) from head 0 on queue `index` and notifies.
    pub(crate) fn send_raw(&mut self, index: u16, descriptors: &[(u64, u32, u16, u16)]) {
        let ring = &mut self.rings[usize::from(index)];
        for (i, &(addr, len, flags, next)) in descriptors.iter().enumerate() {
            ring.write_descriptor(i as u16, addr, len, flags, next);
        }
        ring.make_available(0);
        self.device.notify(index);
    }

    /// Waits until the device asks for a reset.
    pub(crate) fn wait_needs_reset(&self) {
        until("the device asks for a reset", || self.interrupt.n_needs_reset() > 0);
    }
}

/// Waits for what other threads do.
pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}
