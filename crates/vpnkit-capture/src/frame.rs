//! One captured frame.

/// Which way a frame went, seen from the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// A machine sent it.
    FromMachine,
    /// It went to a machine.
    ToMachine,
}

/// A frame as it was captured: perhaps only its beginning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Captured {
    /// Nanoseconds since 1970.
    pub time_ns: u64,
    /// Number of the port of the switch, in the order in which ports were named.
    pub port: u32,
    /// Which way it went.
    pub direction: Direction,
    /// Size of the frame in bytes, of which `bytes` may be the first ones only.
    pub wire_bytes: u32,
    /// From the Ethernet header on.
    pub bytes: Vec<u8>,
    /// What there is to say about it: why it was dropped, which flow it is of. Empty when nothing.
    pub comment: String,
}

impl Captured {
    /// Memory that it takes, in bytes, about.
    pub fn size(&self) -> usize {
        size_of::<Self>() + self.bytes.len() + self.comment.len()
    }
}
