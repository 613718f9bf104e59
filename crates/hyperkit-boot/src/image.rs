//! A file to load, in memory or on disk, read piece by piece: a kernel is never held twice.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::sync::Arc;

use hyperkit_mem::{GuestAddr, GuestRam};

use crate::BootError;

const CHUNK_BYTES: usize = 256 << 10;

/// Contents of a kernel or an initial RAM disk.
#[derive(Debug, Clone)]
pub struct Image {
    contents: Contents,
    bytes: u64,
}

#[derive(Debug, Clone)]
enum Contents {
    Bytes(Arc<[u8]>),
    File(Arc<File>),
}

impl From<Vec<u8>> for Image {
    fn from(bytes: Vec<u8>) -> Image {
        Image { bytes: bytes.len() as u64, contents: Contents::Bytes(bytes.into()) }
    }
}

impl Image {
    /// An image in a file, which is read when the machine boots.
    ///
    /// # Errors
    /// [`BootError::Read`] when its size is not to be had, [`BootError::NotAFile`] for directories, pipes and devices.
    pub fn from_file(file: File) -> Result<Image, BootError> {
        let metadata = file.metadata().map_err(BootError::Read)?;
        if !metadata.is_file() {
            return Err(BootError::NotAFile);
        }
        Ok(Image { bytes: metadata.len(), contents: Contents::File(Arc::new(file)) })
    }

    /// Length in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Fills `bytes` from `offset`. Fails with `UnexpectedEof` past the end.
    pub(crate) fn read_at(&self, offset: u64, bytes: &mut [u8]) -> std::io::Result<()> {
        match &self.contents {
            Contents::Bytes(contents) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                let part = contents.get(start..).and_then(|rest| rest.get(..bytes.len()));
                bytes.copy_from_slice(part.ok_or(std::io::ErrorKind::UnexpectedEof)?);
                Ok(())
            }
            Contents::File(file) => {
                let mut file: &File = file;
                file.seek(SeekFrom::Start(offset))?;
                file.read_exact(bytes)
            }
        }
    }

    /// The first bytes, at most `max`.
    pub(crate) fn start(&self, max: usize) -> std::io::Result<Vec<u8>> {
        let mut bytes = vec![0; max.min(usize::try_from(self.bytes).unwrap_or(max))];
        self.read_at(0, &mut bytes)?;
        Ok(bytes)
    }

    /// Copies `len` bytes from `offset` into guest memory at `addr`, which the caller found to be RAM.
    pub(crate) fn copy_to(
        &self,
        ram: &GuestRam,
        addr: GuestAddr,
        offset: u64,
        len: u64,
    ) -> std::io::Result<()> {
        let mut chunk = vec![0; CHUNK_BYTES.min(len as usize)];
        let mut done = 0;
        while done < len {
            let part = &mut chunk[..(CHUNK_BYTES as u64).min(len - done) as usize];
            self.read_at(offset + done, part)?;
            ram.write(GuestAddr(addr.0 + done), part).map_err(std::io::Error::other)?;
            done += part.len() as u64;
        }
        Ok(())
    }
}
