//! The host's side of the network device, and the port through which it delivers frames.

use std::io::IoSlice;
use std::sync::Arc;

use super::header::VnetHeader;

/// What the guest's link is plugged into. All calls but [`NetPort`]'s come from vCPU threads and must not block.
pub trait NetBackend: Send + Sync {
    /// The driver is ready: frames may be delivered to `port` from now on, from any thread.
    fn attach(&self, port: Arc<dyn NetPort>);

    /// Takes a frame that the guest sends: 14 to [`FRAME_BYTES_MAX`](super::FRAME_BYTES_MAX) bytes, no FCS.
    ///
    /// `header` fits the frame and uses no offload that was not offered. The buffer may be kept: whatever other buffer is
    /// left in its place is used for a later frame.
    fn transmit(&self, header: &VnetHeader, frame: &mut Vec<u8>);

    /// The driver is gone: the port takes no more.
    fn detach(&self);

    /// The guest has offered buffers after [`NetPort::deliver`] had returned `false`.
    fn receive_ready(&self);
}

/// What the driver can take beside plain frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReceiveOffloads {
    /// Unfinished checksums. Without it the device finishes them itself.
    pub checksum: bool,
    /// Super-frames of TCP over IPv4.
    pub tso4: bool,
    /// Super-frames of TCP over IPv6.
    pub tso6: bool,
}

/// The guest's end of the link. Usable from any thread; never blocks for long.
pub trait NetPort: Send + Sync {
    /// Gives the guest the frame that `parts` make together. Returns `false` when the guest has no buffers for it at
    /// the moment: the backend keeps it (or not) and hears [`NetBackend::receive_ready`] when it may try again.
    ///
    /// A frame that the guest can never take (too long, an offload that it does not know, a driver that is gone) is
    /// dropped, and that is `true`.
    fn deliver(&self, header: &VnetHeader, parts: &[IoSlice<'_>]) -> bool;

    /// What the driver can take beside plain frames.
    fn offloads(&self) -> ReceiveOffloads;
}
