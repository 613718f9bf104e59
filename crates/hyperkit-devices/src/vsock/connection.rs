//! One connection: a stream of bytes each way between a guest's socket and a host's, with credit.
//!
//! Bytes from the guest go straight into the host's socket; what it does not take waits in a buffer no larger than
//! the window that the guest was told of. Bytes from the host stay in its socket until the guest has
//! credit and a buffer for them. Each direction ends by itself. Spec: virtio 1.2 §5.10.6.3 to §5.10.6.6.

use std::collections::VecDeque;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::SyncSender;

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::budget::Claim;
use super::packet::{Header, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, op};

/// Reads that empty a socket before it is closed. A full socket buffer takes a few; the host cannot add to it.
const DRAIN_READS_MAX: usize = 1024;

/// The ports of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) host_port: u32,
    pub(super) guest_port: u32,
}

/// A packet that a connection has to send; its payload is in the buffer that [`Connection::next`] got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Outgoing {
    pub(super) op: u16,
    pub(super) flags: u32,
    pub(super) len: u32,
}

/// The guest broke the protocol.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Violation;

enum Phase {
    /// The guest has yet to answer our request; then the one who waits is told.
    Requested(SyncSender<io::Result<()>>),
    Open,
}

/// Guest to host.
struct Inbound {
    buffer: VecDeque<u8>,
    /// Bytes that went to the host or were dropped because it does not read; wraps.
    forwarded: u32,
    /// The same as the guest last heard.
    announced: u32,
    /// The guest sends no more.
    ended: bool,
    /// The host was told that there is no more.
    closed: bool,
    /// The host reads no more.
    broken: bool,
}

/// Host to guest.
struct Outbound {
    /// The guest's `buf_alloc` and `fwd_cnt`.
    window: u32,
    forwarded: u32,
    /// Bytes sent; wraps.
    sent: u32,
    /// The socket may have bytes, or its end.
    readable: bool,
    /// Nothing more is read: the host's end of file, or the guest does not want it.
    ended: bool,
    /// The guest receives no more.
    deaf: bool,
    /// A credit request is unanswered.
    asked: bool,
}

/// Packets without payload that are due.
#[derive(Default)]
struct Due {
    request: bool,
    response: bool,
    credit_update: bool,
    /// Shutdown flags that the guest is to know, and those it knows.
    shutdown: u32,
    shutdown_sent: u32,
}

/// One connection.
pub(super) struct Connection {
    pub(super) key: Key,
    stream: UnixStream,
    claim: Claim,
    phase: Phase,
    inbound: Inbound,
    outbound: Outbound,
    due: Due,
    /// It is in the muxer's queue of connections with something to send.
    pub(super) queued: bool,
    /// The guest knows it no longer; what it sent is still on its way to the host.
    pub(super) lingering: bool,
}

impl Connection {
    fn new(key: Key, stream: UnixStream, claim: Claim, phase: Phase, due: Due) -> Connection {
        let inbound = Inbound {
            buffer: VecDeque::new(),
            forwarded: 0,
            announced: 0,
            ended: false,
            closed: false,
            broken: false,
        };
        let outbound = Outbound {
            window: 0,
            forwarded: 0,
            sent: 0,
            readable: false,
            ended: false,
            deaf: false,
            asked: false,
        };
        Connection { key, stream, claim, phase, inbound, outbound, due, queued: false, lingering: false }
    }

    /// A connection that the guest asked for and the host accepted.
    pub(super) fn accepted(key: Key, stream: UnixStream, claim: Claim) -> Connection {
        let due = Due { response: true, ..Due::default() };
        Connection::new(key, stream, claim, Phase::Open, due)
    }

    /// A connection that the host asks for. `answer` hears whether the guest accepts.
    pub(super) fn requested(
        key: Key,
        stream: UnixStream,
        claim: Claim,
        answer: SyncSender<io::Result<()>>,
    ) -> Connection {
        let due = Due { request: true, ..Due::default() };
        Connection::new(key, stream, claim, Phase::Requested(answer), due)
    }

    /// The host's socket.
    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Whether the guest has yet to answer our request.
    pub(super) fn is_requested(&self) -> bool {
        matches!(self.phase, Phase::Requested(_))
    }

    /// Whether bytes of the guest wait for a host that may still take them.
    pub(super) fn has_inbound(&self) -> bool {
        !self.inbound.buffer.is_empty() && !self.inbound.broken
    }

    /// Takes the guest's credit from a packet's header.
    pub(super) fn on_credit(&mut self, header: &Header) {
        self.outbound.window = header.buf_alloc;
        self.outbound.forwarded = header.fwd_cnt;
        self.outbound.asked &= self.credit() == 0;
    }

