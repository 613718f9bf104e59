//! Sockets: made from an [`Address`], listening or connected; one type for all families.

use std::io::{self, IoSlice, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno as OsErrno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendFlags, Shutdown, SocketFlags, accept_with, send, sendmsg,
    shutdown, sockopt,
};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::address::Address;
use crate::auth::PeerIds;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;
/// How long a TCP connection may be idle before the peer is asked whether it is there, how often, and how many times.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 6;
/// How long what was sent over TCP may stay without acknowledgement.
const UNACKNOWLEDGED_MS_MAX: u32 = 60_000;

/// Why an address cannot be listened on or connected to.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message documents its variant")]
pub enum SocketError {
    #[error("cannot listen on {address}")]
    Listen { address: Address, source: io::Error },
    #[error("cannot connect to {address}")]
    Connect { address: Address, source: io::Error },
    #[error("{address} is not a socket that this process inherited")]
    NotInherited { address: Address, source: io::Error },
    #[error("{address} is a connected socket, not one to listen on")]
    NotListening { address: Address },
    #[error("{address} is a listening socket, not a connection")]
    NotConnected { address: Address },
}

/// A connected stream socket. Clones are the same socket.
#[derive(Debug, Clone)]
pub struct Socket {
    fd: Arc<OwnedFd>,
}

impl Socket {
    /// Takes over a connected stream socket.
    pub fn new(fd: OwnedFd) -> Self {
        let socket = Self { fd: Arc::new(fd) };
        socket.tune();
        socket
    }

    /// Connects, which may take up to `wait`.
    ///
    /// # Errors
    /// [`SocketError`].
    pub fn connect(address: &Address, wait: Duration) -> Result<Self, SocketError> {
        let failed = |source| SocketError::Connect { address: address.clone(), source };
        match address {
            Address::Tcp { host, port } => connect_tcp(host, *port, wait).map(Self::new).map_err(failed),
            Address::Unix(path) => {
                UnixStream::connect(path).map(|stream| Self::new(stream.into())).map_err(failed)
            }
            Address::Vsock { cid, port } => connect_vsock(*cid, *port).map(Self::new).map_err(failed),
            Address::Inherited(number) => match inherited(*number) {
                Ok(fd) if sockopt::socket_acceptconn(&fd).unwrap_or(false) => {
                    Err(SocketError::NotConnected { address: address.clone() })
                }
                Ok(fd) => Ok(Self::new(fd)),
                Err(source) => Err(SocketError::NotInherited { address: address.clone(), source }),
            },
        }
    }

    /// No waiting for more to send, and dead peers are found out.
    fn tune(&self) {
        let family = sockopt::socket_domain(&*self.fd);
        if matches!(family, Ok(AddressFamily::INET | AddressFamily::INET6)) {
            // A kernel that lacks one of these serves all the same.
            let _ = sockopt::set_tcp_nodelay(&*self.fd, true);
            let _ = sockopt::set_socket_keepalive(&*self.fd, true);
            let _ = sockopt::set_tcp_keepidle(&*self.fd, KEEPALIVE_IDLE);
            let _ = sockopt::set_tcp_keepintvl(&*self.fd, KEEPALIVE_INTERVAL);
            let _ = sockopt::set_tcp_keepcnt(&*self.fd, KEEPALIVE_PROBES);
            let _ = sockopt::set_tcp_user_timeout(&*self.fd, UNACKNOWLEDGED_MS_MAX);
        }
    }

    /// Who is at the other end, of a unix socket.
    pub fn peer_ids(&self) -> Option<PeerIds> {
        if sockopt::socket_domain(&*self.fd) != Ok(AddressFamily::UNIX) {
            return None;
        }
        let ids = sockopt::socket_peercred(&*self.fd).ok()?;
        Some(PeerIds { uid: ids.uid.as_raw(), gid: ids.gid.as_raw() })
    }

