//! Forwards that go through a hypervisor's socket to the forwarder in its machine, in place of the Ethernet.
//!
//! One thread has all sockets: those that listen, those of clients, and the connection. The connection is made when the
//! first client comes, and again after it broke; its streams are reset then, as the machine has forgotten them.
//!
//! Spec: moby/vpnkit, `src/bin/connect.ml` (what is said to the hypervisor), `src/hostnet/forward.ml`.

mod flow;
mod run;

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;
use rustix::net::{self, AddressFamily, SocketFlags, SocketType};
use vpnkit::{Counters, Flows, Forward, ForwardError, MacAddr, Protocol, Update};
use vpnkit_control::Network;

/// Context id and port of the forwarder, as a hypervisor's socket wants them said.
pub const GREETING: &[u8] = b"00000003.0000f3a5\n";

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// Bytes of a path in the machine: `sun_path` of unix(7) without the zero at its end.
const PATH_BYTES_MAX: usize = 107;

/// How the hypervisor's socket is connected to: a confined process has it done for it.
pub type Connect = Box<dyn Fn() -> std::io::Result<UnixStream> + Send>;

/// A network whose forwards go through a hypervisor's socket; all else is the inner network's.
pub struct Tunnel {
    inner: Arc<dyn Network>,
    orders: Sender<Order>,
    wake: Arc<OwnedFd>,
    /// What is forwarded: whether UDP, and where.
    bound: Mutex<HashSet<(bool, SocketAddr)>>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread is told.
enum Order {
    Tcp(Forward, TcpListener),
    Udp(Forward, UdpSocket),
    /// A client of a Unix socket in the machine.
    Path(OwnedFd, Vec<u8>),
    /// The answer is that its socket is closed.
    End(Forward, Sender<()>),
    Stop,
}

impl Tunnel {
    /// Forwards through the socket that `connect` gives, to which `GREETING` is said; nothing is connected yet.
    ///
    /// # Errors
    /// When the host has no descriptors or threads left.
    pub fn start(inner: Arc<dyn Network>, connect: Connect) -> std::io::Result<Self> {
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (orders, received): (_, Receiver<Order>) = mpsc::channel();
        let mut runner = run::Runner::new(connect, Arc::clone(&wake), received)?;
        let thread = thread::Builder::new().name("port-forwards".into()).spawn(move || runner.run())?;
        Ok(Self { inner, orders, wake, bound: Mutex::default(), thread: Some(thread) })
    }

    fn bound(&self) -> MutexGuard<'_, HashSet<(bool, SocketAddr)>> {
        self.bound.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn order(&self, order: Order) -> Result<(), ForwardError> {
        self.orders.send(order).map_err(|_| ForwardError::Stopped)?;
        // It counts to 2^64; there is nothing to wait for.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        Ok(())
    }
}

fn key(forward: &Forward) -> (bool, SocketAddr) {
    (forward.protocol == Protocol::Udp, forward.bind)
}

/// What a failed bind means.
fn refused(forward: &Forward, source: std::io::Error) -> ForwardError {
    let (protocol, bind) = (forward.protocol, forward.bind);
    match source.kind() {
        std::io::ErrorKind::AddrInUse => ForwardError::InUse { protocol, bind },
        std::io::ErrorKind::PermissionDenied => ForwardError::Denied { protocol, bind },
        std::io::ErrorKind::AddrNotAvailable => ForwardError::NotLocal { protocol, bind },
        _ => ForwardError::Os { protocol, bind, source },
    }
}

/// A socket of the host's side, nonblocking; of IPv6 alone if it is, as those of the engine.
fn bound(forward: &Forward) -> std::io::Result<OwnedFd> {
    let family = if forward.bind.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let (kind, is_tcp) = match forward.protocol {
        Protocol::Tcp => (SocketType::STREAM, true),
        Protocol::Udp => (SocketType::DGRAM, false),
    };
    let fd = net::socket_with(family, kind, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)?;
    if forward.bind.is_ipv6() {
        net::sockopt::set_ipv6_v6only(&fd, true)?;
    }
    if is_tcp {
        net::sockopt::set_socket_reuseaddr(&fd, true)?;
    }
    net::bind(&fd, &forward.bind)?;
    if is_tcp {
        net::listen(&fd, BACKLOG)?;
    }
    Ok(fd)
}

impl Network for Tunnel {
    fn forward(&self, forward: Forward) -> Result<SocketAddr, ForwardError> {
        let failed = |error| refused(&forward, error);
        let local = match forward.protocol {
            Protocol::Tcp => {
                let listener = TcpListener::from(bound(&forward).map_err(failed)?);
                let local = listener.local_addr().map_err(failed)?;
                self.order(Order::Tcp(Forward { bind: local, ..forward }, listener))?;
                local
            }
            Protocol::Udp => {
                let socket = UdpSocket::from(bound(&forward).map_err(failed)?);
                let local = socket.local_addr().map_err(failed)?;
                self.order(Order::Udp(Forward { bind: local, ..forward }, socket))?;
                local
            }
        };
        self.bound().insert((forward.protocol == Protocol::Udp, local));
        Ok(local)
    }

    fn unforward(&self, forward: Forward) -> Result<(), ForwardError> {
        if !self.bound().remove(&key(&forward)) {
            return Err(ForwardError::Unknown { protocol: forward.protocol, bind: forward.bind });
        }
        let (done, ended) = mpsc::channel();
        self.order(Order::End(forward, done))?;
        // So that the port is free when we return.
        ended.recv().map_err(|_| ForwardError::Stopped)
    }

    fn check_guest(&self, guest: SocketAddr) -> Result<(), ForwardError> {
        self.inner.check_guest(guest)
    }

    fn lead(&self, stream: std::os::fd::OwnedFd, guest: SocketAddr) -> Result<(), ForwardError> {
        self.inner.lead(stream, guest)
    }

    fn lead_to_path(&self, stream: std::os::fd::OwnedFd, path: &Path) -> Result<(), ForwardError> {
        self.check_path(path)?;
        // One that cannot be made so would hold everybody up.
        rustix::io::ioctl_fionbio(&stream, true).map_err(|_| ForwardError::Stopped)?;
        self.order(Order::Path(stream, path.as_os_str().as_bytes().to_vec()))
    }

    fn check_path(&self, path: &Path) -> Result<(), ForwardError> {
        let bytes = path.as_os_str().as_bytes();
        if bytes.is_empty() || bytes.len() > PATH_BYTES_MAX {
            return Err(ForwardError::NotPath(path.to_owned()));
        }
        Ok(())
    }

    fn leases(&self) -> Vec<(Ipv4Addr, MacAddr)> {
        self.inner.leases()
    }

    fn update(&self, update: Update) {
        self.inner.update(update);
    }

    fn flows(&self) -> Flows {
        self.inner.flows()
    }

    fn counters(&self) -> Counters {
        self.inner.counters()
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        let _ = self.order(Order::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl std::fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tunnel").field("forwards", &self.bound().len()).finish_non_exhaustive()
    }
}
