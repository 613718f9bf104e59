//! The host's side of the console: where output goes, and the handle that input comes through.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::queue::DeviceQueue;

/// Takes what the guest prints. Called from vCPU threads: it must not block.
pub type Output = Box<dyn FnMut(&[u8]) + Send>;

/// Input that waits for the guest to take it, in bytes.
pub const INPUT_BYTES_MAX: usize = 64 << 10;

/// Number of characters of the console's window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WindowSize {
    /// Characters in a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

/// What device and handles share.
#[derive(Default)]
pub(super) struct Port {
    pub(super) pending: VecDeque<u8>,
    pub(super) receive: Option<DeviceQueue>,
    pub(super) size: WindowSize,
}

impl Port {
    /// Moves pending input into the buffers that the driver has offered.
    pub(super) fn pump(&mut self) {
        let Some(receive) = &mut self.receive else { return };
        while !self.pending.is_empty()
            && let Some(chain) = receive.pop()
        {
            let (front, back) = self.pending.as_slices();
            let mut writer = receive.writer(&chain);
            let n = writer.write(front) + writer.write(back);
            let written = writer.written();
            if n == 0 {
                // A buffer without room: the driver would offer it again at once, for ever.
                receive.refuse();
                return;
            }
            self.pending.drain(..n);
            receive.push(chain, written);
        }
        receive.interrupt();
    }
}

/// The keyboard of a console; clones are the same one. Usable from any thread, never blocks.
#[derive(Clone)]
pub struct ConsoleHandle {
    pub(super) port: Arc<Mutex<Port>>,
}

impl ConsoleHandle {
    /// Types `bytes` and returns how many were accepted: fewer than all when the guest does not take its input
    /// and [`INPUT_BYTES_MAX`] bytes wait already.
    pub fn write(&self, bytes: &[u8]) -> usize {
        let mut port = lock(&self.port);
        let len = bytes.len().min(INPUT_BYTES_MAX - port.pending.len());
        port.pending.extend(&bytes[..len]);
        port.pump();
        len
    }

    /// Tells the guest that the window has another size.
    pub fn resize(&self, size: WindowSize) {
        let mut port = lock(&self.port);
        if port.size != size {
            port.size = size;
            if let Some(receive) = &port.receive {
                receive.line().config_changed();
            }
        }
    }
}

pub(super) fn lock(port: &Mutex<Port>) -> MutexGuard<'_, Port> {
    port.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
