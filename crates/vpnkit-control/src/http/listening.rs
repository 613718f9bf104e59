//! Sockets to serve on, which are bound before the process that serves may bind no more.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use super::ServeError;

/// A bound socket.
#[derive(Debug)]
pub enum Listening {
    /// A Unix socket and its path.
    Unix(UnixListener, PathBuf),
    /// A TCP port.
    Tcp(TcpListener),
}

impl Listening {
    /// Binds a Unix socket. One that a program which is gone left there is replaced.
    ///
    /// # Errors
    /// When the path is in use or cannot be bound.
    pub fn unix(path: &Path) -> Result<Self, ServeError> {
        let failed = |source| ServeError::Socket { path: path.to_owned(), source };
        if UnixStream::connect(path).is_ok() {
            return Err(ServeError::InUse { path: path.to_owned() });
        }
        if std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
            std::fs::remove_file(path).map_err(failed)?;
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(Self::Unix(listener, path.to_owned()))
    }

    /// Binds a TCP port.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn tcp(address: SocketAddr) -> Result<Self, ServeError> {
        let failed = |source| ServeError::Address { address, source };
        let listener = TcpListener::bind(address).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(Self::Tcp(listener))
    }

    /// Where it listens, on TCP.
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Unix(..) => None,
            Self::Tcp(listener) => listener.local_addr().ok(),
        }
    }
}
