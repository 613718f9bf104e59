//! What a virtio device is to its transport.

use std::sync::Arc;

use hyperkit_bus::RestoreError;
use hyperkit_mem::GuestRam;

use crate::queue::Queue;

/// Feature bits, device's own and reserved ones (virtio 1.2 §2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Features(pub u64);

/// Tells the driver that something happened. Cheap to clone; usable from any thread.
pub trait Interrupt: Send + Sync {
    /// A used buffer notification (virtio 1.2 §2.3). The caller has checked whether the driver wants it.
    fn used(&self);
    /// A configuration change notification.
    fn config_changed(&self);
    /// The device cannot go on with what the driver did: sets DEVICE_NEEDS_RESET (virtio 1.2 §2.1).
    fn needs_reset(&self);
}

/// What a device gets when the driver sets DRIVER_OK.
pub struct Activation {
    /// The guest's memory.
    pub ram: Arc<GuestRam>,
    /// One per entry of [`VirtioDevice::queue_sizes`]; those that the driver left disabled are `None`.
    pub queues: Vec<Option<Queue>>,
    /// What driver and device agreed on.
    pub features: Features,
    /// The way back.
    pub interrupt: Arc<dyn Interrupt>,
}

/// A virtio device without its transport.
///
/// Calls come from vCPU threads under the transport's lock: they must not block. What the guest wrote is
/// hostile: nothing may panic, loop for ever or allocate without limit.
pub trait VirtioDevice: Send {
    /// Device ID (virtio 1.2 §5).
    fn device_id(&self) -> u32;

    /// Features offered, without the transport's own (`VIRTIO_F_VERSION_1` and the ring's).
    fn features(&self) -> Features;

    /// Largest size of each queue, a power of two up to 32768.
    fn queue_sizes(&self) -> &[u16];

    /// Reads device configuration space; bytes past its end are zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes device configuration space; what is read-only ignores it.
    fn write_config(&mut self, offset: u64, data: &[u8]);

    /// The driver is ready.
    fn activate(&mut self, activation: Activation);

    /// The driver put buffers into queue `index` (of an active device).
    fn notify(&mut self, index: u16);

    /// The driver reset the device: back to the state before `activate`, workers stopped, queues given up.
    fn reset(&mut self);

    /// Where each queue stands, for a snapshot of an active device: (next available, next used) indexes.
    fn queue_positions(&self) -> Vec<(u16, u16)>;

    /// The device's own state for a snapshot, beyond queues and features.
    fn save(&self) -> Vec<u8>;

    /// Takes over what `save` made, before `activate`.
    ///
    /// # Errors
    /// [`RestoreError`] when the bytes are not such a state.
    fn restore(&mut self, bytes: &[u8]) -> Result<(), RestoreError>;
}
