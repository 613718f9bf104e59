//! Files whose reads wait for what happens next.
//!
//! A read gives one line, or the next part of one, and must be at the place where the last one ended. Over 9P, a read
//! that gave less than was asked for is followed by one that gives nothing: Linux's client asks on until a read is full
//! or empty, and so hands out the line. Two empty reads in a row are the end. Over FUSE, an empty read would be the end at
//! once, so there is none.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};

use p9p::Errno;
use p9p::filesystem::{Answer, Cancel, OpenFile, OpenFlags, wait_for};
use p9p::stat::SetAttributes;
use p9p_fuse::Caching;

use super::attached::Transport;
use super::item::{self, Change, Found, Item, ItemStat};

/// ESPIPE of Linux.
const ESPIPE: Errno = Errno(29);

/// What one reader is told, from its open on. Dropped with the open file.
pub(crate) trait Feed: Send {
    /// The next text, a line with its end; `None` is the end. `Pending` keeps `waker` until there is more.
    fn poll_next(&mut self, waker: &Waker) -> Poll<Answer<Option<Vec<u8>>>>;
}

/// Makes a feed for each open.
pub(crate) type Feeds = Box<dyn Fn() -> Answer<Box<dyn Feed>> + Send + Sync>;

/// A stream, not open.
pub(crate) struct Stream {
    feeds: Feeds,
    transport: Transport,
}

impl Stream {
    pub fn new(
        transport: Transport,
        feeds: impl Fn() -> Answer<Box<dyn Feed>> + Send + Sync + 'static,
    ) -> Self {
        Self { feeds: Box::new(feeds), transport }
    }
}

impl Item for Stream {
    fn stat(&self) -> Answer<ItemStat> {
        Ok(ItemStat::file(0))
    }

    fn caching(&self) -> Caching {
        Caching::STREAM
    }

    fn find(&self, _name: &[u8]) -> Answer<Found> {
        item::not_a_directory()
    }

    fn open(&self, flags: OpenFlags, _number: u64) -> Answer<Arc<dyn OpenFile>> {
        if flags.mutates() {
            return item::read_only_file();
        }
        let state = Mutex::new(State { feed: (self.feeds)()?, text: Vec::new(), position: 0, flush: false });
        Ok(Arc::new(OpenStream { state, transport: self.transport }))
    }

    fn change(&self, _change: &Change<'_>) -> Answer<()> {
        item::not_a_directory()
    }

    fn set(&self, _change: &SetAttributes) -> Answer<()> {
        item::read_only_file()
    }

    fn target(&self) -> Answer<Vec<u8>> {
        Err(Errno::EINVAL)
    }
}

struct OpenStream {
    state: Mutex<State>,
    transport: Transport,
}

struct State {
    feed: Box<dyn Feed>,
    /// Of the last text, what was not read yet.
    text: Vec<u8>,
    /// Where the next read is.
    position: u64,
    /// Whether the next read gives nothing.
    flush: bool,
}

impl OpenFile for OpenStream {
    fn read(&self, offset: u64, buffer: &mut [u8], cancel: &Cancel) -> Answer<usize> {
        wait_for(cancel, |waker| self.poll_read(offset, buffer, cancel, waker))
    }

    fn poll_read(
        &self,
        offset: u64,
        buffer: &mut [u8],
        _cancel: &Cancel,
        waker: &Waker,
    ) -> Poll<Answer<usize>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if offset != state.position {
            return Poll::Ready(Err(ESPIPE.with_text("Attempt to seek in stream")));
        }
        if std::mem::take(&mut state.flush) || buffer.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if state.text.is_empty() {
            match state.feed.poll_next(waker) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(Some(text))) => state.text = text,
                Poll::Ready(Ok(None)) => return Poll::Ready(Ok(0)),
                Poll::Ready(Err(errno)) => return Poll::Ready(Err(errno)),
            }
        }
        let count = state.text.len().min(buffer.len());
        buffer[..count].copy_from_slice(&state.text[..count]);
        state.text.drain(..count);
        state.position += count as u64;
        state.flush = self.transport == Transport::NineP && count < buffer.len();
        Poll::Ready(Ok(count))
    }

    fn write(&self, _offset: u64, _bytes: &[u8], _cancel: &Cancel) -> Answer<usize> {
        item::read_only_file()
    }
}
