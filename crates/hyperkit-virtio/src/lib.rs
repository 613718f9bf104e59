//! Virtqueues, feature negotiation and the MMIO transport, independent of any device. Spec: virtio 1.2.

mod device;
pub mod mmio;
pub mod queue;

pub use device::{Activation, Features, Interrupt, VirtioDevice};
