//! Passes DNS queries to the host's resolvers: each attempt has its own socket and identifier, so that answers can
//! hardly be forged (RFC 5452) and errors of one resolver lead to the next at once. A socket is used again a few times,
//! chosen by chance among those at rest, because to make one costs more than the query.

pub(crate) mod files;

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketFlags, SocketType};
use vpnkit_stack::wire::dns::HEADER_BYTES;
use vpnkit_stack::{DnsId, Instant};

use super::Host;
use super::poller::{Owner, Poller, Token};
use crate::config::Resolvers;
use files::Followed;

/// How long a resolver may take before the next one is asked.
const ATTEMPT: Duration = Duration::from_secs(2);
/// Attempts for one query at most.
const ATTEMPTS_MAX: usize = 6;
/// Codes of an answer that another resolver may do better than: SERVFAIL, NOTIMP, REFUSED.
const CODES_POOR: [u8; 3] = [2, 4, 5];

/// Sockets at rest.
const RESTING_MAX: usize = 64;
/// Queries for which one socket, and so one port, is used.
const USES_MAX: u32 = 64;
/// How long one socket is used.
const USED_FOR: Duration = Duration::from_secs(5);

/// A socket whose query was answered. It keeps its slot.
#[derive(Debug)]
struct Resting {
    socket: UdpSocket,
    token: Token,
    slot: usize,
    origin: Origin,
}

/// Where a socket leads, and for how long it was used.
#[derive(Debug, Clone, Copy)]
struct Origin {
    to: SocketAddr,
    since: Instant,
    uses: u32,
}

#[derive(Debug)]
enum Socket {
    Udp(UdpSocket),
    /// What is written and read has the length before it: RFC 1035 §4.2.2.
    Tcp {
        stream: TcpStream,
        sent: usize,
        received: Vec<u8>,
    },
}

/// A query and the resolver that is being asked.
#[derive(Debug)]
struct Attempt {
    query: DnsId,
    tcp: bool,
    message: Vec<u8>,
    id: u16,
    tries: usize,
    /// An answer that is better than none.
    poor: Option<Vec<u8>>,
    serial: u64,
    socket: Socket,
    origin: Origin,
    token: Token,
}

/// The queries under way.
#[derive(Debug)]
pub struct Forwarder {
    files: Followed,
    slots: Vec<Option<Attempt>>,
    free: Vec<usize>,
    resting: Vec<Resting>,
    /// In the order in which they end, as all take the same time.
    deadlines: VecDeque<(Instant, usize, u64)>,
    serial: u64,
    draws: u64,
}

impl Forwarder {
    pub fn new(resolvers: Resolvers, hosts: Option<PathBuf>, seed: u64) -> Self {
        Self {
            files: Followed::new(resolvers, hosts),
            slots: Vec::new(),
            free: Vec::new(),
            resting: Vec::new(),
            deadlines: VecDeque::new(),
            serial: 0,
            draws: seed,
        }
    }

    /// Descriptors: each attempt under way and each socket at rest has one.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// When the next attempt ends without an answer.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadlines.front().map(|entry| entry.0)
    }

    /// Returns an identifier that cannot be guessed, from the seed. Algorithm: SplitMix64.
    fn draw(&mut self) -> u16 {
        self.draws = self.draws.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let word = (self.draws ^ (self.draws >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ (word >> 31)) as u16
    }
}

/// A query that is to be asked of a resolver.
struct Question {
    query: DnsId,
    tcp: bool,
    message: Vec<u8>,
    tries: usize,
    poor: Option<Vec<u8>>,
}

impl Host {
    /// Looks whether the files have changed, if that was not done lately.
    pub(super) fn dns_refresh(&mut self) {
        if let Some(hosts) = self.dns.files.refresh(self.now()) {
            self.stack.set_hosts(hosts);
        }
    }

    pub(super) fn dns_set_resolvers(&mut self, servers: Vec<SocketAddr>) {
        self.dns.files.set_resolvers(servers);
    }

    pub(super) fn dns_query(&mut self, query: DnsId, tcp: bool, message: Vec<u8>) {
        self.dns_ask(self.now(), Question { query, tcp, message, tries: 0, poor: None });
    }

    /// Asks the next resolver; with none left the query fails.
    fn dns_ask(&mut self, now: Instant, mut question: Question) {
        loop {
            let resolvers = self.dns.files.resolvers();
            let most = (resolvers.len() * 2).min(ATTEMPTS_MAX);
            if question.tries >= most {
                return self.stack.dns_answered(now, question.query, question.poor.as_deref());
            }
            let to = resolvers[question.tries % resolvers.len()];
            question.tries += 1;
            let id = self.dns.draw();
            if let Some(head) = question.message.get_mut(..2) {
                head.copy_from_slice(&id.to_be_bytes());
            }
            if let Some((slot, socket, token, origin)) = self.dns_send(now, to, &question) {
                let Question { query, tcp, message, tries, poor } = question;
                self.dns.serial += 1;
                let serial = self.dns.serial;
                self.dns.slots[slot] =
                    Some(Attempt { query, tcp, message, id, tries, poor, serial, socket, origin, token });
                self.dns.deadlines.push_back((now + ATTEMPT, slot, serial));
                return;
            }
        }
    }

