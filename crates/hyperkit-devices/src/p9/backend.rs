//! The host's side: a 9P server, as the device needs it; and `p9p`'s server as one.

use std::sync::Arc;

use p9p::{Filesystem, Session, Ticket};

/// Bytes of a request that [`P9Service::accept`] gets to see: size, type, tag, and what a Tflush flushes.
pub const START_BYTES: usize = 9;

/// A 9P server's side of one session. Usable from several threads.
pub trait P9Service: Send + Sync {
    /// Most bytes that a request or reply can have.
    fn message_bytes_max(&self) -> usize;

    /// Notes that a request has arrived, of which `start` is the beginning, in the order of arrival. Called
    /// from a vCPU's thread: it must not block.
    fn accept(self: Arc<Self>, start: &[u8]) -> Box<dyn P9Request>;

    /// The driver is gone: no reply is wanted any more, what waits should give up. Must not block.
    fn end(&self);
}

/// A request that has arrived. It is dropped after its reply was given to the driver, or when there will be none.
pub trait P9Request: Send {
    /// Does what `request` asks, writes the reply to the front of `reply` and returns its size in bytes. May block.
    fn answer(&mut self, request: &[u8], reply: &mut [u8]) -> usize;
}

/// Makes a new session, each time the driver starts.
pub type Sessions = Box<dyn Fn() -> Arc<dyn P9Service> + Send>;

/// Sessions with `filesystem`, with messages of up to `message_bytes_max` bytes.
pub fn serve(filesystem: Arc<dyn Filesystem>, message_bytes_max: u32) -> Sessions {
    Box::new(move || Arc::new(Session::new(Arc::clone(&filesystem), message_bytes_max)))
}

struct Accepted {
    session: Arc<Session>,
    ticket: Ticket,
}

impl P9Service for Session {
    fn message_bytes_max(&self) -> usize {
        self.msize_max()
    }

    fn accept(self: Arc<Self>, start: &[u8]) -> Box<dyn P9Request> {
        let ticket = Session::accept(&self, start);
        Box::new(Accepted { session: self, ticket })
    }

    fn end(&self) {
        self.reset();
    }
}

impl P9Request for Accepted {
    fn answer(&mut self, request: &[u8], reply: &mut [u8]) -> usize {
        self.session.answer(&self.ticket, request, reply)
    }
}
