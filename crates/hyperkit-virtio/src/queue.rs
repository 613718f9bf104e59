//! Split virtqueues (virtio 1.2 §2.7).

/// A virtqueue as the device uses it.
#[derive(Debug)]
pub struct Queue {}
