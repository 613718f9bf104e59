//! All connections of a device: packets in, packets out, and the sockets between. Knows no queues.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use rustix::event::epoll::{self, EventData, EventFlags};

use super::backend::VsockBackend;
use super::budget::Budget;
use super::connection::{Connection, Key, Violation};
use super::packet::{HOST_CID, Header, STREAM, op};

/// RST packets that wait for a buffer of the guest. When there are as many, nothing more is taken from the
/// guest until it has offered buffers (virtio 1.2 §5.10.6.1.2 allows it once such resources are exhausted).
const RESETS_MAX: usize = 1024;

/// First port of the host for connections into the guest.
const EPHEMERAL_PORT_MIN: u32 = 1 << 30;

/// What wakes the thread besides sockets.
pub(super) const WAKE_TOKEN: u64 = 0;

/// The connections of one activation.
pub(super) struct Muxer {
    guest_cid: u64,
    backend: Arc<dyn VsockBackend>,
    budget: Arc<Budget>,
    epoll: OwnedFd,
    /// By token. Tokens are never used twice, so that a late event meets nobody.
    connections: HashMap<u64, Connection>,
    /// Those that the guest knows.
    tokens: HashMap<Key, u64>,
    /// Connections with something to send, each once.
    ready: VecDeque<u64>,
    resets: VecDeque<Header>,
    next_token: u64,
    next_port: u32,
}

impl Muxer {
    pub(super) fn new(
        guest_cid: u64,
        backend: Arc<dyn VsockBackend>,
        budget: Arc<Budget>,
        epoll: OwnedFd,
    ) -> Muxer {
        Muxer {
            guest_cid,
            backend,
            budget,
            epoll,
            connections: HashMap::new(),
            tokens: HashMap::new(),
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            next_token: WAKE_TOKEN + 1,
            next_port: EPHEMERAL_PORT_MIN,
        }
    }

    /// What to wait on.
    pub(super) fn epoll(&self) -> &OwnedFd {
        &self.epoll
    }

    /// Whether a packet may be taken from the guest: there is room for an answer.
    pub(super) fn can_answer(&self) -> bool {
        self.resets.len() < RESETS_MAX
    }

    /// Takes a packet of the guest, whose header is anything and whose payload is `header.len` bytes.
    pub(super) fn on_packet(&mut self, header: &Header, payload: &[u8]) {
        if header.src_cid != self.guest_cid {
            return; // It is not the guest's to answer for another machine.
        }
        if header.dst_cid != HOST_CID || header.kind != STREAM {
            return self.refuse(header);
        }
        let key = Key { host_port: header.dst_port, guest_port: header.src_port };
        match (self.tokens.get(&key).copied(), header.op) {
            (None, op::REQUEST) => self.accept(key, header),
            (None, _) => self.refuse(header),
            (Some(token), op::RST) => {
                if let Some(connection) = self.connections.get(&token) {
                    connection.on_refused();
                }
                self.retire(token);
            }
            (Some(token), _) => {
                if self.on_connection_packet(token, header, payload).is_err() {
                    self.refuse(header);
                    self.retire(token);
                }
            }
        }
    }

    /// Answers a packet that makes no sense.
    pub(super) fn refuse(&mut self, header: &Header) {
        if header.op == op::RST || !self.can_answer() {
            return;
        }
        self.resets.push_back(Header {
            src_cid: header.dst_cid,
            dst_cid: header.src_cid,
            src_port: header.dst_port,
            dst_port: header.src_port,
            kind: header.kind,
            op: op::RST,
            ..Header::default()
        });
    }

    /// Asks the guest for a connection between `stream` and its `guest_port`.
    pub(super) fn request(
        &mut self,
        guest_port: u32,
        stream: UnixStream,
        answer: SyncSender<io::Result<()>>,
    ) {
        let Some(claim) = self.budget.claim() else {
            let _ = answer.try_send(Err(io::ErrorKind::ResourceBusy.into()));
            return;
        };
        let mut key = Key { host_port: self.next_port, guest_port };
        while self.tokens.contains_key(&key) {
            key.host_port = key.host_port.wrapping_add(1).max(EPHEMERAL_PORT_MIN);
        }
        self.next_port = key.host_port.wrapping_add(1).max(EPHEMERAL_PORT_MIN);
        let connection = Connection::requested(key, stream, claim, answer.clone());
        if let Err(error) = self.insert(connection) {
            let _ = answer.try_send(Err(error));
        }
    }

