//! A server's side of one session: bytes of a request in, bytes of the reply out, over any [`Filesystem`].
//!
//! [`Session::handle`] does one request after the other. Who has several in flight takes a [`Ticket`] for each, in
//! the order in which they arrived, answers them on any thread, and drops each ticket *after* its reply was sent: that
//! is what a Tflush waits for (flush(5): no reply to the old tag may follow the Rflush).
//!
//! Who has many waiting requests and few threads asks with [`Session::poll_answer`] and is woken when to ask again.
//!
//! The dialect is agreed on by Tversion: `dispatch` has what is common and what is 9P2000.L's, `classic` what 9P2000 and
//! .u have instead.

mod classic;
mod dispatch;
mod tags;
mod wstat;

use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};

use crate::auth::{Authenticator, Peer};
use crate::errno::Errno;
use crate::fid::{FIDS_MAX, FidTable};
use crate::filesystem::{Filesystem, block_on};
use crate::message::{Dialect, Reply, Request, Tag, UnixErrno, peek_tag};
#[cfg(target_os = "linux")]
pub(crate) use classic::HARD_LINKS;
use tags::Tags;
pub use tags::Ticket;

/// Smallest msize that is agreed on, Linux's own lower limit.
pub const MSIZE_MIN: u32 = 4096;
/// Largest msize that is agreed on.
pub const MSIZE_MAX: u32 = 16 << 20;
/// What a server offers unless told otherwise.
pub const MSIZE_DEFAULT: u32 = 1 << 20;

/// What a session allows.
#[derive(Clone)]
pub struct SessionOptions {
    /// Longest message in bytes, brought into [`MSIZE_MIN`]..=[`MSIZE_MAX`].
    pub msize_max: u32,
    /// Most fids at one time: the quota of a client's memory here, and of descriptors on a host directory.
    pub fids_max: usize,
    /// Who may attach; everybody without one.
    pub authenticator: Option<Arc<dyn Authenticator>>,
    /// What the transport knows of the client.
    pub peer: Peer,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self { msize_max: MSIZE_DEFAULT, fids_max: FIDS_MAX, authenticator: None, peer: Peer::default() }
    }
}

impl std::fmt::Debug for SessionOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SessionOptions")
            .field("msize_max", &self.msize_max)
            .field("fids_max", &self.fids_max)
            .field("authenticates", &self.authenticator.is_some())
            .field("peer", &self.peer)
            .finish()
    }
}

/// What one Tversion began: gone with the next one.
struct Epoch {
    msize: u32,
    dialect: Dialect,
    fids: FidTable,
}

/// One client's session with a file system. Usable from several threads.
pub struct Session {
    filesystem: Arc<dyn Filesystem>,
    options: SessionOptions,
    epoch: Mutex<Option<Arc<Epoch>>>,
    tags: Arc<Tags>,
}

impl Session {
    /// A session that waits for Tversion and lets everybody attach; messages are at most `msize_max` bytes.
    pub fn new(filesystem: Arc<dyn Filesystem>, msize_max: u32) -> Self {
        Self::with_options(filesystem, SessionOptions { msize_max, ..SessionOptions::default() })
    }

    /// A session that waits for Tversion.
    pub fn with_options(filesystem: Arc<dyn Filesystem>, mut options: SessionOptions) -> Self {
        options.msize_max = options.msize_max.clamp(MSIZE_MIN, MSIZE_MAX);
        Self { filesystem, options, epoch: Mutex::new(None), tags: Arc::default() }
    }

    /// Most bytes that a request or reply can have: what buffers must hold.
    pub fn msize_max(&self) -> usize {
        self.options.msize_max as usize
    }

    /// Most bytes that a request or reply can have now: what was agreed on, or as much as a Tversion needs.
    pub fn msize(&self) -> usize {
        self.epoch().map_or(MSIZE_MIN, |epoch| epoch.msize) as usize
    }

    /// How many fids the client has.
    pub fn fid_count(&self) -> usize {
        self.epoch().map_or(0, |epoch| epoch.fids.len())
    }

    /// Registers a request that has arrived. Never blocks. A Tflush cancels its old request here, if that waits, and a
    /// Tversion all others.
    ///
    /// Only the first 9 bytes are looked at: type, tag, and what a Tflush flushes.
    pub fn accept(&self, request: &[u8]) -> Ticket {
        Tags::register(&self.tags, request)
    }

    /// Does what `request` asks, writes the reply to the front of `reply` and returns its size in bytes.
    ///
    /// `reply` need not be cleared before. Where it is too small for the reply, an error is written instead; 0 is
    /// returned when not even that fits (11 bytes always suffice in .L). Blocks as long as the file system does; a
    /// Tflush blocks until the ticket of its old request is dropped.
    pub fn answer(&self, ticket: &Ticket, request: &[u8], reply: &mut [u8]) -> usize {
        block_on(|waker| self.poll_answer(ticket, request, reply, waker))
    }

