//! Ping sockets of the host: `SOCK_DGRAM` with `IPPROTO_ICMP` or `IPPROTO_ICMPV6`, which needs no privilege where
//! `net.ipv4.ping_group_range` allows it (icmp(7)).

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SendFlags, SocketFlags, SocketType};
use vpnkit_stack::{ConnectError, Hops, PingId};
use vpnkit_wire::{icmp, icmpv6};

use super::poller::{Owner, Token};
use super::{Host, sys, tcp};

/// Replies taken from one socket before it is the others' turn.
const BURST: usize = 16;

/// The sockets. Std's type fits them: it is a datagram socket.
#[derive(Debug, Default)]
pub struct Sockets(HashMap<PingId, (UdpSocket, Token)>);

impl Sockets {
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

impl Host {
    pub(super) fn ping_send(
        &mut self,
        flow: PingId,
        (to, sequence): (IpAddr, u16),
        hops: Hops,
        payload: &[u8],
    ) {
        if !self.pings.0.contains_key(&flow) && self.ping_open(flow, to).is_none() {
            return self.stack.ping_unsent(flow, to, sequence, ConnectError::Prohibited);
        }
        let Some((socket, _)) = self.pings.0.get(&flow) else { return };
        // The kernel fills in its own identifier and the checksum.
        let kind = if to.is_ipv4() { icmp::ECHO_REQUEST } else { icmpv6::ECHO_REQUEST };
        let header = icmp::emit_header(kind, 0, u32::from(sequence), payload);
        let message = [&header[..], payload].concat();
        let _ = sys::set_hops(socket.as_fd(), to.is_ipv6(), hops);
        let to = SocketAddr::new(to, 0);
        let send = |socket: &UdpSocket| rustix::net::sendto(socket, &message, SendFlags::NOSIGNAL, &to);
        let Err(error) = send(socket) else { return };
        // It may be an old error that the queue holds; the request deserves its own chance.
        self.ping_errors(flow, Some((to.ip(), sequence)));
        let Some((socket, _)) = self.pings.0.get(&flow).filter(|_| error != Errno::MSGSIZE) else { return };
        if let Err(error) = send(socket) {
            self.stack.ping_unsent(flow, to.ip(), sequence, tcp::meaning_of(error));
        }
    }

    fn ping_open(&mut self, flow: PingId, to: IpAddr) -> Option<()> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (family, protocol) = if to.is_ipv4() {
            (AddressFamily::INET, net::ipproto::ICMP)
        } else {
            (AddressFamily::INET6, net::ipproto::ICMPV6)
        };
        let fd = net::socket_with(family, SocketType::DGRAM, flags, Some(protocol)).ok()?;
        sys::set_recverr(fd.as_fd(), to.is_ipv6()).ok()?;
        let socket = UdpSocket::from(fd);
        let token = self.poller.add(&socket, Owner::Ping(flow), EventFlags::IN).ok()?;
        self.pings.0.insert(flow, (socket, token));
        Some(())
    }

    pub(super) fn ping_event(&mut self, flow: PingId, events: EventFlags) {
        if events.intersects(EventFlags::ERR) {
            self.ping_errors(flow, None);
        }
        let now = self.now();
        for _ in 0..BURST {
            let Some((socket, _)) = self.pings.0.get(&flow) else { return };
            let Ok((count, from)) = socket.recv_from(&mut self.scratch) else { return };
            // The kernel has verified the checksum; over IPv6 it needs addresses that a socket does not tell.
            if let Ok(message) = icmp::parse_verified(&self.scratch[..count])
                && [icmp::ECHO_REPLY, icmpv6::ECHO_REPLY].contains(&message.kind)
            {
                self.stack.ping_received(now, flow, from.ip(), message.sequence(), message.payload);
            }
        }
    }

    /// Tells the stack what the network said. Too large a request is one of this host's own errors, which quotes
    /// nothing: it is the one sent last, `sent`.
    fn ping_errors(&mut self, flow: PingId, sent: Option<(IpAddr, u16)>) {
        for _ in 0..BURST {
            let Some((socket, _)) = self.pings.0.get(&flow) else { return };
            let Some(queued) = sys::receive_error(socket.as_fd()) else { return };
            let Some(error) = queued.error else { continue };
            // The payload is the echo request that came to it: its sequence number is at 6.
            let about = match queued.payload[..] {
                [_, _, _, _, _, _, high, low, ..] => Some((queued.to.ip(), u16::from_be_bytes([high, low]))),
                _ => sent,
            };
            if let Some((to, sequence)) = about {
                self.stack.ping_failed(flow, to, sequence, error);
            }
        }
    }

    pub(super) fn ping_close(&mut self, flow: PingId) {
        if let Some((socket, token)) = self.pings.0.remove(&flow) {
            self.poller.remove(&socket, token);
        }
    }
}
