//! Snapshot of a transport, its queues and its device.
//!
//! Layout, little-endian: version, device ID, registers, number of queues, queues, length and bytes of the device's
//! own state.

use hyperkit_bus::{RestoreError, Saved};

use super::{MmioTransport, QueueRegisters, status};
use crate::Queue;

const VERSION: u8 = 1;
const DEVICE: &str = "virtio-mmio";
const STATUS_BITS: u32 =
    status::ACKNOWLEDGE | status::DRIVER | status::DRIVER_OK | status::FEATURES_OK | status::FAILED;

impl Saved for MmioTransport {
    fn save(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        let words = [
            self.device.device_id(),
            self.status,
            self.interrupt.status(),
            self.interrupt.generation(),
            self.interrupt.needs_reset_bit(),
            self.device_features_sel,
            self.driver_features_sel,
            self.queue_sel,
            u32::from(self.active),
        ];
        bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        bytes.extend(self.driver_features.to_le_bytes());
        let positions = if self.active { self.device.queue_positions() } else { Vec::new() };
        for (index, queue) in self.queues.iter().enumerate() {
            let (next_avail, next_used) = positions.get(index).copied().unwrap_or_default();
            bytes.extend(queue.size.to_le_bytes());
            bytes.push(u8::from(queue.ready));
            for address in [queue.desc, queue.avail, queue.used] {
                bytes.extend(address.to_le_bytes());
            }
            bytes.extend(next_avail.to_le_bytes());
            bytes.extend(next_used.to_le_bytes());
        }
        bytes.extend(self.device.save());
        bytes
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        let mut rest = bytes;
        let state = State::parse(&mut rest, self.queues.len())?;
        let device_id = self.device.device_id();
        if state.words[0] != device_id {
            return refuse(format!("it is of device {}, not {device_id}", state.words[0]));
        }
        let registers: Vec<QueueRegisters> = state.queues.iter().map(|(queue, _)| *queue).collect();
        let active = state.words[8] != 0;
        let agreed = active || state.words[1] & status::FEATURES_OK != 0;
        if agreed && state.driver_features & !self.offered() != 0 {
            return refuse(format!("features {:#x} are not offered", state.driver_features));
        }
        let mut queues = Vec::new();
        if active {
            queues = self
                .make_queues_with(&registers, state.driver_features)
                .or_else(|error| refuse(error.to_string()))?;
        }
        if self.active {
            return refuse("the device is in use".into());
        }
        self.device.restore(rest)?;
        let [_, status, interrupts, generation, needs_reset, device_sel, driver_sel, queue_sel, _] =
            state.words;
        self.status = status & STATUS_BITS;
        self.device_features_sel = device_sel;
        self.driver_features = state.driver_features;
        self.driver_features_sel = driver_sel;
        self.queue_sel = queue_sel;
        self.queues = registers;
        if active {
            self.resume(queues, &state);
        }
        self.interrupt.restore(interrupts, generation, needs_reset != 0);
        Ok(())
    }
}

impl MmioTransport {
    /// Gives the device its queues back, and notifies each: what was made available before is not announced again.
    fn resume(&mut self, mut queues: Vec<Option<Queue>>, state: &State) {
        for (queue, (_, positions)) in queues.iter_mut().zip(&state.queues) {
            if let Some(queue) = queue {
                queue.set_positions(*positions);
            }
        }
        let enabled: Vec<bool> = queues.iter().map(Option::is_some).collect();
        self.activate(queues);
        for (index, _) in enabled.iter().enumerate().filter(|(_, enabled)| **enabled) {
            self.device.notify(index as u16);
        }
    }
}

struct State {
    words: [u32; 9],
    driver_features: u64,
    queues: Vec<(QueueRegisters, (u16, u16))>,
}

impl State {
    fn parse(rest: &mut &[u8], n_queues: usize) -> Result<State, RestoreError> {
        let [version] = take(rest)?;
        if version != VERSION {
            return refuse(format!("version {version} is not known"));
        }
        let mut words = [0; 9];
        for word in &mut words {
            *word = u32::from_le_bytes(take(rest)?);
        }
        let driver_features = u64::from_le_bytes(take(rest)?);
        let mut queues = Vec::with_capacity(n_queues);
        for _ in 0..n_queues {
            let registers = QueueRegisters {
                size: u16::from_le_bytes(take(rest)?),
                ready: take::<1>(rest)? != [0],
                desc: u64::from_le_bytes(take(rest)?),
                avail: u64::from_le_bytes(take(rest)?),
                used: u64::from_le_bytes(take(rest)?),
            };
            let positions = (u16::from_le_bytes(take(rest)?), u16::from_le_bytes(take(rest)?));
            queues.push((registers, positions));
        }
        Ok(State { words, driver_features, queues })
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], RestoreError> {
    let Some((taken, left)) = rest.split_first_chunk::<N>() else {
        return refuse("it ends too early".into());
    };
    *rest = left;
    Ok(*taken)
}

fn refuse<T>(why: String) -> Result<T, RestoreError> {
    Err(RestoreError { device: DEVICE, why })
}
