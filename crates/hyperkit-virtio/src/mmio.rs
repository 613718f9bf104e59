//! The MMIO transport, version 2: registers, status, features and queue set-up in front of one device.
//!
//! Interrupts are edges: each event is one pulse, and the status register tells what happened. Not offered: the
//! legacy layout (version 1), shared memory regions, queue reset, notification data. Spec: virtio 1.2 §4.2.

mod interrupt;
pub(crate) mod registers;
mod saved;

use std::sync::Arc;

use hyperkit_bus::{Device, InterruptLine};
use hyperkit_mem::{GuestAddr, GuestRam};

use self::interrupt::MmioInterrupt;
use self::registers as reg;
use crate::queue::SIZE_MAX;
use crate::{Activation, Features, Interrupt, Queue, QueueError, QueueLayout, VirtioDevice};

pub use self::registers::WINDOW_BYTES;

/// Bits of the device status (virtio 1.2 §2.1).
pub mod status {
    /// The guest has noticed the device.
    pub const ACKNOWLEDGE: u32 = 1;
    /// It knows how to drive it.
    pub const DRIVER: u32 = 2;
    /// The driver is set up.
    pub const DRIVER_OK: u32 = 4;
    /// Features are agreed on.
    pub const FEATURES_OK: u32 = 8;
    /// The device cannot go on.
    pub const NEEDS_RESET: u32 = 0x40;
    /// The guest has given up on the device.
    pub const FAILED: u32 = 0x80;
}

/// Feature bits of the transport and its rings (virtio 1.2 §6).
pub mod feature {
    /// `VIRTIO_F_INDIRECT_DESC`
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// `VIRTIO_F_EVENT_IDX`
    pub const EVENT_IDX: u64 = 1 << 29;
    /// `VIRTIO_F_VERSION_1`
    pub const VERSION_1: u64 = 1 << 32;
}

/// What the transport adds to the device's features.
const TRANSPORT_FEATURES: u64 = feature::INDIRECT_DESC | feature::EVENT_IDX | feature::VERSION_1;

/// What the driver wrote about one queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct QueueRegisters {
    size: u16,
    ready: bool,
    desc: u64,
    avail: u64,
    used: u64,
}

/// A virtio device on the bus.
pub struct MmioTransport {
    device: Box<dyn VirtioDevice>,
    ram: Arc<GuestRam>,
    interrupt: Arc<MmioInterrupt>,
    /// Without [`status::NEEDS_RESET`], which the interrupt keeps.
    status: u32,
    device_features_sel: u32,
    driver_features: u64,
    driver_features_sel: u32,
    queue_sel: u32,
    queues: Vec<QueueRegisters>,
    /// The device has its queues: between a successful DRIVER_OK and a reset.
    active: bool,
}

impl std::fmt::Debug for MmioTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MmioTransport")
            .field("device_id", &self.device.device_id())
            .field("status", &self.status)
            .field("queues", &self.queues)
            .finish_non_exhaustive()
    }
}

