//! TCP flows: which segment belongs to which, how they begin and end. Spec: RFC 9293 §3.10.7.

use std::net::SocketAddr;
use std::time::Duration;

use vpnkit_wire::tcp::{ACK, HEADER_BYTES, Header, RST, SYN, Segment, Seq, parse};
use vpnkit_wire::{ParseError, dns, ip};

use super::Stack;
use super::address::Place;
use super::icmp_error::Fate;
use super::tcp_host::AHEAD_BYTES;
use super::volatile::Delivery;
use crate::drops::DropReason;
use crate::event::{Effect, TcpId, TcpSnapshot};
use crate::table::FlowKey;
use crate::tcp::{Changes, Endpoint, Phase, Settings};
use crate::time::Instant;
use crate::volatile::Data;

/// How long TIME-WAIT lasts. RFC 9293 §3.4.2 says four minutes, for segments that wander; on this link none does, and
/// what is late only has to be told apart from a new connection, which sequence numbers do.
const TIME_WAIT: Duration = Duration::from_secs(1);
/// How long a connection may take to be made while there are too many: two attempts of the host's TCP.
const CONNECTING_MIN: Duration = Duration::from_secs(3);
/// Window of a flow when the memory for all is half used, in bytes.
const WINDOW_BYTES_SCARCE: u32 = 8 * 1024;

/// Who is at the other end of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    /// A socket of the host.
    Host,
    /// Our own name server, with queries not answered yet.
    Dns { pending: u32 },
}

/// A flow.
#[derive(Debug)]
pub(super) struct TcpFlow {
    pub key: FlowKey,
    pub endpoint: Endpoint,
    pub owner: Owner,
    /// Whether it is in the queue of those that may have something to send.
    pub dirty: bool,
    /// Whether it is in the list of those that wait for a hardware address.
    pub waiting: bool,
    /// The entry in the timer heap that counts.
    pub timer_at: Option<Instant>,
    pub connecting: bool,
    pub received_told: bool,
    pub starved: bool,
    pub shutdown_told: bool,
    /// Whether the host knows nothing of it any more.
    pub host_gone: bool,
    /// Whether the host was told that the guest wants to know of a dead peer.
    pub keepalive_told: bool,
    /// Whether it was idle for the last sweep's time.
    pub quiet: bool,
    pub bytes_up: u64,
    pub bytes_down: u64,
    /// Its part of [`Buffered`].
    accounted: (u32, usize),
}

/// Bytes of all flows together.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Buffered {
    /// Windows promised to guests.
    pub promised: u64,
    /// Queued for guests.
    pub queued: u64,
}

impl Stack {
    pub(super) fn take_tcp(
        &mut self,
        now: Instant,
        packet: &ip::Packet<'_>,
        verify: bool,
        delivery: &mut Delivery<'_>,
    ) -> Result<(), ParseError> {
        let mut segment = parse(packet.payload, verify.then_some((packet.src, packet.dst)))?;
        segment.beyond = packet.beyond;
        let guest = SocketAddr::new(packet.src, segment.src_port);
        let remote = SocketAddr::new(packet.dst, segment.dst_port);
        let key = FlowKey { guest, remote };
        if let Some(id) = self.tcp_keys.get(&key).copied() {
            if !self.is_superseded(id, &segment) {
                self.segment_of_flow(now, id, &segment, delivery);
                return Ok(());
            }
            self.remove_tcp(id, true);
        }
        if segment.has(RST) {
            return Ok(());
        }
        if segment.has(SYN) && !segment.has(ACK) {
            self.open_from_guest(now, packet, key, &segment);
        } else {
            self.refuse(key, &segment);
        }
        Ok(())
    }

    /// Whether a SYN begins a new connection with the addresses of an old one.
    ///
    /// Spec: RFC 9293 §3.10.7.4, first check, TIME-WAIT; RFC 6191.
    fn is_superseded(&self, id: TcpId, segment: &Segment<'_>) -> bool {
        let Some(flow) = self.tcp.get(id.0) else { return true };
        let opens = segment.has(SYN) && !segment.has(ACK) && !segment.has(RST);
        let (_, expected) = flow.endpoint.reset_numbers();
        match flow.endpoint.phase() {
            Phase::TimeWait => opens && !segment.seq.before(expected),
            Phase::Connecting => opens && segment.seq != flow.endpoint.irs(),
            _ => false,
        }
    }

