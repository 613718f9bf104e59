//! One machine of a hub: reads its frames, queues those for it, never blocks.

mod device;
mod packets;
mod stream;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use crate::segment;
use crate::vhost::VhostUser;
use crate::vnet::Vnet;

pub use device::Device;
pub use packets::Packets;
pub use stream::Stream;

/// Bytes that wait for a machine at most, but for the last frame.
const QUEUED_BYTES_MAX: usize = 4 << 20;

/// The machine, by what it is attached with.
#[derive(Debug)]
pub enum Port {
    /// A stream of frames with their lengths.
    Stream(Stream),
    /// A socket of packets.
    Packets(Packets),
    /// A TAP device.
    Device(Device),
    /// A network device in shared memory.
    VhostUser(VhostUser),
}

/// What reading left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// Nothing, or what its descriptor tells of.
    Open,
    /// There may be more.
    More,
    /// The machine is gone, or speaks nonsense.
    Closed,
}

impl Port {
    /// Reads what is there, one burst, and hands each frame to `take`. `scratch` has [`SCRATCH_BYTES`].
    pub fn receive(&mut self, scratch: &mut [u8], take: &mut dyn FnMut(&Vnet, &[u8])) -> Left {
        match self {
            Port::Stream(stream) => stream.receive(&mut |frame| take(&Vnet::WHOLE, frame)),
            Port::Packets(packets) => packets.receive(scratch, &mut |frame| take(&Vnet::WHOLE, frame)),
            Port::Device(device) => device.receive(scratch, take),
            Port::VhostUser(machine) => {
                if machine.receive(scratch, take) {
                    Left::More
                } else {
                    Left::Closed
                }
            }
        }
    }

    /// Whether it has room for a frame now.
    pub fn has_room(&self) -> bool {
        match self {
            Port::Stream(stream) => stream.queued_bytes() < QUEUED_BYTES_MAX,
            Port::Packets(packets) => packets.queued_bytes() < QUEUED_BYTES_MAX,
            Port::Device(_) => true,
            Port::VhostUser(machine) => machine.has_room(),
        }
    }

    /// Queues a frame, or sends it; returns false when it was dropped because too much waits, nobody is there, or it
    /// is not what `vnet` says.
    pub fn send(&mut self, vnet: &Vnet, parts: &[&[u8]]) -> bool {
        if !self.has_room() {
            return false;
        }
        let mut all = true;
        let cut = match self {
            Port::Stream(stream) => segment::finish(vnet, parts, &mut |parts| all &= stream.send(parts)),
            Port::Packets(packets) => segment::finish(vnet, parts, &mut |parts| packets.send(parts)),
            Port::Device(device) => return device.send(vnet, parts),
            Port::VhostUser(machine) => return machine.send(vnet, parts),
        };
        all && cut.is_ok()
    }

    /// Notices that a machine is gone where nothing tells of it: see [`Packets::look`].
    pub fn look(&mut self, probe: &[u8]) {
        if let Port::Packets(packets) = self {
            packets.look(probe);
        }
    }

    /// Sends what waits, as far as the machine takes it; returns whether all is sent.
    ///
    /// # Errors
    /// When the machine is gone, or all that it was to get is sent.
    pub fn flush(&mut self) -> io::Result<bool> {
        match self {
            Port::Stream(stream) => stream.flush(),
            Port::Packets(packets) => packets.flush(),
            Port::Device(_) => Ok(true),
            Port::VhostUser(machine) => {
                machine.flush();
                Ok(true)
            }
        }
    }
}

impl AsFd for Port {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Port::Stream(stream) => stream.as_fd(),
            Port::Packets(packets) => packets.as_fd(),
            Port::Device(device) => device.as_fd(),
            Port::VhostUser(machine) => machine.as_fd(),
        }
    }
}

/// Bytes that `scratch` of [`Port::receive`] needs. Only what is used of it takes memory.
pub const SCRATCH_BYTES: usize = packets::BURST * crate::FRAME_BYTES_MAX;
