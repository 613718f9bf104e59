//! The bytes of a file, in pieces: holes take nothing.

use std::collections::BTreeMap;

use super::Volume;
use crate::errno::Errno;
use crate::filesystem::Answer;

/// Bytes of a piece.
const PIECE_BYTES: usize = 64 << 10;
/// Longest file.
const BYTES_MAX: u64 = i64::MAX as u64;

/// A file's content.
#[derive(Default)]
pub(super) struct Content {
    len: u64,
    pieces: BTreeMap<u64, Vec<u8>>,
}

/// Which piece a position is in, and where.
fn split(position: u64) -> (u64, usize) {
    // The remainder is below 64 KiB.
    (position / PIECE_BYTES as u64, (position % PIECE_BYTES as u64) as usize)
}

impl Content {
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Bytes that it takes.
    pub fn taken(&self) -> u64 {
        self.pieces.values().map(|piece| piece.len() as u64).sum()
    }

    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> usize {
        let rest = usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX);
        let count = rest.min(buffer.len());
        let mut done = 0;
        while done < count {
            let (number, start) = split(offset + done as u64);
            let room = &mut buffer[done..count];
            let wanted = room.len().min(PIECE_BYTES - start);
            let room = &mut room[..wanted];
            let piece = self.pieces.get(&number).map_or(&[][..], Vec::as_slice);
            let there = piece.get(start..).unwrap_or(&[]);
            let copied = there.len().min(wanted);
            room[..copied].copy_from_slice(&there[..copied]);
            room[copied..].fill(0);
            done += wanted;
        }
        count
    }

    /// Writes as much as the quota lets; ENOSPC when that is nothing.
    pub fn write(&mut self, offset: u64, bytes: &[u8], volume: &Volume) -> Answer<usize> {
        if offset.checked_add(bytes.len() as u64).is_none_or(|end| end > BYTES_MAX) {
            return Err(Errno::EFBIG);
        }
        let mut done = 0;
        while done < bytes.len() {
            let (number, start) = split(offset + done as u64);
            let count = (bytes.len() - done).min(PIECE_BYTES - start);
            let has = self.pieces.get(&number).map_or(0, Vec::len);
            let more = (start + count).saturating_sub(has);
            match volume.take_bytes(more as u64) {
                Err(errno) if done == 0 => return Err(errno),
                Err(_) => break,
                Ok(()) => {}
            }
            let piece = self.pieces.entry(number).or_default();
            piece.resize(has.max(start + count), 0);
            piece[start..start + count].copy_from_slice(&bytes[done..done + count]);
            done += count;
        }
        self.len = self.len.max(offset + done as u64);
        Ok(done)
    }

    pub fn set_len(&mut self, len: u64, volume: &Volume) -> Answer<()> {
        if len > BYTES_MAX {
            return Err(Errno::EFBIG);
        }
        if len < self.len {
            let before = self.taken();
            let (number, start) = split(len);
            drop(self.pieces.split_off(&if start == 0 { number } else { number + 1 }));
            if let Some(piece) = self.pieces.get_mut(&number) {
                piece.truncate(start);
            }
            volume.give_bytes(before - self.taken());
        }
        self.len = len;
        Ok(())
    }
}
