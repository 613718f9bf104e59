//! Where a block device keeps its sectors: the trait, a raw image file, and memory.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::RwLock;

use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock};
use rustix::io::Errno;

/// Storage behind a block device. Called from the device's worker thread, one call at a time; may block.
///
/// The device has checked that `offset + length` does not exceed [`BlockBackend::len`].
#[expect(clippy::len_without_is_empty, reason = "a size, not a collection")]
pub trait BlockBackend: Send + Sync {
    /// Size in bytes. Constant; a part after the last whole sector is not shown to the guest.
    fn len(&self) -> u64;

    /// Whether the guest must not write.
    fn read_only(&self) -> bool;

    /// Fills `bytes` from `offset`.
    ///
    /// # Errors
    /// What the host says; the guest sees an I/O error.
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()>;

    /// Stores `bytes` at `offset`; durable after [`BlockBackend::flush`].
    ///
    /// # Errors
    /// As for reading.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes everything written so far survive a crash of the host.
    ///
    /// # Errors
    /// As for reading.
    fn flush(&self) -> io::Result<()>;

    /// Gives `bytes` bytes from `offset` back to the host. A hint: contents are then undefined.
    ///
    /// # Errors
    /// As for reading.
    fn discard(&self, offset: u64, bytes: u64) -> io::Result<()>;

    /// Makes `bytes` bytes from `offset` read as zeros; may give them back to the host if `unmap`.
    ///
    /// # Errors
    /// As for reading.
    fn write_zeroes(&self, offset: u64, bytes: u64, unmap: bool) -> io::Result<()>;
}

/// Why an image could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The host refused.
    #[error("cannot open disk image {}", path.display())]
    Io {
        /// The image.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// Another process has it open, and one of the two writes.
    #[error("disk image {} is in use", path.display())]
    InUse {
        /// The image.
        path: PathBuf,
    },
}

/// A file (or host block device) whose bytes are the disk's. Locked with `flock` while open: shared when
/// read-only, otherwise exclusively.
#[derive(Debug)]
pub struct RawFile {
    file: File,
    bytes: u64,
    read_only: bool,
}

/// Zeros written at a time where the file system cannot do it by itself.
const ZEROES_BYTES: usize = 64 << 10;

impl RawFile {
    /// Opens the image at `path`.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(path: &Path, read_only: bool) -> Result<RawFile, OpenError> {
        let failed = |source| OpenError::Io { path: path.to_owned(), source };
        let file = File::options().read(true).write(!read_only).open(path).map_err(failed)?;
        let operation = if read_only {
            FlockOperation::NonBlockingLockShared
        } else {
            FlockOperation::NonBlockingLockExclusive
        };
        flock(&file, operation).map_err(|errno| match errno {
            Errno::WOULDBLOCK => OpenError::InUse { path: path.to_owned() },
            errno => failed(errno.into()),
        })?;
        // Seeking gives the size of block devices too, whose metadata says zero.
        let bytes =
            rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0)).map_err(|errno| failed(errno.into()))?;
        Ok(RawFile { file, bytes, read_only })
    }

    fn write_zeroes_by_hand(&self, mut offset: u64, mut bytes: u64) -> io::Result<()> {
        let zeroes = [0; ZEROES_BYTES];
        while bytes > 0 {
            let len = bytes.min(ZEROES_BYTES as u64);
            self.file.write_all_at(&zeroes[..len as usize], offset)?;
            offset += len;
            bytes -= len;
        }
        Ok(())
    }
}

impl BlockBackend for RawFile {
    fn len(&self) -> u64 {
        self.bytes
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(bytes, offset)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn discard(&self, offset: u64, bytes: u64) -> io::Result<()> {
        match fallocate(&self.file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, bytes) {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NODEV | Errno::NOSYS) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn write_zeroes(&self, offset: u64, bytes: u64, unmap: bool) -> io::Result<()> {
        let how = if unmap { FallocateFlags::PUNCH_HOLE } else { FallocateFlags::ZERO_RANGE };
        match fallocate(&self.file, how | FallocateFlags::KEEP_SIZE, offset, bytes) {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP | Errno::NODEV | Errno::NOSYS | Errno::INVAL) => {
                self.write_zeroes_by_hand(offset, bytes)
            }
            Err(errno) => Err(errno.into()),
        }
    }
}

/// A disk in memory, gone with the device.
#[derive(Debug)]
pub struct Memory {
    contents: RwLock<Vec<u8>>,
    read_only: bool,
}

impl Memory {
    /// A disk with these contents.
    pub fn new(contents: Vec<u8>, read_only: bool) -> Memory {
        Memory { contents: RwLock::new(contents), read_only }
    }

    fn with_range<T>(&self, offset: u64, bytes: u64, f: impl FnOnce(&mut [u8]) -> T) -> io::Result<T> {
        let mut contents = self.contents.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        let start = usize::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        let end = usize::try_from(bytes).ok().and_then(|bytes| start.checked_add(bytes));
        let range = end.and_then(|end| contents.get_mut(start..end)).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(f(range))
    }
}

impl BlockBackend for Memory {
    fn len(&self) -> u64 {
        self.contents.read().unwrap_or_else(|poisoned| poisoned.into_inner()).len() as u64
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.with_range(offset, bytes.len() as u64, |range| bytes.copy_from_slice(range))
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.with_range(offset, bytes.len() as u64, |range| range.copy_from_slice(bytes))
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.write_zeroes(offset, bytes, true)
    }

    fn write_zeroes(&self, offset: u64, bytes: u64, _unmap: bool) -> io::Result<()> {
        self.with_range(offset, bytes, |range| range.fill(0))
    }
}
