//! Ports of the host that lead to guests.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketFlags, SocketType};
use vpnkit_stack::{ForwardId, Instant};

use super::Host;
use super::poller::{Owner, Token};
use crate::config::{Forward, ForwardError, Protocol};

/// Connections and datagrams taken from one port before it is the others' turn.
const BURST: usize = 64;
/// How long a port rests when the process has no file descriptors left.
const PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Socket::Tcp(listener) => listener.as_fd(),
            Socket::Udp(socket) => socket.as_fd(),
        }
    }
}

/// A port that is bound but not served yet.
#[derive(Debug)]
pub(crate) struct Bound {
    forward: Forward,
    socket: Socket,
}

impl Bound {
    /// Binds the host's side of `forward`; its address is then the real one, port included.
    pub fn new(mut forward: Forward, backlog: u16) -> Result<Self, ForwardError> {
        let socket = bind(&forward, backlog).map_err(|error| ForwardError::of_bind(&forward, error))?;
        let local = match &socket {
            Socket::Tcp(listener) => listener.local_addr(),
            Socket::Udp(socket) => socket.local_addr(),
        };
        forward.bind = local.map_err(|error| ForwardError::of_bind(&forward, error))?;
        Ok(Self { forward, socket })
    }

    pub fn local(&self) -> SocketAddr {
        self.forward.bind
    }
}

fn bind(forward: &Forward, backlog: u16) -> io::Result<Socket> {
    let family = if forward.bind.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    match forward.protocol {
        Protocol::Tcp => {
            let fd = net::socket_with(family, SocketType::STREAM, flags, None)?;
            net::sockopt::set_socket_reuseaddr(&fd, true)?;
            only_ipv6(&fd, forward.bind)?;
            // Those that are accepted inherit it.
            net::sockopt::set_tcp_nodelay(&fd, true)?;
            net::bind(&fd, &forward.bind)?;
            net::listen(&fd, backlog.into())?;
            Ok(Socket::Tcp(fd.into()))
        }
        Protocol::Udp => {
            let fd = net::socket_with(family, SocketType::DGRAM, flags, None)?;
            super::udp::widen(fd.as_fd());
            only_ipv6(&fd, forward.bind)?;
            net::bind(&fd, &forward.bind)?;
            Ok(Socket::Udp(fd.into()))
        }
    }
}

/// Keeps `[::]` from IPv4, whose ports are exposed by themselves: Docker asks for both.
fn only_ipv6(fd: &OwnedFd, bind: SocketAddr) -> Result<(), Errno> {
    if bind.is_ipv6() { net::sockopt::set_ipv6_v6only(fd, true) } else { Ok(()) }
}

/// Accepts a connection: its socket, and who is at the other end.
fn accept(listener: &TcpListener) -> Result<(OwnedFd, Option<SocketAddr>), Errno> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let (fd, peer) = net::acceptfrom_with(listener, flags)?;
    Ok((fd, peer.and_then(|peer| SocketAddr::try_from(peer).ok())))
}

#[derive(Debug)]
struct Port {
    bound: Bound,
    token: Token,
    paused_until: Option<Instant>,
}

/// The ports that are served, by number.
#[derive(Debug, Default)]
pub struct Ports {
    ports: HashMap<u32, Port>,
    next: u32,
    /// How many of them rest: mostly none, and thousands of others need not be looked at in each round.
    resting: usize,
}

impl Ports {
    pub fn len(&self) -> usize {
        self.ports.len()
    }

    /// When a resting port goes on.
    pub fn deadline(&self) -> Option<Instant> {
        if self.resting == 0 {
            return None;
        }
        self.ports.values().filter_map(|port| port.paused_until).min()
    }
}

impl Host {
    pub(super) fn forward_add(&mut self, bound: Bound) -> Result<(), ForwardError> {
        let number = self.forwards.next;
        let token = self
            .poller
            .add(&bound.socket, Owner::Forward(number), EventFlags::IN)
            .map_err(|error| ForwardError::of_bind(&bound.forward, error))?;
        self.forwards.next = number.wrapping_add(1);
        self.forwards.ports.insert(number, Port { bound, token, paused_until: None });
        Ok(())
    }

    /// Stops to listen; connections that were made go on.
    pub(super) fn forward_remove(&mut self, forward: &Forward) -> Result<(), ForwardError> {
        let same = |port: &Port| {
            let other = &port.bound.forward;
            (other.protocol, other.bind) == (forward.protocol, forward.bind)
        };
        let number = self.forwards.ports.iter().find(|(_, port)| same(port)).map(|(number, _)| *number);
        let Some((number, port)) =
            number.and_then(|number| Some((number, self.forwards.ports.remove(&number)?)))
        else {
            return Err(ForwardError::Unknown { protocol: forward.protocol, bind: forward.bind });
        };
        self.forwards.resting -= usize::from(port.paused_until.is_some());
        self.poller.remove(&port.bound.socket, port.token);
        self.stack.udp_unforward(ForwardId(number));
        Ok(())
    }

    pub(super) fn forward_event(&mut self, number: u32) {
        for _ in 0..BURST {
            let Some(port) = self.forwards.ports.get_mut(&number) else { return };
            let guest = port.bound.forward.guest;
            match &port.bound.socket {
                Socket::Tcp(listener) => match accept(listener) {
                    Ok((fd, Some(peer))) => self.tcp_accepted(fd, peer, guest),
                    // A connection that was reset before it was accepted: accept(2).
                    Ok((_, None)) | Err(Errno::CONNABORTED) => {}
                    Err(Errno::AGAIN) => return,
                    Err(_) => return self.forward_pause(number),
                },
                Socket::Udp(socket) => match socket.recv_from(&mut self.scratch) {
                    Ok((count, peer)) => {
                        let (now, id) = (self.now(), ForwardId(number));
                        self.stack.udp_forwarded(now, id, peer, guest, &self.scratch[..count]);
                    }
                    // An ICMP error about an answer says nothing about the port.
                    Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                    Err(_) => return,
                },
            }
        }
    }

    /// Lets a port rest: it would be ready all the time and nothing could be done.
    fn forward_pause(&mut self, number: u32) {
        let until = self.now() + PAUSE;
        if let Some(port) = self.forwards.ports.get_mut(&number)
            && self.poller.modify(&port.bound.socket, port.token, EventFlags::empty()).is_ok()
        {
            self.forwards.resting += usize::from(port.paused_until.is_none());
            port.paused_until = Some(until);
        }
    }

    pub(super) fn forwards_resume(&mut self, now: Instant) {
        if self.forwards.resting == 0 {
            return;
        }
        for port in self.forwards.ports.values_mut() {
            if port.paused_until.is_some_and(|until| until <= now)
                && self.poller.modify(&port.bound.socket, port.token, EventFlags::IN).is_ok()
            {
                port.paused_until = None;
                self.forwards.resting -= 1;
            }
        }
    }

    pub(super) fn forward_reply(&mut self, forward: ForwardId, to: SocketAddr, payload: Vec<u8>) {
        if let Some(Port { bound: Bound { socket: Socket::Udp(socket), .. }, .. }) =
            self.forwards.ports.get(&forward.0)
        {
            // A datagram that cannot be sent is lost, as on any network.
            let _ = socket.send_to(&payload, to);
        }
        self.stack.recycle(payload);
    }
}
