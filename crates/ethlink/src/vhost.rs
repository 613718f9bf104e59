//! A machine over vhost-user: its network device's queues lie in memory that it shares with us, so that frames cross
//! without a system call each, and large ones whole.
//!
//! `vhost` speaks the protocol, on a thread for each machine, which only moves descriptors and settings; `vm-memory`
//! and `virtio-queue` check every access. The hub's thread moves the frames. Spec: QEMU's docs/interop/vhost-user.rst,
//! virtio 1.2 §5.1.

mod backend;
mod rings;

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, Event};
use vhost::vhost_user::BackendReqHandler;

use crate::vnet::Vnet;
use backend::Backend;
pub use rings::{Refused, Rings, Sent};

/// Events taken in one go: there are no more descriptors than these.
const EVENTS_MAX: usize = 4;

/// The machine.
#[derive(Debug)]
pub struct VhostUser {
    backend: Arc<Mutex<Backend>>,
    /// Readable when there is something to do.
    events: OwnedFd,
    /// The protocol's connection, which ends with the port.
    stream: UnixStream,
}

impl VhostUser {
    /// Begins to talk to a machine that has connected.
    ///
    /// # Errors
    /// When the system has no descriptor or thread left.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let stream = UnixStream::from(fd);
        stream.set_nonblocking(false)?;
        let events = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let backend = Arc::new(Mutex::new(Backend::new(events.try_clone()?)?));
        let handler = BackendReqHandler::from_stream(stream.try_clone()?, Arc::clone(&backend));
        std::thread::Builder::new().name("vhost-user".into()).spawn({
            let backend = Arc::clone(&backend);
            move || serve(handler, &backend)
        })?;
        Ok(Self { backend, events, stream })
    }

    fn backend(&self) -> MutexGuard<'_, Backend> {
        lock(&self.backend)
    }

    /// Takes a burst of frames; returns whether the machine is still there.
    pub fn receive(&mut self, scratch: &mut [u8], take: &mut dyn FnMut(&Vnet, &[u8])) -> bool {
        let mut events = Vec::<Event>::with_capacity(EVENTS_MAX);
        // It waits for nothing; without it the kicks stay, and come again.
        let _ =
            epoll::wait(&self.events, spare_capacity(&mut events), Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        let mut backend = self.backend();
        for event in &events {
            backend.clear(event.data.u64());
        }
        backend.rings.receive(scratch, take);
        !backend.is_closed()
    }

    /// Whether frames may be sent now.
    pub fn has_room(&self) -> bool {
        !self.backend().rings.is_full()
    }

    /// Sends a frame; returns false when it was dropped.
    pub fn send(&mut self, vnet: &Vnet, parts: &[&[u8]]) -> bool {
        self.backend().rings.send(vnet, parts)
    }

    /// Tells the machine of frames that were sent.
    pub fn flush(&mut self) {
        self.backend().rings.flush();
    }
}

impl Drop for VhostUser {
    fn drop(&mut self) {
        // It ends the thread; a connection that is gone has done so already.
        let _ = self.stream.shutdown(Shutdown::Both);
        self.backend().close();
    }
}

impl AsFd for VhostUser {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

/// Answers a machine's requests until it is gone or says something impossible.
fn serve(mut handler: BackendReqHandler<Mutex<Backend>>, backend: &Mutex<Backend>) {
    use vhost::vhost_user::Error;
    loop {
        match handler.handle_request() {
            Ok(()) | Err(Error::SocketRetry(_)) => {}
            // A request that was refused: it has been answered, if an answer was asked for.
            Err(
                Error::ReqHandlerError(_)
                | Error::InvalidOperation(_)
                | Error::InvalidParam
                | Error::InactiveFeature(_)
                | Error::InactiveOperation(_),
            ) => {}
            Err(_) => break,
        }
    }
    lock(backend).close();
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
