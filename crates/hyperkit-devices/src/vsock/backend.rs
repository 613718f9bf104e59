//! The host's side: who accepts the guest's connections, and the handle to connect into the guest.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::worker::Mailbox;

/// How long [`VsockHandle::connect`] waits for the guest.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Accepts connections that the guest makes to the host. Called from the device's thread: it holds up all
/// connections while it runs.
pub trait VsockBackend: Send + Sync {
    /// The guest connects to `port` of the host. Returns the device's end of a new stream.
    ///
    /// End of file and half-close go each way as with any socket. The device sets nothing on it.
    ///
    /// # Errors
    /// Any: the guest sees its connection refused.
    fn connect(&self, port: u32) -> io::Result<UnixStream>;
}

/// Connects to sockets that listen in the guest. Clones are the same; usable from any thread.
#[derive(Clone)]
pub struct VsockHandle {
    pub(super) current: Arc<Mutex<Option<Arc<Mailbox>>>>,
}

impl VsockHandle {
    /// Connects to `guest_port`, and waits up to 10 s for the guest's answer.
    ///
    /// # Errors
    /// As [`VsockHandle::connect_timeout`].
    pub fn connect(&self, guest_port: u32) -> io::Result<UnixStream> {
        self.connect_timeout(guest_port, CONNECT_TIMEOUT)
    }

    /// Connects to `guest_port`, and waits for the guest's answer as long as `timeout`.
    ///
    /// # Errors
    /// `NotConnected` while the guest has no driver; `ConnectionRefused` when nobody listens there;
    /// `ConnectionReset` when the driver goes away; `TimedOut`; what the host says when it has no descriptors.
    pub fn connect_timeout(&self, guest_port: u32, timeout: Duration) -> io::Result<UnixStream> {
        let mailbox = self.lock().clone().ok_or(io::ErrorKind::NotConnected)?;
        let (ours, theirs) = UnixStream::pair()?;
        let (answer, answered) = sync_channel(1);
        mailbox.request(guest_port, theirs, answer)?;
        match answered.recv_timeout(timeout) {
            Ok(answer) => answer.map(|()| ours),
            Err(RecvTimeoutError::Timeout) => Err(io::ErrorKind::TimedOut.into()),
            Err(RecvTimeoutError::Disconnected) => Err(io::ErrorKind::ConnectionReset.into()),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Option<Arc<Mailbox>>> {
        self.current.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
