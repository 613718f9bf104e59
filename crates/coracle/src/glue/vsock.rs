//! The host's vsock ports: the guest connects, the session gets the other end of a socket pair.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};

use hyperkit::devices::vsock::VsockBackend;

/// Ports that guests may connect to; everything else is refused.
#[derive(Debug)]
pub struct Ports {
    opened: Sender<(u32, UnixStream)>,
    allowed: &'static [u32],
}

impl Ports {
    /// Accepts connections to `allowed`; each appears on the receiver with its port.
    pub fn new(allowed: &'static [u32]) -> (Ports, Receiver<(u32, UnixStream)>) {
        let (sender, receiver) = channel();
        (Ports { opened: sender, allowed }, receiver)
    }
}

impl VsockBackend for Ports {
    fn connect(&self, port: u32) -> io::Result<UnixStream> {
        if !self.allowed.contains(&port) {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (device, session) = UnixStream::pair()?;
        self.opened.send((port, session)).map_err(|_| io::ErrorKind::ConnectionRefused)?;
        Ok(device)
    }
}
