//! The virtio devices, one folder each: `mod.rs` is the device, `config.rs` the registers the guest sees,
//! `request.rs` what the guest asks, `backend.rs` the trait of the host's side with a default for it.
//!
//! Devices are written against [`hyperkit_virtio::VirtioDevice`] and know no transport. What a guest puts into
//! a queue is hostile: a chain that breaks the rules ends in `needs_reset`, never in a panic, an endless loop or
//! an allocation that the guest chooses the size of. Spec: virtio 1.2 §5.

#![forbid(unsafe_code)]

pub mod block;
pub mod console;
pub mod net;
pub mod p9;
mod queue;
pub mod rng;
mod state;
#[cfg(test)]
mod testing;
pub mod vsock;
