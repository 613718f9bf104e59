//! Puts fragmented datagrams of the guest together. Spec: RFC 791 §3.2, RFC 8200 §4.5,
//! RFC 5722 (overlaps are refused).

use std::net::IpAddr;
use std::time::Duration;

use crate::time::Instant;

/// Datagrams being put together; the oldest makes way. With 64 KiB each they take at most 2 MiB.
const DATAGRAMS_MAX: usize = 32;
/// Pieces of one datagram: 65535 bytes at an MTU of 576 are 119.
const PIECES_MAX: usize = 128;
/// How long the pieces of a datagram may take. RFC 1122 §3.3.2 says a minute or two; the link is local.
const LIFETIME: Duration = Duration::from_secs(15);
/// Payload of the largest datagram; IPv4's length counts its header too.
const fn payload_bytes_max(is_ipv4: bool) -> usize {
    if is_ipv4 { 65515 } else { 65535 }
}

/// A fragment of either version.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Part<'a> {
    /// Source and destination.
    pub ends: (IpAddr, IpAddr),
    /// Which datagram it belongs to.
    pub ident: u32,
    pub protocol: u8,
    /// Where the payload belongs, in bytes.
    pub offset: usize,
    /// Whether others follow.
    pub more: bool,
    pub payload: &'a [u8],
}

/// What the pieces of one datagram have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Name {
    ends: (IpAddr, IpAddr),
    ident: u32,
    protocol: u8,
}

#[derive(Debug)]
struct Datagram {
    name: Name,
    since: Instant,
    bytes: Vec<u8>,
    /// Ranges that are here, sorted by start.
    pieces: Vec<(usize, usize)>,
    total: Option<usize>,
}

/// The datagrams being put together, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Reassembly {
    datagrams: Vec<Datagram>,
}

impl Reassembly {
    /// Takes a fragment; returns the payload when it was the last one missing.
    pub fn add(&mut self, now: Instant, part: &Part<'_>) -> Option<Vec<u8>> {
        self.datagrams.retain(|datagram| now.since(datagram.since) < LIFETIME);
        let (start, end) = (part.offset, part.offset + part.payload.len());
        let misaligned = part.more && !part.payload.len().is_multiple_of(8);
        if end > payload_bytes_max(part.ends.0.is_ipv4()) || part.payload.is_empty() || misaligned {
            return None;
        }
        let name = Name { ends: part.ends, ident: part.ident, protocol: part.protocol };
        let index = self.find_or_start(now, name);
        let datagram = &mut self.datagrams[index];
        if !datagram.insert(start, end, part) {
            self.datagrams.remove(index);
            return None;
        }
        if !datagram.is_complete() {
            return None;
        }
        Some(self.datagrams.remove(index).bytes)
    }

    fn find_or_start(&mut self, now: Instant, name: Name) -> usize {
        if let Some(index) = self.datagrams.iter().position(|datagram| datagram.name == name) {
            return index;
        }
        if self.datagrams.len() == DATAGRAMS_MAX {
            self.datagrams.remove(0);
        }
        self.datagrams.push(Datagram {
            name,
            since: now,
            bytes: Vec::new(),
            pieces: Vec::new(),
            total: None,
        });
        self.datagrams.len() - 1
    }
}

impl Datagram {
    /// Returns whether the piece fits the others; a repeated one does.
    fn insert(&mut self, start: usize, end: usize, part: &Part<'_>) -> bool {
        let at = self.pieces.partition_point(|piece| piece.0 < start);
        if self.pieces.get(at) == Some(&(start, end)) {
            return true;
        }
        let overlaps = at > 0 && self.pieces[at - 1].1 > start
            || self.pieces.get(at).is_some_and(|next| next.0 < end)
            || self.total.is_some_and(|total| end > total);
        if overlaps || self.pieces.len() == PIECES_MAX {
            return false;
        }
        if !part.more {
            if self.total.is_some() || self.pieces.last().is_some_and(|last| last.1 > end) {
                return false;
            }
            self.total = Some(end);
        }
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes[start..end].copy_from_slice(part.payload);
        self.pieces.insert(at, (start, end));
        true
    }

    fn is_complete(&self) -> bool {
        let here: usize = self.pieces.iter().map(|piece| piece.1 - piece.0).sum();
        self.total == Some(here)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(ident: u32, offset: usize, more: bool, payload: &[u8]) -> Part<'_> {
        let ends = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        Part { ends, ident, protocol: 17, offset, more, payload }
    }

    #[test]
    fn pieces_in_any_order_make_the_datagram() {
        let mut reassembly = Reassembly::default();
        assert_eq!(reassembly.add(Instant(0), &piece(1, 8, true, &[2; 8])), None);
        assert_eq!(reassembly.add(Instant(0), &piece(1, 16, false, &[3; 3])), None);
        assert_eq!(reassembly.add(Instant(0), &piece(1, 16, false, &[3; 3])), None);
        let whole = reassembly.add(Instant(0), &piece(1, 0, true, &[1; 8])).unwrap();
        assert_eq!(whole, [&[1u8; 8][..], &[2; 8], &[3; 3]].concat());
    }

    #[test]
    fn overlapping_pieces_drop_the_datagram() {
        let mut reassembly = Reassembly::default();
        reassembly.add(Instant(0), &piece(1, 0, true, &[1; 16]));
        assert_eq!(reassembly.add(Instant(0), &piece(1, 8, true, &[2; 16])), None);
        assert_eq!(reassembly.add(Instant(0), &piece(1, 16, false, &[3; 3])), None);
        assert_eq!(reassembly.datagrams.len(), 1);
    }

    #[test]
    fn memory_is_bounded_and_old_pieces_are_forgotten() {
        let mut reassembly = Reassembly::default();
        for ident in 0..1000 {
            reassembly.add(Instant(0), &piece(ident, 65504 - 8, true, &[0; 8]));
        }
        assert_eq!(reassembly.datagrams.len(), DATAGRAMS_MAX);
        reassembly.add(Instant(16_000_000), &piece(1, 0, true, &[0; 8]));
        assert_eq!(reassembly.datagrams.len(), 1);
    }
}
