//! A queue together with what is needed to use it: the memory it lies in and the way to the driver.

use std::sync::Arc;

use hyperkit_mem::GuestRam;
use hyperkit_virtio::{Activation, Chain, Interrupt, Queue, Reader, Writer};

/// Chains that one notification may make a vCPU thread work off. A driver can only get beyond it by refilling
/// the queue from another vCPU all the while; the device then gives up on it.
pub(crate) const CHAINS_PER_NOTIFY_MAX: usize = 1 << 16;

/// A queue of an active device.
pub(crate) struct DeviceQueue {
    ram: Arc<GuestRam>,
    queue: Queue,
    interrupt: Arc<dyn Interrupt>,
}

impl DeviceQueue {
    /// The queues of an activation, in order; those that the driver left disabled are `None`.
    pub(crate) fn all(activation: Activation) -> Vec<Option<DeviceQueue>> {
        let Activation { ram, queues, interrupt, .. } = activation;
        let wrap = |queue| DeviceQueue { ram: Arc::clone(&ram), queue, interrupt: Arc::clone(&interrupt) };
        queues.into_iter().map(|queue| queue.map(wrap)).collect()
    }

    /// Number of entries.
    pub(crate) fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Takes the next chain. A driver that broke the rules is told to reset, and then there is none.
    pub(crate) fn pop(&mut self) -> Option<Chain> {
        self.queue.pop(&self.ram).unwrap_or_else(|_| {
            self.refuse();
            None
        })
    }

    /// Whether a chain waits to be taken.
    pub(crate) fn has_available(&self) -> bool {
        self.queue.has_available(&self.ram)
    }

    /// Puts back the chain that was taken last.
    pub(crate) fn put_back(&mut self, chain: Chain) {
        self.queue.put_back(chain);
    }

    /// Gives a chain back, of which the device wrote `written` bytes. The driver is not interrupted yet.
    pub(crate) fn push(&mut self, chain: Chain, written: u32) {
        self.queue.push_used(&self.ram, chain, written);
    }

    /// Gives a chain back that becomes visible to the driver with [`DeviceQueue::publish`] only.
    pub(crate) fn add(&mut self, chain: Chain, written: u32) {
        self.queue.add_used(&self.ram, chain, written);
    }

    /// Shows the driver what [`DeviceQueue::add`] gave back.
    pub(crate) fn publish(&mut self) {
        self.queue.publish_used(&self.ram);
    }

    /// Interrupts the driver if it wants to know of what was given back since the last call.
    pub(crate) fn interrupt(&mut self) {
        if self.queue.needs_notification(&self.ram) {
            self.interrupt.used();
        }
    }

    /// Tells the driver that it must reset the device.
    pub(crate) fn refuse(&self) {
        self.interrupt.needs_reset();
    }

    /// What the device may read of a chain of this queue.
    pub(crate) fn reader<'a>(&'a self, chain: &'a Chain) -> Reader<'a> {
        chain.reader(&self.ram)
    }

    /// What the device may write of a chain of this queue.
    pub(crate) fn writer<'a>(&'a self, chain: &'a Chain) -> Writer<'a> {
        chain.writer(&self.ram)
    }

    /// The memory that the queue and its chains lie in.
    pub(crate) fn ram(&self) -> Arc<GuestRam> {
        Arc::clone(&self.ram)
    }

    /// The way to the driver.
    pub(crate) fn line(&self) -> Arc<dyn Interrupt> {
        Arc::clone(&self.interrupt)
    }

    /// Where the queue stands: (next available, next used).
    pub(crate) fn positions(&self) -> (u16, u16) {
        self.queue.positions()
    }
}

/// Positions of a queue that may be disabled.
pub(crate) fn positions(queue: Option<&DeviceQueue>) -> (u16, u16) {
    queue.map_or((0, 0), DeviceQueue::positions)
}
