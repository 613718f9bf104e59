//! One machine on a socket: reads its frames, queues those for it, never blocks.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, SocketAddrAny};

use crate::framing::{FRAME_BYTES_MAX, Unframer};
use crate::greeting::{Greeting, Progress, Terms};

/// Bytes that wait for a machine at most.
const QUEUED_BYTES_MAX: usize = 4 << 20;
/// Bytes of a stream that are written in one go.
const BURST_BYTES: usize = 128 * 1024;
/// Frames read from a packet socket before it is the others' turn.
const BURST: usize = 64;

/// How frames go over the socket.
#[derive(Debug)]
enum Carrier {
    Stream {
        greeting: Greeting,
        input: Unframer,
        framing: crate::Framing,
        out: Vec<u8>,
        sent: usize,
        last: bool,
    },
    /// One packet is one frame. A datagram socket that is not connected sends to whoever spoke last.
    Packets { peer: Option<SocketAddrAny>, connected: bool, out: VecDeque<Vec<u8>>, bytes: usize },
}

/// The machine.
#[derive(Debug)]
pub struct Port {
    fd: OwnedFd,
    terms: Terms,
    carrier: Carrier,
}

/// What reading left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// It may go on.
    Open,
    /// The machine is gone, or speaks nonsense.
    Closed,
}

impl Port {
    /// A machine on a stream.
    pub fn stream(fd: OwnedFd, framing: crate::Framing, greeting: Greeting, terms: Terms) -> Self {
        let input = Unframer::new(framing);
        let carrier = Carrier::Stream { greeting, input, framing, out: Vec::new(), sent: 0, last: false };
        Self { fd, terms, carrier }
    }

    /// A machine on a socket of packets: `connected`, or a bound one that learns its peer from what it gets.
    pub fn packets(fd: OwnedFd, connected: bool, terms: Terms) -> Self {
        let carrier = Carrier::Packets { peer: None, connected, out: VecDeque::new(), bytes: 0 };
        Self { fd, terms, carrier }
    }

    /// Reads what is there, one burst, and hands each frame to `take`. `scratch` has room for the largest frame.
    pub fn receive(&mut self, scratch: &mut [u8], take: &mut dyn FnMut(&[u8])) -> Left {
        match &mut self.carrier {
            Carrier::Stream { .. } => self.receive_stream(take),
            Carrier::Packets { peer, connected, .. } => {
                for _ in 0..BURST {
                    let received = rustix::net::recvfrom(&self.fd, &mut *scratch, RecvFlags::empty());
                    match received {
                        // A packet of no bytes is how SOCK_SEQPACKET says that its peer is gone.
                        Ok((0, _, _)) if *connected => return Left::Closed,
                        Ok((_, count, from)) => {
                            if !*connected && from.is_some() {
                                *peer = from;
                            }
                            take(scratch.get(..count).unwrap_or(&[]));
                        }
                        Err(Errno::AGAIN | Errno::INTR) => return Left::Open,
                        Err(Errno::CONNREFUSED) if !*connected => return Left::Open,
                        Err(_) => return Left::Closed,
                    }
                }
                Left::Open
            }
        }
    }

    fn receive_stream(&mut self, take: &mut dyn FnMut(&[u8])) -> Left {
        let Carrier::Stream { greeting, input, out, last, .. } = &mut self.carrier else {
            return Left::Closed;
        };
        match rustix::io::read(&self.fd, input.room()) {
            Ok(0) => return Left::Closed,
            Ok(count) => input.filled(count),
            Err(Errno::AGAIN | Errno::INTR) => return Left::Open,
            Err(_) => return Left::Closed,
        }
        match greeting.advance(input, &self.terms, out) {
            Progress::Wait => {}
            Progress::Refused => *last = true,
            Progress::Ready => loop {
                match input.next_frame() {
                    // Frames of no bytes are what some clients send to see whether we are there.
                    Ok(Some([])) => {}
                    Ok(Some(frame)) => take(frame),
                    Ok(None) => break,
                    Err(_) => return Left::Closed,
                }
            },
        }
        Left::Open
    }

