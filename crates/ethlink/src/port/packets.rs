//! A machine on a socket of packets, each of which is a frame.
//!
//! A datagram socket that is only bound takes the first who speaks as its peer, and the next one when that is gone:
//! connected both ways, the kernel says when there is room, and keeps more than the ten datagrams of strangers.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketAddrAny};

use super::Left;
use crate::FRAME_BYTES_MAX;
use crate::sys::linux::{receive_packets, send_packets};

/// Frames read, and sent, in one go.
pub const BURST: usize = 32;
/// Bytes that wait before they are sent within a burst.
const BURST_BYTES: usize = 128 * 1024;

/// Whom it talks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Peer {
    /// One machine for good.
    Fixed,
    /// Nobody yet, or nobody any more.
    Nobody,
    /// The machine that spoke first.
    Learnt,
}

/// The machine.
#[derive(Debug)]
pub struct Packets {
    fd: OwnedFd,
    peer: Peer,
    /// Where the peer that was learnt is bound.
    address: Option<SocketAddrAny>,
    /// Frames that wait, end to end.
    out: Vec<u8>,
    /// Their lengths.
    lengths: VecDeque<usize>,
    /// Bytes of `out` that are sent.
    sent: usize,
}

impl Packets {
    /// A machine on a socket: a connected one, or one that is bound to a path.
    pub fn new(fd: OwnedFd, connected: bool) -> Self {
        let peer = if connected { Peer::Fixed } else { Peer::Nobody };
        Self { fd, peer, address: None, out: Vec::new(), lengths: VecDeque::new(), sent: 0 }
    }

    pub fn receive(&mut self, scratch: &mut [u8], take: &mut dyn FnMut(&[u8])) -> Left {
        if self.peer == Peer::Nobody {
            return self.receive_first(scratch, take);
        }
        let mut lengths = [0; BURST];
        match receive_packets(self.fd.as_fd(), scratch, FRAME_BYTES_MAX, &mut lengths) {
            Ok(count) => {
                for (frame, length) in scratch.chunks(FRAME_BYTES_MAX).zip(&lengths[..count]) {
                    match frame.get(..*length) {
                        // A packet of no bytes is how SOCK_SEQPACKET says that its peer is gone.
                        Some([]) if self.peer == Peer::Fixed => return Left::Closed,
                        Some(frame) => take(frame),
                        None => {}
                    }
                }
                if count == BURST { Left::More } else { Left::Open }
            }
            Err(Errno::AGAIN | Errno::INTR) => Left::Open,
            Err(_) if self.peer == Peer::Learnt => {
                self.forget_peer();
                Left::Open
            }
            Err(_) => Left::Closed,
        }
    }

    fn receive_first(&mut self, scratch: &mut [u8], take: &mut dyn FnMut(&[u8])) -> Left {
        match rustix::net::recvfrom(&self.fd, &mut *scratch, RecvFlags::empty()) {
            Ok((_, count, from)) => {
                // Who has no address cannot be answered.
                self.address = from.filter(|from| rustix::net::connect(&self.fd, from).is_ok());
                if self.address.is_some() {
                    self.peer = Peer::Learnt;
                }
                take(scratch.get(..count).unwrap_or(&[]));
                Left::Open
            }
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNREFUSED | Errno::CONNRESET) => Left::Open,
            Err(_) => Left::Closed,
        }
    }

    /// Forgets a peer that is gone. The kernel says so to those alone who send, and keeps everybody else from speaking to
    /// a socket that has a peer: without this, a machine that comes back to a quiet network would be refused for ever.
    /// `probe` is a frame that nobody minds.
    pub fn look(&mut self, probe: &[u8]) {
        let Some(address) = self.address.as_ref().filter(|_| self.peer == Peer::Learnt) else { return };
        let gone = match rustix::net::connect(&self.fd, address) {
            Ok(()) => false,
            Err(Errno::CONNREFUSED) => true,
            // That its path was removed says nothing about it: only sending tells.
            Err(_) => {
                let sent = rustix::net::send(&self.fd, probe, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
                matches!(sent, Err(Errno::CONNREFUSED | Errno::CONNRESET | Errno::NOTCONN | Errno::PIPE))
            }
        };
        if gone {
            self.forget_peer();
        }
    }

    /// The peer is gone: what waited for it goes with it.
    fn forget_peer(&mut self) {
        // If it fails, the next send or receive leads here again.
        let _ = rustix::net::connect_unspec(&self.fd);
        self.peer = Peer::Nobody;
        self.address = None;
        self.out.clear();
        self.lengths.clear();
        self.sent = 0;
    }

    pub fn queued_bytes(&self) -> usize {
        self.out.len() - self.sent
    }

    /// Queues a whole frame; without a machine it goes to nobody, as on a wire.
    pub fn send(&mut self, parts: &[&[u8]]) {
        if self.peer == Peer::Nobody {
            return;
        }
        let before = self.out.len();
        for part in parts {
            self.out.extend_from_slice(part);
        }
        self.lengths.push_back(self.out.len() - before);
        if self.lengths.len() >= BURST || self.queued_bytes() >= BURST_BYTES {
            // An error shows again when it is read.
            let _ = self.flush();
        }
    }

    pub fn flush(&mut self) -> io::Result<bool> {
        while let Some(first) = self.lengths.front() {
            match send_packets(self.fd.as_fd(), &self.out[self.sent..], self.lengths.iter().take(BURST)) {
                Ok(count) => self.sent += self.lengths.drain(..count).sum::<usize>(),
                Err(Errno::AGAIN | Errno::NOBUFS) => break,
                Err(Errno::INTR) => {}
                Err(Errno::CONNREFUSED | Errno::CONNRESET | Errno::NOTCONN | Errno::PIPE) => {
                    if self.peer != Peer::Learnt {
                        return Err(io::ErrorKind::NotConnected.into());
                    }
                    self.forget_peer();
                }
                // One that the kernel refuses is lost, as on a wire.
                Err(_) => {
                    self.sent += first;
                    self.lengths.pop_front();
                }
            }
        }
        let all = self.lengths.is_empty();
        if all {
            self.out.clear();
            self.out.shrink_to(4 * BURST_BYTES);
            self.sent = 0;
        } else if self.sent > super::QUEUED_BYTES_MAX {
            self.out.drain(..self.sent);
            self.sent = 0;
        }
        Ok(all)
    }
}

impl AsFd for Packets {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
