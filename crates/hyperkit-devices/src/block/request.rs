//! One request to the block device: parsed, executed, answered. Spec: virtio 1.2 §5.2.6.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use hyperkit_mem::GuestRam;
use hyperkit_virtio::{Chain, ChainError, Reader, Writer};

use super::backend::BlockBackend;
use super::config::{DISCARD_SECTORS_MAX, RANGES_MAX, SECTOR_BYTES, ZEROES_SECTORS_MAX};

/// Bytes copied between image and guest at a time.
const COPY_BYTES: usize = 128 << 10;

/// Length of the identity string (virtio 1.2 §5.2.6, `VIRTIO_BLK_T_GET_ID`).
pub const ID_BYTES: usize = 20;

/// Request types.
mod kind {
    pub(super) const IN: u32 = 0;
    pub(super) const OUT: u32 = 1;
    pub(super) const FLUSH: u32 = 4;
    pub(super) const GET_ID: u32 = 8;
    pub(super) const DISCARD: u32 = 11;
    pub(super) const WRITE_ZEROES: u32 = 13;
}

/// Flag of a range to be zeroed: it may be given back to the host.
const UNMAP: u32 = 1;

/// The last byte of a request's writable part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// Why a request was not done.
enum Failure {
    Io,
    Unsupported,
}

impl From<io::Error> for Failure {
    fn from(_: io::Error) -> Failure {
        Failure::Io
    }
}

impl From<ChainError> for Failure {
    fn from(_: ChainError) -> Failure {
        Failure::Io
    }
}

/// What executes requests.
pub(super) struct Executor<'a> {
    pub(super) backend: &'a dyn BlockBackend,
    pub(super) ram: &'a GuestRam,
    pub(super) id: &'a [u8; ID_BYTES],
    /// Flush after each write.
    pub(super) write_through: bool,
    /// Set when the request is no longer wanted.
    pub(super) stop: &'a AtomicBool,
    pub(super) buffer: Vec<u8>,
}

