//! The host's side of the network device, and the port through which it delivers frames.

use std::io::IoSlice;
use std::sync::Arc;

use super::header::VnetHeader;
use super::transmit::SentFrame;

/// What the guest's link is plugged into. Its calls come from vCPU threads and must not block.
pub trait NetBackend: Send + Sync {
    /// The driver is ready: frames may be delivered to `port` and taken from it from now on, from any thread. Some may
    /// wait to be taken.
    fn attach(&self, port: Arc<dyn NetPort>);

    /// The guest has frames to send after [`NetPort::take`] had returned `false`.
    fn transmit_ready(&self);

    /// The driver is gone: the port takes no more, and has none.
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

    /// Hands some of the frames that the guest sends to `take`, and returns whether there may be more now; if not, the
    /// backend hears [`NetBackend::transmit_ready`] when there are. The header fits the frame and uses no offload that
    /// was not offered.
    ///
    /// The guest gets a frame's buffers back when `take` returned. A reset by the guest waits for that.
    fn take(&self, take: &mut dyn FnMut(&VnetHeader, &SentFrame<'_>)) -> bool;

    /// What the driver can take beside plain frames.
    fn offloads(&self) -> ReceiveOffloads;
}
