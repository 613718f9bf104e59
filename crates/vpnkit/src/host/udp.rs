//! UDP sockets of the host: one for each port of a guest that sends.

use std::net::{SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::AsFd;

use rustix::event::epoll::EventFlags;
use vpnkit_stack::UdpId;

use super::poller::{Owner, Token};
use super::{Host, sys};

/// Datagrams taken from one socket before it is the others' turn.
const BURST: usize = 64;

#[derive(Debug)]
struct Socket {
    flow: UdpId,
    socket: UdpSocket,
    token: Token,
    ttl: u8,
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
    pub(super) fn udp_send(&mut self, flow: UdpId, to: SocketAddrV4, ttl: u8, payload: Vec<u8>) {
        // A datagram that cannot be sent is lost, as on any network; errors that the network reports come through
        // the error queue.
        if self.udp.get(flow).is_some() || self.udp_open(flow).is_some() {
            let entry = self.udp.get(flow).expect("opened above");
            if entry.ttl != ttl && entry.socket.set_ttl(u32::from(ttl)).is_ok() {
                entry.ttl = ttl;
            }
            if entry.socket.send_to(&payload, to).is_err() {
                // The error may be an old one that the queue holds; the datagram deserves its own chance.
                self.udp_errors(flow);
                if let Some(entry) = self.udp.get(flow) {
                    let _ = entry.socket.send_to(&payload, to);
                }
            }
        }
        self.stack.recycle(payload);
    }

    fn udp_open(&mut self, flow: UdpId) -> Option<()> {
        let socket = UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0)).ok()?;
        socket.set_nonblocking(true).ok()?;
        sys::set_recverr(socket.as_fd()).ok()?;
        let token = self.poller.add(&socket, Owner::Udp(flow), EventFlags::IN).ok()?;
        let index = flow.0.index();
        if self.udp.slots.len() <= index {
            self.udp.slots.resize_with(index + 1, || None);
        }
        self.udp.slots[index] = Some(Socket { flow, socket, token, ttl: 64 });
        self.udp.count += 1;
        Some(())
    }

    pub(super) fn udp_event(&mut self, flow: UdpId, events: EventFlags) {
        if events.intersects(EventFlags::ERR) {
            self.udp_errors(flow);
        }
        let now = self.now();
        for _ in 0..BURST {
            let Some(entry) = self.udp.get(flow) else { return };
            match entry.socket.recv_from(&mut self.scratch) {
                Ok((count, SocketAddr::V4(from))) => {
                    self.stack.udp_received(now, flow, from, &self.scratch[..count]);
                }
                Ok(_) => {}
                Err(_) => return,
            }
        }
    }

    /// Tells the stack what the network said about datagrams of a socket.
    fn udp_errors(&mut self, flow: UdpId) {
        for _ in 0..BURST {
            let Some(entry) = self.udp.get(flow) else { return };
            let Some(queued) = sys::receive_error(entry.socket.as_fd()) else { return };
            if let Some(error) = queued.error {
                self.stack.udp_failed(flow, queued.to, error);
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
