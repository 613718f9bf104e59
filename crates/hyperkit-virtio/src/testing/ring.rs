//! A split ring as a driver uses it: lays it out in guest memory, adds buffers, collects used ones.

use std::collections::BTreeMap;
use std::sync::Arc;

use hyperkit_mem::{GuestAddr, GuestRam};

use crate::queue::{INDIRECT, NEXT, NO_INTERRUPT, WRITE};
use crate::{Queue, QueueLayout};

/// A chain that the device gave back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Used {
    /// First descriptor, as [`Ring::add`] returned it.
    pub head: u16,
    /// What the device says it wrote, in bytes.
    pub len: u32,
    /// The first `len` bytes of the chain's writable buffers, in order.
    pub bytes: Vec<u8>,
}

/// What the driver remembers of a chain that the device has.
#[derive(Debug)]
struct Pending {
    descriptors: Vec<u16>,
    /// Memory taken for its buffers and indirect table.
    start: u64,
    end: u64,
    writable: Vec<(u64, u32)>,
}

/// A driver's queue. Rings start at `base`; buffers are taken from the `arena_bytes` after them.
#[derive(Debug)]
pub struct Ring {
    ram: Arc<GuestRam>,
    layout: QueueLayout,
    free: Vec<u16>,
    pending: BTreeMap<u16, Pending>,
    arena: (u64, u64),
    arena_next: u64,
    avail_index: u16,
    used_index: u16,
}

impl Ring {
    /// Lays out a ring of `size` entries at `base`, which is aligned to 16, with event indexes and indirect
    /// descriptors if `modern`.
    pub fn new(ram: &Arc<GuestRam>, base: GuestAddr, size: u16, arena_bytes: u64, modern: bool) -> Ring {
        let desc = base.0;
        let avail = desc + 16 * u64::from(size);
        let used = (avail + 6 + 2 * u64::from(size)).next_multiple_of(4);
        let arena = (used + 6 + 8 * u64::from(size)).next_multiple_of(16);
        ram.zero(base, arena - desc + arena_bytes).expect("the ring and its arena fit into memory");
        let layout = QueueLayout {
            size,
            desc: GuestAddr(desc),
            avail: GuestAddr(avail),
            used: GuestAddr(used),
            event_idx: modern,
            indirect: modern,
        };
        Ring {
            ram: Arc::clone(ram),
            layout,
            free: (0..size).rev().collect(),
            pending: BTreeMap::new(),
            arena: (arena, arena + arena_bytes),
            arena_next: arena,
            avail_index: 0,
            used_index: 0,
        }
    }

    /// Where it is, for the registers of a transport.
    pub fn layout(&self) -> QueueLayout {
        self.layout
    }

    /// The device's side of it.
    pub fn queue(&self) -> Queue {
        Queue::new(&self.ram, self.layout).expect("the ring was laid out properly")
    }

    /// Adds a chain of buffers with these contents for the device to read, then buffers of these lengths for it
    /// to write. Returns the chain's head.
    pub fn add(&mut self, readable: &[&[u8]], writable: &[u32]) -> u16 {
        let (buffers, pending) = self.place(readable, writable, 0);
        let indexes: Vec<u16> =
            buffers.iter().map(|_| self.free.pop().expect("the ring has free descriptors")).collect();
        for (i, &(addr, len, flags)) in buffers.iter().enumerate() {
            let next = indexes.get(i + 1).copied();
            let flags = flags | if next.is_some() { NEXT } else { 0 };
            self.write_descriptor(indexes[i], addr, len, flags, next.unwrap_or(0));
        }
        self.offer(Pending { descriptors: indexes, ..pending })
    }

    /// Adds the same with one descriptor that points at an indirect table.
    pub fn add_indirect(&mut self, readable: &[&[u8]], writable: &[u32]) -> u16 {
        let n_buffers = readable.len() + writable.len();
        let (buffers, pending) = self.place(readable, writable, n_buffers);
        let table = pending.start;
        for (i, &(addr, len, flags)) in buffers.iter().enumerate() {
            let flags = flags | if i + 1 < n_buffers { NEXT } else { 0 };
            write_descriptor(&self.ram, table + 16 * i as u64, addr, len, flags, i as u16 + 1);
        }
        let index = self.free.pop().expect("the ring has free descriptors");
        self.write_descriptor(index, table, 16 * n_buffers as u32, INDIRECT, 0);
        self.offer(Pending { descriptors: vec![index], ..pending })
    }

