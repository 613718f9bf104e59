//! Reads a blob at offsets, whatever its size, in bounded memory.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Read};
use std::sync::Arc;

use crate::ReadError;
use crate::stored::Stored;

/// Most bytes that are kept of what was passed over: about what a kernel or a client asks for ahead of what it got.
const PASSED_BYTES_MAX: usize = 4 << 20;

/// A blob that is read from a stream which can only be restarted, not wound back.
pub(crate) trait Restart: Send {
    /// A new stream from the first byte.
    fn restart(&self) -> Result<Box<dyn Read + Send>, ReadError>;
}

enum Source {
    Bytes(Arc<[u8]>),
    Stored(Stored),
    Stream(Stream),
}

/// An open blob.
///
/// Large blobs that are compressed are decompressed as they are read: reading forwards is fast, also when some reads
/// overtake others; going back begins anew.
pub struct BlobReader {
    size: u64,
    source: Source,
}

impl fmt::Debug for BlobReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlobReader").field("size", &self.size).finish_non_exhaustive()
    }
}

impl BlobReader {
    /// A blob in memory.
    pub fn from_bytes(bytes: Arc<[u8]>) -> BlobReader {
        BlobReader { size: bytes.len() as u64, source: Source::Bytes(bytes) }
    }

    pub(crate) fn from_stream(size: u64, origin: Box<dyn Restart>) -> BlobReader {
        let stream = Stream { origin, open: None, position: 0, passed: VecDeque::new() };
        BlobReader { size, source: Source::Stream(stream) }
    }

    pub(crate) fn from_stored(stored: Stored) -> BlobReader {
        BlobReader { size: stored.size(), source: Source::Stored(stored) }
    }

    /// Its length in bytes.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Fills `buffer` from `offset` on, as far as the blob goes; returns how many bytes that were.
    ///
    /// # Errors
    /// When the object turns out to be damaged or cannot be read.
    pub fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.size.saturating_sub(offset);
        let n = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let buffer = &mut buffer[..n];
        match &mut self.source {
            Source::Bytes(bytes) => {
                let start = usize::try_from(offset.min(self.size)).map_err(io::Error::other)?;
                buffer.copy_from_slice(&bytes[start..start + n]);
            }
            Source::Stored(stored) => stored.read_exact_at(offset, buffer)?,
            Source::Stream(stream) => stream.read_exact_at(offset, buffer)?,
        }
        Ok(n)
    }
}

/// A stream, and where it stands.
struct Stream {
    origin: Box<dyn Restart>,
    open: Option<Box<dyn Read + Send>>,
    position: u64,
    /// Pieces before the position that nobody read yet, with where they begin: whoever reads ahead with several requests
    /// sees them answered in any order.
    passed: VecDeque<(u64, Vec<u8>)>,
}

