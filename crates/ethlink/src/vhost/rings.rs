//! The two queues of a network device in a machine's memory. Spec: virtio 1.2 §2.7, §5.1.6.
//!
//! Nothing in the memory is believed: `virtio-queue` checks addresses and ends loops, and what it refuses stops the
//! queue until the machine sets it up anew.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::sync::atomic::{Ordering, fence};

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::FRAME_BYTES_MAX;
use crate::segment;
use crate::vnet::{Large, VNET_HEADER_BYTES, Vnet};

/// Queues of a device: one to the machine, and one from it.
pub const QUEUES: usize = 2;
/// The queue with buffers of the machine for frames to it: `receiveq1`.
const TO_MACHINE: usize = 0;
/// The queue with frames of the machine: `transmitq1`.
const FROM_MACHINE: usize = 1;
/// Entries of a queue at most.
const QUEUE_SIZE_MAX: u16 = 1024;
/// Frames taken before it is the others' turn.
const BURST: usize = 64;
/// Bytes of `virtio_net_hdr` without `num_buffers`, as devices before virtio 1 have it.
const LEGACY_HEADER_BYTES: usize = 10;
/// Buffers of the machine that one frame may take.
const BUFFERS_MAX: usize = 128;

const CSUM: u64 = 1;
const GUEST_CSUM: u64 = 1 << 1;
const GUEST_TSO4: u64 = 1 << 7;
const GUEST_TSO6: u64 = 1 << 8;
const HOST_TSO4: u64 = 1 << 11;
const HOST_TSO6: u64 = 1 << 12;
const MRG_RXBUF: u64 = 1 << 15;
const INDIRECT_DESC: u64 = 1 << 28;
const EVENT_IDX: u64 = 1 << 29;
const PROTOCOL_FEATURES: u64 = 1 << 30;
const VERSION_1: u64 = 1 << 32;

/// What is offered. Spec: virtio 1.2 §5.1.3, §6; vhost-user.rst, "Communication".
pub const FEATURES: u64 = CSUM
    | GUEST_CSUM
    | GUEST_TSO4
    | GUEST_TSO6
    | HOST_TSO4
    | HOST_TSO6
    | MRG_RXBUF
    | INDIRECT_DESC
    | EVENT_IDX
    | PROTOCOL_FEATURES
    | VERSION_1;

/// One queue.
#[derive(Debug)]
struct Ring {
    queue: Queue,
    call: Option<File>,
    started: bool,
    enabled: bool,
    /// Whether buffers were used since the machine was last told.
    used: bool,
}

impl Ring {
    fn is_active(&self) -> bool {
        self.started && self.enabled
    }
}

/// The queues, and the memory that they lie in.
#[derive(Debug)]
pub struct Rings {
    memory: Option<GuestMemoryMmap>,
    rings: [Ring; QUEUES],
    features: u64,
    /// Frames to the machine wait for buffers.
    full: bool,
    /// A counter to write to when there is more to do than one burst.
    wake: OwnedFd,
}

/// A queue that cannot be as the machine says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a queue cannot be like that")]
pub struct Refused;

/// What became of a frame to the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// It lies in the machine's buffers.
    Done,
    /// The machine has too few buffers now.
    NoRoom,
    /// It cannot be had: it is larger than all buffers, or the queue does not work.
    Never,
}

impl Rings {
    /// Queues that are not set up. `wake` is an eventfd that is written to when more is left than one burst.
    pub fn new(wake: OwnedFd) -> Self {
        let ring = || Ring {
            queue: Queue::new(QUEUE_SIZE_MAX).expect("a power of two below 2^15"),
            call: None,
            started: false,
            // QEMU's network device enables its queues before it has accepted the feature that lets it, and `vhost`
            // refuses that. So they are enabled until the machine says otherwise; they still have to be started.
            enabled: true,
            used: false,
        };
        Self { memory: None, rings: [ring(), ring()], features: 0, full: false, wake }
    }

