//! The header that every vsock packet starts with. Spec: virtio 1.2 §5.10.6.

/// Length of a header in bytes.
pub(super) const HEADER_BYTES: usize = 44;

/// The host's address.
pub const HOST_CID: u64 = 2;

/// Socket type: a stream.
pub(super) const STREAM: u16 = 1;

/// Operations.
pub(super) mod op {
    pub(in super::super) const REQUEST: u16 = 1;
    pub(in super::super) const RESPONSE: u16 = 2;
    pub(in super::super) const RST: u16 = 3;
    pub(in super::super) const SHUTDOWN: u16 = 4;
    pub(in super::super) const RW: u16 = 5;
    pub(in super::super) const CREDIT_UPDATE: u16 = 6;
    pub(in super::super) const CREDIT_REQUEST: u16 = 7;
}

/// Flag of a shutdown: its sender will receive no more.
pub(super) const SHUTDOWN_RECEIVE: u32 = 1;
/// Flag of a shutdown: its sender will send no more.
pub(super) const SHUTDOWN_SEND: u32 = 2;

/// A packet's header, as the guest sent it or will see it. Any value is possible.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Header {
    pub(super) src_cid: u64,
    pub(super) dst_cid: u64,
    pub(super) src_port: u32,
    pub(super) dst_port: u32,
    /// Length of the payload in bytes.
    pub(super) len: u32,
    /// Socket type (`type`).
    pub(super) kind: u16,
    pub(super) op: u16,
    pub(super) flags: u32,
    /// Total receive buffer of the sender, in bytes.
    pub(super) buf_alloc: u32,
    /// Bytes that the sender has received and taken out of its buffer, wrapping.
    pub(super) fwd_cnt: u32,
}

impl Header {
    pub(super) fn parse(bytes: &[u8; HEADER_BYTES]) -> Header {
        let u64_at = |at: usize| u64::from_le_bytes(array(&bytes[at..]));
        let u32_at = |at: usize| u32::from_le_bytes(array(&bytes[at..]));
        let u16_at = |at: usize| u16::from_le_bytes(array(&bytes[at..]));
        Header {
            src_cid: u64_at(0),
            dst_cid: u64_at(8),
            src_port: u32_at(16),
            dst_port: u32_at(20),
            len: u32_at(24),
            kind: u16_at(28),
            op: u16_at(30),
            flags: u32_at(32),
            buf_alloc: u32_at(36),
            fwd_cnt: u32_at(40),
        }
    }

    pub(super) fn emit(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &self.src_cid.to_le_bytes());
        put(8, &self.dst_cid.to_le_bytes());
        put(16, &self.src_port.to_le_bytes());
        put(20, &self.dst_port.to_le_bytes());
        put(24, &self.len.to_le_bytes());
        put(28, &self.kind.to_le_bytes());
        put(30, &self.op.to_le_bytes());
        put(32, &self.flags.to_le_bytes());
        put(36, &self.buf_alloc.to_le_bytes());
        put(40, &self.fwd_cnt.to_le_bytes());
        bytes
    }
}

/// The first `N` bytes, of which there are enough.
fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    *bytes.first_chunk().expect("fields lie inside the header")
}
