//! Writes packs of new objects in memory.
//!
//! Trees and what is small are stored as they are, which is quick; `concatenate` makes deltas of the trees later.
//!
//! Spec: gitformat-pack(5), pack version 2 and index version 2; RFC 1950, RFC 1951 §3.2.4.

use std::collections::HashSet;
use std::io;

use gix::zlib::Compression;
use gix::zlib::stream::deflate::{Compress, FlushCompress};

use crate::{HashKind, ObjectId, ObjectKind};

/// Largest pack that we write: offsets fit 31 bits.
pub(crate) const PACK_BYTES_MAX: u64 = 1 << 31;

/// Objects of fewer bytes are stored: preparing a compressor costs more than it saves.
pub(crate) const DEFLATE_BYTES_MIN: usize = 512;

/// Most bytes of one stored block, RFC 1951 §3.2.4.
pub(crate) const STORED_BYTES_MAX: usize = 0xffff;

/// Two bytes that begin a zlib stream without compression, RFC 1950 §2.2.
pub(crate) const ZLIB: [u8; 2] = [0x78, 0x01];

/// Where an object is in a pack.
pub(crate) struct Place {
    pub id: ObjectId,
    pub crc: u32,
    pub offset: u32,
}

/// A pack and its index, in memory.
pub(crate) struct Pack {
    pub bytes: Vec<u8>,
    pub index: Vec<u8>,
}

/// Makes packs; keeps the compressor, which is large.
pub(crate) struct Packer {
    hash: HashKind,
    compress: Compress,
}

impl Packer {
    pub fn new(hash: HashKind) -> Packer {
        Packer { hash, compress: Compress::new(Compression::BEST_SPEED) }
    }

    /// Packs objects; each id once.
    pub fn pack<'a>(
        &mut self,
        objects: impl Iterator<Item = (ObjectId, ObjectKind, &'a [u8])>,
    ) -> io::Result<Pack> {
        let mut bytes = header(0).to_vec();
        let (mut places, mut seen) = (Vec::new(), HashSet::new());
        for (id, kind, content) in objects {
            if !seen.insert(id) {
                continue;
            }
            let offset = offset(bytes.len() as u64)?;
            entry_header(&mut bytes, kind, content.len() as u64);
            let is_stored = kind == ObjectKind::Tree || content.len() < DEFLATE_BYTES_MIN;
            if is_stored && content.len() <= STORED_BYTES_MAX {
                store(content, &mut bytes);
            } else {
                self.deflate(content, &mut bytes)?;
            }
            let crc = crc32fast::hash(&bytes[offset as usize..]);
            places.push(Place { id, crc, offset });
        }
        let count = u32::try_from(places.len()).map_err(io::Error::other)?;
        bytes[..12].copy_from_slice(&header(count));
        let trailer = digest(self.hash, &bytes)?;
        bytes.extend_from_slice(trailer.as_slice());
        Ok(Pack { index: index(self.hash, places, trailer)?, bytes })
    }

    pub fn deflate(&mut self, content: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        self.compress.reset();
        let start = out.len();
        let mut at = start;
        out.resize(start + content.len() + content.len() / 512 + 64, 0);
        loop {
            let read = usize::try_from(self.compress.total_in()).map_err(io::Error::other)?;
            let status = self
                .compress
                .compress(&content[read..], &mut out[at..], FlushCompress::Finish)
                .map_err(|error| io::Error::other(error.to_string()))?;
            at = start + usize::try_from(self.compress.total_out()).map_err(io::Error::other)?;
            if status == gix::zlib::Status::StreamEnd {
                out.truncate(at);
                return Ok(());
            }
            out.resize(out.len() * 2, 0);
        }
    }
}

/// What precedes a stored block: its type, its length, and the length again, inverted.
pub(crate) fn block_header(length: u64, is_last: bool) -> [u8; 5] {
    let length = u16::try_from(length).expect("at most STORED_BYTES_MAX");
    let ([a, b], [c, d]) = (length.to_le_bytes(), (!length).to_le_bytes());
    [is_last.into(), a, b, c, d]
}

