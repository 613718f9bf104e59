//! Sockets to name servers: each query has one, with an identifier of its own, so that answers can hardly be forged
//! (RFC 5452). A socket is used again a few times, chosen by chance among those at rest, because to make one costs more
//! than the query.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketFlags, SocketType};
use vpnkit_stack::Instant;

use super::super::poller::{Owner, Poller, Token};

/// Queries for which one socket, and so one port, is used.
pub const USES_MAX: u32 = 64;
/// How long one socket is used.
pub const USED_FOR: Duration = Duration::from_secs(5);

/// A socket whose query was answered. It keeps its slot.
#[derive(Debug)]
pub struct Resting {
    pub socket: UdpSocket,
    pub token: Token,
    pub slot: usize,
    pub origin: Origin,
}

/// Where a socket leads, and for how long it was used.
#[derive(Debug, Clone, Copy)]
pub struct Origin {
    pub to: SocketAddr,
    pub since: Instant,
    pub uses: u32,
}

impl Origin {
    /// Whether it may be used once more.
    pub fn is_fresh(&self, now: Instant, to: SocketAddr) -> bool {
        self.to == to && self.uses <= USES_MAX && now.since(self.since) < USED_FOR
    }
}

#[derive(Debug)]
pub enum Socket {
    Udp(UdpSocket),
    /// What is written and read has the length before it: RFC 1035 §4.2.2.
    Tcp {
        stream: TcpStream,
        framed: Vec<u8>,
        sent: usize,
        received: Vec<u8>,
    },
}

impl Socket {
    /// Opens a socket to a server; over UDP the message is on its way when it returns.
    pub fn open(
        poller: &mut Poller,
        slot: usize,
        to: SocketAddr,
        tcp: bool,
        message: &[u8],
    ) -> io::Result<(Self, Token)> {
        if !tcp {
            let any: SocketAddr = match to {
                SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
                SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
            };
            let socket = UdpSocket::bind(any)?;
            socket.set_nonblocking(true)?;
            socket.connect(to)?;
            socket.send(message)?;
            let token = poller.add(&socket, Owner::Dns(slot), EventFlags::IN)?;
            return Ok((Socket::Udp(socket), token));
        }
        let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let fd = net::socket_with(family, SocketType::STREAM, flags, None)?;
        match net::connect(&fd, &to) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        let events = EventFlags::IN | EventFlags::OUT | EventFlags::ET;
        let token = poller.add(&fd, Owner::Dns(slot), events)?;
        let length = (message.len() as u16).to_be_bytes();
        let framed = [&length[..], message].concat();
        Ok((Socket::Tcp { stream: fd.into(), framed, sent: 0, received: Vec::new() }, token))
    }

    /// Goes on as far as the socket lets it; returns the bytes of the answer, which is then in `scratch`, when it is
    /// whole.
    pub fn progress(&mut self, scratch: &mut [u8]) -> io::Result<Option<usize>> {
        match self {
            Socket::Udp(socket) => match socket.recv(scratch) {
                Ok(count) => Ok(Some(count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
                Err(error) => Err(error),
            },
            Socket::Tcp { stream, framed, sent, received } => {
                while *sent < framed.len() {
                    match stream.write(&framed[*sent..]) {
                        Ok(count) => *sent += count,
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                        Err(error) if error.kind() == io::ErrorKind::NotConnected => return Ok(None),
                        Err(error) => return Err(error),
                    }
                }
                read_framed(stream, received, scratch)
            }
        }
    }

    /// Takes it out of the set that is waited for; it is closed with the result.
    pub fn close(self, poller: &mut Poller, token: Token) {
        match &self {
            Socket::Udp(socket) => poller.remove(socket, token),
            Socket::Tcp { stream, .. } => poller.remove(stream, token),
        }
    }
}

fn read_framed(
    stream: &mut TcpStream,
    received: &mut Vec<u8>,
    scratch: &mut [u8],
) -> io::Result<Option<usize>> {
    loop {
        if let [high, low, rest @ ..] = &received[..] {
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            if let Some(answer) = rest.get(..length) {
                scratch[..length].copy_from_slice(answer);
                return Ok(Some(length));
            }
        }
        match stream.read(scratch) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => received.extend_from_slice(&scratch[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        }
    }
}
