//! Console device: one port, the guest's `hvc0`.
//!
//! Done: `SIZE`, `EMERG_WRITE` (output before the driver is up). Not offered: `MULTIPORT`, so there are no control
//! queues and the port is always open. Output is handed on as it comes; input waits in at most
//! [`INPUT_BYTES_MAX`] bytes. State: window size and waiting input. Spec: virtio 1.2 §5.3.

mod backend;
mod config;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex};

pub use backend::{ConsoleHandle, INPUT_BYTES_MAX, Output, WindowSize};
use backend::{Port, lock};
use hyperkit_bus::RestoreError;
use hyperkit_virtio::{Activation, Features, VirtioDevice};

use crate::queue::{self, CHAINS_PER_NOTIFY_MAX, DeviceQueue};
use crate::state;

/// Queues, by index.
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;

/// Bytes handed to the output at a time.
const OUTPUT_BYTES: usize = 4096;

/// Most bytes taken of one chain; Linux sends a page. A chain may claim 4 GiB, all of them the same page.
const CHAIN_BYTES_MAX: u64 = 1 << 20;

const STATE_VERSION: u8 = 1;

/// The console device.
pub struct Console {
    output: Output,
    port: Arc<Mutex<Port>>,
    transmit: Option<DeviceQueue>,
}

impl Console {
    /// A console that prints to `output`, and its keyboard.
    pub fn new(output: Output, size: WindowSize) -> (Console, ConsoleHandle) {
        let port = Arc::new(Mutex::new(Port { size, ..Port::default() }));
        let handle = ConsoleHandle { port: Arc::clone(&port) };
        (Console { output, port, transmit: None }, handle)
    }

    fn print(&mut self) {
        let Some(transmit) = &mut self.transmit else { return };
        let mut bytes = [0; OUTPUT_BYTES];
        for _ in 0..CHAINS_PER_NOTIFY_MAX {
            let Some(chain) = transmit.pop() else {
                transmit.interrupt();
                return;
            };
            let mut reader = transmit.reader(&chain);
            if reader.remaining() > CHAIN_BYTES_MAX {
                break;
            }
            loop {
                let len = reader.read(&mut bytes);
                if len == 0 {
                    break;
                }
                (self.output)(&bytes[..len]);
            }
            transmit.push(chain, 0);
        }
        transmit.refuse();
    }
}

impl VirtioDevice for Console {
    fn device_id(&self) -> u32 {
        3
    }

    fn features(&self) -> Features {
        Features(config::SIZE | config::EMERG_WRITE)
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64, 64]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        config::read(lock(&self.port).size, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if offset == config::EMERG_WRITE_OFFSET
            && let Some(&byte) = data.first()
        {
            (self.output)(&[byte]);
        }
    }

    fn activate(&mut self, activation: Activation) {
        let mut queues = DeviceQueue::all(activation).into_iter();
        lock(&self.port).receive = queues.next().flatten();
        self.transmit = queues.next().flatten();
        self.notify(RECEIVE);
        self.notify(TRANSMIT);
    }

    fn notify(&mut self, index: u16) {
        match index {
            RECEIVE => lock(&self.port).pump(),
            TRANSMIT => self.print(),
            _ => {}
        }
    }

    fn reset(&mut self) {
        lock(&self.port).receive = None;
        self.transmit = None;
    }

    fn queue_positions(&self) -> Vec<(u16, u16)> {
        let port = lock(&self.port);
        vec![queue::positions(port.receive.as_ref()), queue::positions(self.transmit.as_ref())]
    }

    fn save(&self) -> Vec<u8> {
        let port = lock(&self.port);
        let mut bytes = vec![STATE_VERSION];
        bytes.extend(port.size.columns.to_le_bytes());
        bytes.extend(port.size.rows.to_le_bytes());
        bytes.extend(&port.pending);
        bytes
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        let body = state::body("console", STATE_VERSION, bytes)?;
        let Some((&[c0, c1, r0, r1], input)) = body.split_first_chunk() else {
            return Err(state::refused("console", "it ends inside the window size"));
        };
        if input.len() > INPUT_BYTES_MAX {
            return Err(state::refused("console", format!("{} bytes of input are too many", input.len())));
        }
        let mut port = lock(&self.port);
        port.size = WindowSize { columns: u16::from_le_bytes([c0, c1]), rows: u16::from_le_bytes([r0, r1]) };
        port.pending = input.iter().copied().collect();
        Ok(())
    }
}