    fn segment_of_flow(
        &mut self,
        now: Instant,
        id: TcpId,
        segment: &Segment<'_>,
        delivery: &mut Delivery<'_>,
    ) {
        let Some(flow) = self.tcp.get_mut(id.0) else { return };
        let before = flow.endpoint.data_received();
        let direct = flow.owner == Owner::Host && !flow.host_gone;
        let (data, sockets) = delivery.split(segment);
        let mut straight = 0;
        let mut write = |data: Data<'_>| {
            straight = if direct { sockets.write(id, data) } else { 0 };
            straight
        };
        let changes = flow.endpoint.on_segment(now, segment, data, &mut write);
        self.counters.straight_bytes += straight as u64;
        flow.quiet = false;
        if changes.received {
            flow.bytes_up += u64::from(flow.endpoint.data_received().wrapping_sub(before));
        }
        if changes.keepalive && direct && !flow.keepalive_told {
            flow.keepalive_told = true;
            self.effects.push_back(Effect::TcpKeepalive(id));
        }
        let key = flow.key;
        if let Some(seq) = changes.refuse {
            self.queue_reset(key, seq, None);
        }
        self.apply(now, id, changes);
    }

    /// Acts on what a segment or a timer changed.
    pub(super) fn apply(&mut self, now: Instant, id: TcpId, changes: Changes) {
        if changes.reset {
            self.counters.resets += 1;
            self.remove_tcp(id, true);
            return;
        }
        self.touch_tcp(id);
        self.counters.timeouts += u64::from(changes.timed_out);
        if changes.acked {
            self.account(id);
            self.tell_room(id);
        }
        if changes.received {
            self.widen(id);
            match self.tcp.get_mut(id.0).map(|flow| (flow.owner, flow)) {
                Some((Owner::Dns { .. }, _)) => self.read_dns_stream(now, id),
                Some((Owner::Host, flow)) if !flow.received_told && flow.endpoint.received_bytes() > 0 => {
                    flow.received_told = true;
                    self.effects.push_back(Effect::TcpReceived(id));
                }
                _ => {}
            }
        } else if changes.acked {
            self.read_dns_stream(now, id);
        }
        self.settle(now, id);
    }

    /// Tells the host of room if it was told that there is none, once there is enough to be worth a read.
    fn tell_room(&mut self, id: TcpId) {
        let limit = self.queue_limit(id);
        let Some(flow) = self.tcp.get_mut(id.0) else { return };
        if flow.starved && flow.endpoint.room_bytes(limit) >= (limit / 2).min(AHEAD_BYTES) {
            flow.starved = false;
            self.effects.push_back(Effect::TcpRoom(id));
        }
    }

    /// Goes on with the end of a flow as far as it is due.
    pub(super) fn settle(&mut self, now: Instant, id: TcpId) {
        let Some(flow) = self.tcp.get_mut(id.0) else { return };
        if !flow.endpoint.is_drained() {
            return;
        }
        // A socket that is closed right away need not be shut down first.
        let closes = matches!(flow.endpoint.phase(), Phase::TimeWait | Phase::Closed);
        if flow.owner == Owner::Host && !flow.shutdown_told && !closes {
            flow.shutdown_told = true;
            self.effects.push_back(Effect::TcpShutdown(id));
        }
        match flow.endpoint.phase() {
            Phase::TimeWait if !flow.host_gone => {
                flow.host_gone = true;
                flow.endpoint.shrink();
                if flow.owner == Owner::Host {
                    self.effects.push_back(Effect::TcpClosed { flow: id, reset: false });
                }
                self.time_wait.push_back((now + TIME_WAIT, id));
            }
            Phase::Closed => self.remove_tcp(id, false),
            _ => {}
        }
    }

    /// Begins a flow with a guest's SYN, or says why not.
    fn open_from_guest(&mut self, now: Instant, packet: &ip::Packet<'_>, key: FlowKey, syn: &Segment<'_>) {
        let place = self.place_of(packet.dst);
        let leads_on = self.gateway_tcp(place, key.remote.port());
        let owner = match place {
            _ if key.guest.port() == 0 || key.remote.port() == 0 => return self.refuse(key, syn),
            Place::Gateway if leads_on.is_some() => Owner::Host,
            Place::Gateway if key.remote.port() == dns::PORT => Owner::Dns { pending: 0 },
            Place::Gateway => return self.refuse(key, syn),
            Place::Host | Place::Outside => Owner::Host,
            Place::Nowhere => return self.send_error(packet, Fate::NoHost),
        };
        if self.tcp_connecting >= self.config.limits.tcp_connecting {
            self.count_drop(DropReason::ConnectingLimit);
            if !self.give_up_oldest(now) {
                return;
            }
        }
        let Some(settings) = self.settings_for(now, key) else {
            self.count_drop(DropReason::TcpLimit);
            return self.refuse(key, syn);
        };
        let id = self.add_tcp(now, key, Endpoint::passive(&settings, syn), owner);
        if owner == Owner::Host {
            let to = leads_on.unwrap_or_else(|| self.outward(place, key.remote));
            self.effects.push_back(Effect::TcpConnect { flow: id, to });
            self.tcp_connecting += 1;
            if let Some(flow) = self.tcp.get_mut(id.0) {
                flow.connecting = true;
            }
            self.note_opening(now, id);
        } else if let Some(flow) = self.tcp.get_mut(id.0) {
            flow.endpoint.accept();
        }
        self.touch_tcp(id);
    }

    /// Puts a flow at the end of those whose host connection is being made.
    fn note_opening(&mut self, now: Instant, id: TcpId) {
        if self.opening.len() >= 2 * self.config.limits.tcp_connecting {
            let tcp = &self.tcp;
            self.opening.retain(|(_, id)| tcp.get(id.0).is_some_and(|flow| flow.connecting));
        }
        self.opening.push_back((now, id));
    }

    /// Ends the connection that was being made for longest, if it had its time: SYNs to who never answers must not keep
    /// all others out. Returns whether there is room now.
    fn give_up_oldest(&mut self, now: Instant) -> bool {
        while let Some((since, id)) = self.opening.front().copied() {
            if self.tcp.get(id.0).is_some_and(|flow| flow.connecting) {
                if now.since(since) < CONNECTING_MIN {
                    return false;
                }
                self.opening.pop_front();
                self.remove_tcp(id, true);
                return true;
            }
            self.opening.pop_front();
        }
        false
    }

    /// What a new endpoint is to be like, or `None` when there is no room for one.
    pub(super) fn settings_for(&mut self, now: Instant, key: FlowKey) -> Option<Settings> {
        while self.tcp.len() >= self.config.limits.tcp_flows {
            let (_, oldest) = self.time_wait.pop_front()?;
            self.remove_tcp(oldest, false);
        }
        let limits = &self.config.limits;
        let used = self.buffered.promised + self.buffered.queued;
        let scarce = used >= limits.buffer_bytes / 2;
        let window_bytes =
            if scarce { limits.window_bytes.min(WINDOW_BYTES_SCARCE) } else { limits.window_bytes };
        if used + u64::from(window_bytes) > limits.buffer_bytes {
            return None;
        }
        let window_bytes_max = if scarce { window_bytes } else { limits.window_bytes_max.max(window_bytes) };
        let mss = self.config.mtu - (ip::header_bytes(key.guest.ip()) + HEADER_BYTES) as u16;
        Some(Settings { iss: self.initial_sequence(now, key), mss, window_bytes, window_bytes_max })
    }

    /// Spec: RFC 6528 §3: a keyed hash of the addresses plus a clock of 4 µs.
    fn initial_sequence(&self, now: Instant, key: FlowKey) -> Seq {
        use std::hash::BuildHasher;
        let hash = crate::table::Seeded(self.seed.rotate_left(32)).hash_one(key);
        Seq((hash >> 16) as u32) + (now.0 / 4) as u32
    }

    pub(super) fn add_tcp(
        &mut self,
        now: Instant,
        key: FlowKey,
        mut endpoint: Endpoint,
        owner: Owner,
    ) -> TcpId {
        if owner == Owner::Host {
            endpoint.pace();
        }
        let flow = TcpFlow {
            key,
            endpoint,
            owner,
            dirty: false,
            waiting: false,
            timer_at: None,
            connecting: false,
            received_told: false,
            starved: false,
            shutdown_told: false,
            host_gone: false,
            keepalive_told: false,
            quiet: false,
            bytes_up: 0,
            bytes_down: 0,
            accounted: (0, 0),
        };
        let id = TcpId(self.tcp.insert(Box::new(flow)));
        self.tcp_keys.insert(key, id);
        self.account(id);
        self.arm_sweep(now);
        id
    }

    /// Removes a flow and tells the host, if it still knows of it.
    pub(super) fn remove_tcp(&mut self, id: TcpId, reset: bool) {
        let Some(flow) = self.tcp.remove(id.0) else { return };
        self.tcp_keys.remove(&flow.key);
        self.tcp_connecting -= usize::from(flow.connecting);
        self.buffered.promised -= u64::from(flow.accounted.0);
        self.buffered.queued -= flow.accounted.1 as u64;
        if flow.owner == Owner::Host && !flow.host_gone {
            self.effects.push_back(Effect::TcpClosed { flow: id, reset });
        }
    }

    /// Brings [`Buffered`] up to date with a flow.
    pub(super) fn account(&mut self, id: TcpId) {
        let Some(flow) = self.tcp.get_mut(id.0) else { return };
        let (promised, queued) = flow.accounted;
        flow.accounted = (flow.endpoint.promised_bytes(), flow.endpoint.queued_bytes());
        self.buffered.promised = self.buffered.promised - u64::from(promised) + u64::from(flow.accounted.0);
        self.buffered.queued = self.buffered.queued - queued as u64 + flow.accounted.1 as u64;
    }

    /// Answers a segment that belongs to nothing. Spec: RFC 9293 §3.10.7.1.
    pub(super) fn refuse(&mut self, key: FlowKey, segment: &Segment<'_>) {
        if segment.has(ACK) {
            self.queue_reset(key, segment.ack, None);
        } else {
            self.queue_reset(key, Seq(0), Some(segment.seq + segment.len()));
        }
    }

    /// Queues a reset towards the guest.
    pub(super) fn queue_reset(&mut self, key: FlowKey, seq: Seq, ack: Option<Seq>) {
        let Some(mac) = self.neighbours.find(key.guest.ip()) else { return };
        let mut bytes = [0; vpnkit_wire::tcp::HEADER_BYTES_MAX];
        let header = Header {
            src_port: key.remote.port(),
            dst_port: key.guest.port(),
            seq,
            ack: ack.unwrap_or_default(),
            flags: if ack.is_some() { RST | ACK } else { RST },
            window: 0,
            options: &[],
        };
        let count = header.emit(&mut bytes);
        let (src, dst) = (key.remote.ip(), key.guest.ip());
        let mut sum = vpnkit_wire::checksum::Checksum::pseudo(src, dst, ip::PROTOCOL_TCP, count);
        sum.add(&bytes[..count]);
        bytes[16..18].copy_from_slice(&sum.finish().to_be_bytes());
        self.queue_packet(mac, (src, dst), ip::PROTOCOL_TCP, &[&bytes[..count]]);
    }

    pub(super) fn expire_time_wait(&mut self, now: Instant) {
        while let Some((at, id)) = self.time_wait.front().copied() {
            let gone = self.tcp.get(id.0).is_none();
            if at > now && !gone {
                break;
            }
            self.time_wait.pop_front();
            self.remove_tcp(id, false);
        }
    }

    /// Gives the buffers of quiet flows back.
    pub(super) fn sweep_tcp(&mut self) {
        for (_, flow) in self.tcp.iter_mut() {
            if flow.quiet {
                flow.endpoint.shrink();
            }
            flow.quiet = true;
        }
    }

    pub(super) fn tcp_snapshots(&self) -> Vec<TcpSnapshot> {
        let snapshot = |key, flow: &TcpFlow| TcpSnapshot {
            flow: TcpId(key),
            guest: flow.key.guest,
            remote: flow.key.remote,
            state: flow.endpoint.state_name(),
            bytes_up: flow.bytes_up,
            bytes_down: flow.bytes_down,
            buffer_bytes: flow.endpoint.buffer_bytes(),
        };
        self.tcp.iter().map(|(key, flow)| snapshot(key, flow)).collect()
    }

    pub(super) fn check_tcp(&self) {
        assert_eq!(self.tcp.len(), self.tcp_keys.len(), "flows and their keys");
        assert!(self.tcp.len() <= self.config.limits.tcp_flows, "too many flows");
        let (mut promised, mut queued, mut connecting, mut dirty, mut waiting) = (0, 0, 0, 0, 0);
        for (key, flow) in self.tcp.iter() {
            assert_eq!(self.tcp_keys.get(&flow.key), Some(&TcpId(key)), "a flow that its key does not find");
            flow.endpoint.check(flow.dirty);
            promised += u64::from(flow.accounted.0);
            queued += flow.endpoint.queued_bytes() as u64;
            connecting += usize::from(flow.connecting);
            dirty += usize::from(flow.dirty);
            waiting += usize::from(flow.waiting);
            assert!(flow.endpoint.phase() != Phase::Closed || !flow.endpoint.is_drained(), "a dead flow");
        }
        assert_eq!((self.buffered.promised, self.buffered.queued), (promised, queued), "bytes accounted");
        assert_eq!(self.tcp_connecting, connecting, "flows being connected");
        let listed = self.dirty.iter().filter(|id| self.tcp.get(id.0).is_some()).count();
        assert_eq!(listed, dirty, "flows with something to send");
        let listed = self.waiting.iter().filter(|id| self.tcp.get(id.0).is_some()).count();
        assert_eq!(listed, waiting, "flows that wait for a hardware address");
    }
}
