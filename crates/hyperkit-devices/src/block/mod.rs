//! Block device: sectors of a [`BlockBackend`].
//!
//! Done: `SEG_MAX`, `BLK_SIZE` (512), `RO`, `FLUSH`, `CONFIG_WCE`, `DISCARD`, `WRITE_ZEROES`; requests `IN`, `OUT`,
//! `FLUSH`, `GET_ID`, `DISCARD`, `WRITE_ZEROES`. Without `FLUSH` every write is flushed. Not offered: `SIZE_MAX`,
//! geometry, topology, `MQ`, `SECURE_ERASE`, `LIFETIME`, `ZONED`. A request outside the disk, of a part of a
//! sector, or to write a read-only disk ends in `S_IOERR`, an unknown one in `S_UNSUPP`.
//!
//! Requests are executed one after the other on a thread of the device, so that a slow disk does not stop a
//! vCPU. Memory: one 128 KiB buffer. State: whether the cache is write-back; a snapshot waits for the request
//! that is under way. Spec: virtio 1.2 §5.2.

mod backend;
mod config;
mod request;
#[cfg(test)]
mod tests;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub use backend::{BlockBackend, Memory, OpenError, RawFile};
pub use config::{SECTOR_BYTES, feature};
use hyperkit_bus::RestoreError;
use hyperkit_virtio::{Activation, Features, VirtioDevice};
pub use request::ID_BYTES;
use worker::Worker;

use crate::queue::DeviceQueue;
use crate::state;

const STATE_VERSION: u8 = 1;

/// The block device.
pub struct Block {
    backend: Arc<dyn BlockBackend>,
    id: [u8; ID_BYTES],
    /// What the driver reads and writes as `writeback`.
    writeback: bool,
    write_through: Arc<AtomicBool>,
    features: Features,
    worker: Option<Worker>,
}

impl Block {
    /// A disk over `backend`. The guest reads `id` (its first [`ID_BYTES`] bytes) as the serial number.
    pub fn new(backend: Arc<dyn BlockBackend>, id: &str) -> Block {
        let mut id_bytes = [0; ID_BYTES];
        for (to, from) in id_bytes.iter_mut().zip(id.bytes()) {
            *to = from;
        }
        Block {
            backend,
            id: id_bytes,
            writeback: true,
            write_through: Arc::new(AtomicBool::new(false)),
            features: Features(0),
            worker: None,
        }
    }

    /// Works out whether writes are flushed one by one (virtio 1.2 §5.2.5.2, §5.2.6.2).
    fn choose_cache(&self) {
        let has = |feature| self.features.0 & feature != 0;
        let back = if has(feature::CONFIG_WCE) { self.writeback } else { has(feature::FLUSH) };
        self.write_through.store(!back, Ordering::Relaxed);
    }
}

impl VirtioDevice for Block {
    fn device_id(&self) -> u32 {
        2
    }

    fn features(&self) -> Features {
        use feature::{BLK_SIZE, CONFIG_WCE, DISCARD, FLUSH, RO, SEG_MAX, WRITE_ZEROES};
        let always = SEG_MAX | BLK_SIZE | FLUSH;
        let writing = if self.backend.read_only() { RO } else { CONFIG_WCE | DISCARD | WRITE_ZEROES };
        Features(always | writing)
    }

    fn queue_sizes(&self) -> &[u16] {
        &[config::QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        config::read(self.backend.len() / SECTOR_BYTES, self.writeback, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (config::WRITEBACK_OFFSET, [value]) = (offset, data) {
            self.writeback = *value != 0;
            self.choose_cache();
        }
    }

    fn activate(&mut self, activation: Activation) {
        self.features = activation.features;
        self.choose_cache();
        let Some(queue) = DeviceQueue::all(activation).into_iter().next().flatten() else { return };
        let line = queue.line();
        let worker =
            Worker::start(queue, Arc::clone(&self.backend), self.id, Arc::clone(&self.write_through));
        match worker {
            Ok(worker) => self.worker = Some(worker),
            Err(_) => line.needs_reset(),
        }
        self.notify(0);
    }

    fn notify(&mut self, _index: u16) {
        if let Some(worker) = &self.worker {
            worker.kick();
        }
    }

    fn reset(&mut self) {
        self.worker = None;
        self.features = Features(0);
        self.writeback = true;
    }

    fn queue_positions(&self) -> Vec<(u16, u16)> {
        vec![self.worker.as_ref().map_or((0, 0), Worker::positions)]
    }

    fn save(&self) -> Vec<u8> {
        vec![STATE_VERSION, u8::from(self.writeback)]
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        let [writeback] = state::exact("block", STATE_VERSION, bytes)?;
        self.writeback = writeback != 0;
        Ok(())
    }
}
