//! Writes the older format of captures, which has neither ports nor comments: for clients that read a stream as VPNKit
//! writes it. Little-endian, microseconds, Ethernet. Spec: draft-ietf-opsawg-pcap.

use crate::frame::Captured;

const MAGIC: u32 = 0xa1b2_c3d4;
const LINKTYPE_ETHERNET: u32 = 1;
/// What is said when all of each frame is captured.
const SNAP_BYTES_ALL: u32 = 262_144;

/// Appends the beginning of a file, of which at most `snap_bytes` of each frame are captured; 0 means all.
pub fn header(out: &mut Vec<u8>, snap_bytes: u32) {
    out.extend_from_slice(&MAGIC.to_le_bytes());
    // Version 2.4; times are UTC, and how exact they are is not said.
    out.extend_from_slice(&2u16.to_le_bytes());
    out.extend_from_slice(&4u16.to_le_bytes());
    out.extend_from_slice(&[0; 8]);
    let snap_bytes = if snap_bytes == 0 { SNAP_BYTES_ALL } else { snap_bytes };
    out.extend_from_slice(&snap_bytes.to_le_bytes());
    out.extend_from_slice(&LINKTYPE_ETHERNET.to_le_bytes());
}

/// Appends a frame.
pub fn packet(out: &mut Vec<u8>, frame: &Captured) {
    let (seconds, nanoseconds) = (frame.time_ns / 1_000_000_000, frame.time_ns % 1_000_000_000);
    out.extend_from_slice(&(seconds as u32).to_le_bytes());
    out.extend_from_slice(&((nanoseconds / 1000) as u32).to_le_bytes());
    out.extend_from_slice(&(frame.bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(&frame.wire_bytes.to_le_bytes());
    out.extend_from_slice(&frame.bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Direction;

    #[test]
    fn a_file_has_the_bytes_of_the_draft() {
        let mut out = Vec::new();
        header(&mut out, 128);
        let frame = Captured {
            time_ns: 5_000_006_789,
            port: 0,
            direction: Direction::FromMachine,
            wire_bytes: 60,
            bytes: vec![1, 2],
            comment: String::new(),
        };
        packet(&mut out, &frame);
        assert_eq!(out[..8], [0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0]);
        assert_eq!(out[16..24], [128, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(out[24..], [5, 0, 0, 0, 6, 0, 0, 0, 2, 0, 0, 0, 60, 0, 0, 0, 1, 2]);
    }
}
