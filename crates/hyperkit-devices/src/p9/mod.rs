//! 9P transport: carries 9P messages between the guest's file system client and a [`P9Service`].
//!
//! Done: the device as Linux drives it: one queue, each chain a request and room for its reply, the mount tag in
//! configuration space. Requests are answered on threads, several at a time and in any order, so that one
//! that blocks holds up neither a vCPU nor the others; a Tflush reaches the service as soon as it arrives. A message is
//! at most [`MESSAGE_BYTES_MAX`] bytes; memory is twice that for each of at most 16 requests answered at once.
//!
//! A snapshot waits up to 5 s for the requests under way. The session itself (the guest's fids) is not part of it:
//! a guest that is restored with the file system mounted gets errors until it mounts again.
//! Spec: virtio 1.2 §5 (device ID 9) reserves the device without describing it; Linux `net/9p/trans_virtio.c`.

mod backend;
mod pool;
#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use backend::{P9Request, P9Service, START_BYTES, Sessions, serve};
use hyperkit_bus::RestoreError;
use hyperkit_virtio::{Activation, Features, VirtioDevice};
use pool::Pool;

use crate::queue::DeviceQueue;
use crate::state;

/// Longest message in bytes, whatever the service allows. Linux's client uses at most 512000.
pub const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// Longest mount tag in bytes.
pub const TAG_BYTES_MAX: usize = 255;

/// `VIRTIO_9P_MOUNT_TAG`: the tag is in configuration space.
const FEATURE_MOUNT_TAG: u64 = 1;

const STATE_VERSION: u8 = 1;

/// A mount tag that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("mount tag {tag:?} is empty, longer than {TAG_BYTES_MAX} bytes, or contains a NUL")]
pub struct TagError {
    /// The tag.
    pub tag: String,
}

/// The 9P device.
pub struct P9 {
    /// Length (16 bit) and tag.
    config: Vec<u8>,
    sessions: Sessions,
    pool: Option<Pool>,
}

impl P9 {
    /// A device that the guest mounts by `tag`; `sessions` makes a new session each time its driver starts.
    ///
    /// # Errors
    /// [`TagError`].
    pub fn new(tag: &str, sessions: Sessions) -> Result<P9, TagError> {
        if tag.is_empty() || tag.len() > TAG_BYTES_MAX || tag.contains('\0') {
            return Err(TagError { tag: tag.into() });
        }
        let mut config = (tag.len() as u16).to_le_bytes().to_vec();
        config.extend(tag.bytes());
        Ok(P9 { config, sessions, pool: None })
    }
}

impl VirtioDevice for P9 {
    fn device_id(&self) -> u32 {
        9
    }

    fn features(&self) -> Features {
        Features(FEATURE_MOUNT_TAG)
    }

    /// Linux puts up to 128 pages into a request, directly if need be.
    fn queue_sizes(&self) -> &[u16] {
        &[256]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        state::read_config(&self.config, offset, data);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) {
        let interrupt = Arc::clone(&activation.interrupt);
        let Some(queue) = DeviceQueue::all(activation).into_iter().next().flatten() else { return };
        match Pool::start(queue, (self.sessions)()) {
            Ok(pool) => self.pool = Some(pool),
            Err(_) => interrupt.needs_reset(),
        }
        self.notify(0);
    }

    fn notify(&mut self, _index: u16) {
        if let Some(pool) = &self.pool {
            pool.kick();
        }
    }

    fn reset(&mut self) {
        self.pool = None;
    }

    fn queue_positions(&self) -> Vec<(u16, u16)> {
        vec![self.pool.as_ref().map_or((0, 0), Pool::positions)]
    }

    fn save(&self) -> Vec<u8> {
        vec![STATE_VERSION]
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        state::exact::<0>("9p", STATE_VERSION, bytes).map(|_| ())
    }
}
