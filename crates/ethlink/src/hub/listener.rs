//! Sockets that machines connect to.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Bytes that the kernel may keep for a packet socket: datagrams have no other queue.
const SOCKET_BYTES: usize = 4 << 20;

/// What machines connect with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// QEMU's `-netdev stream`, passt, socket_vmnet: each frame has its length before it, 4 bytes, big-endian.
    Qemu,
    /// VPNKit's vmnet 22: HyperKit, `vpnkit-tap-vsockd`.
    Vmnet,
    /// gvproxy's: an HTTP request `POST /connect`, then frames with a length of 2 bytes, little-endian.
    Connect,
    /// `SOCK_SEQPACKET`, a frame a packet: user-mode Linux, bess.
    Bess,
    /// `SOCK_DGRAM`, a frame a datagram: vfkit, libkrun, QEMU's `-netdev dgram`.
    Datagram,
    /// vhost-user: frames in shared memory, with offloads. QEMU, cloud-hypervisor, crosvm.
    VhostUser,
}

/// Where machines connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A Unix socket.
    Unix(PathBuf),
    /// A TCP port; only for streams.
    Tcp(SocketAddr),
}

/// A socket that is bound.
#[derive(Debug)]
pub(super) struct Listener {
    pub fd: OwnedFd,
    pub protocol: Protocol,
    /// Removed with the listener.
    pub path: Option<PathBuf>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // It may be gone already.
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Listener {
    /// A socket that is bound, and not listened at yet. A Unix socket that nobody listens to any more is replaced.
    pub fn bind(protocol: Protocol, address: &Address) -> io::Result<Self> {
        let kind = match protocol {
            Protocol::Qemu | Protocol::Vmnet | Protocol::Connect | Protocol::VhostUser => SocketType::STREAM,
            Protocol::Bess => SocketType::SEQPACKET,
            Protocol::Datagram => SocketType::DGRAM,
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (fd, path) = match address {
            Address::Unix(path) => {
                remove_stale(path, kind);
                let fd = net::socket_with(AddressFamily::UNIX, kind, flags, None)?;
                net::bind(&fd, &SocketAddrUnix::new(path)?)?;
                (fd, Some(path.clone()))
            }
            Address::Tcp(_) if kind != SocketType::STREAM => {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "packets go over Unix sockets only"));
            }
            Address::Tcp(address) => {
                let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
                let fd = net::socket_with(family, kind, flags, None)?;
                net::sockopt::set_socket_reuseaddr(&fd, true)?;
                net::bind(&fd, address)?;
                (fd, None)
            }
        };
        Ok(Self { fd, protocol, path })
    }
}

/// Gives a socket long queues, which are short by default. A refusal leaves those, and a device has none.
pub(super) fn widen(fd: BorrowedFd<'_>) {
    use net::sockopt;
    if sockopt::set_socket_send_buffer_size_force(fd, SOCKET_BYTES).is_err() {
        let _ = sockopt::set_socket_send_buffer_size(fd, SOCKET_BYTES);
    }
    if sockopt::set_socket_recv_buffer_size_force(fd, SOCKET_BYTES).is_err() {
        let _ = sockopt::set_socket_recv_buffer_size(fd, SOCKET_BYTES);
    }
}

/// Removes a socket that nobody listens to.
fn remove_stale(path: &Path, kind: SocketType) {
    let Ok(address) = SocketAddrUnix::new(path) else { return };
    let Ok(probe) = net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None) else { return };
    if net::connect(&probe, &address) == Err(Errno::CONNREFUSED) {
        // If it fails, so does the bind.
        let _ = std::fs::remove_file(path);
    }
}