    /// Something happened to the socket of connection `token`.
    pub(super) fn on_ready(&mut self, token: u64, events: EventFlags) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        connection.on_ready(events);
        if connection.lingering {
            if !connection.has_inbound() {
                self.drop_connection(token);
            }
        } else if connection.is_requested() && events.contains(EventFlags::HUP) {
            self.cancel(token); // Whoever asked has given up.
        } else {
            self.enqueue(token);
        }
    }

    /// Whether [`Muxer::next_packet`] may have a packet.
    pub(super) fn has_outgoing(&self) -> bool {
        !self.resets.is_empty() || !self.ready.is_empty()
    }

    /// The next packet for the guest, its payload in `payload`, which is not empty. Connections take turns.
    pub(super) fn next_packet(&mut self, payload: &mut [u8]) -> Option<Header> {
        if let Some(reset) = self.resets.pop_front() {
            return Some(reset);
        }
        while let Some(token) = self.ready.pop_front() {
            let Some(connection) = self.connections.get_mut(&token) else { continue };
            connection.queued = false;
            if connection.lingering {
                continue;
            }
            let Some(outgoing) = connection.next(payload) else { continue };
            let (buf_alloc, fwd_cnt) = connection.announce();
            let header = Header {
                src_cid: HOST_CID,
                dst_cid: self.guest_cid,
                src_port: connection.key.host_port,
                dst_port: connection.key.guest_port,
                len: outgoing.len,
                kind: STREAM,
                op: outgoing.op,
                flags: outgoing.flags,
                buf_alloc,
                fwd_cnt,
            };
            self.enqueue(token);
            return Some(header);
        }
        None
    }

    /// The driver is gone: what it sent is still delivered, everything else is closed.
    pub(super) fn orphan(&mut self) {
        let tokens: Vec<u64> = self.tokens.drain().map(|(_, token)| token).collect();
        for token in tokens {
            self.retire(token);
        }
        self.drop_resets();
        self.ready.clear();
    }

    /// Forgets the RST packets that wait: the driver is gone.
    pub(super) fn drop_resets(&mut self) {
        self.resets.clear();
    }

    /// Whether connections are left, be it lingering ones.
    pub(super) fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }

    fn on_connection_packet(&mut self, token: u64, header: &Header, payload: &[u8]) -> Result<(), Violation> {
        let connection = self.connections.get_mut(&token).ok_or(Violation)?;
        connection.on_credit(header);
        match header.op {
            op::RESPONSE => connection.on_response()?,
            op::RW => connection.on_bytes(payload)?,
            op::CREDIT_UPDATE => {}
            op::CREDIT_REQUEST => connection.on_credit_request(),
            op::SHUTDOWN => {
                if connection.on_shutdown(header.flags) {
                    return Err(Violation); // No fault: but RST is the answer to a full shutdown too (§5.10.6.6).
                }
            }
            _ => return Err(Violation),
        }
        self.enqueue(token);
        Ok(())
    }

    fn accept(&mut self, key: Key, header: &Header) {
        let accepted =
            self.budget.claim().and_then(|claim| Some((claim, self.backend.connect(key.host_port).ok()?)));
        let Some((claim, stream)) = accepted else { return self.refuse(header) };
        let mut connection = Connection::accepted(key, stream, claim);
        connection.on_credit(header);
        if self.insert(connection).is_err() {
            self.refuse(header);
        }
    }

    fn insert(&mut self, connection: Connection) -> io::Result<()> {
        let token = self.next_token;
        self.next_token += 1;
        let events = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(&self.epoll, connection.stream(), EventData::new_u64(token), events)?;
        self.tokens.insert(connection.key, token);
        self.connections.insert(token, connection);
        self.enqueue(token);
        Ok(())
    }

    fn enqueue(&mut self, token: u64) {
        if let Some(connection) = self.connections.get_mut(&token)
            && !connection.queued
            && connection.has_outgoing()
        {
            connection.queued = true;
            self.ready.push_back(token);
        }
    }

    /// Forgets a connection towards the guest. What the guest sent on it is still delivered.
    fn retire(&mut self, token: u64) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        self.tokens.remove(&connection.key);
        connection.linger();
        if !connection.has_inbound() {
            self.drop_connection(token);
        }
    }

    /// Takes a request back.
    fn cancel(&mut self, token: u64) {
        let Some(connection) = self.connections.get(&token) else { return };
        let Key { host_port, guest_port } = connection.key;
        let reset = Header {
            src_cid: HOST_CID,
            dst_cid: self.guest_cid,
            src_port: host_port,
            dst_port: guest_port,
            kind: STREAM,
            op: op::RST,
            ..Header::default()
        };
        if self.can_answer() {
            self.resets.push_back(reset);
        }
        self.retire(token);
    }

    fn drop_connection(&mut self, token: u64) {
        if let Some(connection) = self.connections.remove(&token) {
            let _ = epoll::delete(&self.epoll, connection.stream());
            connection.close();
        }
    }
}