    /// The machine's memory is this from now on. Queues that do not lie in it stop.
    pub fn set_memory(&mut self, memory: GuestMemoryMmap) {
        for ring in &mut self.rings {
            ring.started &= ring.queue.is_valid(&memory);
        }
        self.memory = Some(memory);
    }

    /// Takes what the machine's driver accepted.
    ///
    /// # Errors
    /// When it was not offered.
    pub fn set_features(&mut self, features: u64) -> Result<(), Refused> {
        if features & !FEATURES != 0 {
            return Err(Refused);
        }
        self.features = features;
        for ring in &mut self.rings {
            ring.queue.set_event_idx(features & EVENT_IDX != 0);
        }
        Ok(())
    }

    /// Sets the entries of a queue.
    ///
    /// # Errors
    /// When it is no power of two, or too many.
    pub fn set_size(&mut self, index: usize, size: u16) -> Result<(), Refused> {
        self.rings[index].queue.try_set_size(size).map_err(|_| Refused)
    }

    /// Says where the parts of a queue are.
    ///
    /// # Errors
    /// When one is not aligned.
    pub fn set_addresses(
        &mut self,
        index: usize,
        descriptors: GuestAddress,
        available: GuestAddress,
        used: GuestAddress,
    ) -> Result<(), Refused> {
        let queue = &mut self.rings[index].queue;
        queue.try_set_desc_table_address(descriptors).map_err(|_| Refused)?;
        queue.try_set_avail_ring_address(available).map_err(|_| Refused)?;
        queue.try_set_used_ring_address(used).map_err(|_| Refused)
    }

    /// Says which entry of a queue is the next.
    pub fn set_base(&mut self, index: usize, base: u16) {
        let queue = &mut self.rings[index].queue;
        queue.set_next_avail(base);
        queue.set_next_used(base);
    }

    /// Begins to use a queue.
    ///
    /// # Errors
    /// When its parts are not in the machine's memory.
    pub fn start(&mut self, index: usize) -> Result<(), Refused> {
        let ring = &mut self.rings[index];
        ring.queue.set_ready(true);
        let memory = self.memory.as_ref().ok_or(Refused)?;
        ring.started = ring.queue.is_valid(memory);
        self.full = false;
        if ring.started { Ok(()) } else { Err(Refused) }
    }

    /// Stops to use a queue and returns which entry is the next.
    pub fn stop(&mut self, index: usize) -> u16 {
        let ring = &mut self.rings[index];
        ring.started = false;
        ring.queue.set_ready(false);
        self.full = false;
        ring.queue.next_avail()
    }

    /// Stops to use all queues.
    pub fn stop_all(&mut self) {
        for index in 0..QUEUES {
            self.stop(index);
        }
    }

    /// Sets whether a queue may be used once it is started.
    pub fn enable(&mut self, index: usize, enable: bool) {
        self.rings[index].enabled = enable;
    }

    /// Sets the counter by which the machine is told of used buffers.
    pub fn set_call(&mut self, index: usize, call: Option<File>) {
        self.rings[index].call = call;
    }

    /// Whether frames to the machine wait for buffers, as far as is known.
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// Takes a burst of frames from the machine. Frames to it are tried again afterwards.
    pub fn receive(&mut self, scratch: &mut [u8], take: &mut dyn FnMut(&Vnet, &[u8])) {
        // Whatever happened, there may be buffers again.
        self.full = false;
        let header_bytes = self.header_bytes();
        let (Some(memory), ring) = (&self.memory, &mut self.rings[FROM_MACHINE]) else { return };
        if !ring.is_active() {
            return;
        }
        let (mut taken, mut promised) = (0, false);
        loop {
            if taken == BURST {
                // The counter cannot overflow, and the descriptor is open.
                let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
                break;
            }
            let Ok(mut chains) = ring.queue.iter(memory) else {
                ring.started = false;
                break;
            };
            let Some(chain) = chains.next() else {
                // To be told of the next one; it may have come meanwhile.
                match ring.queue.enable_notification(memory) {
                    Ok(true) if !promised => promised = true,
                    Ok(false) => break,
                    // There is one, and it cannot be read.
                    Ok(true) | Err(_) => {
                        ring.started = false;
                        break;
                    }
                }
                continue;
            };
            promised = false;
            taken += 1;
            let head = chain.head_index();
            if let Some((vnet, count)) = read(chain, memory, header_bytes, scratch) {
                take(&vnet, &scratch[..count]);
            }
            ring.started = ring.queue.add_used(memory, head, 0).is_ok();
            ring.used = true;
            if !ring.started {
                break;
            }
        }
        self.flush();
    }

