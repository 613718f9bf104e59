//! The device's halves as the backend sees them, and receiving: frames from the backend into the driver's buffers.

use std::io::IoSlice;
use std::sync::{Mutex, MutexGuard};

use hyperkit_virtio::Chain;

use super::backend::{NetPort, ReceiveOffloads};
use super::config::feature;
use super::header::{HEADER_BYTES, NEEDS_CSUM, VnetHeader, finish_checksum};
use super::transmit::{SentFrame, Transmit};
use crate::queue::{self, DeviceQueue};

/// The halves of an active device.
pub(super) struct Port {
    features: u64,
    transmit: Transmit,
    /// The receiving half.
    state: Mutex<State>,
}

struct State {
    /// `None` once the driver is gone.
    queue: Option<DeviceQueue>,
    /// A frame was turned away for want of buffers.
    starved: bool,
    /// Chains of the frame that is being delivered; empty between frames.
    chains: Vec<Chain>,
    /// A frame whose checksum the driver cannot finish.
    copy: Vec<u8>,
}

impl Port {
    pub(super) fn new(features: u64, receive: Option<DeviceQueue>, transmit: Option<DeviceQueue>) -> Port {
        let state = State { queue: receive, starved: false, chains: Vec::new(), copy: Vec::new() };
        Port { features, transmit: Transmit::new(features, transmit), state: Mutex::new(state) }
    }

    /// The driver is gone.
    pub(super) fn close(&self) {
        self.lock().queue = None;
        self.transmit.close();
    }

    /// The driver has offered buffers. Returns whether the backend waits for them.
    pub(super) fn take_starved(&self) -> bool {
        std::mem::take(&mut self.lock().starved)
    }

    /// Where the queues stand, that for receiving first.
    pub(super) fn positions(&self) -> [(u16, u16); 2] {
        [queue::positions(self.lock().queue.as_ref()), self.transmit.positions()]
    }

    fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl NetPort for Port {
    fn deliver(&self, header: &VnetHeader, parts: &[IoSlice<'_>]) -> bool {
        let bytes = parts.iter().map(|part| part.len()).sum();
        let Some(header) = header.checked_to_driver(bytes, self.features) else { return true };
        let mut state = self.lock();
        let State { queue, starved, chains, copy } = &mut *state;
        let Some(queue) = queue else { return true };
        match collect(queue, chains, HEADER_BYTES + bytes, self.has(feature::MRG_RXBUF)) {
            Collected::Enough => {}
            Collected::TooFew => {
                *starved = true;
                return false;
            }
            Collected::Never => return true,
        }
        if header.flags & NEEDS_CSUM != 0 && !self.has(feature::GUEST_CSUM) {
            copy.clear();
            parts.iter().for_each(|part| copy.extend_from_slice(part));
            finish_checksum(&header, copy);
            fill(queue, chains, VnetHeader::default(), &[IoSlice::new(copy)]);
        } else {
            fill(queue, chains, header, parts);
        }
        true
    }

    fn take(&self, take: &mut dyn FnMut(&VnetHeader, &SentFrame<'_>)) -> bool {
        self.transmit.take(take)
    }

    fn offloads(&self) -> ReceiveOffloads {
        let checksum = self.has(feature::GUEST_CSUM);
        ReceiveOffloads {
            checksum,
            tso4: checksum && self.has(feature::GUEST_TSO4),
            tso6: checksum && self.has(feature::GUEST_TSO6),
        }
    }
}

/// Whether there are buffers for a frame.
enum Collected {
    Enough,
    /// Not now.
    TooFew,
    /// Not in this life.
    Never,
}

/// Takes chains that have room for `bytes` in all; puts them back when they have not.
fn collect(queue: &mut DeviceQueue, chains: &mut Vec<Chain>, bytes: usize, mergeable: bool) -> Collected {
    let most = if mergeable { usize::from(queue.size()) } else { 1 };
    let mut room = 0;
    while room < bytes as u64 {
        if chains.len() == most {
            put_back(queue, chains);
            return Collected::Never;
        }
        let Some(chain) = queue.pop() else {
            put_back(queue, chains);
            return Collected::TooFew;
        };
        // With the header split over two buffers, or no room at all, it is not a buffer (§5.1.6.3.1).
        if chain.writable_bytes() < HEADER_BYTES as u64 {
            queue.refuse();
            chains.clear();
            return Collected::Never;
        }
        room += chain.writable_bytes();
        chains.push(chain);
    }
    Collected::Enough
}

fn put_back(queue: &mut DeviceQueue, chains: &mut Vec<Chain>) {
    while let Some(chain) = chains.pop() {
        queue.put_back(chain);
    }
}

/// Writes header and frame into `chains`, which have room for it, and gives them back.
fn fill(queue: &mut DeviceQueue, chains: &mut Vec<Chain>, header: VnetHeader, parts: &[IoSlice<'_>]) {
    let header = VnetHeader { num_buffers: chains.len() as u16, ..header }.emit();
    let mut parts = parts.iter().map(|part| &part[..]);
    let mut rest = &header[..];
    for chain in chains.drain(..) {
        let mut writer = queue.writer(&chain);
        loop {
            let count = writer.write(rest);
            rest = &rest[count..];
            if !rest.is_empty() {
                break;
            }
            let Some(next) = parts.next() else { break };
            rest = next;
        }
        let written = writer.written();
        queue.add(chain, written);
    }
    queue.publish();
    queue.interrupt();
}
