//! The stack: takes frames and what sockets say, keeps the flows, gives effects and frames.
//!
//! This file owns the state and the order of things; each protocol has its own file.

mod address;
mod arp;
mod dhcp;
mod dhcpv6;
mod dns;
mod emit;
mod gateway;
mod icmp;
mod icmp_error;
mod ipv6;
mod ndp;
mod tcp;
mod tcp_host;
mod tcp_output;
#[cfg(test)]
mod tests;
mod udp;
#[cfg(test)]
mod violations;
mod volatile;
mod zones;

use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::io::IoSlice;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use crate::config::{Config, ConfigError, link_local};
use crate::drops::DropReason;
use crate::event::{Counters, Effect, Flows, PingId, TcpId, UdpId};
use crate::fragments::{Part, Reassembly};
use crate::neighbours::Neighbours;
use crate::offload::Offload;
use crate::table::{FlowKey, Seeded, Table};
use crate::time::Instant;
use crate::volatile::{Data, Frame};

use icmp_error::Fate;
use volatile::Delivery;
use vpnkit_wire::ipv6::MTU_MIN;
use vpnkit_wire::{ParseError, ethernet, ip, ipv4};

pub use dns::Hosts;
pub use gateway::GatewayPorts;
pub use zones::{Match, Record, Zone};

/// How often idle flows are looked for.
const SWEEP: Duration = Duration::from_secs(5);
/// Payload buffers kept for reuse.
const SPARE_MAX: usize = 64;

