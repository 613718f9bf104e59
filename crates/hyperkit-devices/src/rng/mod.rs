//! Entropy device: fills the driver's buffers with the host's randomness.
//!
//! Done: all of virtio 1.2 §5.4 (it has no features and no configuration). A buffer is filled up to
//! [`FILL_BYTES_MAX`]; a driver that asks for more asks again. State: none beyond the queue's positions.

mod backend;
#[cfg(test)]
mod tests;

pub use backend::{EntropySource, HostEntropy};

use hyperkit_bus::RestoreError;
use hyperkit_virtio::{Activation, Features, VirtioDevice};

use crate::queue::{self, CHAINS_PER_NOTIFY_MAX, DeviceQueue};
use crate::state;

/// Most bytes given for one buffer chain, so that a notification is short.
pub const FILL_BYTES_MAX: usize = 4096;

const STATE_VERSION: u8 = 1;

/// The entropy device.
pub struct Rng {
    source: Box<dyn EntropySource>,
    requests: Option<DeviceQueue>,
}

impl Rng {
    /// A device that hands out what `source` gives.
    pub fn new(source: Box<dyn EntropySource>) -> Rng {
        Rng { source, requests: None }
    }
}

impl VirtioDevice for Rng {
    fn device_id(&self) -> u32 {
        4
    }

    fn features(&self) -> Features {
        Features(0)
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        state::read_config(&[], offset, data);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) {
        self.requests = DeviceQueue::all(activation).into_iter().next().flatten();
        self.notify(0);
    }

    fn notify(&mut self, _index: u16) {
        let Some(requests) = &mut self.requests else { return };
        let mut bytes = [0; FILL_BYTES_MAX];
        for _ in 0..CHAINS_PER_NOTIFY_MAX {
            let Some(chain) = requests.pop() else {
                requests.interrupt();
                return;
            };
            let len = chain.writable_bytes().min(FILL_BYTES_MAX as u64) as usize;
            // An empty or read-only buffer, or a host without randomness: a used length of zero would make the
            // driver ask again at once, for ever.
            if len == 0 || self.source.fill(&mut bytes[..len]).is_err() {
                requests.push(chain, 0);
                break;
            }
            requests.writer(&chain).write(&bytes[..len]);
            requests.push(chain, len as u32);
        }
        requests.refuse();
    }

    fn reset(&mut self) {
        self.requests = None;
    }

    fn queue_positions(&self) -> Vec<(u16, u16)> {
        vec![queue::positions(self.requests.as_ref())]
    }

    fn save(&self) -> Vec<u8> {
        vec![STATE_VERSION]
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        state::exact::<0>("rng", STATE_VERSION, bytes).map(|_| ())
    }
}
