//! Requests under way: who has which tag, and what a Tflush waits for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use crate::filesystem::Cancel;
use crate::message::{HEADER_BYTES, Tag, peek_tag};

/// Type bytes of Tversion and Tflush.
const TVERSION: u8 = 100;
const TFLUSH: u8 = 108;

/// A request from its arrival until its reply was sent.
#[derive(Debug, Default)]
struct UnderWay {
    cancel: Cancel,
    sent: Mutex<Sent>,
}

/// Whether a reply was sent, and who waits for that.
#[derive(Debug, Default)]
struct Sent {
    done: bool,
    waiting: Vec<Waker>,
}

impl UnderWay {
    /// Whether it is done; if not, `waker` will be woken.
    fn poll_sent(&self, waker: &Waker) -> bool {
        let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        if !sent.done && !sent.waiting.iter().any(|waiting| waiting.will_wake(waker)) {
            sent.waiting.push(waker.clone());
        }
        sent.done
    }

    fn finish(&self) {
        let waiting = {
            let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
            sent.done = true;
            std::mem::take(&mut sent.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }
}

/// The requests of a session that are under way.
#[derive(Debug, Default)]
pub(super) struct Tags {
    under_way: Mutex<HashMap<Tag, Arc<UnderWay>>>,
}

impl Tags {
    fn lock(&self) -> MutexGuard<'_, HashMap<Tag, Arc<UnderWay>>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that `request` has arrived, and cancels what it ends: a Tflush its old request, a Tversion everything.
    ///
    /// A tag that is in use is taken over: a client may reuse one as soon as it sees the reply, which can be before
    /// the sender of the reply drops its ticket.
    pub fn register(tags: &Arc<Self>, request: &[u8]) -> Ticket {
        let tag = peek_tag(request).unwrap_or(Tag::NONE);
        let under_way = Arc::new(UnderWay::default());
        let mut table = tags.lock();
        let ended: Vec<_> = match request.get(4) {
            Some(&TVERSION) => table.values().cloned().collect(),
            Some(&TFLUSH) => {
                flushed_tag(request).and_then(|old| table.get(&old).cloned()).into_iter().collect()
            }
            _ => Vec::new(),
        };
        table.insert(tag, Arc::clone(&under_way));
        drop(table);
        ended.iter().for_each(|ended| ended.cancel.cancel());
        Ticket { tags: Arc::clone(tags), tag, under_way, ended }
    }

    /// Cancels everything.
    pub fn cancel_all(&self) {
        let all: Vec<_> = self.lock().values().cloned().collect();
        all.iter().for_each(|under_way| under_way.cancel.cancel());
    }
}

fn flushed_tag(request: &[u8]) -> Option<Tag> {
    let old = request.get(HEADER_BYTES..HEADER_BYTES + 2)?;
    Some(Tag(u16::from_le_bytes([old[0], old[1]])))
}

/// One request under way. Drop it when the reply was sent, or when there will be none.
#[derive(Debug)]
pub struct Ticket {
    tags: Arc<Tags>,
    tag: Tag,
    under_way: Arc<UnderWay>,
    ended: Vec<Arc<UnderWay>>,
}

impl Ticket {
    pub(super) fn cancel(&self) -> &Cancel {
        &self.under_way.cancel
    }

    /// Ready when what this request ends was answered, or will never be.
    pub(super) fn poll_ended(&self, waker: &Waker) -> Poll<()> {
        if self.ended.iter().all(|ended| ended.poll_sent(waker)) { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut table = self.tags.lock();
        if table.get(&self.tag).is_some_and(|under_way| Arc::ptr_eq(under_way, &self.under_way)) {
            table.remove(&self.tag);
        }
        drop(table);
        self.under_way.finish();
    }
}