/// A zlib stream of one stored block.
pub(crate) fn store(content: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&ZLIB);
    out.extend_from_slice(&block_header(content.len() as u64, true));
    out.extend_from_slice(content);
    out.extend_from_slice(&simd_adler32::adler32(&content).to_be_bytes());
}

pub(crate) fn header(count: u32) -> [u8; 12] {
    let mut header = *b"PACK\0\0\0\x02\0\0\0\0";
    header[8..].copy_from_slice(&count.to_be_bytes());
    header
}

pub(crate) fn offset(n: u64) -> io::Result<u32> {
    u32::try_from(n)
        .ok()
        .filter(|n| u64::from(*n) < PACK_BYTES_MAX)
        .ok_or_else(|| io::Error::other("too much for one pack"))
}

fn entry_header(out: &mut Vec<u8>, kind: ObjectKind, size: u64) {
    let kind: u8 = match kind {
        ObjectKind::Commit => 1,
        ObjectKind::Tree => 2,
        ObjectKind::Blob => 3,
        ObjectKind::Tag => 4,
    };
    typed_header(out, kind, size);
}

/// Type, as gitformat-pack(5) numbers it, and size of an entry.
pub(crate) fn typed_header(out: &mut Vec<u8>, kind: u8, size: u64) {
    let mut byte = (kind << 4) | (size & 0xf) as u8;
    let mut left = size >> 4;
    while left > 0 {
        out.push(byte | 0x80);
        byte = (left & 0x7f) as u8;
        left >>= 7;
    }
    out.push(byte);
}

/// The checksum at the end of packs and indexes, and of what is copied. It guards against accidents only, so that SHA-1
/// need not look for attacks on itself here, which would be most of its work.
pub(crate) enum Checksum {
    Sha1(sha1::Sha1),
    Other(gix::hash::Hasher),
}

impl Checksum {
    pub fn new(hash: HashKind) -> Checksum {
        match hash {
            HashKind::Sha1 => Checksum::Sha1(sha1::Sha1::default()),
            other => Checksum::Other(gix::hash::hasher(other)),
        }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Checksum::Sha1(sha1) => sha1::Digest::update(sha1, bytes),
            Checksum::Other(hasher) => hasher.update(bytes),
        }
    }

    pub fn finish(self) -> io::Result<ObjectId> {
        match self {
            Checksum::Sha1(sha1) => {
                Ok(ObjectId::from_bytes_or_panic(sha1::Digest::finalize(sha1).as_slice()))
            }
            Checksum::Other(hasher) => {
                hasher.try_finalize().map_err(|error| io::Error::other(error.to_string()))
            }
        }
    }
}

fn digest(hash: HashKind, bytes: &[u8]) -> io::Result<ObjectId> {
    let mut checksum = Checksum::new(hash);
    checksum.update(bytes);
    checksum.finish()
}

/// An index of objects at these offsets, without checksums of their entries.
#[cfg(feature = "testing")]
pub(crate) fn index_of(
    hash: HashKind,
    objects: &[(ObjectId, u32)],
    trailer: ObjectId,
) -> io::Result<Vec<u8>> {
    let places = objects.iter().map(|(id, offset)| Place { id: *id, crc: 0, offset: *offset });
    index(hash, places.collect(), trailer)
}

pub(crate) fn index(hash: HashKind, mut places: Vec<Place>, trailer: ObjectId) -> io::Result<Vec<u8>> {
    places.sort_by_key(|place| place.id);
    let mut out = Vec::with_capacity(1100 + places.len() * 40);
    out.extend_from_slice(b"\xfftOc\0\0\0\x02");
    let mut at = 0;
    for first in 0..=255u8 {
        while at < places.len() && places[at].id.as_slice()[0] <= first {
            at += 1;
        }
        out.extend_from_slice(&u32::try_from(at).map_err(io::Error::other)?.to_be_bytes());
    }
    places.iter().for_each(|place| out.extend_from_slice(place.id.as_slice()));
    places.iter().for_each(|place| out.extend_from_slice(&place.crc.to_be_bytes()));
    places.iter().for_each(|place| out.extend_from_slice(&place.offset.to_be_bytes()));
    out.extend_from_slice(trailer.as_slice());
    let own = digest(hash, &out)?;
    out.extend_from_slice(own.as_slice());
    Ok(out)
}
