//! Split virtqueues, the device's side: taking chains, giving them back, and when to interrupt.
//!
//! Packed rings are not offered. Spec: virtio 1.2 §2.7.

use hyperkit_mem::{GuestAddr, GuestRam};

use crate::chain::{Chain, ChainError, Segment};

/// Largest number of entries (virtio 1.2 §2.7).
pub const SIZE_MAX: u16 = 32768;

/// Descriptors that an indirect table may have even in a smaller queue. The specification says the queue's size
/// (§2.7.5.3.1), but Linux's `virtqueue_add_split` only minds it for direct chains; 1024 is QEMU's limit.
const INDIRECT_MAX: u16 = 1024;

const DESCRIPTOR_BYTES: u64 = 16;
/// Flags of a descriptor (virtio 1.2 §2.7.5).
pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;
/// Flag of the available ring: the driver wants no interrupt (virtio 1.2 §2.7.6).
pub(crate) const NO_INTERRUPT: u16 = 1;

/// Says why ring accesses cannot fail.
const CHECKED: &str = "Queue::new checked that the rings lie in memory";

/// Where the driver put a queue, and what was negotiated for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLayout {
    /// Number of entries.
    pub size: u16,
    /// Address of the descriptor table.
    pub desc: GuestAddr,
    /// Address of the available ring (the "driver area").
    pub avail: GuestAddr,
    /// Address of the used ring (the "device area").
    pub used: GuestAddr,
    /// `VIRTIO_F_EVENT_IDX` was negotiated.
    pub event_idx: bool,
    /// `VIRTIO_F_INDIRECT_DESC` was negotiated.
    pub indirect: bool,
}

impl QueueLayout {
    fn avail_bytes(&self) -> u64 {
        6 + 2 * u64::from(self.size)
    }

    fn used_bytes(&self) -> u64 {
        6 + 8 * u64::from(self.size)
    }
}

/// Why a queue cannot be used as the driver set it up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each message documents its variant")]
pub enum QueueError {
    #[error("queue size {size} is not a power of two from 1 to {SIZE_MAX}")]
    Size { size: u16 },
    #[error("{ring} ring at {addr} is not aligned to {align} or not in memory")]
    Ring { ring: &'static str, addr: GuestAddr, align: u64 },
}

/// A virtqueue as the device uses it.
///
/// `ram` in each call is the memory that [`Queue::new`] got; with another one they may panic.
#[derive(Debug)]
pub struct Queue {
    layout: QueueLayout,
    /// Position in the available ring of the next chain to take; wraps.
    next_avail: u16,
    /// Position in the used ring of the next chain to give back; wraps.
    next_used: u16,
    /// Used index that the driver has been told of by the ring; behind `next_used` between add and publish.
    published: u16,
    /// Used index when [`Queue::needs_notification`] was last asked; `None` when not known.
    signalled: Option<u16>,
    /// The driver broke the rules: nothing more is taken.
    broken: bool,
}

impl Queue {
    /// A queue at positions 0.
    ///
    /// # Errors
    /// [`QueueError`] when size, alignment or place of a ring is not allowed (virtio 1.2 §2.7).
    pub fn new(ram: &GuestRam, layout: QueueLayout) -> Result<Queue, QueueError> {
        let size = layout.size;
        if !size.is_power_of_two() || size > SIZE_MAX {
            return Err(QueueError::Size { size });
        }
        let rings = [
            ("descriptor", layout.desc, u64::from(size) * DESCRIPTOR_BYTES, 16),
            ("available", layout.avail, layout.avail_bytes(), 2),
            ("used", layout.used, layout.used_bytes(), 4),
        ];
        for (ring, addr, bytes, align) in rings {
            if !addr.0.is_multiple_of(align) || ram.span(addr, bytes).is_none() {
                return Err(QueueError::Ring { ring, addr, align });
            }
        }
        Ok(Queue { layout, next_avail: 0, next_used: 0, published: 0, signalled: Some(0), broken: false })
    }

    /// Number of entries.
    pub fn size(&self) -> u16 {
        self.layout.size
    }

    /// Positions for a snapshot: (next available, next used).
    pub fn positions(&self) -> (u16, u16) {
        (self.next_avail, self.published)
    }

    /// Continues where [`Queue::positions`] was.
    pub fn set_positions(&mut self, (next_avail, next_used): (u16, u16)) {
        self.next_avail = next_avail;
        self.next_used = next_used;
        self.published = next_used;
        self.signalled = None;
    }

    /// Whether the driver has made a chain available that was not taken yet. Asks for no notification.
    pub fn has_available(&self, ram: &GuestRam) -> bool {
        !self.broken && self.avail_index(ram) != self.next_avail
    }

    /// Takes the next chain; `None` when there is none, and then the driver will notify about the next.
    ///
    /// # Errors
    /// [`ChainError`] when the driver broke the rules. Told once: the queue then yields nothing until a reset.
    pub fn pop(&mut self, ram: &GuestRam) -> Result<Option<Chain>, ChainError> {
        if self.broken {
            return Ok(None);
        }
        let chain = self.try_pop(ram);
        self.broken = chain.is_err();
        chain
    }

    fn try_pop(&mut self, ram: &GuestRam) -> Result<Option<Chain>, ChainError> {
        let mut available = self.avail_index(ram).wrapping_sub(self.next_avail);
        if available == 0 {
            if !self.layout.event_idx {
                return Ok(None);
            }
            // Ask for a notification, then look again: the driver may not have seen the request in time (§2.7.10).
            let event = GuestAddr(self.layout.used.0 + 4 + 8 * u64::from(self.layout.size));
            ram.store_u16(event, self.next_avail).expect(CHECKED);
            available = self.avail_index(ram).wrapping_sub(self.next_avail);
            if available == 0 {
                return Ok(None);
            }
        }
        let size = self.layout.size;
        if available > size {
            return Err(ChainError::AvailableIndex { available, size });
        }
        let slot = u64::from(self.next_avail & (size - 1));
        let head = ram.load_u16(GuestAddr(self.layout.avail.0 + 4 + 2 * slot)).expect(CHECKED);
        let chain = self.walk(ram, head)?;
        self.next_avail = self.next_avail.wrapping_add(1);
        Ok(Some(chain))
    }