    /// Waits until there is something to read, the end included; `false` when `wait` was not enough.
    ///
    /// # Errors
    /// What poll(2) fails with.
    pub fn wait_readable(&self, wait: Option<Duration>) -> io::Result<bool> {
        let timeout = wait.map(|wait| Timespec {
            tv_sec: wait.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: wait.subsec_nanos().into(),
        });
        match poll(&mut [PollFd::new(&*self.fd, PollFlags::IN)], timeout.as_ref()) {
            Ok(ready) => Ok(ready > 0),
            Err(OsErrno::INTR) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Sends the beginning of `bytes` without ever raising SIGPIPE.
    ///
    /// # Errors
    /// What send(2) fails with.
    pub fn send(&self, bytes: &[u8]) -> Result<usize, OsErrno> {
        send(&*self.fd, bytes, SendFlags::NOSIGNAL)
    }

    /// Ends the connection in both directions, whoever else has the socket.
    pub fn hang_up(&self) {
        // One that is gone already is no error.
        let _ = shutdown(&*self.fd, Shutdown::Both);
    }

    pub(super) fn set_nonblocking(&self) -> io::Result<()> {
        Ok(fcntl_setfl(&*self.fd, fcntl_getfl(&*self.fd)? | OFlags::NONBLOCK)?)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(&*self.fd, buffer)?)
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(self.send(bytes)?)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut control = SendAncillaryBuffer::default();
        Ok(sendmsg(&*self.fd, slices, &mut control, SendFlags::NOSIGNAL)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl From<TcpStream> for Socket {
    fn from(stream: TcpStream) -> Self {
        Self::new(stream.into())
    }
}

impl From<UnixStream> for Socket {
    fn from(stream: UnixStream) -> Self {
        Self::new(stream.into())
    }
}

fn connect_tcp(host: &str, port: u16, wait: Duration) -> io::Result<OwnedFd> {
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "the host's name has no address");
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, wait) {
            Ok(stream) => return Ok(stream.into()),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

fn vsock_socket() -> io::Result<OwnedFd> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    Ok(socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?)
}

fn connect_vsock(cid: u32, port: u32) -> io::Result<OwnedFd> {
    let fd = vsock_socket()?;
    nix::sys::socket::connect(fd.as_raw_fd(), &nix::sys::socket::VsockAddr::new(cid, port))?;
    Ok(fd)
}

/// A copy of a descriptor that this process was started with, if it is a socket.
fn inherited(number: u32) -> io::Result<OwnedFd> {
    let fd = match number {
        0 => io::stdin().as_fd().try_clone_to_owned()?,
        1 => io::stdout().as_fd().try_clone_to_owned()?,
        2 => io::stderr().as_fd().try_clone_to_owned()?,
        // The one way to a descriptor by its number that needs no promise about who else uses it: the copy is ours.
        number => {
            let this = rustix::process::getpid();
            let number = i32::try_from(number).map_err(|_| OsErrno::BADF)?;
            duplicate(this, number)?
        }
    };
    sockopt::socket_type(&fd)?;
    Ok(fd)
}

fn duplicate(process: Pid, number: i32) -> Result<OwnedFd, OsErrno> {
    pidfd_getfd(pidfd_open(process, PidfdFlags::empty())?, number, PidfdGetfdFlags::empty())
}

/// A listening socket. Its path, of a unix socket, goes with it.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
    /// Where it listens; with the port that was chosen for 0.
    address: Address,
    path: Option<PathBuf>,
}

impl Listener {
    /// Listens. A unix socket's path that nobody listens on any more is taken over.
    ///
    /// # Errors
    /// [`SocketError`].
    pub fn bind(address: &Address) -> Result<Self, SocketError> {
        let failed = |source| SocketError::Listen { address: address.clone(), source };
        let (fd, bound, path): (OwnedFd, _, _) = match address {
            Address::Tcp { host, port } => {
                let listener = TcpListener::bind((host.as_str(), *port)).map_err(failed)?;
                let local = listener.local_addr().map_err(failed)?;
                (listener.into(), Address::Tcp { host: host.clone(), port: local.port() }, None)
            }
            Address::Unix(path) => {
                (bind_unix(path).map_err(failed)?.into(), address.clone(), Some(path.clone()))
            }
            Address::Vsock { cid, port } => (bind_vsock(*cid, *port).map_err(failed)?, address.clone(), None),
            Address::Inherited(number) => {
                let absent = |source| SocketError::NotInherited { address: address.clone(), source };
                let fd = inherited(*number).map_err(absent)?;
                if !sockopt::socket_acceptconn(&fd).unwrap_or(false) {
                    return Err(SocketError::NotListening { address: address.clone() });
                }
                (fd, address.clone(), None)
            }
        };
        let nonblocking = fcntl_getfl(&fd).and_then(|flags| fcntl_setfl(&fd, flags | OFlags::NONBLOCK));
        nonblocking.map_err(|errno| failed(errno.into()))?;
        Ok(Self { fd, address: bound, path })
    }

    /// Where it listens.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The next connection; EAGAIN when there is none.
    pub(super) fn accept(&self) -> Result<Socket, OsErrno> {
        accept_with(&self.fd, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK).map(Socket::new)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // Somebody may have removed it already.
            let _ = std::fs::remove_file(path);
        }
    }
}

fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let is_socket = std::fs::symlink_metadata(path)?.file_type().is_socket();
            if !is_socket || UnixStream::connect(path).is_ok() {
                return Err(error);
            }
            std::fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        other => other,
    }
}

fn bind_vsock(cid: u32, port: u32) -> io::Result<OwnedFd> {
    let fd = vsock_socket()?;
    nix::sys::socket::bind(fd.as_raw_fd(), &nix::sys::socket::VsockAddr::new(cid, port))?;
    rustix::net::listen(&fd, BACKLOG)?;
    Ok(fd)
}
