//! Requests in flight: tags, who waits for which reply, who reads the stream, and flush(5).

use std::collections::HashMap;
use std::io::{self, IoSlice, Read, Write};
use std::sync::Arc;
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use super::reply::Answered;
use super::{Called, Connection, Inner, lock};
use crate::client::ClientError;
use crate::errno::Errno;
use crate::filesystem::Cancel;
use crate::message::{HEADER_BYTES, Request, Tag, peek_tag};
use crate::net::Socket;
use crate::wire::Payload;

/// What is read of the stream at once, for short replies; long ones are read where they belong.
const STAGING_BYTES: usize = 16 << 10;
/// Bytes of a Twrite before its payload.
const WRITE_HEADER_BYTES: usize = HEADER_BYTES + 16;
/// Bytes of a request without payload: names and targets have at most 64 KiB each.
const REQUEST_BYTES_USUAL: usize = 4096;
/// Buffers kept for the next replies.
const BUFFERS_MAX: usize = 32;

/// All calls of a connection.
#[derive(Default)]
pub(super) struct Calls {
    slots: HashMap<Tag, Slot>,
    next_tag: u16,
    next_id: u64,
    /// Somebody reads the stream.
    is_read: bool,
    /// The stream failed, like this.
    failed: Option<io::ErrorKind>,
}

/// A tag that is in use.
struct Slot {
    /// Tells a call from an earlier one with the same tag.
    id: u64,
    reply: Option<Buffer>,
    waiter: Option<Thread>,
    /// Nobody wants the reply.
    is_abandoned: bool,
    /// A Tflush for it is under way: the tag is in use until that is answered.
    is_flushed: bool,
    /// It was given up before it was answered.
    is_cancelled: bool,
    /// It is a Tflush for this tag.
    flushes: Option<Tag>,
}

/// A message's bytes, at the front of a longer buffer.
pub(super) struct Buffer {
    pub bytes: Vec<u8>,
    pub len: usize,
}

/// The stream's side that is read.
pub(super) struct Receiver {
    reader: Box<dyn Read + Send>,
    socket: Option<Socket>,
    staging: Vec<u8>,
    start: usize,
    end: usize,
}

/// What came of waiting for a message.
enum Received {
    Message(Buffer),
    TimedOut,
}

/// A request that was sent. Dropped without being waited for, it is flushed.
#[must_use]
pub struct Call {
    connection: Connection,
    tag: Tag,
    id: u64,
    is_over: bool,
}

impl Receiver {
    /// Nothing received yet.
    pub fn new(reader: Box<dyn Read + Send>, socket: Option<Socket>) -> Self {
        Self { reader, socket, staging: vec![0; STAGING_BYTES], start: 0, end: 0 }
    }

