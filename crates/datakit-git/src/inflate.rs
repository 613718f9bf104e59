//! Reads large loose objects as they are decompressed, from the start as often as wanted.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::PathBuf;
use std::sync::Arc;

use gix::zlib::{Decompress, FlushDecompress, Status};

use crate::reader::Restart;
use crate::{ObjectId, ReadError};

/// A loose object.
pub(crate) struct Loose {
    pub id: ObjectId,
    pub path: PathBuf,
}

impl Restart for Loose {
    fn restart(&self) -> Result<Box<dyn Read + Send>, ReadError> {
        let failed = |source: io::Error| ReadError::Io { id: self.id, source: Arc::new(source) };
        let file = File::open(&self.path).map_err(failed)?;
        let inflate = Inflate { input: BufReader::with_capacity(64 << 10, file), state: Decompress::new() };
        let mut reader = BufReader::with_capacity(64 << 10, inflate);
        // The header, "blob 123\0", was read before: only skip it.
        let mut header = Vec::new();
        reader.by_ref().take(64).read_until(0, &mut header).map_err(failed)?;
        if header.last() != Some(&0) {
            return Err(ReadError::Corrupt { id: self.id, detail: "its header has no end".to_owned() });
        }
        Ok(Box::new(reader))
    }
}

struct Inflate {
    input: BufReader<File>,
    state: Decompress,
}

impl Read for Inflate {
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