impl MmioTransport {
    /// Puts `device` behind registers; `line` is pulsed for each interrupt.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        ram: Arc<GuestRam>,
        line: Arc<dyn InterruptLine>,
    ) -> MmioTransport {
        let queues = initial_queues(&*device);
        MmioTransport {
            device,
            ram,
            interrupt: Arc::new(MmioInterrupt::new(line)),
            status: 0,
            device_features_sel: 0,
            driver_features: 0,
            driver_features_sel: 0,
            queue_sel: 0,
            queues,
            active: false,
        }
    }

    fn offered(&self) -> u64 {
        self.device.features().0 | TRANSPORT_FEATURES
    }

    fn has(&self, bits: u32) -> bool {
        self.status & bits == bits
    }

    fn read_register(&self, offset: u64) -> u32 {
        let queue = self.queues.get(self.queue_sel as usize);
        match offset {
            reg::MAGIC_VALUE => u32::from_le_bytes(*b"virt"),
            reg::VERSION => 2,
            reg::DEVICE_ID => self.device.device_id(),
            reg::VENDOR_ID => reg::VENDOR,
            reg::DEVICE_FEATURES => half(self.offered(), self.device_features_sel),
            reg::QUEUE_SIZE_MAX => {
                self.device.queue_sizes().get(self.queue_sel as usize).map_or(0, |&size| u32::from(size))
            }
            reg::QUEUE_READY => queue.map_or(0, |queue| u32::from(queue.ready)),
            reg::INTERRUPT_STATUS => self.interrupt.status(),
            reg::STATUS => self.status | self.interrupt.needs_reset_bit(),
            reg::CONFIG_GENERATION => self.interrupt.generation(),
            // No shared memory: the length of every region is -1 (§4.2.2).
            reg::SHM_LEN_LOW..=reg::SHM_BASE_HIGH => u32::MAX,
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        match offset {
            reg::DEVICE_FEATURES_SEL => self.device_features_sel = value,
            reg::DRIVER_FEATURES => self.write_driver_features(value),
            reg::DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            reg::QUEUE_SEL => self.queue_sel = value,
            reg::QUEUE_NOTIFY => self.notify(value),
            reg::INTERRUPT_ACK => self.interrupt.acknowledge(value),
            reg::STATUS => self.write_status(value),
            _ => self.write_queue(offset, value),
        }
    }

    fn write_driver_features(&mut self, value: u32) {
        if self.has(status::FEATURES_OK) || self.driver_features_sel > 1 {
            return;
        }
        let shift = 32 * self.driver_features_sel;
        self.driver_features &= !(u64::from(u32::MAX) << shift);
        self.driver_features |= u64::from(value) << shift;
    }

    fn write_queue(&mut self, offset: u64, value: u32) {
        if self.status & (status::FEATURES_OK | status::DRIVER_OK) != status::FEATURES_OK {
            return; // queues are set up between these two (§3.1.1)
        }
        let Some(queue) = self.queues.get_mut(self.queue_sel as usize) else { return };
        if offset == reg::QUEUE_READY {
            queue.ready = value & 1 != 0;
        }
        if queue.ready {
            return;
        }
        match offset {
            reg::QUEUE_SIZE => queue.size = u16::try_from(value).unwrap_or(0),
            reg::QUEUE_DESC_LOW => set_low(&mut queue.desc, value),
            reg::QUEUE_DESC_HIGH => set_high(&mut queue.desc, value),
            reg::QUEUE_DRIVER_LOW => set_low(&mut queue.avail, value),
            reg::QUEUE_DRIVER_HIGH => set_high(&mut queue.avail, value),
            reg::QUEUE_DEVICE_LOW => set_low(&mut queue.used, value),
            reg::QUEUE_DEVICE_HIGH => set_high(&mut queue.used, value),
            _ => {}
        }
    }

    fn notify(&mut self, value: u32) {
        let enabled = self.queues.get(value as usize).is_some_and(|queue| queue.ready);
        if self.active && enabled {
            self.device.notify(value as u16);
        }
    }

    /// Takes a new status; one that drops bits or skips steps is ignored, as the driver must not (§2.1.1).
    fn write_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        let added = value & !self.status;
        if self.status & !value != 0 {
            return;
        }
        self.status |= added & (status::ACKNOWLEDGE | status::DRIVER | status::FAILED);
        if added & status::FEATURES_OK != 0 && self.has(status::ACKNOWLEDGE | status::DRIVER) {
            let accepted =
                self.driver_features & !self.offered() == 0 && self.driver_features & feature::VERSION_1 != 0;
            if accepted {
                self.status |= status::FEATURES_OK;
            }
        }
        if added & status::DRIVER_OK != 0 && self.has(status::FEATURES_OK) {
            self.status |= status::DRIVER_OK;
            match self.make_queues(&self.queues) {
                Ok(queues) => self.activate(queues),
                Err(_) => self.interrupt.needs_reset(),
            }
        }
    }

    fn activate(&mut self, queues: Vec<Option<Queue>>) {
        self.active = true;
        self.device.activate(Activation {
            ram: Arc::clone(&self.ram),
            queues,
            features: Features(self.driver_features),
            interrupt: Arc::clone(&self.interrupt) as Arc<dyn Interrupt>,
        });
    }

    fn make_queues(&self, registers: &[QueueRegisters]) -> Result<Vec<Option<Queue>>, QueueError> {
        self.make_queues_with(registers, self.driver_features)
    }

    fn make_queues_with(
        &self,
        registers: &[QueueRegisters],
        features: u64,
    ) -> Result<Vec<Option<Queue>>, QueueError> {
        let make = |(queue, &size_max): (&QueueRegisters, &u16)| {
            if !queue.ready {
                return Ok(None);
            }
            if queue.size > size_max.min(SIZE_MAX) {
                return Err(QueueError::Size { size: queue.size });
            }
            let layout = QueueLayout {
                size: queue.size,
                desc: GuestAddr(queue.desc),
                avail: GuestAddr(queue.avail),
                used: GuestAddr(queue.used),
                event_idx: features & feature::EVENT_IDX != 0,
                indirect: features & feature::INDIRECT_DESC != 0,
            };
            Queue::new(&self.ram, layout).map(Some)
        };
        registers.iter().zip(self.device.queue_sizes()).map(make).collect()
    }

    fn reset(&mut self) {
        if std::mem::take(&mut self.active) {
            self.device.reset();
        }
        self.status = 0;
        self.device_features_sel = 0;
        self.driver_features = 0;
        self.driver_features_sel = 0;
        self.queue_sel = 0;
        self.queues = initial_queues(&*self.device);
        self.interrupt.reset();
    }
}

impl Device for MmioTransport {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if offset >= reg::CONFIG {
            self.device.read_config(offset - reg::CONFIG, data);
        } else if let Ok(word) = <&mut [u8; 4]>::try_from(data)
            && offset.is_multiple_of(4)
        {
            *word = self.read_register(offset).to_le_bytes();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if offset >= reg::CONFIG {
            if self.has(status::DRIVER) {
                self.device.write_config(offset - reg::CONFIG, data);
            }
        } else if let Ok(word) = <[u8; 4]>::try_from(data)
            && offset.is_multiple_of(4)
        {
            self.write_register(offset, u32::from_le_bytes(word));
        }
    }
}

fn initial_queues(device: &dyn VirtioDevice) -> Vec<QueueRegisters> {
    let initial = |&size: &u16| QueueRegisters { size, ready: false, desc: 0, avail: 0, used: 0 };
    device.queue_sizes().iter().map(initial).collect()
}

fn half(bits: u64, selector: u32) -> u32 {
    match selector {
        0 => bits as u32,
        1 => (bits >> 32) as u32,
        _ => 0,
    }
}

fn set_low(register: &mut u64, value: u32) {
    *register = *register & !u64::from(u32::MAX) | u64::from(value);
}

fn set_high(register: &mut u64, value: u32) {
    *register = *register & u64::from(u32::MAX) | u64::from(value) << 32;
}

#[cfg(test)]
mod tests;
