//! Finishes in software what a frame leaves to hardware that its receiver does not have: checksums and segmentation.
//!
//! Nothing of a frame is believed: offsets are checked, and segments have a least size, so that no small frame becomes
//! an avalanche. Spec: virtio 1.2 §5.1.6.2.1, RFC 9293 §3.1.

use vpnkit_wire::checksum::{Checksum, checksum};

use crate::vnet::{Large, Vnet};

/// Bytes of all headers of a large frame at most: Ethernet, IP and TCP with every option.
const HEAD_BYTES_MAX: usize = 256;
/// Segments of one frame at most.
const SEGMENTS_MAX: usize = 1024;
/// Pieces of a frame at most.
pub const PARTS_MAX: usize = 4;

const ETHERNET_BYTES: usize = 14;
const TCP_BYTES: usize = 20;
const PROTOCOL_TCP: u8 = 6;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// A frame whose header does not fit it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a frame does not have what its virtio_net_hdr says")]
pub struct Unfit;

/// Hands the frames that a frame of `parts` stands for to `take`, each whole and in pieces.
///
/// # Errors
/// When the header does not fit the frame; nothing was handed on then.
pub fn finish(vnet: &Vnet, parts: &[&[u8]], take: &mut dyn FnMut(&[&[u8]])) -> Result<(), Unfit> {
    if vnet.is_whole() {
        take(parts);
        return Ok(());
    }
    let mut body = [&[][..]; PARTS_MAX];
    let (first, rest) = parts.split_first().ok_or(Unfit)?;
    body.get_mut(1..=rest.len()).ok_or(Unfit)?.copy_from_slice(rest);
    body[0] = first;
    match vnet.large() {
        Some(large) => segment(large, vnet, &mut body, take),
        None => sum_up(vnet, &mut body, take),
    }
}