impl Stream {
    fn read_exact_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        if offset < self.position && self.take_passed(offset, buffer) {
            return Ok(());
        }
        if self.open.is_none() || self.position > offset {
            self.passed.clear();
            self.open = Some(self.origin.restart().map_err(io::Error::other)?);
            self.position = 0;
        }
        let result = self.pass_to(offset).and_then(|()| match &mut self.open {
            Some(open) => open.read_exact(buffer),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        });
        match result {
            Ok(()) => self.position = offset + buffer.len() as u64,
            Err(_) => self.open = None,
        }
        result
    }

    /// Goes on to `offset`, and keeps the end of what is passed over.
    fn pass_to(&mut self, offset: u64) -> io::Result<()> {
        let Some(open) = &mut self.open else { return Ok(()) };
        let keep = (offset - self.position).min(PASSED_BYTES_MAX as u64);
        let skip = offset - self.position - keep;
        if io::copy(&mut open.take(skip), &mut io::sink())? != skip {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.position += skip;
        if keep == 0 {
            return Ok(());
        }
        let mut piece = vec![0; usize::try_from(keep).map_err(io::Error::other)?];
        open.read_exact(&mut piece)?;
        self.passed.push_back((self.position, piece));
        self.position = offset;
        while self.passed.iter().map(|(_, piece)| piece.len()).sum::<usize>() > PASSED_BYTES_MAX {
            self.passed.pop_front();
        }
        Ok(())
    }

    /// Fills `buffer` from what was passed over, if all of it is there; what was read is not kept.
    fn take_passed(&mut self, offset: u64, buffer: &mut [u8]) -> bool {
        let end = offset + buffer.len() as u64;
        let holds = |(start, piece): &(u64, Vec<u8>)| *start <= offset && end <= *start + piece.len() as u64;
        let Some(index) = self.passed.iter().position(holds) else { return false };
        let Some((start, mut piece)) = self.passed.remove(index) else { return false };
        // Both are within the piece.
        let at = usize::try_from(offset - start).unwrap_or(0);
        buffer.copy_from_slice(&piece[at..at + buffer.len()]);
        let rest = piece.split_off(at + buffer.len());
        piece.truncate(at);
        for (start, piece) in [(end, rest), (start, piece)] {
            if !piece.is_empty() {
                self.passed.insert(index, (start, piece));
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// A stream that counts how often it was begun.
    struct Counted {
        bytes: Arc<[u8]>,
        begun: Arc<AtomicUsize>,
    }

    impl Restart for Counted {
        fn restart(&self) -> Result<Box<dyn Read + Send>, ReadError> {
            self.begun.fetch_add(1, Ordering::Relaxed);
            Ok(Box::new(io::Cursor::new(Arc::clone(&self.bytes))))
        }
    }

    fn counted(size: usize) -> (Arc<[u8]>, Arc<AtomicUsize>, BlobReader) {
        let bytes: Arc<[u8]> = (0..size).map(|n| (n * 31 % 251) as u8).collect();
        let begun = Arc::new(AtomicUsize::new(0));
        let counted = Counted { bytes: Arc::clone(&bytes), begun: Arc::clone(&begun) };
        (bytes, begun, BlobReader::from_stream(size as u64, Box::new(counted)))
    }

    fn check(reader: &mut BlobReader, bytes: &[u8], offset: usize, size: usize) {
        let mut buffer = vec![0; size];
        let n = reader.read_at(offset as u64, &mut buffer).unwrap();
        let end = (offset + size).min(bytes.len());
        assert!(buffer[..n] == bytes[offset.min(end)..end], "{size} bytes at {offset}");
    }

    #[test]
    fn reads_that_overtake_others_decompress_nothing_twice() {
        const UNIT: usize = 1 << 20;
        let (bytes, begun, mut reader) = counted(16 * UNIT + 77);
        for four in 0..4 {
            for n in [2, 0, 3, 1] {
                check(&mut reader, &bytes, (4 * four + n) * UNIT, UNIT);
            }
        }
        check(&mut reader, &bytes, 16 * UNIT, UNIT);
        assert_eq!(begun.load(Ordering::Relaxed), 1);
        // Parts of what was passed over, in any order.
        let (bytes, begun, mut reader) = counted(4 * UNIT);
        for (offset, size) in
            [(3 * UNIT, 10), (UNIT, 100), (UNIT + 100, 1), (0, UNIT), (UNIT + 101, 2 * UNIT - 101)]
        {
            check(&mut reader, &bytes, offset, size);
        }
        assert_eq!(begun.load(Ordering::Relaxed), 1);
        // What was read is gone.
        check(&mut reader, &bytes, 0, 10);
        assert_eq!(begun.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn a_long_jump_keeps_little() {
        let (bytes, begun, mut reader) = counted(3 * PASSED_BYTES_MAX);
        check(&mut reader, &bytes, 3 * PASSED_BYTES_MAX - 10, 20);
        let Source::Stream(stream) = &reader.source else { unreachable!() };
        assert!(stream.passed.iter().map(|(_, piece)| piece.len()).sum::<usize>() <= PASSED_BYTES_MAX);
        check(&mut reader, &bytes, 2 * PASSED_BYTES_MAX, 10);
        assert_eq!(begun.load(Ordering::Relaxed), 1);
        check(&mut reader, &bytes, 0, 10);
        assert_eq!(begun.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn a_stream_that_ends_early_is_an_error_each_time() {
        let (_, _, mut reader) = counted(100);
        reader.size = 200;
        let mut buffer = [0; 100];
        assert!(reader.read_at(50, &mut buffer).is_err());
        assert!(reader.read_at(150, &mut buffer).is_err());
        assert_eq!(reader.read_at(0, &mut buffer).unwrap(), 100);
    }
}