/// Where frames for the guests go.
pub trait FrameSink {
    /// Takes the frame that `parts` make together, or returns false when there is no room for it now.
    fn send(&mut self, offload: Offload, parts: &[IoSlice<'_>]) -> bool;
}

/// The sockets of TCP flows, as far as the stack may use them while it takes a frame.
pub trait Sockets {
    /// Offers data of a guest that is next in line, and returns how many bytes the socket took: 0 when it has no room,
    /// is not connected yet, or the data is too little to be worth it. What is not taken waits in the stack and is told
    /// with [`Effect::TcpReceived`].
    fn write(&mut self, flow: TcpId, data: Data<'_>) -> usize;
}

/// Sockets that take nothing: all data goes through the stack's buffers.
impl Sockets for () {
    fn write(&mut self, _flow: TcpId, _data: Data<'_>) -> usize {
        0
    }
}

/// The network.
///
/// The caller hands in frames and socket events as they come, then, once for a burst, takes all effects with
/// [`Stack::pop_effect`] and calls [`Stack::transmit`], and [`Stack::on_time`] no later than [`Stack::deadline`].
#[derive(Debug)]
pub struct Stack {
    config: Config,
    /// The gateway's link-local address: RFC 4861 §4.2 has routers announce themselves by it.
    router: Ipv6Addr,
    seed: u64,
    draws: u64,
    counters: Counters,
    /// Why the frame that is being taken is dropped, or what made way for it.
    dropped: Option<DropReason>,
    neighbours: Neighbours,
    reassembly: Reassembly,
    leases: dhcp::Leases,
    leases_v6: dhcpv6::Leases,
    hosts: Hosts,
    zones: Vec<Zone>,
    gateway_ports: GatewayPorts,
    effects: VecDeque<Effect>,
    /// Frames other than TCP, each whole; TCP segments are made when the link has room.
    frames: VecDeque<Vec<u8>>,
    /// Packets for neighbours whose hardware address is not known yet.
    unresolved: VecDeque<(IpAddr, Vec<u8>)>,
    spare: Vec<Vec<u8>>,
    /// A frame that was copied out of a guest's memory; as long as the longest was.
    gathered: Vec<u8>,
    tcp: Table<Box<tcp::TcpFlow>>,
    tcp_keys: HashMap<FlowKey, TcpId, Seeded>,
    tcp_connecting: usize,
    /// Flows whose host connection is being made, oldest first, and some for which that is over.
    opening: VecDeque<(Instant, TcpId)>,
    /// Flows that may have something to send, each once.
    dirty: VecDeque<TcpId>,
    /// Flows whose acknowledgement waits for data to go with it.
    held: Vec<TcpId>,
    /// Flows that wait for a neighbour's hardware address.
    waiting: Vec<TcpId>,
    /// Earliest first. A flow has at most one entry that counts: the one at its `timer_at`.
    timers: BinaryHeap<std::cmp::Reverse<(Instant, TcpId)>>,
    time_wait: VecDeque<(Instant, TcpId)>,
    buffered: tcp::Buffered,
    udp: Table<udp::UdpFlow>,
    udp_keys: HashMap<SocketAddr, UdpId, Seeded>,
    forward_keys: HashMap<FlowKey, UdpId, Seeded>,
    udp_order: VecDeque<UdpId>,
    pings: Table<icmp::PingFlow>,
    ping_keys: HashMap<(IpAddr, u16), PingId, Seeded>,
    dns: Table<dns::Pending>,
    sweep_at: Option<Instant>,
    /// When the router tells about itself next; never before a guest spoke IPv6.
    advertise_at: Option<Instant>,
}

impl Stack {
    /// Makes a network. `seed` is to be unpredictable: sequence numbers and the hash of flows come from it.
    ///
    /// # Errors
    /// When `config` describes no network.
    pub fn new(mut config: Config, seed: u64) -> Result<Self, ConfigError> {
        config.validate()?;
        config.ipv6 = config.ipv6.filter(|_| config.mtu >= MTU_MIN);
        if let Some(ipv6) = config.ipv6.as_mut().filter(|_| config.host.is_unspecified()) {
            // Who keeps guests from the host means both ways there.
            ipv6.host = Ipv6Addr::UNSPECIFIED;
        }
        let hosts = Hosts::default();
        let keyed = Seeded(seed);
        Ok(Self {
            leases: dhcp::Leases::new(&config),
            leases_v6: dhcpv6::Leases::default(),
            router: link_local(config.gateway_mac),
            config,
            seed,
            draws: seed,
            counters: Counters::default(),
            dropped: None,
            neighbours: Neighbours::default(),
            reassembly: Reassembly::default(),
            hosts,
            zones: Vec::new(),
            gateway_ports: GatewayPorts::default(),
            effects: VecDeque::new(),
            frames: VecDeque::new(),
            unresolved: VecDeque::new(),
            spare: Vec::new(),
            gathered: Vec::new(),
            tcp: Table::new(),
            tcp_keys: HashMap::with_hasher(keyed),
            tcp_connecting: 0,
            opening: VecDeque::new(),
            dirty: VecDeque::new(),
            held: Vec::new(),
            waiting: Vec::new(),
            timers: BinaryHeap::new(),
            time_wait: VecDeque::new(),
            buffered: tcp::Buffered::default(),
            udp: Table::new(),
            udp_keys: HashMap::with_hasher(keyed),
            forward_keys: HashMap::with_hasher(keyed),
            udp_order: VecDeque::new(),
            pings: Table::new(),
            ping_keys: HashMap::with_hasher(keyed),
            dns: Table::new(),
            sweep_at: None,
            advertise_at: None,
        })
    }

    /// The configuration that it runs with.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Says whether frames to the guest may leave work to it: its driver may be another after a reboot.
    pub fn set_offload(&mut self, offload: bool) {
        self.config.offload = offload;
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Takes a frame of the guest; its data may go to `sockets` at once. Returns why it was dropped, if it was, or what
    /// else had to make way for it.
    pub fn on_frame<'f>(
        &mut self,
        now: Instant,
        offload: Offload,
        frame: impl Into<Frame<'f>>,
        sockets: &mut dyn Sockets,
    ) -> Option<DropReason> {
        match frame.into() {
            Frame::Whole(bytes) => self.take_frame(now, offload, bytes, &mut Delivery::new(sockets)),
            Frame::Volatile(frame) => self.take_volatile(now, offload, frame, sockets),
        }
        self.dropped.take()
    }

    fn take_frame(&mut self, now: Instant, offload: Offload, bytes: &[u8], delivery: &mut Delivery<'_>) {
        self.counters.frames_in += 1;
        self.counters.bytes_in += (bytes.len() + delivery.beyond()) as u64;
        self.dropped = None;
        if self.take_ethernet(now, offload, bytes, delivery).is_err() {
            self.count_drop(DropReason::Malformed);
        }
    }

    fn count_drop(&mut self, reason: DropReason) {
        self.counters.drops.add(reason);
        self.dropped.get_or_insert(reason);
    }

    fn take_ethernet(
        &mut self,
        now: Instant,
        offload: Offload,
        bytes: &[u8],
        delivery: &mut Delivery<'_>,
    ) -> Result<(), ParseError> {
        let frame = ethernet::parse(bytes)?;
        let ours = frame.dst == self.config.gateway_mac
            || frame.dst == ethernet::MacAddr::BROADCAST
            || (frame.ethertype == ethernet::TYPE_IPV6 && frame.dst.0[..2] == [0x33, 0x33]);
        if !ours {
            self.count_drop(DropReason::OtherDestination);
            return Ok(());
        }
        if !frame.src.is_unicast() || frame.src == self.config.gateway_mac {
            self.count_drop(DropReason::ForgedSource);
            return Ok(());
        }
        match frame.ethertype {
            ethernet::TYPE_ARP => self.take_arp(&frame),
            ethernet::TYPE_IPV4 => self.take_ipv4(now, offload, &frame, delivery),
            ethernet::TYPE_IPV6 => self.take_ipv6(now, offload, &frame, delivery),
            _ => {
                self.count_drop(DropReason::Unsupported);
                Ok(())
            }
        }
    }

    fn take_ipv4(
        &mut self,
        now: Instant,
        offload: Offload,
        frame: &ethernet::Frame<'_>,
        delivery: &mut Delivery<'_>,
    ) -> Result<(), ParseError> {
        let packet = ipv4::parse_beginning(frame.payload, delivery.beyond())?;
        let verify = !offload.verified && offload.needs_checksum.is_none();
        if packet.src.is_unspecified() {
            return self.take_unconfigured(now, frame, &packet, verify);
        }
        if !self.may_send(packet.src.into()) {
            self.count_drop(DropReason::ForgedSource);
            return Ok(());
        }
        self.learn(packet.src.into(), frame.src);
        if packet.is_fragment() {
            let part = Part {
                ends: (packet.src.into(), packet.dst.into()),
                ident: packet.ident.into(),
                protocol: packet.protocol,
                offset: packet.fragment_offset,
                more: packet.more_fragments,
                payload: packet.payload,
            };
            let Some(payload) = self.reassembly.add(now, &part) else { return Ok(()) };
            let whole = ip::Packet { payload: &payload, dont_fragment: false, ..packet.datagram() };
            return self.take_datagram(now, frame, &whole, true, delivery);
        }
        self.take_datagram(now, frame, &packet.datagram(), verify, delivery)
    }

    fn take_datagram(
        &mut self,
        now: Instant,
        frame: &ethernet::Frame<'_>,
        packet: &ip::Packet<'_>,
        verify: bool,
        delivery: &mut Delivery<'_>,
    ) -> Result<(), ParseError> {
        match packet.protocol {
            ip::PROTOCOL_TCP => self.take_tcp(now, packet, verify, delivery),
            ip::PROTOCOL_UDP => self.take_udp(now, frame, packet, verify),
            ip::PROTOCOL_ICMP if packet.src.is_ipv4() => self.take_icmp(now, packet),
            _ => {
                self.count_drop(DropReason::Unsupported);
                self.send_error(packet, Fate::NoProtocol);
                Ok(())
            }
        }
    }

    /// Takes a packet from 0.0.0.0: only DHCP is spoken without an address.
    fn take_unconfigured(
        &mut self,
        now: Instant,
        frame: &ethernet::Frame<'_>,
        packet: &ipv4::Packet<'_>,
        verify: bool,
    ) -> Result<(), ParseError> {
        if packet.protocol == ip::PROTOCOL_UDP && !packet.is_fragment() {
            return self.take_udp(now, frame, &packet.datagram(), verify);
        }
        self.count_drop(DropReason::ForgedSource);
        Ok(())
    }

    /// Returns the next effect.
    pub fn pop_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Takes a payload back, to be used again.
    pub fn recycle(&mut self, payload: Vec<u8>) {
        if self.spare.len() < SPARE_MAX && payload.capacity() <= 4096 {
            self.spare.push(payload);
        }
    }

    fn payload(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut payload = self.spare.pop().unwrap_or_default();
        payload.clear();
        payload.extend_from_slice(bytes);
        payload
    }

    /// Returns a number that a guest cannot predict, from the seed. Algorithm: SplitMix64.
    fn draw(&mut self) -> u64 {
        self.draws = self.draws.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let word = (self.draws ^ (self.draws >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// When [`Stack::on_time`] is to be called at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        let timer = self.timers.peek().map(|entry| entry.0.0);
        let wait = self.time_wait.front().map(|entry| entry.0);
        [timer, wait, self.sweep_at, self.advertise_at].into_iter().flatten().min()
    }

    /// Acts on everything that is due; may be called at any time.
    pub fn on_time(&mut self, now: Instant) {
        self.expire_tcp_timers(now);
        self.expire_time_wait(now);
        self.advertise(now);
        if self.sweep_at.is_some_and(|at| at <= now) {
            self.sweep(now);
        }
    }

    /// Sees to it that idle flows are looked for, as long as there are flows.
    fn arm_sweep(&mut self, now: Instant) {
        if self.sweep_at.is_none() {
            self.sweep_at = Some(now + SWEEP);
        }
    }

    fn sweep(&mut self, now: Instant) {
        self.sweep_at = None;
        self.sweep_tcp();
        self.sweep_udp(now);
        self.sweep_pings(now);
        self.sweep_dns(now);
        if self.tcp.len() + self.udp.len() + self.pings.len() + self.dns.len() > 0 {
            self.arm_sweep(now);
        }
    }

    /// Returns the flows of this moment.
    pub fn flows(&self) -> Flows {
        Flows { tcp: self.tcp_snapshots(), udp: self.udp_snapshots() }
    }

    /// Panics unless all invariants hold: for tests, and called by the engine in debug builds.
    pub fn check(&self) {
        self.check_tcp();
        assert_eq!(self.udp_keys.len() + self.forward_keys.len(), self.udp.len(), "UDP flows and their keys");
        assert!(self.udp.len() <= self.config.limits.udp_flows, "too many UDP flows");
        assert_eq!(self.ping_keys.len(), self.pings.len(), "ping flows and their keys");
        assert!(self.pings.len() <= self.config.limits.ping_flows, "too many ping flows");
        assert!(self.dns.len() <= self.config.limits.dns_queries, "too many DNS queries");
        assert!(self.frames.len() <= self.config.limits.queued_frames, "too many frames queued");
        let flows = self.tcp.len() + self.udp.len() + self.pings.len() + self.dns.len();
        assert!(flows == 0 || self.sweep_at.is_some(), "flows that nobody looks after");
    }
}