    /// Takes the next chain that the device gave back.
    pub fn take_used(&mut self) -> Option<Used> {
        let used = self.layout.used.0;
        let index = self.ram.load_u16(GuestAddr(used + 2)).expect("in memory");
        if index == self.used_index {
            return None;
        }
        let slot = u64::from(self.used_index % self.layout.size);
        let head = self.ram.read_u32(GuestAddr(used + 4 + 8 * slot)).expect("in memory");
        let len = self.ram.read_u32(GuestAddr(used + 8 + 8 * slot)).expect("in memory");
        self.used_index = self.used_index.wrapping_add(1);
        if self.layout.event_idx {
            self.set_used_event(self.used_index);
        }
        let head = u16::try_from(head).expect("the device gives back the head of a chain");
        let pending = self.pending.remove(&head).expect("the device gives back only what it was given, once");
        self.free.extend(&pending.descriptors);
        let mut bytes = Vec::new();
        for (addr, buffer_len) in pending.writable {
            let part = buffer_len.min(len - bytes.len() as u32);
            let start = bytes.len();
            bytes.resize(start + part as usize, 0);
            self.ram.read(GuestAddr(addr), &mut bytes[start..]).expect("in memory");
        }
        assert_eq!(bytes.len(), len as usize, "the device says it wrote more than the chain has room for");
        Some(Used { head, len, bytes })
    }

    /// Chains that the device has.
    pub fn n_pending(&self) -> usize {
        self.pending.len()
    }

    /// Whether the device asked to be notified about the chain added last (`avail_event`); always without event
    /// indexes.
    pub fn device_wants_notification(&self) -> bool {
        let event = GuestAddr(self.layout.used.0 + 4 + 8 * u64::from(self.layout.size));
        let event = self.ram.load_u16(event).expect("in memory");
        !self.layout.event_idx || event == self.avail_index.wrapping_sub(1)
    }

    /// Asks for an interrupt when the device's used index passes `index` (event indexes only).
    pub fn set_used_event(&self, index: u16) {
        let event = GuestAddr(self.layout.avail.0 + 4 + 2 * u64::from(self.layout.size));
        self.ram.store_u16(event, index).expect("in memory");
    }

    /// Asks for no interrupts, or for all (without event indexes).
    pub fn set_no_interrupt(&self, no_interrupt: bool) {
        let flags = if no_interrupt { NO_INTERRUPT } else { 0 };
        self.ram.store_u16(self.layout.avail, flags).expect("in memory");
    }

    /// Writes any descriptor, also one that breaks the rules.
    pub fn write_descriptor(&self, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        write_descriptor(&self.ram, self.layout.desc.0 + 16 * u64::from(index), addr, len, flags, next);
    }

    /// Makes any head available, also one that breaks the rules.
    pub fn make_available(&mut self, head: u16) {
        let slot = u64::from(self.avail_index % self.layout.size);
        self.ram.store_u16(GuestAddr(self.layout.avail.0 + 4 + 2 * slot), head).expect("in memory");
        self.set_avail_index(self.avail_index.wrapping_add(1));
    }

    /// Sets the available index to anything.
    pub fn set_avail_index(&mut self, index: u16) {
        self.avail_index = index;
        self.ram.store_u16(GuestAddr(self.layout.avail.0 + 2), index).expect("in memory");
    }

    fn offer(&mut self, pending: Pending) -> u16 {
        let head = pending.descriptors[0];
        self.pending.insert(head, pending);
        self.make_available(head);
        head
    }

    /// Puts buffers, after a table of `n_table` descriptors, into the arena.
    fn place(
        &mut self,
        readable: &[&[u8]],
        writable: &[u32],
        n_table: usize,
    ) -> (Vec<(u64, u32, u16)>, Pending) {
        let bytes = readable.iter().map(|bytes| bytes.len() as u64).sum::<u64>()
            + writable.iter().map(|&len| u64::from(len)).sum::<u64>()
            + 16 * n_table as u64;
        let start = self.allocate(bytes);
        let mut next = start + 16 * n_table as u64;
        let mut buffers = Vec::new();
        for contents in readable {
            self.ram.write(GuestAddr(next), contents).expect("in memory");
            buffers.push((next, contents.len() as u32, 0));
            next += contents.len() as u64;
        }
        let mut to_write = Vec::new();
        for &len in writable {
            self.ram.zero(GuestAddr(next), u64::from(len)).expect("in memory");
            buffers.push((next, len, WRITE));
            to_write.push((next, len));
            next += u64::from(len);
        }
        (buffers, Pending { descriptors: Vec::new(), start, end: next, writable: to_write })
    }

    fn allocate(&mut self, bytes: u64) -> u64 {
        let mut start = self.arena_next;
        if start + bytes > self.arena.1 {
            start = self.arena.0;
        }
        let end = start + bytes;
        let free = end <= self.arena.1 && self.pending.values().all(|p| end <= p.start || p.end <= start);
        assert!(free, "the arena has no room for {bytes} bytes");
        self.arena_next = end.next_multiple_of(16);
        start
    }
}

fn write_descriptor(ram: &GuestRam, at: u64, addr: u64, len: u32, flags: u16, next: u16) {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&addr.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    ram.write(GuestAddr(at), &bytes).expect("in memory");
}
