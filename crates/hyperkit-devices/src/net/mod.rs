//! Network device: Ethernet frames between the guest and a [`NetBackend`].
//!
//! Done: `MAC`, `MTU`, `STATUS` (always up), `MRG_RXBUF`, and if [`NetConfig::offloads`]: `CSUM`, `GUEST_CSUM`,
//! `HOST_TSO4/6`, `GUEST_TSO4/6`. Not offered: `CTRL_VQ` and what needs it, multiple queues, UFO, USO, ECN. A frame
//! whose header does not fit it, or that uses what was not negotiated, is dropped; it is no reason for a reset.
//!
//! The backend's thread takes frames of the guest out of the guest's memory, where it can send their data from without a
//! copy, and puts frames for the guest into its buffers. Nothing is queued here, and nothing is kept of a frame when the
//! call for it is over. State: none beyond the queues' positions.
//! Spec: virtio 1.2 §5.1.

mod backend;
mod config;
mod header;
mod port;
#[cfg(test)]
mod tests;
mod transmit;

use std::sync::Arc;

pub use backend::{NetBackend, NetPort, ReceiveOffloads};
pub use config::{NetConfig, feature};
pub use header::{DATA_VALID, FRAME_BYTES_MAX, GSO_NONE, GSO_TCPV4, GSO_TCPV6, NEEDS_CSUM, VnetHeader};
use hyperkit_bus::RestoreError;
use hyperkit_virtio::{Activation, Features, VirtioDevice};
use port::Port;
pub use transmit::SentFrame;

use crate::queue::DeviceQueue;
use crate::state;

/// Queues, by index.
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;

const STATE_VERSION: u8 = 1;

/// The network device.
pub struct Net {
    config: NetConfig,
    backend: Arc<dyn NetBackend>,
    /// While the driver is ready.
    port: Option<Arc<Port>>,
}

impl Net {
    /// A network interface that is plugged into `backend`.
    pub fn new(config: NetConfig, backend: Arc<dyn NetBackend>) -> Net {
        Net { config, backend, port: None }
    }

    fn stop(&mut self) {
        if let Some(port) = self.port.take() {
            port.close();
            self.backend.detach();
        }
    }
}

impl VirtioDevice for Net {
    fn device_id(&self) -> u32 {
        1
    }

    fn features(&self) -> Features {
        Features(self.config.features())
    }

    fn queue_sizes(&self) -> &[u16] {
        &[256, 256]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.config.read(offset, data);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) {
        self.stop();
        let features = activation.features.0;
        let mut queues = DeviceQueue::all(activation).into_iter();
        let port = Arc::new(Port::new(features, queues.next().flatten(), queues.next().flatten()));
        self.port = Some(Arc::clone(&port));
        self.backend.attach(port);
    }

    fn notify(&mut self, index: u16) {
        match index {
            RECEIVE if self.port.as_ref().is_some_and(|port| port.take_starved()) => {
                self.backend.receive_ready();
            }
            TRANSMIT if self.port.is_some() => self.backend.transmit_ready(),
            _ => {}
        }
    }

    fn reset(&mut self) {
        self.stop();
    }

    fn queue_positions(&self) -> Vec<(u16, u16)> {
        self.port.as_ref().map_or([(0, 0); 2], |port| port.positions()).to_vec()
    }

    fn save(&self) -> Vec<u8> {
        vec![STATE_VERSION]
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        state::exact::<0>("net", STATE_VERSION, bytes).map(|_| ())
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        self.stop();
    }
}
