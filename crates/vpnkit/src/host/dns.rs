//! Passes DNS queries to the host's name servers. Those of one order are asked at once, and the first good answer wins;
//! then those of the next. A server that owes answers is not waited for, but asked all the same until it gives one.

pub(crate) mod files;
mod socket;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::epoll::EventFlags;
use vpnkit_stack::{DnsId, Instant};
use vpnkit_wire::dns::{self, HEADER_BYTES, NOERROR, NXDOMAIN};

use super::Host;
use super::poller::Token;
use crate::config::Resolvers;
use crate::upstream::{Numbers, SERVERS_MAX, Upstreams};
use files::Followed;
use socket::{Origin, Resting, Socket};

/// How long a query over UDP waits before it is sent again.
const AGAIN: Duration = Duration::from_secs(1);
/// Queries to servers at once, which bounds the descriptors.
const ATTEMPTS_MAX: usize = 4096;
/// Sockets at rest.
const RESTING_MAX: usize = 64;

/// What an answer is worth: the best of one order is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Worth {
    /// SERVFAIL, REFUSED and the like: another server may do better.
    Poor,
    NoName,
    NoData,
    Good,
}

/// A query of a guest, of which servers are being asked.
#[derive(Debug)]
struct Question {
    query: DnsId,
    tcp: bool,
    message: Vec<u8>,
    serial: u64,
    upstreams: Arc<Upstreams>,
    /// Servers, by number; those before `next` were asked.
    plan: Numbers,
    next: usize,
    outstanding: u32,
    best: Option<(Worth, Vec<u8>)>,
}

/// A server that is being asked.
#[derive(Debug)]
struct Attempt {
    question: (usize, u64),
    server: u8,
    id: u16,
    since: Instant,
    serial: u64,
    socket: Socket,
    origin: Origin,
    token: Token,
}

/// The queries under way.
#[derive(Debug)]
pub struct Forwarder {
    files: Followed,
    questions: Vec<Option<Question>>,
    free_questions: Vec<usize>,
    slots: Vec<Option<Attempt>>,
    free: Vec<usize>,
    resting: Vec<Resting>,
    /// In the order in which they are due, as all take the same time.
    deadlines: VecDeque<(Instant, usize, u64)>,
    /// Answers that each server owes, in a row.
    owed: [u32; SERVERS_MAX],
    serial: u64,
    draws: u64,
}

impl Forwarder {
    pub fn new(resolvers: Resolvers, hosts: Option<PathBuf>, seed: u64) -> Self {
        Self {
            files: Followed::new(resolvers, hosts),
            questions: Vec::new(),
            free_questions: Vec::new(),
            slots: Vec::new(),
            free: Vec::new(),
            resting: Vec::new(),
            deadlines: VecDeque::new(),
            owed: [0; SERVERS_MAX],
            serial: 0,
            draws: seed,
        }
    }

    /// Asks other servers from now on.
    pub fn set_resolvers(&mut self, upstreams: Upstreams) {
        self.owed = [0; SERVERS_MAX];
        self.files.set_resolvers(upstreams);
    }

    /// Descriptors: each attempt under way and each socket at rest has one.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// When the next attempt is looked at.
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

    fn question(&mut self, (index, serial): (usize, u64)) -> Option<&mut Question> {
        self.questions.get_mut(index)?.as_mut().filter(|question| question.serial == serial)
    }

    /// The servers to ask now: those of the next order, and while all of these owe answers, those of the one after.
    fn next_servers(&mut self, at: (usize, u64)) -> Numbers {
        let owed = self.owed;
        let Some(question) = self.question(at) else { return Numbers::default() };
        let upstreams = Arc::clone(&question.upstreams);
        let order = |server: u8| upstreams.servers[usize::from(server)].order;
        let offline = |server: u8| owed[usize::from(server)] >= upstreams.offline_after.max(1);
        let mut servers = Numbers::default();
        while let Some(first) = question.plan.get(question.next).copied() {
            if servers.iter().any(|server| !offline(*server)) {
                break;
            }
            let group =
                question.plan[question.next..].iter().take_while(|server| order(**server) == order(first));
            servers.extend(group.copied());
            question.next =
                question.plan.iter().rposition(|server| servers.contains(server)).map_or(0, |at| at + 1);
        }
        servers
    }
}

impl Host {
    /// Looks whether the files have changed, if that was not done lately.
    pub(super) fn dns_refresh(&mut self) {
        if let Some(hosts) = self.dns.files.refresh(self.now()) {
            self.stack.set_hosts(hosts);
        }
    }

