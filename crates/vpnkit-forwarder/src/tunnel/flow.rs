//! One client of a forward of streams, or all of a UDP forward, and its stream of the connection.

use std::collections::VecDeque;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown};

use crate::mux::{Datagram, Multiplexer, StreamId};

/// Bytes that are read of a socket at a time.
const READ_BYTES: usize = 65_536;
/// Largest datagram.
const DATAGRAM_BYTES_MAX: usize = 65_535;
/// Bytes of datagrams that wait until the machine's forwarder takes some.
const WAITING_BYTES_MAX: usize = 256 << 10;

/// A client's connection. What waits for its socket is at most a window.
pub(super) struct ClientFlow {
    pub socket: OwnedFd,
    /// Received of the machine, for the client.
    waiting: VecDeque<u8>,
    /// The client sends nothing more.
    read_ended: bool,
    /// The machine sends nothing more.
    write_ended: bool,
    /// The client's side was told so.
    shut: bool,
}

/// Whether a flow goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Goes {
    On,
    Over,
}

impl ClientFlow {
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket, waiting: VecDeque::new(), read_ended: false, write_ended: false, shut: false }
    }

    /// What is worth waiting for: that the socket can be read, and that it can be written.
    pub fn wants(&self, mux: &Multiplexer, id: StreamId) -> (bool, bool) {
        (!self.read_ended && mux.room(id) > 0, !self.waiting.is_empty())
    }

    /// Takes what the client sent, as far as the window lets us.
    pub fn on_readable(&mut self, mux: &mut Multiplexer, id: StreamId, buffer: &mut Vec<u8>) -> Goes {
        buffer.resize(READ_BYTES, 0);
        let room = mux.room(id).min(READ_BYTES);
        if room == 0 || self.read_ended {
            return Goes::On;
        }
        match rustix::net::recv(&self.socket, &mut buffer[..room], RecvFlags::empty()) {
            Ok((0, _)) => {
                self.read_ended = true;
                mux.shutdown(id);
                self.state()
            }
            Ok((count, _)) => {
                mux.send(id, &buffer[..count]);
                Goes::On
            }
            Err(Errno::AGAIN | Errno::INTR) => Goes::On,
            Err(_) => Goes::Over,
        }
    }

    /// Takes what the machine sent.
    pub fn on_data(&mut self, mux: &mut Multiplexer, id: StreamId, bytes: &[u8]) -> Goes {
        self.waiting.extend(bytes);
        self.on_writable(mux, id)
    }

    /// The machine sends nothing more.
    pub fn on_end(&mut self, mux: &mut Multiplexer, id: StreamId) -> Goes {
        self.write_ended = true;
        self.on_writable(mux, id)
    }

    /// Gives the client what waits for it.
    pub fn on_writable(&mut self, mux: &mut Multiplexer, id: StreamId) -> Goes {
        while !self.waiting.is_empty() {
            match rustix::net::send(&self.socket, self.waiting.as_slices().0, SendFlags::NOSIGNAL) {
                Ok(count) => {
                    self.waiting.drain(..count);
                    mux.consumed(id, count);
                }
                Err(Errno::AGAIN | Errno::INTR) => return Goes::On,
                Err(_) => return Goes::Over,
            }
        }
        if self.write_ended && !std::mem::replace(&mut self.shut, true) {
            // A client that is gone already is found when it is read.
            let _ = rustix::net::shutdown(&self.socket, Shutdown::Write);
        }
        self.state()
    }

    fn state(&self) -> Goes {
        if self.read_ended && self.write_ended && self.waiting.is_empty() { Goes::Over } else { Goes::On }
    }
}

/// A UDP forward: one stream for all its clients, whose addresses go with their datagrams.
pub(super) struct UdpFlow {
    pub socket: UdpSocket,
    /// Of the machine, and not yet a whole datagram.
    partial: Vec<u8>,
    /// Whole datagrams for the machine; what does not fit is lost, as datagrams may be.
    waiting: VecDeque<Vec<u8>>,
    waiting_bytes: usize,
}

impl UdpFlow {
    pub fn new(socket: UdpSocket) -> Self {
        Self { socket, partial: Vec::new(), waiting: VecDeque::new(), waiting_bytes: 0 }
    }

    /// Takes the datagrams of clients; returns whether there were any.
    pub fn on_readable(&mut self, buffer: &mut Vec<u8>) -> bool {
        buffer.resize(DATAGRAM_BYTES_MAX, 0);
        let mut any = false;
        // Not without end: others have sockets as well.
        for _ in 0..64 {
            let Ok((count, from)) = self.socket.recv_from(buffer) else { break };
            any = true;
            let from = SocketAddr::new(from.ip().to_canonical(), from.port());
            let mut bytes = Vec::new();
            let datagram = Datagram { peer: Some(from), payload: buffer[..count].to_vec() };
            if datagram.emit(&mut bytes) && self.waiting_bytes + bytes.len() <= WAITING_BYTES_MAX {
                self.waiting_bytes += bytes.len();
                self.waiting.push_back(bytes);
            }
        }
        any
    }

    /// Sends what waits, in whole datagrams.
    pub fn send(&mut self, mux: &mut Multiplexer, id: StreamId) {
        while let Some(next) = self.waiting.front()
            && mux.room(id) >= next.len()
        {
            mux.send(id, next);
            self.waiting_bytes -= next.len();
            self.waiting.pop_front();
        }
    }

    /// Gives clients their answers; `Over` when the machine sends what is no datagram.
    pub fn on_data(&mut self, mux: &mut Multiplexer, id: StreamId, bytes: &[u8]) -> Goes {
        self.partial.extend(bytes);
        mux.consumed(id, bytes.len());
        let mut at = 0;
        loop {
            match Datagram::parse(&self.partial[at..]) {
                Ok(Some((datagram, length))) => {
                    at += length;
                    if let Some(peer) = datagram.peer {
                        // Lost like any datagram.
                        let _ = self.socket.send_to(&datagram.payload, peer);
                    }
                }
                Ok(None) => break,
                Err(_) => return Goes::Over,
            }
        }
        self.partial.drain(..at);
        Goes::On
    }

    /// The stream is gone: what was under way is lost.
    pub fn reset(&mut self) {
        self.partial.clear();
        self.waiting.clear();
        self.waiting_bytes = 0;
    }
}
