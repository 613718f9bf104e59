//! A server's side of one session: bytes of a request in, bytes of the reply out, over any [`Filesystem`].
//!
//! [`Session::handle`] does one request after the other. Who has several in flight takes a [`Ticket`] for each, in
//! the order in which they arrived, answers them on any thread, and drops each ticket *after* its reply was sent: that
//! is what a Tflush waits for (flush(5): no reply to the old tag may follow the Rflush).
//!
//! Not done yet: 9P2000 and .u (their messages are parsed; Tversion agrees on .L only) and Tauth.

mod dispatch;
mod tags;

use std::sync::{Arc, Mutex, PoisonError};

use crate::errno::Errno;
use crate::fid::FidTable;
use crate::filesystem::Filesystem;
use crate::message::{Dialect, Reply, Request, Tag, peek_tag};
use tags::Tags;
pub use tags::Ticket;

/// Smallest msize that is agreed on, Linux's own lower limit.
pub const MSIZE_MIN: u32 = 4096;
/// Largest msize that is agreed on.
pub const MSIZE_MAX: u32 = 16 << 20;

/// What one Tversion began: gone with the next one.
struct Epoch {
    msize: u32,
    fids: FidTable,
}

/// One client's session with a file system. Usable from several threads.
pub struct Session {
    filesystem: Arc<dyn Filesystem>,
    msize_max: u32,
    epoch: Mutex<Option<Arc<Epoch>>>,
    tags: Arc<Tags>,
}

impl Session {
    /// A session that waits for Tversion; messages are at most `msize_max` bytes, which is brought into
    /// [`MSIZE_MIN`]..=[`MSIZE_MAX`].
    pub fn new(filesystem: Arc<dyn Filesystem>, msize_max: u32) -> Self {
        Self {
            filesystem,
            msize_max: msize_max.clamp(MSIZE_MIN, MSIZE_MAX),
            epoch: Mutex::new(None),
            tags: Arc::default(),
        }
    }

    /// Most bytes that a request or reply can have: what buffers must hold.
    pub fn msize_max(&self) -> usize {
        self.msize_max as usize
    }

    /// How many fids the client has.
    pub fn fid_count(&self) -> usize {
        self.epoch().map_or(0, |epoch| epoch.fids.len())
    }

    /// Registers a request that has arrived. Never blocks. A Tflush cancels its old request here, if that waits.
    ///
    /// Only the first 9 bytes are looked at: type, tag, and what a Tflush flushes.
    pub fn accept(&self, request: &[u8]) -> Ticket {
        Tags::register(&self.tags, request)
    }

    /// Does what `request` asks, writes the reply to the front of `reply` and returns its size in bytes.
    ///
    /// `reply` need not be cleared before. Where it is too small for the reply, an error is written instead; 0 is
    /// returned when not even that fits (11 bytes always suffice). Blocks as long as the file system does; a Tflush
    /// blocks until the ticket of its old request is dropped.
    pub fn answer(&self, ticket: &Ticket, request: &[u8], reply: &mut [u8]) -> usize {
        let tag = peek_tag(request).unwrap_or(Tag::NONE);
        let answered = match Request::parse(request, Dialect::Linux) {
            Ok((_, Request::Version { msize, version })) => self.version(tag, msize, version, reply),
            Ok((_, Request::Flush { .. })) => {
                ticket.wait_for_flushed();
                dispatch::emit(&Reply::Flush {}, tag, reply)
            }
            Ok((_, request)) => match self.epoch() {
                Some(epoch) => dispatch::Operation {
                    filesystem: &*self.filesystem,
                    epoch: &epoch,
                    cancel: ticket.cancel(),
                }
                .answer(tag, &request, reply),
                None => Err(Errno::EPROTO),
            },
            Err(_) => Err(Errno::EINVAL),
        };
        answered.unwrap_or_else(|errno| {
            Reply::Lerror { errno: errno.0 }.emit(tag, reply, Dialect::Linux).unwrap_or(0)
        })
    }

    /// [`Session::accept`] and [`Session::answer`] at once, for who has one request at a time.
    pub fn handle(&self, request: &[u8], reply: &mut [u8]) -> usize {
        let ticket = self.accept(request);
        self.answer(&ticket, request, reply)
    }

    /// Ends the session: cancels what waits and forgets all fids, as when the connection is lost. A Tversion begins a
    /// new one.
    pub fn reset(&self) {
        self.tags.cancel_all();
        self.replace_epoch(None);
    }

    fn epoch(&self) -> Option<Arc<Epoch>> {
        self.epoch.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn replace_epoch(&self, epoch: Option<Arc<Epoch>>) {
        let old = std::mem::replace(&mut *self.epoch.lock().unwrap_or_else(PoisonError::into_inner), epoch);
        // Closing many files takes a while: not under the lock.
        drop(old);
    }

    /// version(5): all that is under way is given up, all fids are forgotten.
    fn version(&self, tag: Tag, msize: u32, version: &[u8], reply: &mut [u8]) -> Result<usize, Errno> {
        self.tags.cancel_all();
        let msize = msize.min(self.msize_max);
        let agreed = version == Dialect::Linux.name().as_bytes() && msize >= MSIZE_MIN;
        self.replace_epoch(agreed.then(|| Arc::new(Epoch { msize, fids: FidTable::default() })));
        let version = if agreed { Dialect::Linux.name().as_bytes() } else { b"unknown" };
        dispatch::emit(&Reply::Version { msize, version }, tag, reply)
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("fids", &self.fid_count()).finish_non_exhaustive()
    }
}