    /// The guest accepted our request.
    ///
    /// # Errors
    /// [`Violation`] when there was none.
    pub(super) fn on_response(&mut self) -> Result<(), Violation> {
        let Phase::Requested(answer) = std::mem::replace(&mut self.phase, Phase::Open) else {
            return Err(Violation);
        };
        // Whoever asked may have given up; the end of its socket tells the rest.
        let _ = answer.send(Ok(()));
        Ok(())
    }

    /// The guest refused our request, if there is one.
    pub(super) fn on_refused(&self) {
        if let Phase::Requested(answer) = &self.phase {
            let _ = answer.try_send(Err(io::ErrorKind::ConnectionRefused.into()));
        }
    }

    /// The guest sent bytes.
    ///
    /// # Errors
    /// [`Violation`] when it had said that it would not, or exceeds its credit.
    pub(super) fn on_bytes(&mut self, bytes: &[u8]) -> Result<(), Violation> {
        let room = self.claim.window as usize - self.inbound.buffer.len();
        if self.is_requested() || self.inbound.ended || bytes.len() > room {
            return Err(Violation);
        }
        let mut rest = bytes;
        if self.inbound.buffer.is_empty() && !self.inbound.broken {
            let n = self.inbound.send(&self.stream, bytes);
            rest = &bytes[n..];
        }
        if self.inbound.broken {
            self.inbound.forwarded = self.inbound.forwarded.wrapping_add(rest.len() as u32);
        } else if !rest.is_empty() {
            let buffer = &mut self.inbound.buffer;
            if buffer.capacity() == 0 {
                buffer.reserve_exact(self.claim.window as usize);
            }
            buffer.extend(rest);
        }
        self.note_broken();
        Ok(())
    }

    /// The guest will not send, or not receive, any more. Returns whether it is now done with both.
    pub(super) fn on_shutdown(&mut self, flags: u32) -> bool {
        if flags & SHUTDOWN_SEND != 0 {
            self.inbound.ended = true;
            self.flush();
        }
        if flags & SHUTDOWN_RECEIVE != 0 && !std::mem::replace(&mut self.outbound.deaf, true) {
            self.outbound.ended = true;
            let _ = self.stream.shutdown(Shutdown::Read);
        }
        self.note_both_ended();
        self.inbound.ended && self.outbound.deaf
    }

    /// The guest asked how much it may send.
    pub(super) fn on_credit_request(&mut self) {
        self.due.credit_update = true;
    }

    /// Something happened to the host's socket.
    pub(super) fn on_ready(&mut self, events: EventFlags) {
        let gone = EventFlags::HUP | EventFlags::ERR;
        self.outbound.readable |= events.intersects(EventFlags::IN | EventFlags::RDHUP | gone);
        self.flush();
        if events.intersects(gone) {
            self.due.shutdown |= SHUTDOWN_RECEIVE;
        }
    }

    /// Sends to the host what waits, and then the end if the guest is done.
    pub(super) fn flush(&mut self) {
        self.inbound.flush(&self.stream);
        self.note_broken();
    }

    /// Ends both directions after what the guest sent has gone out.
    pub(super) fn linger(&mut self) {
        self.lingering = true;
        self.outbound.ended = true;
        self.inbound.ended = true;
        self.flush();
    }

