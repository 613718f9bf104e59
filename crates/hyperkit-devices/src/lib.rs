//! One module per virtio device.