impl Executor<'_> {
    /// Executes the request in `chain` and returns how many bytes of it were written.
    ///
    /// # Errors
    /// [`ChainError`] when it has no room for a header or a status.
    pub(super) fn execute(&mut self, chain: &Chain) -> Result<u32, ChainError> {
        let mut reader = chain.reader(self.ram);
        let header = reader.read_array::<16>()?;
        let kind = u32::from_le_bytes(first(&header));
        let sector = u64::from_le_bytes(first(&header[8..]));
        let mut writer = chain.writer(self.ram);
        let too_short = ChainError::TooShort { have: 0, need: 1 };
        let room = writer.remaining().checked_sub(1).ok_or(too_short)?;
        let mut status_byte = writer.split_off(room)?;
        let result = self.dispatch(kind, sector, &mut reader, &mut writer);
        let status = match result {
            Ok(()) => Status::Ok,
            Err(Failure::Io) => Status::IoError,
            Err(Failure::Unsupported) => Status::Unsupported,
        };
        status_byte.write_all(&[status as u8])?;
        // Used lengths cover everything before them: after a short answer, only the part surely written counts.
        let complete = writer.remaining() == 0;
        Ok(if complete { writer.written() + 1 } else { writer.written() })
    }

    fn dispatch(
        &mut self,
        kind: u32,
        sector: u64,
        reader: &mut Reader<'_>,
        writer: &mut Writer<'_>,
    ) -> Result<(), Failure> {
        match kind {
            kind::IN => self.read(sector, writer),
            kind::OUT => self.write(sector, reader),
            kind::FLUSH => Ok(self.backend.flush()?),
            kind::GET_ID => {
                let len = (ID_BYTES as u64).min(writer.remaining()) as usize;
                writer.write(&self.id[..len]);
                Ok(())
            }
            kind::DISCARD | kind::WRITE_ZEROES => self.ranges(kind, reader),
            _ => Err(Failure::Unsupported),
        }
    }

    fn read(&mut self, sector: u64, writer: &mut Writer<'_>) -> Result<(), Failure> {
        let mut offset = self.offset(sector, writer.remaining())?;
        while writer.remaining() > 0 {
            self.check_wanted()?;
            let len = writer.remaining().min(COPY_BYTES as u64) as usize;
            self.buffer.resize(COPY_BYTES, 0);
            self.backend.read_at(offset, &mut self.buffer[..len])?;
            writer.write(&self.buffer[..len]);
            offset += len as u64;
        }
        Ok(())
    }

    fn write(&mut self, sector: u64, reader: &mut Reader<'_>) -> Result<(), Failure> {
        let mut offset = self.offset(sector, reader.remaining())?;
        self.check_writable()?;
        while reader.remaining() > 0 {
            self.check_wanted()?;
            self.buffer.resize(COPY_BYTES, 0);
            let len = reader.read(&mut self.buffer);
            self.backend.write_at(offset, &self.buffer[..len])?;
            offset += len as u64;
        }
        Ok(self.after_write()?)
    }

    /// Discards or zeroes the ranges that the request lists.
    fn ranges(&mut self, kind: u32, reader: &mut Reader<'_>) -> Result<(), Failure> {
        self.check_writable()?;
        let total = reader.remaining();
        if total == 0 || !total.is_multiple_of(16) || total > 16 * RANGES_MAX as u64 {
            return Err(Failure::Io);
        }
        while reader.remaining() > 0 {
            self.check_wanted()?;
            let range = reader.read_array::<16>()?;
            let sector = u64::from_le_bytes(first(&range));
            let n_sectors = u32::from_le_bytes(first(&range[8..]));
            let flags = u32::from_le_bytes(first(&range[12..]));
            self.range(kind, sector, n_sectors, flags)?;
        }
        Ok(self.after_write()?)
    }

    fn range(&self, kind: u32, sector: u64, n_sectors: u32, flags: u32) -> Result<(), Failure> {
        let zero = kind == kind::WRITE_ZEROES;
        let known_flags = if zero { UNMAP } else { 0 };
        if flags & !known_flags != 0 {
            return Err(Failure::Unsupported);
        }
        let max = if zero { ZEROES_SECTORS_MAX } else { DISCARD_SECTORS_MAX };
        if n_sectors > max {
            return Err(Failure::Io);
        }
        let bytes = u64::from(n_sectors) * SECTOR_BYTES;
        let offset = self.offset(sector, bytes)?;
        match (bytes, zero) {
            (0, _) => Ok(()),
            (_, true) => Ok(self.backend.write_zeroes(offset, bytes, flags & UNMAP != 0)?),
            (_, false) => Ok(self.backend.discard(offset, bytes)?),
        }
    }

    /// Where `sector` starts, if `bytes` from there are whole sectors on the disk.
    fn offset(&self, sector: u64, bytes: u64) -> Result<u64, Failure> {
        let sectors = self.backend.len() / SECTOR_BYTES;
        let fits = sector <= sectors && bytes / SECTOR_BYTES <= sectors - sector;
        if !fits || !bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(Failure::Io);
        }
        Ok(sector * SECTOR_BYTES)
    }

    fn check_writable(&self) -> Result<(), Failure> {
        if self.backend.read_only() { Err(Failure::Io) } else { Ok(()) }
    }

    fn check_wanted(&self) -> Result<(), Failure> {
        if self.stop.load(Ordering::Relaxed) { Err(Failure::Io) } else { Ok(()) }
    }

    fn after_write(&self) -> io::Result<()> {
        if self.write_through { self.backend.flush() } else { Ok(()) }
    }
}

/// The first `N` bytes, of which there are enough.
fn first<const N: usize>(bytes: &[u8]) -> [u8; N] {
    *bytes.first_chunk().expect("callers pass a constant range of a fixed header")
}