    /// Closes the host's socket such that it reads an end of file.
    ///
    /// Bytes left unread would make it an error instead (`unix_release_sock` in Linux), so they are read.
    pub(super) fn close(self) {
        let _ = self.stream.shutdown(Shutdown::Both);
        let mut bytes = [0; 4096];
        for _ in 0..DRAIN_READS_MAX {
            match recv(&self.stream, &mut bytes[..], RecvFlags::DONTWAIT) {
                Ok((0, _)) => break,
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
    }

    /// Whether [`Connection::next`] may have a packet.
    pub(super) fn has_outgoing(&self) -> bool {
        let wants_to_read = self.outbound.readable && !self.outbound.ended;
        match self.phase {
            Phase::Requested(_) => self.due.request,
            Phase::Open => {
                self.due.response
                    || self.shutdown_due()
                    || wants_to_read && (self.credit() > 0 || !self.outbound.asked)
                    || self.credit_update_due()
            }
        }
    }

    /// The next packet for the guest. `payload`, not empty, is room for its payload.
    pub(super) fn next(&mut self, payload: &mut [u8]) -> Option<Outgoing> {
        let plain = |op| Some(Outgoing { op, flags: 0, len: 0 });
        if std::mem::take(&mut self.due.request) {
            return plain(op::REQUEST);
        }
        if self.is_requested() {
            return None;
        }
        if std::mem::take(&mut self.due.response) {
            return plain(op::RESPONSE);
        }
        if self.shutdown_due() {
            return Some(self.shutdown_packet());
        }
        if let Some(len) = self.read(payload) {
            return Some(Outgoing { op: op::RW, flags: 0, len });
        }
        if self.shutdown_due() {
            return Some(self.shutdown_packet());
        }
        if self.credit_update_due() {
            return plain(op::CREDIT_UPDATE);
        }
        let blocked = self.outbound.readable && !self.outbound.ended && self.credit() == 0;
        if blocked && !std::mem::replace(&mut self.outbound.asked, true) {
            return plain(op::CREDIT_REQUEST);
        }
        None
    }

    /// Our window and what of it was used, for a header that is about to be sent.
    pub(super) fn announce(&mut self) -> (u32, u32) {
        self.inbound.announced = self.inbound.forwarded;
        self.due.credit_update = false;
        (self.claim.window, self.inbound.forwarded)
    }

    /// Reads from the host what the guest has credit and room for; at the end of file, makes a shutdown due.
    fn read(&mut self, payload: &mut [u8]) -> Option<u32> {
        let len = payload.len().min(self.credit() as usize);
        if !self.outbound.readable || self.outbound.ended || len == 0 {
            return None;
        }
        loop {
            match recv(&self.stream, &mut payload[..len], RecvFlags::DONTWAIT) {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.outbound.readable = false;
                    return None;
                }
                Ok((0, _)) | Err(_) => {
                    self.outbound.ended = true;
                    self.due.shutdown |= SHUTDOWN_SEND;
                    self.note_both_ended();
                    return None;
                }
                Ok((n, _)) => {
                    self.outbound.sent = self.outbound.sent.wrapping_add(n as u32);
                    return Some(n as u32);
                }
            }
        }
    }

    /// How many bytes the guest has room for. Nonsense from the guest counts as none.
    fn credit(&self) -> u32 {
        let in_flight = self.outbound.sent.wrapping_sub(self.outbound.forwarded);
        self.outbound.window.saturating_sub(in_flight)
    }

    /// Whether the guest should hear that there is room again: it asked, or a quarter of the window is new.
    fn credit_update_due(&self) -> bool {
        let unannounced = self.inbound.forwarded.wrapping_sub(self.inbound.announced);
        self.due.credit_update || unannounced >= self.claim.window / 4
    }

    fn shutdown_due(&self) -> bool {
        self.due.shutdown & !self.due.shutdown_sent != 0
    }

    fn shutdown_packet(&mut self) -> Outgoing {
        self.due.shutdown_sent |= self.due.shutdown;
        Outgoing { op: op::SHUTDOWN, flags: self.due.shutdown, len: 0 }
    }

    /// A host that does not read makes the guest's writing pointless: it is told.
    fn note_broken(&mut self) {
        if self.inbound.broken {
            self.due.shutdown |= SHUTDOWN_RECEIVE;
        }
    }

    /// Once both have said that they send no more, we say that nothing is received either: Linux then answers
    /// with RST as soon as its user has read everything.
    fn note_both_ended(&mut self) {
        if self.inbound.ended && self.due.shutdown & SHUTDOWN_SEND != 0 {
            self.due.shutdown |= SHUTDOWN_RECEIVE;
        }
    }
}

impl Inbound {
    /// Sends to the host what waits, as far as it takes it now.
    fn flush(&mut self, stream: &UnixStream) {
        while !self.buffer.is_empty() && !self.broken {
            let (front, _) = self.buffer.as_slices();
            let len = front.len();
            let n = Inbound::try_send(stream, front, &mut self.broken);
            self.buffer.drain(..n);
            self.forwarded = self.forwarded.wrapping_add(n as u32);
            if n < len {
                break;
            }
        }
        if self.broken {
            self.forwarded = self.forwarded.wrapping_add(self.buffer.len() as u32);
            self.buffer.clear();
        }
        if self.buffer.is_empty() {
            self.buffer = VecDeque::new();
            if self.ended && !std::mem::replace(&mut self.closed, true) {
                let _ = stream.shutdown(Shutdown::Write);
            }
        }
    }

    fn send(&mut self, stream: &UnixStream, bytes: &[u8]) -> usize {
        let n = Inbound::try_send(stream, bytes, &mut self.broken);
        self.forwarded = self.forwarded.wrapping_add(n as u32);
        n
    }

    /// Sends what the socket takes and returns how much that was; notes a host that reads no more.
    fn try_send(stream: &UnixStream, bytes: &[u8], broken: &mut bool) -> usize {
        let mut sent = 0;
        while sent < bytes.len() {
            match send(stream, &bytes[sent..], SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(n) => sent += n,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => {
                    *broken = true;
                    break;
                }
            }
        }
        sent
    }
}
