//! Virtqueues, feature negotiation and the MMIO transport, independent of any device. Spec: virtio 1.2.
//!
//! A transport hands a device its queues when the driver is ready ([`VirtioDevice::activate`]). The device takes
//! [`Chain`]s out of a [`Queue`], reads and writes the buffers with [`Reader`] and [`Writer`], gives them back with
//! [`Queue::push_used`] and interrupts if [`Queue::needs_notification`] says so.

#![forbid(unsafe_code)]

mod chain;
mod device;
pub mod mmio;
pub mod queue;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use chain::{Chain, ChainError, Reader, Segment, Writer};
pub use device::{Activation, Features, Interrupt, VirtioDevice};
pub use queue::{Queue, QueueError, QueueLayout};
