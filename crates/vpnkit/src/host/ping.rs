//! Ping sockets of the host: `SOCK_DGRAM` with `IPPROTO_ICMP`, which needs no privilege where
//! `net.ipv4.ping_group_range` allows it (icmp(7)).

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;

use rustix::event::epoll::EventFlags;
use rustix::net::{self, AddressFamily, SocketFlags, SocketType};
use vpnkit_stack::wire::icmp;
use vpnkit_stack::{DatagramError, PingId};

use super::poller::{Owner, Token};
use super::{Host, sys};

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
        to: Ipv4Addr,
        (ttl, sequence): (u8, u16),
        payload: &[u8],
    ) {
        if !self.pings.0.contains_key(&flow) && self.ping_open(flow).is_none() {
            let error =
                DatagramError { kind: icmp::UNREACHABLE, code: icmp::CODE_PROHIBITED, mtu: 0, from: None };
            return self.stack.ping_failed(flow, to, sequence, error);
        }
        let Some((socket, _)) = self.pings.0.get(&flow) else { return };
        // The kernel fills in its own identifier and the checksum.
        let header = icmp::emit_header(icmp::ECHO_REQUEST, 0, u32::from(sequence), payload);
        let message = [&header[..], payload].concat();
        let _ = socket.set_ttl(u32::from(ttl));
        if socket.send_to(&message, (to, 0)).is_err() {
            self.ping_errors(flow);
        }
    }

    fn ping_open(&mut self, flow: PingId) -> Option<()> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let protocol = Some(net::ipproto::ICMP);
        let fd = net::socket_with(AddressFamily::INET, SocketType::DGRAM, flags, protocol).ok()?;
        sys::set_recverr(fd.as_fd()).ok()?;
        let socket = UdpSocket::from(fd);
        let token = self.poller.add(&socket, Owner::Ping(flow), EventFlags::IN).ok()?;
        self.pings.0.insert(flow, (socket, token));
        Some(())
    }

    pub(super) fn ping_event(&mut self, flow: PingId, events: EventFlags) {
        if events.intersects(EventFlags::ERR) {
            self.ping_errors(flow);
        }
        let now = self.now();
        for _ in 0..BURST {
            let Some((socket, _)) = self.pings.0.get(&flow) else { return };
            let Ok((count, SocketAddr::V4(from))) = socket.recv_from(&mut self.scratch) else { return };
            if let Ok(message) = icmp::parse(&self.scratch[..count])
                && message.kind == icmp::ECHO_REPLY
            {
                self.stack.ping_received(now, flow, *from.ip(), message.sequence(), message.payload);
            }
        }
    }

    fn ping_errors(&mut self, flow: PingId) {
        for _ in 0..BURST {
            let Some((socket, _)) = self.pings.0.get(&flow) else { return };
            let Some(queued) = sys::receive_error(socket.as_fd()) else { return };
            // The payload is the echo request that came to it: its sequence number is at 6.
            if let (Some(error), [_, _, _, _, _, _, high, low, ..]) = (queued.error, &queued.payload[..]) {
                let sequence = u16::from_be_bytes([*high, *low]);
                self.stack.ping_failed(flow, *queued.to.ip(), sequence, error);
            }
        }
    }

    pub(super) fn ping_close(&mut self, flow: PingId) {
        if let Some((socket, token)) = self.pings.0.remove(&flow) {
            self.poller.remove(&socket, token);
        }
    }
}
