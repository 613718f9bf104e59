//! Socket device: byte streams between programs in the guest and programs on the host.
//!
//! Done: stream sockets of virtio 1.2 §5.10 in full: both directions of connecting, credit both ways, half-close each way,
//! reset, and the transport-reset event. Refused: `SEQPACKET` (RST, as the specification asks) and addresses other
//! than the host's (RST).
//!
//! On the host a connection is a Unix stream socket: [`VsockBackend`] makes those that the guest asks for (in
//! this process, [`Ports`]), [`VsockHandle`] connects into the guest. What the guest sent before it ended a connection, reset the device or
//! was powered off is delivered to the host in full and then followed by an end of file, however slowly the host
//! reads; to the host every end looks like an end of file. An end of file from the host reaches the guest
//! after all bytes before it.
//!
//! One thread serves all connections. It holds at most a connection's window of bytes that the host has
//! not taken ([`WINDOW_BYTES_MAX`], less when there are many connections: [`WINDOWS_BYTES`]) and none of those
//! that the guest has not. Connections do not survive a snapshot: the restored guest is told with a transport-reset event.

mod backend;
mod budget;
mod connection;
mod muxer;
mod packet;
mod ports;
#[cfg(test)]
mod tests;
mod worker;

use std::sync::{Arc, Mutex};

pub use backend::{VsockBackend, VsockHandle};
use budget::Budget;
pub use budget::{CONNECTIONS_MAX, WINDOW_BYTES_MAX, WINDOW_BYTES_MIN, WINDOWS_BYTES};
use hyperkit_bus::RestoreError;
use hyperkit_virtio::{Activation, Features, VirtioDevice};
use muxer::Muxer;
pub use packet::HOST_CID;
pub use ports::{Listener, Ports};
use worker::{Rings, Worker};

use crate::queue::DeviceQueue;
use crate::state;

/// `VIRTIO_VSOCK_F_STREAM`.
const FEATURE_STREAM: u64 = 1;

const STATE_VERSION: u8 = 1;

/// The socket device.
pub struct Vsock {
    guest_cid: u32,
    backend: Arc<dyn VsockBackend>,
    budget: Arc<Budget>,
    handle: VsockHandle,
    worker: Option<Worker>,
    /// The driver, once active, is to be told that its connections are gone.
    reset_due: bool,
}

impl Vsock {
    /// A device that gives the guest the address `guest_cid` (3 or more), and the handle to connect into it.
    pub fn new(guest_cid: u32, backend: Arc<dyn VsockBackend>) -> (Vsock, VsockHandle) {
        let handle = VsockHandle { current: Arc::new(Mutex::new(None)) };
        let device = Vsock {
            guest_cid,
            backend,
            budget: Arc::new(Budget::new()),
            handle: handle.clone(),
            worker: None,
            reset_due: false,
        };
        (device, handle)
    }

    fn stop(&mut self) {
        *self.handle.lock() = None;
        self.worker = None;
    }
}

impl VirtioDevice for Vsock {
    fn device_id(&self) -> u32 {
        19
    }

    fn features(&self) -> Features {
        Features(FEATURE_STREAM)
    }

    /// Receive, transmit, event.
    fn queue_sizes(&self) -> &[u16] {
        &[256, 256, 16]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        state::read_config(&u64::from(self.guest_cid).to_le_bytes(), offset, data);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) {
        let interrupt = Arc::clone(&activation.interrupt);
        let mut queues = DeviceQueue::all(activation).into_iter();
        let mut next = || queues.next().flatten();
        let rings = Rings {
            receive: next(),
            transmit: next(),
            event: next(),
            reset_due: std::mem::take(&mut self.reset_due),
        };
        let (cid, backend, budget) =
            (u64::from(self.guest_cid), Arc::clone(&self.backend), Arc::clone(&self.budget));
        match Worker::start(rings, |epoll| Muxer::new(cid, backend, budget, epoll)) {
            Ok(worker) => {
                *self.handle.lock() = Some(Arc::clone(&worker.mailbox));
                worker.kick();
                self.worker = Some(worker);
            }
            Err(_) => interrupt.needs_reset(),
        }
    }

    fn notify(&mut self, _index: u16) {
        if let Some(worker) = &self.worker {
            worker.kick();
        }
    }

    fn reset(&mut self) {
        self.stop();
        self.reset_due = false;
    }

    fn queue_positions(&self) -> Vec<(u16, u16)> {
        self.worker.as_ref().map_or_else(|| vec![(0, 0); 3], Worker::positions)
    }

    fn save(&self) -> Vec<u8> {
        let active = self.worker.is_some();
        vec![STATE_VERSION, u8::from(active || self.reset_due)]
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        let [reset_due] = state::exact("vsock", STATE_VERSION, bytes)?;
        self.reset_due = reset_due != 0;
        Ok(())
    }
}

impl Drop for Vsock {
    fn drop(&mut self) {
        self.stop();
    }
}
