//! Requests under way: who has which tag, and what a Tflush waits for.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::filesystem::Cancel;
use crate::message::{HEADER_BYTES, Tag, peek_tag};

/// Type byte of Tflush.
const TFLUSH: u8 = 108;

/// A request from its arrival until its reply was sent.
#[derive(Debug, Default)]
struct UnderWay {
    cancel: Cancel,
    sent: Mutex<bool>,
    on_sent: Condvar,
}

impl UnderWay {
    fn wait(&self) {
        let sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.on_sent.wait_while(sent, |sent| !*sent).unwrap_or_else(PoisonError::into_inner));
    }

    fn finish(&self) {
        *self.sent.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.on_sent.notify_all();
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

    /// Notes that `request` has arrived, and cancels what it flushes.
    ///
    /// A tag that is in use is taken over: a client may reuse one as soon as it sees the reply, which can be before
    /// the sender of the reply drops its ticket.
    pub fn register(tags: &Arc<Self>, request: &[u8]) -> Ticket {
        let tag = peek_tag(request).unwrap_or(Tag::NONE);
        let under_way = Arc::new(UnderWay::default());
        let mut table = tags.lock();
        let flushed = flushed_tag(request).and_then(|old| table.get(&old).cloned());
        table.insert(tag, Arc::clone(&under_way));
        drop(table);
        if let Some(flushed) = &flushed {
            flushed.cancel.cancel();
        }
        Ticket { tags: Arc::clone(tags), tag, under_way, flushed }
    }

    /// Cancels everything.
    pub fn cancel_all(&self) {
        let all: Vec<_> = self.lock().values().cloned().collect();
        all.iter().for_each(|under_way| under_way.cancel.cancel());
    }
}

fn flushed_tag(request: &[u8]) -> Option<Tag> {
    if *request.get(4)? != TFLUSH {
        return None;
    }
    let old = request.get(HEADER_BYTES..HEADER_BYTES + 2)?;
    Some(Tag(u16::from_le_bytes([old[0], old[1]])))
}

/// One request under way. Drop it when the reply was sent, or when there will be none.
#[derive(Debug)]
pub struct Ticket {
    tags: Arc<Tags>,
    tag: Tag,
    under_way: Arc<UnderWay>,
    flushed: Option<Arc<UnderWay>>,
}

impl Ticket {
    pub(super) fn cancel(&self) -> &Cancel {
        &self.under_way.cancel
    }

    /// Waits until the request that this one flushes was answered, if there is one and it is not this one.
    pub(super) fn wait_for_flushed(&self) {
        if let Some(flushed) = &self.flushed {
            flushed.wait();
        }
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
