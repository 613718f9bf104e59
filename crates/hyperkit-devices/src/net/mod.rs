//! Network device: Ethernet frames between the guest and a [`NetBackend`].
//!
//! Done: `MAC`, `MTU`, `STATUS` (always up), `MRG_RXBUF`, and if [`NetConfig::offloads`]: `CSUM`, `GUEST_CSUM`,
//! `HOST_TSO4/6`, `GUEST_TSO4/6`. Not offered: `CTRL_VQ` and what needs it, multiple queues, UFO, USO, ECN. A frame
//! whose header does not fit it, or that uses what was not negotiated, is dropped; it is no reason for a reset.
//!
//! Frames of the guest are taken on the vCPU's thread that notifies, one copy each; frames for the guest are put into its
//! buffers on the backend's thread. Nothing is queued here. State: none beyond the queues' positions.
//! Spec: virtio 1.2 §5.1.

mod backend;
mod config;
mod header;
mod port;
#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use backend::{NetBackend, NetPort, ReceiveOffloads};
pub use config::{NetConfig, feature};
use header::HEADER_BYTES;
pub use header::{DATA_VALID, FRAME_BYTES_MAX, GSO_NONE, GSO_TCPV4, GSO_TCPV6, NEEDS_CSUM, VnetHeader};
use hyperkit_bus::RestoreError;
use hyperkit_virtio::{Activation, Features, VirtioDevice};
use port::Port;

use crate::queue::{self, CHAINS_PER_NOTIFY_MAX, DeviceQueue};
use crate::state;

/// Queues, by index.
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;

const STATE_VERSION: u8 = 1;

/// The network device.
pub struct Net {
    config: NetConfig,
    backend: Arc<dyn NetBackend>,
    features: u64,
    port: Option<Arc<Port>>,
    transmit: Option<DeviceQueue>,
    /// The frame that is being sent.
    frame: Vec<u8>,
}

impl Net {
    /// A network interface that is plugged into `backend`.
    pub fn new(config: NetConfig, backend: Arc<dyn NetBackend>) -> Net {
        Net { config, backend, features: 0, port: None, transmit: None, frame: Vec::new() }
    }

    fn transmit_all(&mut self) {
        let Some(transmit) = &mut self.transmit else { return };
        for _ in 0..CHAINS_PER_NOTIFY_MAX {
            let Some(chain) = transmit.pop() else {
                transmit.interrupt();
                return;
            };
            let mut reader = transmit.reader(&chain);
            let Ok(header) = reader.read_array::<HEADER_BYTES>() else { break };
            let bytes = usize::try_from(reader.remaining()).unwrap_or(usize::MAX);
            if let Some(header) = VnetHeader::parse(&header).checked_from_driver(bytes, self.features) {
                self.frame.resize(bytes, 0);
                reader.read(&mut self.frame);
                self.backend.transmit(&header, &mut self.frame);
            }
            transmit.push(chain, 0);
        }
        transmit.refuse();
    }

    fn stop(&mut self) {
        self.transmit = None;
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
        self.features = activation.features.0;
        let mut queues = DeviceQueue::all(activation).into_iter();
        let port = Arc::new(Port::new(self.features, queues.next().flatten()));
        self.transmit = queues.next().flatten();
        self.port = Some(Arc::clone(&port));
        self.backend.attach(port);
        self.transmit_all();
    }

    fn notify(&mut self, index: u16) {
        match index {
            RECEIVE if self.port.as_ref().is_some_and(|port| port.take_starved()) => {
                self.backend.receive_ready();
            }
            TRANSMIT => self.transmit_all(),
            _ => {}
        }
    }

    fn reset(&mut self) {
        self.stop();
        self.features = 0;
    }

    fn queue_positions(&self) -> Vec<(u16, u16)> {
        let receive = self.port.as_ref().map_or((0, 0), |port| port.positions());
        vec![receive, queue::positions(self.transmit.as_ref())]
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
