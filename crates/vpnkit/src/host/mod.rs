//! The engine's thread: waits for sockets, the link and time, tells the stack, and does what it asks.

mod dns;
mod forward;
mod greeting;
mod lookup;
mod ping;
mod poller;
mod route;
mod spin;
mod splice;
pub(crate) mod sys;
mod tcp;
#[cfg(test)]
mod tests;
mod udp;

use std::io::IoSlice;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use ethlink::inside::Inside;
use rustix::event::epoll::EventFlags;
use vpnkit_stack::{Counters, DropReason, Effect, Flows, FrameSink, Hosts, Instant, Offload, Stack};
use vpnkit_wire::ethernet::MacAddr;
use vpnkit_wire::ntp;

use crate::config::{Config, Forward, ForwardError, StartError, Update};
use crate::intercept::Intercept;
use crate::link::{Link, Received};
use crate::waker::Waker;
use poller::{Owned, Owner, Poller, Token};
use spin::Spin;

pub(crate) use forward::Bound;

/// Bytes of the largest datagram.
const DATAGRAM_BYTES_MAX: usize = 65536;

/// What other threads ask of the engine.
pub(crate) enum Command {
    Forward(Bound, mpsc::Sender<Result<(), ForwardError>>),
    Lead(OwnedFd, SocketAddr),
    Unforward(Forward, mpsc::Sender<Result<(), ForwardError>>),
    Flows(mpsc::Sender<Flows>),
    Counters(mpsc::Sender<Counters>),
    Leases(mpsc::Sender<Vec<(Ipv4Addr, MacAddr)>>),
    Update(Update),
    Lookup(String, lookup::Answer),
    Stop,
}

/// Everything that the thread owns.
pub(crate) struct Host {
    stack: Stack,
    link: Arc<dyn Link>,
    waker: Waker,
    commands: mpsc::Receiver<Command>,
    poller: Poller,
    started: std::time::Instant,
    tcp: tcp::Connections,
    udp: udp::Sockets,
    pings: ping::Sockets,
    forwards: forward::Ports,
    dns: dns::Forwarder,
    lookups: lookup::Lookups,
    intercept: Option<Arc<dyn Intercept>>,
    pairs: splice::Pairs,
    inside: Option<Arc<Inside>>,
    scratch: Vec<u8>,
    link_token: Option<Token>,
    /// Whether the link may have frames.
    link_ready: bool,
    /// Whether the link had no room for a frame.
    link_full: bool,
    spin: Spin,
    /// When the host was asked last whether it has a way to the IPv6 Internet.
    route_checked: Instant,
    stopping: bool,
}

struct ToLink<'a>(&'a dyn Link);

impl FrameSink for ToLink<'_> {
    fn send(&mut self, offload: Offload, parts: &[IoSlice<'_>]) -> bool {
        self.0.send(offload, parts)
    }
}

impl Host {
    pub fn new(
        config: &Config,
        link: Arc<dyn Link>,
        waker: Waker,
        commands: mpsc::Receiver<Command>,
    ) -> Result<Self, StartError> {
        let mut seeds = [0u8; 16];
        rustix::rand::getrandom(&mut seeds, rustix::rand::GetRandomFlags::empty())
            .map_err(|error| StartError::Os { what: "getrandom", source: error.into() })?;
        let [first, second] = [0, 8].map(|at| {
            let mut word = [0; 8];
            word.copy_from_slice(&seeds[at..at + 8]);
            u64::from_ne_bytes(word)
        });
        let stack = Stack::new(config.network.clone(), first)?;
        let mut poller = Poller::new().map_err(StartError::os("epoll_create"))?;
        poller.add(waker.fd(), Owner::Waker, EventFlags::IN).map_err(StartError::os("epoll_ctl"))?;
        // Level-triggered: it tells of frames that were left as of those that come.
        let link_token = link
            .fd()
            .map(|fd| poller.add(fd, Owner::Link, EventFlags::IN))
            .transpose()
            .map_err(StartError::os("epoll_ctl"))?;
        if let Some(inside) = &config.inside {
            poller.add(inside, Owner::Inside, EventFlags::IN).map_err(StartError::os("epoll_ctl"))?;
        }
        Ok(Self {
            pairs: splice::Pairs::default(),
            inside: config.inside.clone(),
            stack,
            link,
            waker,
            commands,
            poller,
            started: std::time::Instant::now(),
            tcp: tcp::Connections::default(),
            udp: udp::Sockets::default(),
            pings: ping::Sockets::default(),
            forwards: forward::Ports::default(),
            dns: dns::Forwarder::new(config.dns.clone(), config.hosts.clone(), second),
            lookups: lookup::Lookups::default(),
            intercept: config.intercept.clone(),
            scratch: vec![0; DATAGRAM_BYTES_MAX],
            link_token,
            link_ready: true,
            link_full: false,
            spin: Spin::new(config.busy_poll),
            route_checked: Instant::default(),
            stopping: false,
        })
    }