    /// Whether it has room for a frame now.
    pub fn has_room(&self) -> bool {
        match &self.carrier {
            Carrier::Stream { out, sent, .. } => out.len() - sent < QUEUED_BYTES_MAX,
            Carrier::Packets { bytes, .. } => *bytes < QUEUED_BYTES_MAX,
        }
    }

    /// Queues a frame, or sends it; returns false when it was dropped because too much waits, or nobody is there.
    pub fn send(&mut self, parts: &[&[u8]]) -> bool {
        if !self.has_room() {
            return false;
        }
        match &mut self.carrier {
            Carrier::Stream { greeting: Greeting::Done, framing, out, sent, .. } => {
                framing.put(out, parts);
                if out.len() - *sent >= BURST_BYTES {
                    // An error shows again when it is read.
                    let _ = self.flush();
                }
                true
            }
            Carrier::Stream { .. } => false,
            Carrier::Packets { peer, connected, out, bytes } => {
                if peer.is_none() && !*connected {
                    return false;
                }
                if out.is_empty() && send_packet(self.fd.as_fd(), peer.as_ref(), parts) != Err(Errno::AGAIN) {
                    return true;
                }
                let whole = parts.concat();
                *bytes += whole.len();
                out.push_back(whole);
                true
            }
        }
    }

    /// Sends what waits, as far as the socket takes it; returns whether all is sent.
    ///
    /// # Errors
    /// When the machine is gone, or all that it was to get is sent.
    pub fn flush(&mut self) -> io::Result<bool> {
        match &mut self.carrier {
            Carrier::Stream { out, sent, last, .. } => {
                while *sent < out.len() {
                    match rustix::net::send(&self.fd, &out[*sent..], SendFlags::NOSIGNAL) {
                        Ok(count) => *sent += count,
                        Err(Errno::AGAIN) => break,
                        Err(Errno::INTR) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                let all = *sent == out.len();
                if all {
                    out.clear();
                    out.shrink_to(4 * BURST_BYTES);
                    *sent = 0;
                    if *last {
                        return Err(io::ErrorKind::ConnectionAborted.into());
                    }
                } else if *sent > QUEUED_BYTES_MAX {
                    out.drain(..*sent);
                    *sent = 0;
                }
                Ok(all)
            }
            Carrier::Packets { peer, out, bytes, .. } => {
                while let Some(frame) = out.front() {
                    if send_packet(self.fd.as_fd(), peer.as_ref(), &[frame]) == Err(Errno::AGAIN) {
                        return Ok(false);
                    }
                    *bytes -= frame.len();
                    out.pop_front();
                }
                Ok(true)
            }
        }
    }
}

/// Sends one packet. Only "no room" is an error: what cannot be sent otherwise is lost, as on a wire.
fn send_packet(fd: BorrowedFd<'_>, peer: Option<&SocketAddrAny>, parts: &[&[u8]]) -> Result<(), Errno> {
    let empty: &[u8] = &[];
    let mut vectors = [IoSlice::new(empty); 4];
    for (vector, part) in vectors.iter_mut().zip(parts) {
        *vector = IoSlice::new(part);
    }
    let vectors = &vectors[..parts.len().min(4)];
    let (mut control, flags) = (SendAncillaryBuffer::default(), SendFlags::NOSIGNAL);
    let sent = match peer {
        Some(peer) => rustix::net::sendmsg_addr(fd, peer, vectors, &mut control, flags),
        None => rustix::net::sendmsg(fd, vectors, &mut control, flags),
    };
    match sent {
        Err(Errno::AGAIN | Errno::NOBUFS) => Err(Errno::AGAIN),
        _ => Ok(()),
    }
}

impl AsFd for Port {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Bytes that `scratch` of [`Port::receive`] needs.
pub const SCRATCH_BYTES: usize = FRAME_BYTES_MAX;
