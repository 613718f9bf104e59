//! UDP sockets of the host: one for each port of a guest that sends.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{SendFlags, sockopt};
use vpnkit_stack::{ConnectError, Hops, UdpId};

use super::poller::{Owner, Token};
use super::{Host, sys, tcp};

/// Datagrams taken from one socket before it is the others' turn.
const BURST: usize = 64;
/// What a new socket does. Linux would not fragment what is larger than a path that it knows, which to the host itself,
/// where this is used, makes no difference.
const DEFAULT: Hops = Hops { ttl: 64, dont_fragment: false };

/// Bytes that the kernel may keep for a socket until this thread has its turn: 40 ms of a gigabit a second, were they
/// all data; each datagram counts with what the kernel adds to it.
const QUEUE_BYTES: usize = 4 << 20;

/// Gives a socket of datagrams a long queue, as long as the system allows: bursts of a peer on this host outrun the
/// usual one. Memory is taken only for what waits.
pub(super) fn widen(socket: BorrowedFd<'_>) {
    // Beyond the system's limit (rmem_max of socket(7)) with CAP_NET_ADMIN only; a refusal leaves what there is.
    if sockopt::set_socket_recv_buffer_size_force(socket, QUEUE_BYTES).is_err() {
        let _ = sockopt::set_socket_recv_buffer_size(socket, QUEUE_BYTES);
    }
}

#[derive(Debug)]
struct Socket {
    flow: UdpId,
    socket: UdpSocket,
    token: Token,
    hops: Hops,
}

/// The sockets, by the index of their flows.
#[derive(Debug, Default)]
pub struct Sockets {
    slots: Vec<Option<Socket>>,
    count: usize,
}

impl Sockets {
    pub fn len(&self) -> usize {
        self.count
    }

    fn get(&mut self, flow: UdpId) -> Option<&mut Socket> {
        self.slots.get_mut(flow.0.index())?.as_mut().filter(|socket| socket.flow == flow)
    }
}

impl Host {
    pub(super) fn udp_send(&mut self, flow: UdpId, to: SocketAddr, hops: Hops, payload: Vec<u8>) {
        if self.udp.get(flow).is_none() && self.udp_open(flow, to).is_none() {
            // A family that this host does not have leads nowhere; without descriptors a datagram is lost.
            if to.is_ipv6() {
                self.stack.udp_unsent(flow, to, ConnectError::NetUnreachable);
            }
            return self.stack.recycle(payload);
        }
        if let Err(error) = self.udp_try_send(flow, to, hops, &payload) {
            // It may be an old error that the queue holds; the datagram deserves its own chance.
            self.udp_errors(flow, Some(to));
            let again =
                if error == Errno::MSGSIZE { Ok(()) } else { self.udp_try_send(flow, to, hops, &payload) };
            if let Err(error) = again {
                self.stack.udp_unsent(flow, to, tcp::meaning_of(error));
            }
        }
        self.stack.recycle(payload);
    }

    fn udp_try_send(&mut self, flow: UdpId, to: SocketAddr, hops: Hops, payload: &[u8]) -> Result<(), Errno> {
        let Some(entry) = self.udp.get(flow) else { return Ok(()) };
        if entry.hops != hops && sys::set_hops(entry.socket.as_fd(), to.is_ipv6(), hops).is_ok() {
            entry.hops = hops;
        }
        match rustix::net::sendto(&entry.socket, payload, SendFlags::NOSIGNAL, &to) {
            // A full queue loses datagrams, as on any network.
            Ok(_) | Err(Errno::AGAIN | Errno::NOBUFS) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn udp_open(&mut self, flow: UdpId, to: SocketAddr) -> Option<()> {
        let any: IpAddr =
            if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.set_nonblocking(true).ok()?;
        sys::set_recverr(socket.as_fd(), to.is_ipv6()).ok()?;
        widen(socket.as_fd());
        let token = self.poller.add(&socket, Owner::Udp(flow), EventFlags::IN).ok()?;
        let index = flow.0.index();
        if self.udp.slots.len() <= index {
            self.udp.slots.resize_with(index + 1, || None);
        }
        self.udp.slots[index] = Some(Socket { flow, socket, token, hops: DEFAULT });
        self.udp.count += 1;
        Some(())
    }

    pub(super) fn udp_event(&mut self, flow: UdpId, events: EventFlags) {
        if events.intersects(EventFlags::ERR) {
            self.udp_errors(flow, None);
        }
        let now = self.now();
        for _ in 0..BURST {
            let Some(entry) = self.udp.get(flow) else { return };
            match entry.socket.recv_from(&mut self.scratch) {
                Ok((count, from)) => {
                    self.stack.udp_received(now, flow, from, &self.scratch[..count]);
                }
                Err(_) => return,
            }
        }
    }

    /// Tells the stack what the network said about datagrams of a socket.
    /// Too large a datagram is one of this host's own errors, which names no port: it is the one sent last, to `sent`.
    fn udp_errors(&mut self, flow: UdpId, sent: Option<SocketAddr>) {
        for _ in 0..BURST {
            let Some(entry) = self.udp.get(flow) else { return };
            let Some(queued) = sys::receive_error(entry.socket.as_fd()) else { return };
            if let Some(error) = queued.error {
                let to = if queued.to.port() == 0 { sent.unwrap_or(queued.to) } else { queued.to };
                self.stack.udp_failed(flow, to, error);
            }
        }
    }

    pub(super) fn udp_close(&mut self, flow: UdpId) {
        if self.udp.get(flow).is_some()
            && let Some(entry) = self.udp.slots[flow.0.index()].take()
        {
            self.poller.remove(&entry.socket, entry.token);
            self.udp.count -= 1;
        }
    }
}