    /// Runs until told to stop.
    pub fn run(mut self) {
        self.link.attach(self.waker.clone());
        self.follow_route();
        self.stack.announce();
        loop {
            self.dns_refresh();
            let received = if self.link_ready { self.receive() } else { Received::All };
            self.link_ready = received != Received::All || self.link_token.is_none();
            self.stopping |= received == Received::Closed;
            self.take_commands();
            if self.stopping {
                return;
            }
            let now = self.now();
            self.stack.on_time(now);
            self.expire(now);
            self.tcp_resume();
            self.splice_resume();
            self.settle();
            if let Some(offload) = self.link.offload() {
                self.stack.set_offload(offload);
            }
            self.transmit(now, self.spin.is_worth_it());
            if cfg!(debug_assertions) {
                self.check();
            }
            self.wait(received == Received::Some || self.tcp.has_ready() || self.pairs.has_ready());
        }
    }

    fn now(&self) -> Instant {
        Instant(u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    /// Takes a burst of frames from the link.
    fn receive(&mut self) -> Received {
        let now = self.now();
        let Host { stack, tcp, link, .. } = self;
        let received = link.receive(&mut |offload, frame| stack.on_frame(now, offload, frame, tcp));
        for mac in link.departed() {
            stack.on_departure(mac);
        }
        received
    }

    /// Gives the link all frames that it has room for; `hold` keeps acknowledgements back that answers may take along.
    fn transmit(&mut self, now: Instant, hold: bool) {
        let mut sink = ToLink(&*self.link);
        let all = if hold {
            self.stack.transmit_answers(now, &mut sink)
        } else {
            self.stack.transmit(now, &mut sink)
        };
        self.link.flush();
        if self.link_full == all
            && let (Some(fd), Some(token)) = (self.link.fd(), self.link_token)
        {
            self.link_full = !all;
            let events = if all { EventFlags::IN } else { EventFlags::IN | EventFlags::OUT };
            // It can only fail for a descriptor that is not in the set.
            let _ = self.poller.modify(fd, token, events);
        }
    }

    /// Does what the stack asks until it asks no more.
    fn settle(&mut self) {
        while let Some(effect) = self.stack.pop_effect() {
            self.obey(effect);
        }
    }

    fn obey(&mut self, effect: Effect) {
        match effect {
            Effect::TcpConnect { flow, to } => self.tcp_connect(flow, to),
            Effect::TcpReceived(flow) => self.tcp_write(flow),
            Effect::TcpRoom(flow) => self.tcp_read(flow),
            Effect::TcpKeepalive(flow) => self.tcp_keepalive(flow),
            Effect::TcpShutdown(flow) => self.tcp_shutdown(flow),
            Effect::TcpClosed { flow, reset } => self.tcp_close(flow, reset),
            Effect::UdpSend { flow, to, hops, payload } => self.udp_send(flow, to, hops, payload),
            Effect::UdpReply { forward, to, payload } => self.forward_reply(forward, to, payload),
            Effect::UdpClosed(flow) => self.udp_close(flow),
            Effect::PingSend { flow, to, hops, sequence, payload } => {
                self.ping_send(flow, (to, sequence), hops, &payload);
                self.stack.recycle(payload);
            }
            Effect::PingClosed(flow) => self.ping_close(flow),
            Effect::DnsReply { number, message } => self.lookup_answered(number, &message),
            Effect::TimeQuery { guest, server, request } => {
                let at = std::time::SystemTime::now();
                if let Some(answer) = ntp::answer(&request, at, std::time::SystemTime::now()) {
                    self.stack.time_answered(self.now(), guest, server, &answer);
                }
            }
            Effect::DnsQuery { query, tcp, message } => self.dns_query(query, tcp, message),
        }
    }

    /// Waits for something to happen, if there is nothing to do, and takes note of it.
    fn wait(&mut self, more: bool) {
        let waited = if more { self.poller.wait(Some(Duration::ZERO)) } else { self.wait_idle() };
        let Ok(count) = waited else {
            // Without epoll there is nothing left to be done; every flow is reset when the sockets are closed.
            self.stopping = true;
            return;
        };
        for index in 0..count {
            if let Some((owner, events)) = self.poller.event(index) {
                self.on_event(owner, events);
                // Effects come before the next event: that one may concern what they close.
                self.settle();
            }
        }
    }

    /// Waits for something to happen: awake for a moment, if that paid lately, then asleep.
    fn wait_idle(&mut self) -> std::io::Result<usize> {
        let counters = self.stack.counters();
        self.spin.moved(counters.bytes_in + counters.bytes_out);
        if self.spin.is_worth_it() {
            let began = std::time::Instant::now();
            while began.elapsed() < self.spin.moment() {
                let count = self.poller.wait(Some(Duration::ZERO))?;
                if count > 0 || self.waker.take_pending() {
                    self.spin.paid();
                    return Ok(count);
                }
                std::thread::yield_now();
            }
        }
        if self.stack.holds_back() {
            self.transmit(self.now(), false);
        }
        let began = std::time::Instant::now();
        let timeout = if self.waker.may_sleep() { self.timeout() } else { Some(Duration::ZERO) };
        let waited = self.poller.wait(timeout);
        self.waker.awake();
        self.spin.slept(began.elapsed());
        waited
    }

    fn timeout(&self) -> Option<Duration> {
        let deadlines = [self.stack.deadline(), self.dns.deadline(), self.forwards.deadline()];
        let next = deadlines.into_iter().flatten().min()?;
        Some(next.since(self.now()) + Duration::from_micros(1))
    }

    fn on_event(&mut self, owner: Owner, events: EventFlags) {
        match owner {
            Owner::Waker => self.waker.clear(),
            Owner::Link => self.link_ready = true,
            Owner::Tcp(flow) => self.tcp_event(flow, events),
            Owner::Udp(flow) => self.udp_event(flow, events),
            Owner::Ping(flow) => self.ping_event(flow, events),
            Owner::Forward(number) => self.forward_event(number),
            Owner::Dns(slot) => self.dns_event(slot, events),
            Owner::Spliced(slot, side) => self.splice_event(slot, side, events),
            Owner::Inside => self.inside_event(),
        }
    }

    /// Takes sockets of the namespace; without the other end there are none any more.
    fn inside_event(&mut self) {
        if let Some(inside) = &self.inside
            && !inside.collect()
        {
            self.poller.remove_owner(inside, Owner::Inside);
            self.inside = None;
        }
    }

    /// Acts on the deadlines of this thread's own parts.
    fn expire(&mut self, now: Instant) {
        self.dns_expire(now);
        self.forwards_resume(now);
        if now.since(self.route_checked) >= route::INTERVAL {
            self.follow_route();
        }
    }

    fn take_commands(&mut self) {
        loop {
            match self.commands.try_recv() {
                Ok(Command::Forward(bound, reply)) => {
                    // The caller may have stopped waiting.
                    let _ = reply.send(self.forward_add(bound));
                }
                Ok(Command::Unforward(forward, reply)) => {
                    let _ = reply.send(self.forward_remove(&forward));
                }
                Ok(Command::Lead(stream, guest)) => self.tcp_led(stream, guest),
                Ok(Command::Flows(reply)) => {
                    let _ = reply.send(self.stack.flows());
                }
                Ok(Command::Leases(reply)) => {
                    let _ = reply.send(self.stack.leases());
                }
                Ok(Command::Counters(reply)) => {
                    let (mut counters, link) = (self.stack.counters(), self.link.drops());
                    counters.drops.add_count(DropReason::ForgedSource, link.forged);
                    counters.drops.add_count(DropReason::QueueFull, link.full);
                    let _ = reply.send(counters);
                }
                Ok(Command::Update(update)) => self.update(update),
                Ok(Command::Lookup(name, answer)) => self.lookup(&name, answer),
                Ok(Command::Stop) | Err(mpsc::TryRecvError::Disconnected) => {
                    self.stopping = true;
                    return;
                }
                Err(mpsc::TryRecvError::Empty) => return,
            }
        }
    }

    fn update(&mut self, update: Update) {
        match update {
            Update::Hosts(text) => self.stack.set_hosts(Hosts::parse(&text)),
            Update::Resolvers(servers) => self.dns.set_resolvers(servers),
            Update::Reserve(mac, address) => self.stack.reserve(mac, address),
            Update::GatewayPorts(ports) => self.stack.set_gateway_ports(ports),
            Update::Zones(zones) => self.stack.set_zones(zones),
            Update::Domains { domain, search } => self.stack.set_domains(domain, search),
        }
    }

    /// Panics unless all invariants hold: every descriptor has one owner, and every owner its descriptor.
    fn check(&self) {
        self.stack.check();
        let owned = Owned {
            waker: 1,
            link: usize::from(self.link.fd().is_some()),
            inside: usize::from(self.inside.is_some()),
            pairs: self.pairs.len(),
            tcp: self.tcp.len(),
            udp: self.udp.len(),
            pings: self.pings.len(),
            forwards: self.forwards.len(),
            dns: self.dns.len(),
        };
        assert_eq!(self.poller.owned(), owned, "descriptors and their owners");
    }
}
