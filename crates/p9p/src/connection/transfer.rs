//! Whole files: read ahead, written behind, so that the time to the server and back is waited for once.

use std::collections::VecDeque;
use std::io::{self, Read, Write};

use super::{Call, Called, Connection};
use crate::client::ClientError;
use crate::filesystem::Cancel;
use crate::message::Fid;

/// Bytes asked for ahead of what was received, about; and written before the first was acknowledged.
const WINDOW_BYTES: usize = 4 << 20;
/// Requests of one transfer under way: at least so that there is always one, at most so that small ones do not swamp.
const WINDOW_MIN: usize = 2;
const WINDOW_MAX: usize = 32;

/// Why a copy between a stream and a file of the server ended early.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The server's side.
    #[error(transparent)]
    Server(#[from] ClientError),
    /// Ours.
    #[error("the local side failed")]
    Local(#[source] io::Error),
}

impl Connection {
    fn window(&self) -> usize {
        (WINDOW_BYTES / self.iounit() as usize).clamp(WINDOW_MIN, WINDOW_MAX)
    }

    /// Copies an open file from `offset` to its end into `sink` and returns how many bytes that were.
    ///
    /// A file that says it has no bytes (a stream, a command's reply) is read one message at a time until a read
    /// brings nothing.
    ///
    /// # Errors
    /// [`CopyError`].
    pub fn read_file(&self, fid: Fid, offset: u64, sink: &mut dyn Write) -> Result<u64, CopyError> {
        let size = self.attributes(fid)?.size;
        let unit = self.iounit();
        let mut position = offset;
        let mut asked = offset;
        let mut under_way: VecDeque<(Call, u32)> = VecDeque::new();
        loop {
            while asked < size && under_way.len() < self.window() {
                let count = u32::try_from(size - asked).unwrap_or(u32::MAX).min(unit);
                under_way.push_back((self.start_read(fid, asked, count)?, count));
                asked += u64::from(count);
            }
            let (call, count) = match under_way.pop_front() {
                Some(next) => next,
                // Past the end that it had: it may have grown, or never told.
                None => (self.start_read(fid, position, unit)?, unit),
            };
            let taken = call.finish_read_with(|bytes| sink.write_all(bytes).map(|()| bytes.len()))?;
            let taken = taken.map_err(CopyError::Local)?;
            position += taken as u64;
            if taken == 0 {
                return Ok(position - offset);
            }
            if taken < count as usize && !under_way.is_empty() {
                // What was asked for beyond is at the wrong place.
                under_way.clear();
                asked = position;
            }
            asked = asked.max(position);
        }
    }

    /// Fills `buffer` from `offset` on, with as many messages as that takes; fewer bytes are the end, or all that a stream
    /// has now. Ends with EINTR when `cancel` gives it up.
    ///
    /// # Errors
    /// What reading fails with.
    pub fn read_full(&self, fid: Fid, offset: u64, buffer: &mut [u8], cancel: &Cancel) -> Called<usize> {
        let unit = self.iounit() as usize;
        let first = buffer.len().min(unit);
        // Alone: of a stream there may be no more, and nothing may be asked for beyond.
        let mut done = self.read_or_cancel(fid, offset, &mut buffer[..first], cancel)?;
        if done < first {
            return Ok(done);
        }
        let mut asked = first;
        let mut under_way: VecDeque<(Call, usize)> = VecDeque::new();
        loop {
            while asked < buffer.len() && under_way.len() < WINDOW_MAX {
                let count = unit.min(buffer.len() - asked);
                let count_on_wire = u32::try_from(count).unwrap_or(u32::MAX);
                under_way.push_back((self.start_read(fid, offset + asked as u64, count_on_wire)?, count));
                asked += count;
            }
            let Some((call, count)) = under_way.pop_front() else { return Ok(done) };
            let read = call.finish_read(&mut buffer[done..done + count])?;
            done += read;
            if read < count {
                return Ok(done);
            }
        }
    }

    /// Reads an open file whole, of at most `bytes_max` bytes.
    ///
    /// # Errors
    /// What reading fails with; `FileTooLarge` when there is more.
    pub fn read_to_end(&self, fid: Fid, bytes_max: usize) -> Called<Vec<u8>> {
        let mut limited = Limited { bytes: Vec::new(), bytes_max };
        match self.read_file(fid, 0, &mut limited) {
            Ok(_) => Ok(limited.bytes),
            Err(CopyError::Server(error)) => Err(error),
            Err(CopyError::Local(error)) => Err(ClientError::Connection(error)),
        }
    }

    /// Copies `source` to its end into an open file from `offset` on and returns how many bytes that were.
    ///
    /// # Errors
    /// [`CopyError`].
    pub fn write_file(&self, fid: Fid, offset: u64, source: &mut dyn Read) -> Result<u64, CopyError> {
        let unit = self.iounit() as usize;
        let mut position = offset;
        let mut under_way: VecDeque<(Call, Vec<u8>, u64)> = VecDeque::new();
        let mut spare: Vec<Vec<u8>> = Vec::new();
        let mut is_over = false;
        loop {
            while !is_over && under_way.len() < self.window() {
                let mut buffer = spare.pop().unwrap_or_default();
                buffer.resize(unit, 0);
                let count = fill(source, &mut buffer).map_err(CopyError::Local)?;
                is_over = count < unit;
                buffer.truncate(count);
                if count > 0 {
                    under_way.push_back((self.start_write(fid, position, &buffer)?, buffer, position));
                    position += count as u64;
                }
            }
            let Some((call, buffer, start)) = under_way.pop_front() else { return Ok(position - offset) };
            let written = call.finish_write()?;
            if written < buffer.len() {
                self.write_all(fid, start + written as u64, &buffer[written..])?;
            }
            spare.push(buffer);
        }
    }

    /// Writes all of `bytes` from `offset` on.
    ///
    /// # Errors
    /// What writing fails with; `WriteZero` when the server takes nothing.
    pub fn write_all(&self, fid: Fid, offset: u64, bytes: &[u8]) -> Called<()> {
        let mut done = 0;
        while done < bytes.len() {
            match self.write(fid, offset + done as u64, &bytes[done..])? {
                0 => return Err(ClientError::Connection(io::ErrorKind::WriteZero.into())),
                count => done += count.min(bytes.len() - done),
            }
        }
        Ok(())
    }

    /// The next words of a stream that was read up to `offset`: a read that brings nothing is only the end of what was
    /// there, and two in a row are the end of the stream. Waits as long as the server does; `None` is the end.
    ///
    /// # Errors
    /// What reading fails with.
    pub fn read_stream(&self, fid: Fid, offset: u64) -> Called<Option<Vec<u8>>> {
        for _ in 0..2 {
            let bytes = self.start_read(fid, offset, u32::MAX)?.finish_read_with(<[u8]>::to_vec)?;
            if !bytes.is_empty() {
                return Ok(Some(bytes));
            }
        }
        Ok(None)
    }
}

/// Reads until `buffer` is full or there is no more.
fn fill(source: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match source.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

struct Limited {
    bytes: Vec<u8>,
    bytes_max: usize,
}

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.bytes_max {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
