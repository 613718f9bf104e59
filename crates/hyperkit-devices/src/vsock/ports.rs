//! Ports of the host that this process itself serves.

use std::collections::HashMap;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::backend::VsockBackend;

/// Connections that wait to be accepted on one port; more are refused.
const BACKLOG: usize = 128;

/// Where the connections to each port go.
type Listening = HashMap<u32, SyncSender<UnixStream>>;

/// A [`VsockBackend`] whose ports are served in this process. Ports that nobody listens on refuse.
#[derive(Default)]
pub struct Ports {
    listening: Arc<Mutex<Listening>>,
}

/// Accepts the connections that the guest makes to one port. Dropping it closes the port.
pub struct Listener {
    port: u32,
    listening: Arc<Mutex<Listening>>,
    accepted: Receiver<UnixStream>,
}

impl Ports {
    /// Ports of which none is listened on.
    pub fn new() -> Ports {
        Ports::default()
    }

    /// Starts to listen on `port`.
    ///
    /// # Errors
    /// `AddrInUse` when there is a listener already.
    pub fn listen(&self, port: u32) -> io::Result<Listener> {
        let mut listening = lock(&self.listening);
        if listening.contains_key(&port) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let (sender, accepted) = sync_channel(BACKLOG);
        listening.insert(port, sender);
        Ok(Listener { port, listening: Arc::clone(&self.listening), accepted })
    }
}

impl VsockBackend for Ports {
    fn connect(&self, port: u32) -> io::Result<UnixStream> {
        let listening = lock(&self.listening);
        let listener = listening.get(&port).ok_or(io::ErrorKind::ConnectionRefused)?;
        let (ours, theirs) = UnixStream::pair()?;
        listener.try_send(ours).map_err(|error| match error {
            TrySendError::Full(_) => io::Error::from(io::ErrorKind::WouldBlock),
            TrySendError::Disconnected(_) => io::Error::from(io::ErrorKind::ConnectionRefused),
        })?;
        Ok(theirs)
    }
}

impl Listener {
    /// Waits for the guest's next connection.
    ///
    /// # Errors
    /// `TimedOut` after `timeout`.
    pub fn accept(&self, timeout: Duration) -> io::Result<UnixStream> {
        self.accepted.recv_timeout(timeout).map_err(|error| match error {
            RecvTimeoutError::Timeout => io::ErrorKind::TimedOut.into(),
            RecvTimeoutError::Disconnected => io::ErrorKind::NotConnected.into(),
        })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        lock(&self.listening).remove(&self.port);
    }
}

fn lock(listening: &Mutex<Listening>) -> MutexGuard<'_, Listening> {
    listening.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read, Write};

    use super::*;

    #[test]
    fn connection_reaches_the_listener_of_its_port() {
        let ports = Ports::new();
        let listener = ports.listen(7).unwrap();
        let _other = ports.listen(8).unwrap();
        ports.connect(7).unwrap().write_all(b"seven").unwrap();
        let mut bytes = Vec::new();
        listener.accept(Duration::ZERO).unwrap().read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, b"seven");
        assert_eq!(listener.accept(Duration::ZERO).unwrap_err().kind(), ErrorKind::TimedOut);
    }

    #[test]
    fn port_is_one_listeners_until_it_is_dropped() {
        let ports = Ports::new();
        assert_eq!(ports.connect(7).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        let listener = ports.listen(7).unwrap();
        assert_eq!(ports.listen(7).err().unwrap().kind(), ErrorKind::AddrInUse);
        drop(listener);
        assert!(ports.listen(7).is_ok());
    }

    #[test]
    fn listener_that_does_not_accept_makes_the_port_refuse() {
        let ports = Ports::new();
        let _listener = ports.listen(7).unwrap();
        let streams: Vec<_> = (0..BACKLOG).map(|_| ports.connect(7).unwrap()).collect();
        assert!(ports.connect(7).is_err());
        drop(streams);
    }
}