    /// [`Session::answer`] that does not wait where the file system can do without: `Pending` is that `waker` will be
    /// woken when to ask again, with the same arguments.
    ///
    /// What can be pending: reads of files that implement [`poll_read`](crate::filesystem::OpenFile::poll_read), a
    /// Tflush whose old request is under way, a Tversion while anything is.
    pub fn poll_answer(
        &self,
        ticket: &Ticket,
        request: &[u8],
        reply: &mut [u8],
        waker: &Waker,
    ) -> Poll<usize> {
        let tag = peek_tag(request).unwrap_or(Tag::NONE);
        let epoch = self.epoch();
        let dialect = epoch.as_ref().map_or(Dialect::Linux, |epoch| epoch.dialect);
        Errno::forget_text();
        let answered = match Request::parse(request, dialect) {
            Ok((_, Request::Version { msize, version })) => match ticket.poll_ended(waker) {
                Poll::Ready(()) => self.version(tag, msize, version, reply),
                Poll::Pending => return Poll::Pending,
            },
            Ok((_, Request::Flush { .. })) => match ticket.poll_ended(waker) {
                Poll::Ready(()) => dispatch::emit(&Reply::Flush {}, tag, reply, dialect),
                Poll::Pending => return Poll::Pending,
            },
            Ok((_, request)) => match &epoch {
                Some(epoch) => {
                    let operation = dispatch::Operation {
                        filesystem: &*self.filesystem,
                        options: &self.options,
                        epoch,
                        cancel: ticket.cancel(),
                        waker,
                    };
                    match operation.poll_answer(tag, &request, reply) {
                        Poll::Ready(answered) => answered,
                        Poll::Pending => return Poll::Pending,
                    }
                }
                None => Err(Errno::EPROTO),
            },
            Err(_) => Err(Errno::EINVAL),
        };
        Poll::Ready(answered.unwrap_or_else(|errno| refuse(errno, tag, reply, dialect)))
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

    /// Writes the reply to a request that failed outside of the session.
    #[cfg(target_os = "linux")]
    pub(crate) fn refuse(&self, request: &[u8], errno: Errno, reply: &mut [u8]) -> usize {
        let dialect = self.epoch().map_or(Dialect::Linux, |epoch| epoch.dialect);
        refuse(errno, peek_tag(request).unwrap_or(Tag::NONE), reply, dialect)
    }

    fn epoch(&self) -> Option<Arc<Epoch>> {
        self.epoch.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn replace_epoch(&self, epoch: Option<Arc<Epoch>>) {
        let old = std::mem::replace(&mut *self.epoch.lock().unwrap_or_else(PoisonError::into_inner), epoch);
        // Closing many files takes a while: not under the lock.
        drop(old);
    }

    /// version(5): all that was under way is over, all fids are forgotten.
    fn version(&self, tag: Tag, msize: u32, version: &[u8], reply: &mut [u8]) -> Result<usize, Errno> {
        let msize = msize.min(self.options.msize_max);
        let dialect = agree(version).filter(|_| msize >= MSIZE_MIN);
        let fids = || FidTable::new(self.options.fids_max);
        self.replace_epoch(dialect.map(|dialect| Arc::new(Epoch { msize, dialect, fids: fids() })));
        let version = dialect.map_or("unknown", Dialect::name).as_bytes();
        dispatch::emit(&Reply::Version { msize, version }, tag, reply, Dialect::Linux)
    }
}

/// The dialect for what a client asks for. version(5): of a version that is not known, what is before the dot counts.
fn agree(version: &[u8]) -> Option<Dialect> {
    let plain = Dialect::Plan9.name().as_bytes();
    let extended = || version.strip_prefix(plain).is_some_and(|rest| rest.starts_with(b"."));
    Dialect::from_name(version).or_else(|| extended().then_some(Dialect::Plan9))
}

/// Writes the reply that says no; 0 where it does not fit.
fn refuse(errno: Errno, tag: Tag, reply: &mut [u8], dialect: Dialect) -> usize {
    let text = errno.take_text();
    if dialect == Dialect::Linux {
        return Reply::Lerror { errno: errno.0 }.emit(tag, reply, dialect).unwrap_or(0);
    }
    // Linux finds the number of a 9P2000 error by the words that its own strerror(3) has (net/9p/error.c).
    let text = text.unwrap_or_else(|| capitalized(&errno.to_string()));
    let error = Reply::Error { text: text.as_bytes(), errno: UnixErrno(errno.0) };
    error.emit(tag, reply, dialect).unwrap_or(0)
}

fn capitalized(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("fids", &self.fid_count()).finish_non_exhaustive()
    }
}
