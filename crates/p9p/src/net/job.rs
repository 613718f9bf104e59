//! One request, from its arrival until its reply is sent, possibly put aside in between.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Wake, Waker};

use super::connection::Connection;
use super::server::Shared;
use crate::errno::Errno;
use crate::server::Ticket;

/// Where a job is. Only its runner moves it out of `RUNNING` and `NOTIFIED`; only a waker moves it out of `PARKED`.
mod stage {
    pub const QUEUED: u8 = 0;
    pub const RUNNING: u8 = 1;
    /// Woken while running: to be run again.
    pub const NOTIFIED: u8 = 2;
    pub const PARKED: u8 = 3;
    pub const DONE: u8 = 4;
}

/// A request under way.
pub(super) struct Job {
    shared: Arc<Shared>,
    connection: Arc<Connection>,
    ticket: Mutex<Option<Ticket>>,
    request: Vec<u8>,
    stage: AtomicU8,
}

impl Job {
    /// Registers a request that has arrived.
    pub fn new(shared: &Arc<Shared>, connection: &Arc<Connection>, request: Vec<u8>) -> Arc<Self> {
        let ticket = connection.session.accept(&request);
        Arc::new(Self {
            shared: Arc::clone(shared),
            connection: Arc::clone(connection),
            ticket: Mutex::new(Some(ticket)),
            request,
            stage: AtomicU8::new(stage::QUEUED),
        })
    }

    /// Bytes of the request.
    pub fn len(&self) -> usize {
        self.request.len()
    }

    /// Answers it, unless it has to wait: for an event, or for the client to take earlier replies.
    pub fn run(self: Arc<Self>, buffer: &mut Vec<u8>) {
        let connection = Arc::clone(&self.connection);
        let Some(job) = connection.hold_if_full(self) else { return };
        let size = job.connection.session.msize();
        if buffer.len() < size {
            buffer.resize(size, 0);
        }
        let waker = Waker::from(Arc::clone(&job));
        let mut ticket = job.ticket.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(under_way) = ticket.as_ref() else { return };
        job.stage.store(stage::RUNNING, Ordering::Release);
        loop {
            if let Poll::Ready(bytes) = job.poll(under_way, buffer, &waker) {
                job.stage.store(stage::DONE, Ordering::Release);
                job.connection.send(&job.shared, buffer, bytes);
                // Only now may a Tflush of this request be answered.
                ticket.take();
                drop(ticket);
                job.connection.finish(&job.shared, job.len());
                return;
            }
            job.connection.park();
            let parked = job.stage.compare_exchange(
                stage::RUNNING,
                stage::PARKED,
                Ordering::AcqRel,
                Ordering::Acquire,
            );
            if parked.is_ok() {
                drop(ticket);
                job.connection.settle(&job.shared);
                return;
            }
            job.connection.unpark();
            job.stage.store(stage::RUNNING, Ordering::Release);
        }
    }

    /// A service that panics fails its request and no other.
    fn poll(&self, ticket: &Ticket, buffer: &mut [u8], waker: &Waker) -> Poll<usize> {
        let session = &self.connection.session;
        let polled =
            catch_unwind(AssertUnwindSafe(|| session.poll_answer(ticket, &self.request, buffer, waker)));
        polled.unwrap_or_else(|_| Poll::Ready(session.refuse(&self.request, Errno::EIO, buffer)))
    }
}

impl Wake for Job {
    fn wake(self: Arc<Self>) {
        let woken = self.stage.fetch_update(Ordering::AcqRel, Ordering::Acquire, |now| match now {
            stage::RUNNING => Some(stage::NOTIFIED),
            stage::PARKED => Some(stage::QUEUED),
            _ => None,
        });
        if woken == Ok(stage::PARKED) {
            self.connection.unpark();
            let shared = Arc::clone(&self.shared);
            shared.push(self);
        }
    }
}