    /// Puts back the chain that was taken last: the next [`Queue::pop`] gives it again.
    ///
    /// Several are put back in the reverse order of their taking.
    pub fn put_back(&mut self, chain: Chain) {
        drop(chain);
        self.next_avail = self.next_avail.wrapping_sub(1);
    }

    /// Gives a chain back and tells the driver's ring. `written` counts the bytes written to its writable part.
    pub fn push_used(&mut self, ram: &GuestRam, chain: Chain, written: u32) {
        self.add_used(ram, chain, written);
        self.publish_used(ram);
    }

    /// Gives a chain back without telling yet: several become visible together with [`Queue::publish_used`].
    pub fn add_used(&mut self, ram: &GuestRam, chain: Chain, written: u32) {
        let slot = u64::from(self.next_used & (self.layout.size - 1));
        let mut element = [0; 8];
        element[..4].copy_from_slice(&u32::from(chain.head()).to_le_bytes());
        element[4..].copy_from_slice(&written.to_le_bytes());
        ram.write(GuestAddr(self.layout.used.0 + 4 + 8 * slot), &element).expect(CHECKED);
        self.next_used = self.next_used.wrapping_add(1);
    }

    /// Makes what [`Queue::add_used`] added visible to the driver.
    pub fn publish_used(&mut self, ram: &GuestRam) {
        ram.store_u16(GuestAddr(self.layout.used.0 + 2), self.next_used).expect(CHECKED);
        self.published = self.next_used;
    }

    /// Whether the driver wants an interrupt for what was published since this was last asked (virtio 1.2 §2.7.7).
    pub fn needs_notification(&mut self, ram: &GuestRam) -> bool {
        let new = self.published;
        let old = self.signalled.replace(new);
        if old == Some(new) {
            return false;
        }
        if !self.layout.event_idx {
            let flags = ram.load_u16(self.layout.avail).expect(CHECKED);
            return flags & NO_INTERRUPT == 0;
        }
        let Some(old) = old else { return true };
        let event = GuestAddr(self.layout.avail.0 + 4 + 2 * u64::from(self.layout.size));
        let event = ram.load_u16(event).expect(CHECKED);
        new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
    }

    fn avail_index(&self, ram: &GuestRam) -> u16 {
        ram.load_u16(GuestAddr(self.layout.avail.0 + 2)).expect(CHECKED)
    }

    /// Follows the chain from `head` and checks all of it.
    fn walk(&self, ram: &GuestRam, head: u16) -> Result<Chain, ChainError> {
        let mut chain = Chain::new(head);
        let mut table = Table { addr: self.layout.desc, size: self.layout.size, indirect: false };
        let mut index = head;
        let mut n_seen = 0;
        loop {
            n_seen += 1;
            if n_seen > table.size {
                return Err(ChainError::Loop { size: table.size });
            }
            let descriptor = table.read(ram, index)?;
            if descriptor.flags & INDIRECT != 0 {
                if table.indirect || !self.layout.indirect || descriptor.flags & NEXT != 0 {
                    return Err(ChainError::Indirect { index });
                }
                table = self.indirect_table(ram, descriptor.segment)?;
                (index, n_seen) = (0, 0);
                continue;
            }
            let Segment { addr, len } = descriptor.segment;
            if len > 0 {
                ram.span(addr, u64::from(len)).ok_or(hyperkit_mem::OutOfRam { addr, len: u64::from(len) })?;
            }
            chain.append(index, descriptor.segment, descriptor.flags & WRITE != 0)?;
            if descriptor.flags & NEXT == 0 {
                return Ok(chain);
            }
            index = descriptor.next;
        }
    }

    fn indirect_table(&self, ram: &GuestRam, Segment { addr, len }: Segment) -> Result<Table, ChainError> {
        let max = self.layout.size.max(INDIRECT_MAX);
        let n_descriptors = len / DESCRIPTOR_BYTES as u32;
        if len == 0 || !len.is_multiple_of(DESCRIPTOR_BYTES as u32) || n_descriptors > u32::from(max) {
            return Err(ChainError::IndirectLength { bytes: len, max });
        }
        ram.span(addr, u64::from(len)).ok_or(hyperkit_mem::OutOfRam { addr, len: u64::from(len) })?;
        Ok(Table { addr, size: n_descriptors as u16, indirect: true })
    }
}

/// A table of descriptors that lies in RAM.
struct Table {
    addr: GuestAddr,
    size: u16,
    indirect: bool,
}

struct Descriptor {
    segment: Segment,
    flags: u16,
    next: u16,
}

impl Table {
    fn read(&self, ram: &GuestRam, index: u16) -> Result<Descriptor, ChainError> {
        if index >= self.size {
            return Err(ChainError::OutOfRange { index, size: self.size });
        }
        let mut bytes = [0; DESCRIPTOR_BYTES as usize];
        ram.read(GuestAddr(self.addr.0 + DESCRIPTOR_BYTES * u64::from(index)), &mut bytes)?;
        let word = u128::from_le_bytes(bytes);
        let segment = Segment { addr: GuestAddr(word as u64), len: (word >> 64) as u32 };
        Ok(Descriptor { segment, flags: (word >> 96) as u16, next: (word >> 112) as u16 })
    }
}

#[cfg(test)]
mod tests;
