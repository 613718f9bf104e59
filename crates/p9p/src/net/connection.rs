//! One client's connection: messages out of the stream, replies into it, and its end.
//!
//! The socket's events are one-shot: whoever gets one reads until there are messages and then arms it again, before
//! answering them. At the end of the stream (the client may still be reading) what was asked is answered; what waits
//! for events is given up as soon as nothing else is under way, and all after [`GRACE`].

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno as OsErrno;

use super::job::Job;
use super::server::Shared;
use super::socket::Socket;
use crate::message::HEADER_BYTES;
use crate::server::{MSIZE_MIN, Session};

/// How long requests under way may go on after the client stopped sending.
pub(super) const GRACE: Duration = Duration::from_millis(500);
/// Replies up to here are copied when the socket is full; longer ones keep their buffer.
const COPIED_BYTES_MAX: usize = 16 << 10;
/// Most requests of one connection under way: as many as there are tags.
const REQUESTS_MAX: usize = 1 << 16;
/// Requests received and not answered, in longest messages.
const RECEIVED_MESSAGES_MAX: usize = 16;

/// A connection.
pub(super) struct Connection {
    pub id: u64,
    pub socket: Socket,
    pub session: Session,
    input: Mutex<Input>,
    output: Mutex<Output>,
    /// What `output` holds, in bytes.
    unsent: AtomicUsize,
    state: Mutex<State>,
}

/// A message that has arrived in part.
#[derive(Default)]
struct Input {
    partial: Vec<u8>,
    /// Its size, once four bytes are there.
    size: usize,
}

/// Replies that the socket did not take.
#[derive(Default)]
struct Output {
    replies: VecDeque<Unsent>,
    /// Requests that wait until those are gone.
    held: Vec<Arc<Job>>,
    dead: bool,
}