    fn header_bytes(&self) -> usize {
        if self.features & (VERSION_1 | MRG_RXBUF) == 0 { LEGACY_HEADER_BYTES } else { VNET_HEADER_BYTES }
    }

    /// Sends a frame to the machine, cut up if its driver wants that; returns false when it was dropped.
    pub fn send(&mut self, vnet: &Vnet, parts: &[&[u8]]) -> bool {
        let feature = match vnet.large() {
            Some(Large::TcpV4) => GUEST_TSO4,
            Some(Large::TcpV6) => GUEST_TSO6,
            None => GUEST_CSUM,
        };
        if vnet.is_whole() || self.features & feature != 0 {
            return self.put(vnet, parts) == Sent::Done;
        }
        let mut all = true;
        let cut = segment::finish(vnet, parts, &mut |parts| {
            all &= self.put(&Vnet::WHOLE, parts) == Sent::Done;
        });
        all && cut.is_ok()
    }

    /// Puts a frame into the machine's buffers.
    pub fn put(&mut self, vnet: &Vnet, parts: &[&[u8]]) -> Sent {
        let header_bytes = self.header_bytes();
        let merges = self.features & MRG_RXBUF != 0;
        let (Some(memory), ring) = (&self.memory, &mut self.rings[TO_MACHINE]) else { return Sent::Never };
        if !ring.is_active() {
            return Sent::Never;
        }
        let bytes = header_bytes + parts.iter().map(|part| part.len()).sum::<usize>();
        let before = ring.queue.next_avail();
        let sent = match gather(&mut ring.queue, memory, bytes, merges) {
            Ok(chains) => fill(ring, memory, &chains, &header(vnet, chains.len())[..header_bytes], parts),
            Err(sent) => sent,
        };
        match sent {
            Sent::Done => ring.used = true,
            Sent::NoRoom => {
                ring.queue.set_next_avail(before);
                self.full = true;
                self.ask_for_buffers();
            }
            Sent::Never => ring.queue.set_next_avail(before),
        }
        sent
    }

    /// Asks to be told when the machine has added buffers to those that are there, which are too few.
    fn ask_for_buffers(&mut self) {
        let (Some(memory), ring) = (&self.memory, &mut self.rings[TO_MACHINE]) else { return };
        let queue = &mut ring.queue;
        let seen = queue.avail_idx(memory, Ordering::Acquire);
        let asked = if queue.event_idx_enabled() {
            // `avail_event` follows the used ring: virtio 1.2 §2.7.8. Unlike `enable_notification` it is set to what
            // the driver adds next, not to what is used next.
            let at = queue.used_ring().wrapping_add(4 + 8 * u64::from(queue.size()));
            let index = seen.as_ref().map_or(0, |seen| seen.0);
            memory.store(index.to_le(), GuestAddress(at), Ordering::Relaxed).is_ok()
        } else {
            queue.enable_notification(memory).is_ok()
        };
        fence(Ordering::SeqCst);
        let now = queue.avail_idx(memory, Ordering::Acquire);
        match (seen, now) {
            (Ok(seen), Ok(now)) if asked && seen == now => {}
            // Some came meanwhile.
            (Ok(_), Ok(_)) if asked => {
                let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
            }
            _ => ring.started = false,
        }
    }