    /// Reads into the staging buffer until it has `count` bytes; `false` when `deadline` passed before the first.
    fn fill(&mut self, count: usize, deadline: Option<Instant>) -> io::Result<bool> {
        if self.start + count > self.staging.len() {
            self.staging.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        while self.end - self.start < count {
            if !self.wait(deadline)? {
                return Ok(false);
            }
            match self.reader.read(&mut self.staging[self.end..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => self.end += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn wait(&self, deadline: Option<Instant>) -> io::Result<bool> {
        let (Some(deadline), Some(socket)) = (deadline, &self.socket) else { return Ok(true) };
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if socket.wait_readable(Some(left))? {
                return Ok(true);
            }
            if left.is_zero() {
                return Ok(false);
            }
        }
    }

    fn receive(&mut self, inner: &Inner, deadline: Option<Instant>) -> io::Result<Received> {
        if !self.fill(HEADER_BYTES, deadline)? {
            return Ok(Received::TimedOut);
        }
        let size = self.staging[self.start..].first_chunk::<4>().map_or(0, |size| u32::from_le_bytes(*size));
        let len = usize::try_from(size).unwrap_or(usize::MAX);
        if len < HEADER_BYTES || len > inner.msize as usize {
            let text = format!("a message of {len} bytes, where {} are agreed on", inner.msize);
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let mut bytes = inner.buffer(len);
        let staged = len.min(self.end - self.start);
        bytes[..staged].copy_from_slice(&self.staging[self.start..self.start + staged]);
        self.start += staged;
        // The rest of a message that has begun is on its way.
        self.reader.read_exact(&mut bytes[staged..len])?;
        Ok(Received::Message(Buffer { bytes, len }))
    }
}

impl Inner {
    /// A buffer of at least `len` bytes with anything in it.
    fn buffer(&self, len: usize) -> Vec<u8> {
        if len <= STAGING_BYTES / 4 {
            return vec![0; len];
        }
        let kept = lock(&self.buffers).pop();
        kept.filter(|kept| kept.len() >= len).unwrap_or_else(|| vec![0; self.msize as usize])
    }

    /// Keeps a buffer for later.
    pub(super) fn keep(&self, buffer: Vec<u8>) {
        let mut buffers = lock(&self.buffers);
        if buffer.len() >= self.msize as usize && buffers.len() < BUFFERS_MAX {
            buffers.push(buffer);
        }
    }

    fn deliver(&self, calls: &mut Calls, buffer: Buffer) {
        let tag = peek_tag(&buffer.bytes).unwrap_or(Tag::NONE);
        let Some(slot) = calls.slots.get_mut(&tag) else {
            // An answer that nobody asked for: a server's fault that harms none of our calls.
            return;
        };
        if let Some(old) = slot.flushes {
            calls.slots.remove(&tag);
            if let Some(slot) = calls.slots.get_mut(&old) {
                slot.is_flushed = false;
                if slot.is_abandoned {
                    calls.slots.remove(&old);
                } else if slot.reply.is_none() {
                    slot.is_cancelled = true;
                    slot.wake();
                }
            }
        } else if slot.is_abandoned {
            if !slot.is_flushed {
                calls.slots.remove(&tag);
            }
            self.keep(buffer.bytes);
        } else {
            slot.reply = Some(buffer);
            slot.wake();
        }
    }
}

impl Slot {
    fn new(id: u64) -> Self {
        Self {
            id,
            reply: None,
            waiter: None,
            is_abandoned: false,
            is_flushed: false,
            is_cancelled: false,
            flushes: None,
        }
    }

    fn wake(&mut self) {
        if let Some(waiter) = self.waiter.take() {
            waiter.unpark();
        }
    }
}

impl Calls {
    fn take_tag(&mut self) -> Called<(Tag, u64)> {
        if let Some(kind) = self.failed {
            return Err(ClientError::Connection(kind.into()));
        }
        if self.slots.len() >= usize::from(u16::MAX) {
            return Err(ClientError::TooManyCalls);
        }
        loop {
            self.next_tag = if self.next_tag >= u16::MAX - 1 { 0 } else { self.next_tag + 1 };
            let tag = Tag(self.next_tag);
            if !self.slots.contains_key(&tag) {
                return Ok((tag, self.claim(tag)));
            }
        }
    }

    fn claim(&mut self, tag: Tag) -> u64 {
        self.next_id += 1;
        self.slots.insert(tag, Slot::new(self.next_id));
        self.next_id
    }

    fn slot(&mut self, tag: Tag, id: u64) -> Option<&mut Slot> {
        self.slots.get_mut(&tag).filter(|slot| slot.id == id)
    }

    fn fail(&mut self, kind: io::ErrorKind) {
        self.failed.get_or_insert(kind);
        self.slots.values_mut().for_each(Slot::wake);
    }

    /// Lets somebody else who waits read the stream.
    fn hand_over(&mut self) {
        if let Some(slot) = self.slots.values_mut().find(|slot| slot.waiter.is_some()) {
            slot.wake();
        }
    }
}

impl Connection {
    /// Sends a request and does not wait for the reply.
    ///
    /// # Errors
    /// When the stream fails, or the request does not fit into a message or the dialect.
    pub fn start(&self, request: &Request<'_>) -> Called<Call> {
        let (tag, id) = lock(&self.inner.calls).take_tag()?;
        self.send_as(tag, id, request)
    }

    pub(super) fn start_with_tag(&self, tag: Tag, request: &Request<'_>) -> Called<Call> {
        let id = lock(&self.inner.calls).claim(tag);
        self.send_as(tag, id, request)
    }

    fn send_as(&self, tag: Tag, id: u64, request: &Request<'_>) -> Called<Call> {
        let call = Call { connection: self.clone(), tag, id, is_over: false };
        if let Err(error) = self.send(tag, request) {
            lock(&self.inner.calls).slots.remove(&tag);
            let mut call = call;
            call.is_over = true;
            return Err(error);
        }
        Ok(call)
    }

    fn send(&self, tag: Tag, request: &Request<'_>) -> Called<()> {
        let dialect = self.inner.dialect;
        if let Request::Write { fid, offset, payload: Payload(bytes) } = *request {
            let mut header = [0; WRITE_HEADER_BYTES];
            let empty = Request::Write { fid, offset, payload: Payload(&[]) };
            empty.emit(tag, &mut header, dialect)?;
            let count = u32::try_from(bytes.len()).unwrap_or(u32::MAX).min(self.iounit());
            let bytes = &bytes[..count as usize];
            header[..4].copy_from_slice(&(count + WRITE_HEADER_BYTES as u32).to_le_bytes());
            header[WRITE_HEADER_BYTES - 4..].copy_from_slice(&count.to_le_bytes());
            return self.put(&header, bytes);
        }
        let mut usual = [0; REQUEST_BYTES_USUAL];
        let room = usual.len().min(self.inner.msize as usize);
        match request.emit(tag, &mut usual[..room], dialect) {
            Ok(bytes) => self.put(&usual[..bytes], &[]),
            Err(crate::wire::WireError::NoRoom { .. }) => {
                let mut long = vec![0; self.inner.msize as usize];
                let bytes = request.emit(tag, &mut long, dialect)?;
                self.put(&long[..bytes], &[])
            }
            Err(error) => Err(error.into()),
        }
    }

    fn put(&self, header: &[u8], payload: &[u8]) -> Called<()> {
        let mut writer = lock(&self.inner.writer);
        let written = write_both(&mut **writer, header, payload).and_then(|()| writer.flush());
        drop(writer);
        if let Err(error) = written {
            // Half a message may be on its way: nothing more can be said.
            lock(&self.inner.calls).fail(error.kind());
            return Err(error.into());
        }
        Ok(())
    }

    /// Asks the server to give up the call that has this tag, if it still is the same.
    fn flush(&self, tag: Tag, id: u64) {
        let mut calls = lock(&self.inner.calls);
        let wanted = calls.slot(tag, id).is_some_and(|slot| slot.reply.is_none() && !slot.is_flushed);
        if !wanted {
            return;
        }
        let Ok((flush_tag, _)) = calls.take_tag() else { return };
        if let Some(slot) = calls.slots.get_mut(&flush_tag) {
            slot.flushes = Some(tag);
        }
        if let Some(slot) = calls.slot(tag, id) {
            slot.is_flushed = true;
        }
        drop(calls);
        // A stream that fails here fails for the next call, which reports it.
        let _ = self.send(flush_tag, &Request::Flush { old_tag: tag });
    }

    /// Sends a request whose reply interests nobody.
    pub(super) fn tell(&self, request: &Request<'_>) {
        if let Ok(mut call) = self.start(request) {
            call.is_over = true;
            let mut calls = lock(&self.inner.calls);
            let answered = match calls.slot(call.tag, call.id) {
                Some(slot) => {
                    slot.is_abandoned = true;
                    slot.reply.is_some()
                }
                None => false,
            };
            if answered {
                calls.slots.remove(&call.tag);
            }
        }
    }
}

/// All of both, in as few calls as possible.
fn write_both(writer: &mut dyn Write, mut header: &[u8], mut payload: &[u8]) -> io::Result<()> {
    while !header.is_empty() {
        let written = match writer.write_vectored(&[IoSlice::new(header), IoSlice::new(payload)]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => written,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let of_header = written.min(header.len());
        header = &header[of_header..];
        payload = &payload[written - of_header..];
    }
    writer.write_all(payload)
}

impl Call {
    /// Waits for the reply.
    pub(super) fn wait(self) -> Called<Answered> {
        let timeout = self.connection.inner.timeout;
        self.wait_for(timeout)
    }

    /// Waits until `cancel` gives up: then the server is asked to, and what it answers decides.
    pub(super) fn wait_or_cancel(self, cancel: &Cancel) -> Called<Answered> {
        let (connection, tag, id) = (self.connection.clone(), self.tag, self.id);
        cancel.on_cancel(move || connection.flush(tag, id));
        self.wait_for(None)
    }

    fn wait_for(mut self, timeout: Option<Duration>) -> Called<Answered> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        let inner = Arc::clone(&self.connection.inner);
        let mut calls = lock(&inner.calls);
        loop {
            let failed = calls.failed;
            let Some(slot) = calls.slot(self.tag, self.id) else { return Err(ClientError::TimedOut) };
            if let Some(buffer) = slot.reply.take() {
                self.is_over = true;
                if slot.is_flushed {
                    slot.is_abandoned = true;
                } else {
                    calls.slots.remove(&self.tag);
                }
                if !calls.is_read {
                    calls.hand_over();
                }
                drop(calls);
                return Ok(Answered::new(&self.connection, buffer, self.tag));
            }
            if slot.is_cancelled {
                self.is_over = true;
                calls.slots.remove(&self.tag);
                if !calls.is_read {
                    calls.hand_over();
                }
                return Err(ClientError::Refused(Errno::EINTR));
            }
            if let Some(kind) = failed {
                self.is_over = true;
                calls.slots.remove(&self.tag);
                return Err(ClientError::Connection(kind.into()));
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                if !calls.is_read {
                    calls.hand_over();
                }
                // Dropping the call flushes it.
                return Err(ClientError::TimedOut);
            }
            if calls.is_read {
                slot_waits(&mut calls, self.tag, self.id);
                drop(calls);
                match deadline {
                    Some(deadline) => {
                        thread::park_timeout(deadline.saturating_duration_since(Instant::now()))
                    }
                    None => thread::park(),
                }
                calls = lock(&inner.calls);
                continue;
            }
            calls.is_read = true;
            drop(calls);
            let received = lock(&inner.receiver).receive(&inner, deadline);
            calls = lock(&inner.calls);
            calls.is_read = false;
            match received {
                Ok(Received::Message(buffer)) => inner.deliver(&mut calls, buffer),
                Ok(Received::TimedOut) => {}
                Err(error) => calls.fail(error.kind()),
            }
        }
    }
}

fn slot_waits(calls: &mut Calls, tag: Tag, id: u64) {
    if let Some(slot) = calls.slot(tag, id) {
        slot.waiter = Some(thread::current());
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        let mut calls = lock(&self.connection.inner.calls);
        let Some(slot) = calls.slot(self.tag, self.id) else { return };
        if slot.reply.is_some() && !slot.is_flushed {
            calls.slots.remove(&self.tag);
            return;
        }
        let is_flushed = slot.is_flushed;
        slot.is_abandoned = true;
        drop(calls);
        if !is_flushed {
            self.connection.flush(self.tag, self.id);
        }
    }
}

impl std::fmt::Debug for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Call").field("tag", &self.tag).finish_non_exhaustive()
    }
}