    pub(super) fn dns_query(&mut self, query: DnsId, tcp: bool, message: Vec<u8>) {
        let upstreams = Arc::clone(self.dns.files.resolvers());
        let zoned = upstreams.servers.iter().any(|server| !server.zones.is_empty());
        let name = dns::parse(&message).ok().filter(|_| zoned).map(|query| query.name);
        let plan = upstreams.plan(name.as_deref().unwrap_or_default());
        self.dns.serial += 1;
        let serial = self.dns.serial;
        let question =
            Question { query, tcp, message, serial, upstreams, plan, next: 0, outstanding: 0, best: None };
        let index = self.dns.free_questions.pop().unwrap_or_else(|| {
            self.dns.questions.push(None);
            self.dns.questions.len() - 1
        });
        self.dns.questions[index] = Some(question);
        self.dns_ask(self.now(), (index, serial));
    }

    /// Asks the servers of the next order; with none left the question is answered with what there is.
    fn dns_ask(&mut self, now: Instant, at: (usize, u64)) {
        loop {
            let servers = self.dns.next_servers(at);
            if servers.is_empty() {
                return self.dns_finish(now, at, None);
            }
            for server in servers.iter() {
                self.dns_send(now, at, *server);
            }
            if self.dns.question(at).is_none_or(|question| question.outstanding > 0) {
                return;
            }
        }
    }

    /// Answers a question: with `good`, or else the best that there is.
    fn dns_finish(&mut self, now: Instant, at: (usize, u64), good: Option<&[u8]>) {
        if self.dns.question(at).is_some()
            && let Some(question) = self.dns.questions[at.0].take()
        {
            self.dns.free_questions.push(at.0);
            let answer = good.or(question.best.as_ref().map(|(_, answer)| answer.as_slice()));
            self.stack.dns_answered(now, question.query, answer);
            self.stack.recycle(question.message);
        }
    }

    /// Asks a server, from a socket at rest or from a new one. One that cannot be asked counts as asked.
    fn dns_send(&mut self, now: Instant, at: (usize, u64), server: u8) {
        let id = self.dns.draw();
        let Some(question) = self.dns.question(at) else { return };
        if let Some(head) = question.message.get_mut(..2) {
            head.copy_from_slice(&id.to_be_bytes());
        }
        let to = question.upstreams.servers[usize::from(server)].address;
        // It goes back right below.
        let (tcp, message) = (question.tcp, std::mem::take(&mut question.message));
        let opened = self.dns_open(now, to, tcp, &message);
        if let Some(question) = self.dns.question(at) {
            question.message = message;
            question.outstanding += u32::from(opened.is_some());
        }
        if let Some((slot, socket, token, origin)) = opened {
            self.dns.serial += 1;
            let serial = self.dns.serial;
            self.dns.slots[slot] =
                Some(Attempt { question: at, server, id, since: now, serial, socket, origin, token });
            self.dns.deadlines.push_back((now + AGAIN, slot, serial));
        }
    }