    /// Tells the machine of buffers that were used, as far as it wants to know.
    pub fn flush(&mut self) {
        let Some(memory) = &self.memory else { return };
        for ring in &mut self.rings {
            if !std::mem::take(&mut ring.used) || !ring.started {
                continue;
            }
            match ring.queue.needs_notification(memory) {
                Ok(true) => {
                    if let Some(call) = &ring.call {
                        // A counter that is full has been told of.
                        let _ = rustix::io::write(call, &1u64.to_ne_bytes());
                    }
                }
                Ok(false) => {}
                Err(_) => ring.started = false,
            }
        }
    }
}

type Chain<'m> = DescriptorChain<&'m GuestMemoryMmap>;

/// Copies a frame of the machine to `frame`; `None` when it has no header, is too long, or its buffers are nowhere.
fn read(
    chain: Chain<'_>,
    memory: &GuestMemoryMmap,
    header_bytes: usize,
    frame: &mut [u8],
) -> Option<(Vnet, usize)> {
    let mut reader = chain.reader::<()>(memory).ok()?;
    let count = reader.available_bytes().checked_sub(header_bytes)?;
    let mut header = Vnet::WHOLE.0;
    reader.read_exact(&mut header[..header_bytes]).ok()?;
    let frame = frame.get_mut(..count).filter(|_| count <= FRAME_BYTES_MAX)?;
    reader.read_exact(frame).ok()?;
    Some((Vnet(header).trusted(), count))
}

/// Takes buffers of the machine for `bytes`: one chain, or several when they may be merged.
fn gather<'m>(
    queue: &mut Queue,
    memory: &'m GuestMemoryMmap,
    bytes: usize,
    merges: bool,
) -> Result<Vec<(Chain<'m>, usize)>, Sent> {
    let (mut chains, mut room) = (Vec::new(), 0);
    while room < bytes {
        if chains.len() == BUFFERS_MAX || (!merges && !chains.is_empty()) {
            return Err(Sent::Never);
        }
        let next = queue.iter(memory).map_err(|_| Sent::Never)?.next();
        let Some(chain) = next else {
            let all = chains.len() >= usize::from(queue.size());
            return Err(if all { Sent::Never } else { Sent::NoRoom });
        };
        let Ok(writer) = chain.clone().writer::<()>(memory) else { return Err(Sent::Never) };
        let count = writer.available_bytes();
        room += count;
        chains.push((chain, count));
    }
    Ok(chains)
}

/// The header for the machine: what only we needed is left out.
fn header(vnet: &Vnet, buffers: usize) -> [u8; VNET_HEADER_BYTES] {
    let mut header = if vnet.is_whole() { Vnet::WHOLE.0 } else { vnet.0 };
    header[10..12].copy_from_slice(&(buffers as u16).to_le_bytes());
    header
}

/// Writes header and frame to buffers that have room for them.
fn fill(
    ring: &mut Ring,
    memory: &GuestMemoryMmap,
    chains: &[(Chain<'_>, usize)],
    header: &[u8],
    parts: &[&[u8]],
) -> Sent {
    let mut pieces = std::iter::once(header).chain(parts.iter().copied());
    let mut piece = pieces.next().unwrap_or_default();
    for (chain, room) in chains {
        let Ok(mut writer) = chain.clone().writer::<()>(memory) else { return Sent::Never };
        let mut written = 0;
        while written < *room {
            while piece.is_empty() {
                match pieces.next() {
                    Some(next) => piece = next,
                    None => break,
                }
            }
            let count = piece.len().min(room - written);
            if count == 0 {
                break;
            }
            if writer.write_all(&piece[..count]).is_err() {
                ring.started = false;
                return Sent::Never;
            }
            piece = &piece[count..];
            written += count;
        }
        if ring.queue.add_used(memory, chain.head_index(), written as u32).is_err() {
            ring.started = false;
            return Sent::Never;
        }
    }
    Sent::Done
}

#[cfg(test)]
mod tests;