struct Unsent {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

#[derive(Default)]
struct State {
    under_way: usize,
    under_way_bytes: usize,
    /// How many of those wait for an event.
    parked: usize,
    /// Somebody is reading, so the socket is not to be armed for it.
    reading: bool,
    /// The client will send no more, or what it sends is not 9P.
    ended: bool,
    closed: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Connection {
    /// A connection whose socket is not armed yet.
    pub fn new(id: u64, socket: Socket, session: Session) -> Self {
        Self {
            id,
            socket,
            session,
            input: Mutex::default(),
            output: Mutex::default(),
            unsent: AtomicUsize::new(0),
            state: Mutex::default(),
        }
    }

    fn interest(&self, state: &State) -> EventFlags {
        let full = state.under_way >= REQUESTS_MAX
            || state.under_way_bytes >= RECEIVED_MESSAGES_MAX * self.session.msize();
        let mut flags = EventFlags::ONESHOT;
        if !state.reading && !state.ended && !full {
            flags |= EventFlags::IN | EventFlags::RDHUP;
        }
        if self.unsent.load(Ordering::Acquire) > 0 {
            flags |= EventFlags::OUT;
        }
        flags
    }

    /// Has epoll watch the socket for the first time.
    pub fn register(&self, shared: &Shared) -> Result<(), OsErrno> {
        let state = lock(&self.state);
        epoll::add(&shared.epoll, &self.socket, EventData::new_u64(self.id), self.interest(&state))
    }

    /// After the end there is nothing to hear but that more can be sent: a hang-up would be heard for ever.
    fn arm(&self, shared: &Shared, state: &State) {
        let is_over = state.ended && self.unsent.load(Ordering::Acquire) == 0;
        if !state.closed && !is_over {
            // Fails only for a socket that is not watched, which one that is not closed is.
            let _ =
                epoll::modify(&shared.epoll, &self.socket, EventData::new_u64(self.id), self.interest(state));
        }
    }

    /// Does what an event of the socket asks for; returns a request to be answered by the caller.
    pub fn on_event(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        flags: EventFlags,
        staging: &mut [u8],
    ) -> Option<Arc<Job>> {
        if flags.intersects(EventFlags::OUT | EventFlags::HUP | EventFlags::ERR) {
            self.flush(shared);
        }
        let mut state = lock(&self.state);
        if state.ended && flags.intersects(EventFlags::HUP | EventFlags::ERR) {
            drop(state);
            self.lose(shared, lock(&self.output));
            return None;
        }
        let readable = EventFlags::IN | EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR;
        if state.reading || state.ended || state.closed || !flags.intersects(readable) {
            self.arm(shared, &state);
            return None;
        }
        state.reading = true;
        drop(state);
        let mut jobs = Vec::new();
        let ended = self.receive(shared, staging, &mut jobs);
        let mut state = lock(&self.state);
        state.reading = false;
        state.ended |= ended;
        state.under_way += jobs.len();
        state.under_way_bytes += jobs.iter().map(|job| job.len()).sum::<usize>();
        self.arm(shared, &state);
        drop(state);
        if ended {
            shared.watch.expect_end(self);
            self.settle(shared);
        }
        let mut jobs = jobs.into_iter();
        let first = jobs.next();
        shared.push_all(jobs);
        first
    }

    /// Reads until there is a message, or nothing to read; `true` is the end.
    fn receive(self: &Arc<Self>, shared: &Arc<Shared>, staging: &mut [u8], jobs: &mut Vec<Arc<Job>>) -> bool {
        let mut input = lock(&self.input);
        while jobs.is_empty() {
            let missing = input.size.saturating_sub(input.partial.len());
            let is_exact = input.partial.capacity() - input.partial.len() == missing;
            let read = if missing > staging.len() && is_exact {
                // The rest of a long message goes where it belongs.
                rustix::io::read(&self.socket, spare_capacity(&mut input.partial))
            } else {
                rustix::io::read(&self.socket, &mut *staging)
            };
            let bytes = match read {
                Ok(0) => return true,
                Ok(bytes) if missing > staging.len() && is_exact => {
                    if bytes == missing {
                        jobs.push(Job::new(shared, self, input.take()));
                    }
                    continue;
                }
                Ok(bytes) => bytes,
                Err(OsErrno::AGAIN) => return false,
                Err(OsErrno::INTR) => continue,
                Err(_) => return true,
            };
            let mut rest = &staging[..bytes];
            while !rest.is_empty() {
                match input.next(&mut rest, || self.session.msize()) {
                    Ok(Some(message)) => jobs.push(Job::new(shared, self, message)),
                    Ok(None) => {}
                    Err(NotAMessage) => return true,
                }
            }
        }
        false
    }

    /// Keeps a request for later if the client is not taking its replies; gives it back otherwise.
    pub fn hold_if_full(&self, job: Arc<Job>) -> Option<Arc<Job>> {
        let most = self.session.msize();
        if self.unsent.load(Ordering::Acquire) <= most {
            return Some(job);
        }
        let mut output = lock(&self.output);
        if self.unsent.load(Ordering::Acquire) <= most || output.dead {
            return Some(job);
        }
        output.held.push(job);
        None
    }

    /// Sends the first `bytes` of `buffer`, which is taken away where the socket does not take all.
    pub fn send(&self, shared: &Shared, buffer: &mut Vec<u8>, bytes: usize) {
        let mut output = lock(&self.output);
        if output.dead {
            return;
        }
        let mut start = 0;
        if output.replies.is_empty() {
            match self.send_now(&buffer[..bytes]) {
                Ok(sent) if sent == bytes => return,
                Ok(sent) => start = sent,
                Err(_) => return self.lose(shared, output),
            }
        }
        let rest = bytes - start;
        let unsent = if rest <= COPIED_BYTES_MAX {
            Unsent { buffer: buffer[start..bytes].to_vec(), start: 0, end: rest }
        } else {
            Unsent { buffer: std::mem::replace(buffer, shared.spare_buffer()), start, end: bytes }
        };
        output.replies.push_back(unsent);
        self.unsent.fetch_add(rest, Ordering::AcqRel);
        drop(output);
        self.arm(shared, &lock(&self.state));
    }

    /// As much as the socket takes.
    fn send_now(&self, bytes: &[u8]) -> Result<usize, OsErrno> {
        let mut sent = 0;
        while sent < bytes.len() {
            match self.socket.send(&bytes[sent..]) {
                Ok(count) => sent += count,
                Err(OsErrno::INTR) => {}
                Err(OsErrno::AGAIN) => break,
                Err(errno) => return Err(errno),
            }
        }
        Ok(sent)
    }

    /// Sends what the socket did not take before.
    fn flush(&self, shared: &Shared) {
        let mut output = lock(&self.output);
        while let Some(first) = output.replies.front_mut() {
            let Ok(sent) = self.send_now(&first.buffer[first.start..first.end]) else {
                return self.lose(shared, output);
            };
            first.start += sent;
            self.unsent.fetch_sub(sent, Ordering::AcqRel);
            if first.start < first.end {
                break;
            }
            if let Some(done) = output.replies.pop_front() {
                shared.keep_buffer(done.buffer);
            }
        }
        let has_room = self.unsent.load(Ordering::Acquire) <= self.session.msize();
        let released = if has_room { std::mem::take(&mut output.held) } else { Vec::new() };
        drop(output);
        shared.push_all(released.into_iter());
        self.settle(shared);
    }

    /// Nobody takes replies any more.
    fn lose(&self, shared: &Shared, mut output: MutexGuard<'_, Output>) {
        output.dead = true;
        output.replies.clear();
        self.unsent.store(0, Ordering::Release);
        let released = std::mem::take(&mut output.held);
        drop(output);
        shared.push_all(released.into_iter());
        self.end(shared);
    }

    /// A request begins to wait for an event.
    pub fn park(&self) {
        lock(&self.state).parked += 1;
    }

    /// It does not wait any more.
    pub fn unpark(&self) {
        lock(&self.state).parked -= 1;
    }

    /// A request of so many bytes is answered.
    pub fn finish(&self, shared: &Shared, bytes: usize) {
        let mut state = lock(&self.state);
        let was_full = !self.interest(&state).contains(EventFlags::IN);
        state.under_way -= 1;
        state.under_way_bytes -= bytes;
        if was_full && !state.reading && self.interest(&state).contains(EventFlags::IN) {
            self.arm(shared, &state);
        }
        let ended = state.ended;
        drop(state);
        if ended {
            self.settle(shared);
        }
    }

    /// The client is gone or talks nonsense: nothing more is read, what is under way is given up.
    pub fn end(&self, shared: &Shared) {
        lock(&self.state).ended = true;
        self.session.reset();
        self.settle(shared);
    }

    /// After the end: gives up what waits when nothing else is left, and closes when nothing is.
    pub fn settle(&self, shared: &Shared) {
        let mut state = lock(&self.state);
        if !state.ended || state.closed {
            return;
        }
        if state.under_way > 0 {
            let only_waiting = state.under_way == state.parked;
            drop(state);
            if only_waiting {
                self.session.reset();
            }
            return;
        }
        if self.unsent.load(Ordering::Acquire) > 0 {
            return;
        }
        state.closed = true;
        drop(state);
        // Gone from epoll before the number is another socket's.
        let _ = epoll::delete(&shared.epoll, &self.socket);
        self.session.reset();
        self.socket.hang_up();
        shared.forget(self.id);
    }
}

/// The stream is not 9P.
struct NotAMessage;

impl Input {
    /// The next message out of `bytes`, of which what it takes is cut off.
    fn next(
        &mut self,
        bytes: &mut &[u8],
        bytes_max: impl Fn() -> usize,
    ) -> Result<Option<Vec<u8>>, NotAMessage> {
        if self.partial.len() < 4 {
            let (taken, rest) = bytes.split_at(bytes.len().min(4 - self.partial.len()));
            self.partial.extend_from_slice(taken);
            *bytes = rest;
            let Some(size) = self.partial.first_chunk::<4>() else { return Ok(None) };
            self.size = usize::try_from(u32::from_le_bytes(*size)).unwrap_or(usize::MAX);
            if self.size < HEADER_BYTES || self.size > bytes_max().max(MSIZE_MIN as usize) {
                return Err(NotAMessage);
            }
            self.partial.reserve_exact(self.size - 4);
        }
        let (taken, rest) = bytes.split_at(bytes.len().min(self.size - self.partial.len()));
        self.partial.extend_from_slice(taken);
        *bytes = rest;
        Ok((self.partial.len() == self.size).then(|| self.take()))
    }

    fn take(&mut self) -> Vec<u8> {
        self.size = 0;
        std::mem::take(&mut self.partial)
    }
}
