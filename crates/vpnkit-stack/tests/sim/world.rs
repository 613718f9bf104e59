//! One episode: a stack, a guest, a host and two links, under one clock.

use std::io::IoSlice;
use std::net::{Ipv4Addr, SocketAddr};

use ethlink::{Vnet, segment};
use smoltcp::socket::tcp::Socket;
use smoltcp::wire::IpAddress;
use vpnkit_stack::{Config, Frame, FrameSink, Instant, Offload, Stack};

use crate::guest::{Flow, Guest};
use crate::host::{Connection, Direct, Host};
use crate::lent::Lent;
use crate::link::{Link, Random};

/// What an episode is like. Probabilities are in percent.
#[derive(Debug, Clone)]
pub struct Plan {
    pub flows: usize,
    pub bytes_max: usize,
    pub mtu: u16,
    pub loss: u64,
    pub duplicates: u64,
    pub jitter_us: u64,
    /// How often the link to the guest has no room.
    pub blocked: u64,
    pub slow_host: bool,
    pub slow_guest: bool,
    pub guest_buffer: usize,
    pub resets: bool,
    /// Whether the host opens the flows, towards the guest.
    pub inbound: bool,
    /// How often the host's sockets take data while the frame is there.
    pub direct: u64,
    /// How often acknowledgements are kept back for a moment.
    pub hold: u64,
    /// Whether the stack leaves segmentation and checksums to the link, which does them in software.
    pub offload: bool,
    /// Whether frames of the guest are in its memory, and trusted.
    pub volatile: bool,
    /// One of so many seconds, the link is down.
    pub outage_every: u64,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            flows: 1,
            bytes_max: 1000,
            mtu: 1500,
            loss: 0,
            duplicates: 0,
            jitter_us: 0,
            blocked: 0,
            slow_host: false,
            slow_guest: false,
            guest_buffer: 65535,
            resets: false,
            inbound: false,
            direct: 0,
            hold: 0,
            offload: false,
            volatile: false,
            outage_every: 0,
        }
    }
}

/// Virtual time that an episode may take: an hour.
const TIME_MAX_US: u64 = 3600 * 1_000_000;

pub struct World {
    pub plan: Plan,
    random: Random,
    stack: Stack,
    guest: Guest,
    host: Host,
    up: Link,
    down: Link,
    now: u64,
    /// Acknowledgements are kept back.
    held: bool,
}

struct Sink<'a> {
    link: &'a mut Link,
    random: &'a mut Random,
    plan: &'a Plan,
    now: u64,
}

impl FrameSink for Sink<'_> {
    fn send(&mut self, offload: Offload, parts: &[IoSlice<'_>]) -> bool {
        assert!(self.plan.offload || offload == Offload::NONE, "{offload:?}");
        if self.random.percent(self.plan.blocked) {
            return false;
        }
        let header = Vnet(offload.to_virtio(parts[0].len() as u16));
        let parts: Vec<&[u8]> = parts.iter().map(|part| &part[..]).collect();
        segment::finish(&header, &parts, &mut |parts| {
            let frame = parts.concat();
            assert!(frame.len() <= usize::from(self.plan.mtu) + 14, "a frame of {} bytes", frame.len());
            self.link.send(self.now, frame, self.random, self.plan);
        })
        .expect("the stack's frames are what it says");
        true
    }
}

impl World {
    pub fn new(seed: u64, plan: Plan) -> Self {
        let mut random = Random(seed ^ 0xabcd_ef01);
        let stack = Stack::new(Config { mtu: plan.mtu, offload: plan.offload, ..Config::default() }, seed)
            .expect("a valid network");
        let mut guest = Guest::new(seed, usize::from(plan.mtu), plan.slow_guest);
        let mut host = Host { slow: plan.slow_host, ..Host::default() };
        for index in 0..plan.flows {
            add_flow(index, &plan, &mut random, &mut guest, &mut host);
        }
        Self {
            plan,
            random,
            stack,
            guest,
            host,
            up: Link::default(),
            down: Link::default(),
            now: 0,
            held: false,
        }
    }

    /// Runs until all flows are over, and compares.
    pub fn run(&mut self) -> Result<(), String> {
        if self.plan.inbound {
            self.open_inbound();
        }
        while !self.is_over() {
            self.step()?;
            if self.now > TIME_MAX_US {
                return Err("the episode does not end".into());
            }
        }
        self.compare()?;
        // Everything is forgotten when TIME-WAIT is over; a lost last segment may take a few retransmissions.
        let end = self.now + 1_500_000_000;
        while self.now < end && !self.stack.flows().tcp.is_empty() {
            self.step()?;
        }
        if self.plan.resets || self.stack.flows().tcp.is_empty() {
            Ok(())
        } else {
            Err("flows are left".into())
        }
    }

    fn open_inbound(&mut self) {
        let peer: SocketAddr = "127.0.0.1:40000".parse().expect("an address");
        for index in 0..self.plan.flows {
            let guest = SocketAddr::new(Ipv4Addr::new(192, 168, 65, 3).into(), 1000 + index as u16);
            let flow = self.stack.tcp_open(Instant(self.now), peer, guest).expect("room for a flow");
            let connection = self.host.expected.remove(&(1000 + index as u16)).expect("planned");
            self.host.connections.insert(flow, connection);
        }
    }