/// Finishes the one checksum of a frame.
fn sum_up(vnet: &Vnet, body: &mut [&[u8]; PARTS_MAX], take: &mut dyn FnMut(&[&[u8]])) -> Result<(), Unfit> {
    let (start, field) = vnet.checksum_at();
    let mut head = [0; HEAD_BYTES_MAX];
    let head = take_head(body, field + 2, &mut head)?;
    if !vnet.needs_checksum() || field < start {
        return Err(Unfit);
    }
    let mut sum = Checksum::default();
    sum.add(&head[start..]);
    body.iter().for_each(|part| sum.add(part));
    let sum = match sum.finish() {
        // A UDP checksum of zero would mean that there is none; TCP takes either.
        0 => 0xffff,
        sum => sum,
    };
    head[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    emit(head, body, take);
    Ok(())
}

fn segment(
    large: Large,
    vnet: &Vnet,
    body: &mut [&[u8]; PARTS_MAX],
    take: &mut dyn FnMut(&[&[u8]]),
) -> Result<(), Unfit> {
    let (tcp, _) = vnet.checksum_at();
    let mut space = [0; HEAD_BYTES_MAX];
    let offset = *body[0].get(tcp + 12).ok_or(Unfit)?;
    let head_bytes = tcp + usize::from(offset >> 4) * 4;
    let head = take_head(body, head_bytes, &mut space)?;
    let ip = check_headers(large, head, tcp)?;
    let (mss, data) = (vnet.segment_bytes(), body.iter().map(|part| part.len()).sum::<usize>());
    if mss == 0 || data.div_ceil(mss) > SEGMENTS_MAX {
        return Err(Unfit);
    }
    let (flags, seq) = (head[tcp + 13], be_u32(&head[tcp + 4..]));
    let ident = be_u16(&head[ip + 4..]);
    let count = data.div_ceil(mss).max(1);
    for index in 0..count {
        let (from, to) = (index * mss, ((index + 1) * mss).min(data));
        let mut pieces = slice(body, from, to);
        head[tcp + 4..tcp + 8].copy_from_slice(&seq.wrapping_add(from as u32).to_be_bytes());
        let drop = if index + 1 < count { FIN | PSH } else { 0 } | if index > 0 { CWR } else { 0 };
        head[tcp + 13] = flags & !drop;
        let tcp_bytes = head_bytes - tcp + to - from;
        let addresses = write_ip(large, head, ip, (tcp, tcp_bytes), ident.wrapping_add(index as u16));
        head[tcp + 16..tcp + 18].fill(0);
        let mut sum = Checksum::default();
        sum.add(&head[addresses]);
        sum.add(&[0, PROTOCOL_TCP]);
        sum.add(&(tcp_bytes as u16).to_be_bytes());
        sum.add(&head[tcp..]);
        pieces.iter().for_each(|piece| sum.add(piece));
        head[tcp + 16..tcp + 18].copy_from_slice(&sum.finish().to_be_bytes());
        emit(head, &mut pieces, take);
    }
    Ok(())
}

/// Errs unless the headers are IP and TCP of the kind that was said; returns where IP's starts.
fn check_headers(large: Large, head: &[u8], tcp: usize) -> Result<usize, Unfit> {
    let (bytes, version) = match large {
        Large::TcpV4 => (20, 4),
        Large::TcpV6 => (40, 6),
    };
    let ip = ETHERNET_BYTES;
    let fits = tcp >= ip + bytes && head.len() >= tcp + TCP_BYTES && head[ip] >> 4 == version;
    let protocol = match large {
        Large::TcpV4 => fits && head[ip + 9] == PROTOCOL_TCP && ip + usize::from(head[ip] & 15) * 4 == tcp,
        Large::TcpV6 => fits,
    };
    if protocol { Ok(ip) } else { Err(Unfit) }
}

/// Writes lengths, and what depends on them, into the IP header; returns where both addresses are.
fn write_ip(
    large: Large,
    head: &mut [u8],
    ip: usize,
    (tcp, tcp_bytes): (usize, usize),
    ident: u16,
) -> std::ops::Range<usize> {
    match large {
        Large::TcpV4 => {
            head[ip + 2..ip + 4].copy_from_slice(&((tcp - ip + tcp_bytes) as u16).to_be_bytes());
            head[ip + 4..ip + 6].copy_from_slice(&ident.to_be_bytes());
            head[ip + 10..ip + 12].fill(0);
            let sum = checksum(&head[ip..tcp]);
            head[ip + 10..ip + 12].copy_from_slice(&sum.to_be_bytes());
            ip + 12..ip + 20
        }
        Large::TcpV6 => {
            head[ip + 4..ip + 6].copy_from_slice(&((tcp - ip - 40 + tcp_bytes) as u16).to_be_bytes());
            ip + 8..ip + 40
        }
    }
}

/// Copies the first `bytes` out of a frame, whose first piece then begins after them.
fn take_head<'s>(
    body: &mut [&[u8]; PARTS_MAX],
    bytes: usize,
    space: &'s mut [u8; HEAD_BYTES_MAX],
) -> Result<&'s mut [u8], Unfit> {
    let (head, rest) = body[0].split_at_checked(bytes).ok_or(Unfit)?;
    let space = space.get_mut(..bytes).ok_or(Unfit)?;
    space.copy_from_slice(head);
    body[0] = rest;
    Ok(space)
}

/// The bytes `from..to` of a body.
fn slice<'a>(body: &[&'a [u8]; PARTS_MAX], from: usize, to: usize) -> [&'a [u8]; PARTS_MAX] {
    let mut start = 0;
    body.map(|part| {
        let cut = |at: usize| at.saturating_sub(start).min(part.len());
        let piece = &part[cut(from)..cut(to)];
        start += part.len();
        piece
    })
}

/// Hands a frame on, without pieces that are empty.
fn emit(head: &[u8], body: &mut [&[u8]; PARTS_MAX], take: &mut dyn FnMut(&[&[u8]])) {
    let mut parts = [&[][..]; PARTS_MAX + 1];
    parts[0] = head;
    let mut count = 1;
    for part in body.iter().filter(|part| !part.is_empty()) {
        parts[count] = part;
        count += 1;
    }
    take(&parts[..count]);
}

fn be_u16(bytes: &[u8]) -> u16 {
    u16::from_be_bytes([bytes[0], bytes[1]])
}

fn be_u32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

#[cfg(test)]
mod tests;