    /// Sends a question from a socket at rest, or from a new one.
    fn dns_send(
        &mut self,
        now: Instant,
        to: SocketAddr,
        question: &Question,
    ) -> Option<(usize, Socket, Token, Origin)> {
        while !question.tcp && !self.dns.resting.is_empty() {
            let chosen = usize::from(self.dns.draw()) % self.dns.resting.len();
            let resting = self.dns.resting.swap_remove(chosen);
            let mut origin = resting.origin;
            origin.uses += 1;
            let fresh = origin.to == to && origin.uses <= USES_MAX && now.since(origin.since) < USED_FOR;
            if fresh && resting.socket.send(&question.message).is_ok() {
                return Some((resting.slot, Socket::Udp(resting.socket), resting.token, origin));
            }
            self.poller.remove(&resting.socket, resting.token);
            self.dns.free.push(resting.slot);
        }
        let slot = self.dns.free.pop().unwrap_or_else(|| {
            self.dns.slots.push(None);
            self.dns.slots.len() - 1
        });
        match open(&mut self.poller, slot, to, question) {
            Ok((socket, token)) => Some((slot, socket, token, Origin { to, since: now, uses: 1 })),
            Err(_) => {
                self.dns.free.push(slot);
                None
            }
        }
    }

    /// Keeps the socket of an answered query for another one, if it is good for one.
    fn dns_rest(&mut self, slot: usize, socket: Socket, token: Token, origin: Origin) {
        match socket {
            Socket::Udp(socket) if self.dns.resting.len() < RESTING_MAX => {
                self.dns.resting.push(Resting { socket, token, slot, origin });
            }
            Socket::Udp(socket) => {
                self.poller.remove(&socket, token);
                self.dns.free.push(slot);
            }
            Socket::Tcp { stream, .. } => {
                self.poller.remove(&stream, token);
                self.dns.free.push(slot);
            }
        }
    }

    pub(super) fn dns_event(&mut self, slot: usize, _events: EventFlags) {
        let Some(Some(attempt)) = self.dns.slots.get_mut(slot) else {
            // A second answer, or an error about a query that was answered: nobody waits for it.
            if let Some(resting) = self.dns.resting.iter().find(|resting| resting.slot == slot) {
                let _ = resting.socket.recv(&mut self.scratch);
            }
            return;
        };
        let id = attempt.id;
        match attempt.progress(&mut self.scratch) {
            Ok(None) => {}
            Ok(Some(answer)) => {
                // Anything else on this socket is not the answer: wait on.
                if is_answer(&answer, id) {
                    self.dns_take(slot, answer);
                }
            }
            Err(_) => self.dns_next(slot),
        }
    }

    /// Takes an answer, or asks the next resolver if it is a poor one.
    fn dns_take(&mut self, slot: usize, answer: Vec<u8>) {
        let Some(attempt) = self.dns.slots.get_mut(slot).and_then(Option::take) else { return };
        let Attempt { query, tcp, message, tries, socket, origin, token, .. } = attempt;
        self.dns_rest(slot, socket, token, origin);
        let now = self.now();
        if CODES_POOR.contains(&(answer[3] & 0xf)) && tries < self.dns.files.resolvers().len() {
            return self.dns_ask(now, Question { query, tcp, message, tries, poor: Some(answer) });
        }
        self.stack.dns_answered(now, query, Some(&answer));
    }

    /// Gives up on a resolver.
    fn dns_next(&mut self, slot: usize) {
        if let Some(attempt) = self.dns_close(slot) {
            self.dns_again(self.now(), attempt);
        }
    }

    fn dns_again(&mut self, now: Instant, attempt: Attempt) {
        let Attempt { query, tcp, message, tries, poor, .. } = attempt;
        self.dns_ask(now, Question { query, tcp, message, tries, poor });
    }

    fn dns_close(&mut self, slot: usize) -> Option<Attempt> {
        let attempt = self.dns.slots.get_mut(slot)?.take()?;
        self.dns.free.push(slot);
        match &attempt.socket {
            Socket::Udp(socket) => self.poller.remove(socket, attempt.token),
            Socket::Tcp { stream, .. } => self.poller.remove(stream, attempt.token),
        }
        Some(attempt)
    }

    pub(super) fn dns_expire(&mut self, now: Instant) {
        while let Some((at, slot, serial)) = self.dns.deadlines.front().copied() {
            let live = matches!(self.dns.slots.get(slot), Some(Some(attempt)) if attempt.serial == serial);
            if live && at > now {
                return;
            }
            self.dns.deadlines.pop_front();
            if live {
                self.dns_next(slot);
            }
        }
    }
}

fn is_answer(answer: &[u8], id: u16) -> bool {
    answer.len() >= HEADER_BYTES && answer[..2] == id.to_be_bytes() && answer[2] & 0x80 != 0
}

/// Opens a socket to a resolver; over UDP the question is on its way when it returns.
fn open(
    poller: &mut Poller,
    slot: usize,
    to: SocketAddr,
    question: &Question,
) -> io::Result<(Socket, Token)> {
    if !question.tcp {
        let any: SocketAddr = match to {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = UdpSocket::bind(any)?;
        socket.set_nonblocking(true)?;
        socket.connect(to)?;
        socket.send(&question.message)?;
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
    Ok((Socket::Tcp { stream: fd.into(), sent: 0, received: Vec::new() }, token))
}

impl Attempt {
    /// Goes on as far as the socket lets it; returns the answer when it is whole.
    fn progress(&mut self, scratch: &mut [u8]) -> io::Result<Option<Vec<u8>>> {
        match &mut self.socket {
            Socket::Udp(socket) => match socket.recv(scratch) {
                Ok(count) => Ok(Some(scratch[..count].to_vec())),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
                Err(error) => Err(error),
            },
            Socket::Tcp { stream, sent, received } => {
                let length = (self.message.len() as u16).to_be_bytes();
                let framed = [&length[..], &self.message].concat();
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
}

fn read_framed(
    stream: &mut TcpStream,
    received: &mut Vec<u8>,
    scratch: &mut [u8],
) -> io::Result<Option<Vec<u8>>> {
    loop {
        if let [high, low, rest @ ..] = &received[..] {
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            if let Some(answer) = rest.get(..length) {
                return Ok(Some(answer.to_vec()));
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