    fn step(&mut self) -> Result<(), String> {
        let now = Instant(self.now);
        while let Some(frame) = self.up.receive(self.now) {
            let percent = self.plan.direct;
            let mut sockets = Direct { host: &mut self.host, random: &mut self.random, percent };
            if self.plan.volatile {
                let offload = Offload { verified: true, ..Offload::NONE };
                self.stack.on_frame(now, offload, Frame::Volatile(&Lent::new(&frame)), &mut sockets);
            } else {
                self.stack.on_frame(now, Offload::NONE, &frame, &mut sockets);
            }
        }
        while let Some(frame) = self.down.receive(self.now) {
            self.guest.port.received.push_back(frame);
        }
        self.stack.on_time(now);
        self.host.take_effects(&mut self.stack)?;
        self.host.run_programs(now, &mut self.stack, &mut self.random)?;
        self.host.take_effects(&mut self.stack)?;
        let hold = !self.held && self.random.percent(self.plan.hold);
        let mut sink =
            Sink { link: &mut self.down, random: &mut self.random, plan: &self.plan, now: self.now };
        let all = if hold {
            self.stack.transmit_answers(now, &mut sink)
        } else {
            self.stack.transmit(now, &mut sink)
        };
        self.held = hold && self.stack.holds_back();
        self.stack.check();
        self.guest.poll(self.now);
        self.guest.run_programs(&mut self.random)?;
        self.guest.poll(self.now);
        for frame in std::mem::take(&mut self.guest.port.sent) {
            self.up.send(self.now, frame, &mut self.random, &self.plan);
        }
        self.advance(all);
        Ok(())
    }

    /// Moves the clock to the next thing that can happen.
    fn advance(&mut self, all_sent: bool) {
        let busy = self.plan.slow_host || self.plan.slow_guest || !all_sent;
        let next = [
            self.up.deadline(),
            self.down.deadline(),
            self.stack.deadline().map(|at| at.0),
            self.guest.deadline(self.now),
            busy.then_some(self.now + 1000),
            self.held.then_some(self.now + 50),
        ];
        let next = next.into_iter().flatten().min().unwrap_or(self.now + 1_000_000);
        self.now = next.clamp(self.now + 1, self.now + 1_000_000);
    }

    fn is_over(&self) -> bool {
        let host = self.host.expected.is_empty()
            && self
                .host
                .connections
                .values()
                .all(|connection| connection.closed.is_some() || connection.gone);
        let guest = self.guest.flows.iter().all(|flow| (flow.closed && flow.eof) || flow.was_reset);
        host && guest
    }

    fn compare(&self) -> Result<(), String> {
        if self.plan.resets {
            return Ok(());
        }
        for flow in &self.guest.flows {
            let connection = self.host.connections.values().find(|other| other.stream == flow.stream);
            let connection = connection.ok_or("a connection is missing")?;
            if connection.received != flow.to_send || flow.received != connection.to_send {
                return Err(format!("bytes are missing: {flow:?} {connection:?}"));
            }
            if connection.closed != Some(false) {
                return Err(format!("not closed in order: {connection:?}"));
            }
        }
        Ok(())
    }

    pub fn describe(&self) -> String {
        let sockets: Vec<_> = self
            .guest
            .flows
            .iter()
            .map(|flow| (flow, self.guest.sockets.get::<Socket>(flow.handle).state()))
            .collect();
        let counters = self.stack.counters();
        format!(
            "now {} us\n{sockets:#?}\n{:#?}\n{:#?}\n{counters:?}",
            self.now,
            self.host.connections,
            self.stack.flows()
        )
    }
}

fn add_flow(index: usize, plan: &Plan, random: &mut Random, guest: &mut Guest, host: &mut Host) {
    let stream = index as u64 * 2;
    let (to_send, to_receive) =
        (random.below(plan.bytes_max as u64) as usize, random.below(plan.bytes_max as u64) as usize);
    let total = (to_send + to_receive) as u64;
    let reset = plan.resets && total > 0;
    let guest_resets = reset && random.percent(50);
    let after = random.below(total) as usize;
    let guest_last = random.percent(40);
    let flow = Flow {
        handle: smoltcp::iface::SocketHandle::default(),
        stream,
        to_send,
        sent: 0,
        received: 0,
        reset_after: guest_resets.then_some(after),
        close_last: guest_last,
        closed: false,
        was_reset: false,
        eof: false,
    };
    let port = 1000 + index as u16;
    let at = guest.add_flow(plan.guest_buffer, flow);
    let handle = guest.flows[at].handle;
    let socket = guest.sockets.get_mut::<Socket>(handle);
    if plan.inbound {
        socket.listen(port).expect("a free port");
    } else {
        let to = (IpAddress::v4(10, 9, 8, 7), port);
        socket.connect(guest.interface.context(), to, 50_000 + port).expect("a free port");
    }
    let connection = Connection {
        stream,
        to_send: to_receive,
        reset_after: (reset && !guest_resets).then_some(after),
        close_last: !guest_last && random.percent(40),
        ..Connection::default()
    };
    host.expected.insert(port, connection);
}