    fn dns_open(
        &mut self,
        now: Instant,
        to: std::net::SocketAddr,
        tcp: bool,
        message: &[u8],
    ) -> Option<(usize, Socket, Token, Origin)> {
        while !tcp && !self.dns.resting.is_empty() {
            let chosen = usize::from(self.dns.draw()) % self.dns.resting.len();
            let resting = self.dns.resting.swap_remove(chosen);
            let mut origin = resting.origin;
            origin.uses += 1;
            if origin.is_fresh(now, to) && resting.socket.send(message).is_ok() {
                return Some((resting.slot, Socket::Udp(resting.socket), resting.token, origin));
            }
            self.poller.remove(&resting.socket, resting.token);
            self.dns.free.push(resting.slot);
        }
        if self.dns.len() >= ATTEMPTS_MAX {
            return None;
        }
        let slot = self.dns.free.pop().unwrap_or_else(|| {
            self.dns.slots.push(None);
            self.dns.slots.len() - 1
        });
        match Socket::open(&mut self.poller, slot, to, tcp, message) {
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
            socket => {
                socket.close(&mut self.poller, token);
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
        let (id, at) = (attempt.id, attempt.question);
        // It goes back below.
        let mut scratch = std::mem::take(&mut self.scratch);
        match attempt.socket.progress(&mut scratch) {
            Ok(None) => {}
            Ok(Some(count)) => {
                let answer = &scratch[..count];
                // Anything else on this socket is not the answer: wait on.
                let fits = answer.len() >= HEADER_BYTES
                    && self.dns.question(at).is_none_or(|question| is_answer(answer, &question.message));
                if fits && answer[..2] == id.to_be_bytes() {
                    self.dns_take(slot, answer);
                }
            }
            Err(_) => self.dns_give_up(slot),
        }
        self.scratch = scratch;
    }

    /// Takes an answer: a good one at once, the best of the others when all servers of this order have answered.
    fn dns_take(&mut self, slot: usize, answer: &[u8]) {
        let Some(attempt) = self.dns.slots.get_mut(slot).and_then(Option::take) else { return };
        let Attempt { question: at, server, socket, origin, token, .. } = attempt;
        self.dns_rest(slot, socket, token, origin);
        self.dns.owed[usize::from(server)] = 0;
        let worth = worth_of(answer);
        let Some(question) = self.dns.question(at) else { return };
        question.outstanding -= 1;
        if worth == Worth::Good {
            return self.dns_finish(self.now(), at, Some(answer));
        }
        if question.best.as_ref().is_none_or(|(best, _)| worth > *best) {
            question.best = Some((worth, answer.to_vec()));
        }
        self.dns_settle(at);
    }

    /// Finishes a question or goes on with it, if there is nothing more to wait for.
    fn dns_settle(&mut self, at: (usize, u64)) {
        let Some(question) = self.dns.question(at) else { return };
        let best = question.best.as_ref().map(|(worth, _)| *worth);
        let (idle, now) = (question.outstanding == 0, self.now());
        if idle && best > Some(Worth::Poor) {
            self.dns_finish(now, at, None);
        } else if idle {
            self.dns_ask(now, at);
        }
    }

    /// Gives up on a server.
    fn dns_give_up(&mut self, slot: usize) {
        let Some(attempt) = self.dns.slots.get_mut(slot).and_then(Option::take) else { return };
        self.dns.free.push(slot);
        attempt.socket.close(&mut self.poller, attempt.token);
        let owed = &mut self.dns.owed[usize::from(attempt.server)];
        *owed = owed.saturating_add(1);
        if let Some(question) = self.dns.question(attempt.question) {
            question.outstanding -= 1;
            self.dns_settle(attempt.question);
        }
    }

    /// Looks at what is due: it is sent again, or was given enough time.
    pub(super) fn dns_expire(&mut self, now: Instant) {
        while let Some((due, slot, serial)) = self.dns.deadlines.front().copied() {
            let live = matches!(self.dns.slots.get(slot), Some(Some(attempt)) if attempt.serial == serial);
            if live && due > now {
                return;
            }
            self.dns.deadlines.pop_front();
            if live && !self.dns_again(now, slot) {
                self.dns_give_up(slot);
            }
        }
    }

    /// Goes on with an attempt for another moment; returns false when it had enough.
    fn dns_again(&mut self, now: Instant, slot: usize) -> bool {
        let Some(Some(attempt)) = self.dns.slots.get(slot) else { return true };
        let (at, id, server, serial) = (attempt.question, attempt.id, attempt.server, attempt.serial);
        let since = attempt.since;
        let Some(question) = self.dns.question(at) else { return false };
        if now.since(since) >= question.upstreams.servers[usize::from(server)].timeout {
            return false;
        }
        if let Some(head) = question.message.get_mut(..2) {
            head.copy_from_slice(&id.to_be_bytes());
        }
        if let (Some(Some(Attempt { socket: Socket::Udp(socket), .. })), Some(Some(question))) =
            (self.dns.slots.get(slot), self.dns.questions.get(at.0))
        {
            // What fails now is told by the socket, or is due again.
            let _ = socket.send(&question.message);
        }
        self.dns.deadlines.push_back((now + AGAIN, slot, serial));
        true
    }
}

/// Whether a message, of a header at least, is an answer to this question; who refuses may leave the question out.
fn is_answer(answer: &[u8], query: &[u8]) -> bool {
    if answer[2] & 0x80 == 0 {
        return false;
    }
    let question = dns::question(query).unwrap_or_default();
    answer[4..6] == [0, 0] || dns::question(answer).is_some_and(|asked| asked.eq_ignore_ascii_case(question))
}

/// What a message, of a header at least, is worth.
fn worth_of(answer: &[u8]) -> Worth {
    let (code, has_records) = (answer[3] & 0xf, answer[6..8] != [0, 0]);
    match code {
        NOERROR if has_records || dns::is_truncated(answer) => Worth::Good,
        NOERROR => Worth::NoData,
        NXDOMAIN => Worth::NoName,
        _ => Worth::Poor,
    }
}
