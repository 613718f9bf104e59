//! Reads large objects as they are decompressed, from the start as often as wanted.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;

use gix::zlib::{Decompress, FlushDecompress, Status};

use crate::reader::{BlobReader, Restart};
use crate::stored::Stored;
use crate::{ObjectId, ReadError};

/// A loose object, which stays readable when it is deleted because a pack has it.
pub(crate) struct Loose {
    id: ObjectId,
    file: Arc<File>,
}

impl Loose {
    pub fn open(id: ObjectId, path: &Path) -> io::Result<Loose> {
        Ok(Loose { id, file: Arc::new(File::open(path)?) })
    }

    /// Reads it as the blob of `size` bytes that it is.
    pub fn reader(self, size: u64) -> Result<BlobReader, ReadError> {
        match Stored::open(&self.file, size) {
            Ok(Some(stored)) => Ok(BlobReader::from_stored(stored)),
            Ok(None) => Ok(BlobReader::from_stream(size, Box::new(self))),
            Err(source) => Err(ReadError::Io { id: self.id, source: Arc::new(source) }),
        }
    }
}

impl Restart for Loose {
    fn restart(&self) -> Result<Box<dyn Read + Send>, ReadError> {
        let failed = |source: io::Error| ReadError::Io { id: self.id, source: Arc::new(source) };
        let mut reader = inflate(FileFrom { file: Arc::clone(&self.file), offset: 0 });
        // The header, "blob 123\0", was read before: only skip it.
        let mut header = Vec::new();
        reader.by_ref().take(64).read_until(0, &mut header).map_err(failed)?;
        if header.last() != Some(&0) {
            return Err(ReadError::Corrupt { id: self.id, detail: "its header has no end".to_owned() });
        }
        Ok(Box::new(reader))
    }
}

/// What a zlib stream holds.
pub(crate) fn inflate<R: Read>(compressed: R) -> BufReader<Inflate<R>> {
    let input = BufReader::with_capacity(64 << 10, compressed);
    BufReader::with_capacity(64 << 10, Inflate { input, state: Decompress::new() })
}

pub(crate) struct Inflate<R> {
    input: BufReader<R>,
    state: Decompress,
}

impl<R: Read> Read for Inflate<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let input = self.input.fill_buf()?;
            let is_end = input.is_empty();
            let (before_in, before_out) = (self.state.total_in(), self.state.total_out());
            let status = self.state.decompress(input, buffer, FlushDecompress::None);
            let status =
                status.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
            let read = usize::try_from(self.state.total_in() - before_in).map_err(io::Error::other)?;
            let written = usize::try_from(self.state.total_out() - before_out).map_err(io::Error::other)?;
            self.input.consume(read);
            if written > 0 || status == Status::StreamEnd || buffer.is_empty() {
                return Ok(written);
            }
            if is_end {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

/// A shared file from an offset on, whatever its position.
pub(crate) struct FileFrom {
    pub file: Arc<File>,
    pub offset: u64,
}

impl Read for FileFrom {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = std::os::unix::fs::FileExt::read_at(&*self.file, buffer, self.offset)?;
        self.offset += n as u64;
        Ok(n)
    }
}
