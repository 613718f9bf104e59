//! Reads a blob at offsets, whatever its size, in bounded memory.

use std::fmt;
use std::io::{self, Read};
use std::sync::Arc;

use crate::ReadError;

/// A blob that is read from a stream which can only be restarted, not wound back.
pub(crate) trait Restart: Send {
    /// A new stream from the first byte.
    fn restart(&self) -> Result<Box<dyn Read + Send>, ReadError>;
}

enum Source {
    Bytes(Arc<[u8]>),
    Stream { origin: Box<dyn Restart>, stream: Option<Box<dyn Read + Send>>, position: u64 },
}

/// An open blob.
///
/// Large blobs are decompressed as they are read: reading forwards is fast, going back begins anew.
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
        BlobReader { size, source: Source::Stream { origin, stream: None, position: 0 } }
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
            Source::Stream { origin, stream, position } => {
                if stream.is_none() || *position > offset {
                    *stream = Some(origin.restart().map_err(io::Error::other)?);
                    *position = 0;
                }
                let Some(open) = stream else { return Ok(0) };
                let result = skip(open, offset - *position).and_then(|()| open.read_exact(buffer));
                if let Err(error) = result {
                    *stream = None;
                    return Err(error);
                }
                *position = offset + n as u64;
            }
        }
        Ok(n)
    }
}

fn skip(stream: &mut dyn Read, bytes: u64) -> io::Result<()> {
    let skipped = io::copy(&mut stream.take(bytes), &mut io::sink())?;
    if skipped == bytes { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}
