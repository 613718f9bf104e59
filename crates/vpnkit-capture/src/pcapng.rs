//! Writes pcapng: a section header, one interface description for each port, an enhanced packet for each frame.
//!
//! Little-endian, times in nanoseconds, link type Ethernet. Spec: draft-ietf-opsawg-pcapng.

use crate::frame::{Captured, Direction};

const BLOCK_SECTION: u32 = 0x0a0d_0d0a;
const BLOCK_INTERFACE: u32 = 1;
const BLOCK_PACKET: u32 = 6;
const BYTE_ORDER_MAGIC: u32 = 0x1a2b_3c4d;
const LINKTYPE_ETHERNET: u16 = 1;

const OPT_COMMENT: u16 = 1;
const OPT_USERAPPL: u16 = 4;
const IF_NAME: u16 = 2;
const IF_TSRESOL: u16 = 9;
const EPB_FLAGS: u16 = 2;

/// Longest comment or name that is written, in bytes; what is longer is cut.
const TEXT_MAX: usize = 1024;

/// Appends the beginning of a file: what wrote it, in `application`.
pub fn section(out: &mut Vec<u8>, application: &str) {
    block(out, BLOCK_SECTION, |out| {
        out.extend_from_slice(&BYTE_ORDER_MAGIC.to_le_bytes());
        // Version 1.0; the length of the section is not known.
        out.extend_from_slice(&1u16.to_le_bytes());
        out.extend_from_slice(&0u16.to_le_bytes());
        out.extend_from_slice(&u64::MAX.to_le_bytes());
        option(out, OPT_USERAPPL, cut(application).as_bytes());
        end_of_options(out);
    });
}

/// Appends the description of a port. Ports are numbered in the order of their descriptions. At most `snap_bytes` of
/// each frame are captured; 0 means all.
pub fn interface(out: &mut Vec<u8>, name: &str, snap_bytes: u32) {
    block(out, BLOCK_INTERFACE, |out| {
        out.extend_from_slice(&LINKTYPE_ETHERNET.to_le_bytes());
        out.extend_from_slice(&0u16.to_le_bytes());
        out.extend_from_slice(&snap_bytes.to_le_bytes());
        option(out, IF_NAME, cut(name).as_bytes());
        option(out, IF_TSRESOL, &[9]);
        end_of_options(out);
    });
}

/// Appends a frame.
pub fn packet(out: &mut Vec<u8>, frame: &Captured) {
    block(out, BLOCK_PACKET, |out| {
        out.extend_from_slice(&frame.port.to_le_bytes());
        out.extend_from_slice(&((frame.time_ns >> 32) as u32).to_le_bytes());
        out.extend_from_slice(&(frame.time_ns as u32).to_le_bytes());
        out.extend_from_slice(&(frame.bytes.len() as u32).to_le_bytes());
        out.extend_from_slice(&frame.wire_bytes.to_le_bytes());
        padded(out, &frame.bytes);
        let flags: u32 = match frame.direction {
            Direction::FromMachine => 1,
            Direction::ToMachine => 2,
        };
        option(out, EPB_FLAGS, &flags.to_le_bytes());
        if !frame.comment.is_empty() {
            option(out, OPT_COMMENT, cut(&frame.comment).as_bytes());
        }
        end_of_options(out);
    });
}

/// Appends a block: its type, its length before and after what `body` appends.
fn block(out: &mut Vec<u8>, kind: u32, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&kind.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    body(out);
    let length = ((out.len() - start + 4) as u32).to_le_bytes();
    out[start + 4..start + 8].copy_from_slice(&length);
    out.extend_from_slice(&length);
}

fn option(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    out.extend_from_slice(&code.to_le_bytes());
    out.extend_from_slice(&(value.len() as u16).to_le_bytes());
    padded(out, value);
}

fn end_of_options(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0; 4]);
}

fn padded(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(bytes);
    out.resize(out.len() + bytes.len().next_multiple_of(4) - bytes.len(), 0);
}

/// The front of `text` that may be written.
fn cut(text: &str) -> &str {
    let mut end = text.len().min(TEXT_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests;
