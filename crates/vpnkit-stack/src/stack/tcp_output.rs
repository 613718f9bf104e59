//! Makes TCP segments when the link has room, and keeps the timers of the flows.

use std::cmp::Reverse;
use std::io::IoSlice;
use std::net::IpAddr;

use vpnkit_wire::checksum::Checksum;
use vpnkit_wire::ethernet::{self, MacAddr};
use vpnkit_wire::tcp::{HEADER_BYTES_MAX, Header};
use vpnkit_wire::{ip, ipv4, ipv6};

use super::tcp::TcpFlow;
use super::{FrameSink, Stack};
use crate::config::Config;
use crate::event::TcpId;
use crate::offload::{Gso, Offload, PartialChecksum};
use crate::tcp::Plan;
use crate::time::Instant;

/// Data of the largest super-frame: IPv4's total length counts the headers too, and for IPv6 devices do.
const GSO_BYTES_MAX: usize = 65535 - ipv6::HEADER_BYTES - HEADER_BYTES_MAX;
/// Data that a flow sends before it is the next one's turn, in bytes.
const TURN_BYTES: usize = 128 * 1024;

/// How a flow's turn ended.
enum Turn {
    Done,
    /// What is left may wait for data to go with it.
    Held,
    More,
    Blocked,
    /// The hardware address of the guest is not known.
    Unresolved,
}

impl Stack {
    /// Puts a flow in the queue of those that may have something to send.
    pub(super) fn touch_tcp(&mut self, id: TcpId) {
        if let Some(flow) = self.tcp.get_mut(id.0)
            && !flow.dirty
        {
            flow.dirty = true;
            self.dirty.push_back(id);
        }
    }

    pub(super) fn transmit_tcp(&mut self, now: Instant, hold: bool, sink: &mut dyn FrameSink) -> bool {
        if !hold {
            for id in std::mem::take(&mut self.held) {
                self.touch_tcp(id);
            }
        }
        while let Some(id) = self.dirty.pop_front() {
            let Some(flow) = self.tcp.get_mut(id.0) else { continue };
            flow.dirty = false;
            let turn = self.transmit_flow(now, id, hold, sink);
            let blocked = matches!(turn, Turn::Blocked);
            if let Some(flow) = self.tcp.get_mut(id.0) {
                flow.endpoint.arm_timer(now, !matches!(turn, Turn::Done | Turn::Held));
                flow.dirty = matches!(turn, Turn::Blocked | Turn::More);
            }
            self.schedule(id);
            match turn {
                Turn::Done => {}
                Turn::Held => self.held.push(id),
                Turn::More => self.dirty.push_back(id),
                Turn::Blocked => self.dirty.push_front(id),
                Turn::Unresolved => self.await_neighbour(now, id),
            }
            if blocked {
                return false;
            }
        }
        // A request for a hardware address may have been queued on the way.
        if self.frames.is_empty() { true } else { self.transmit_some(now, hold, sink) }
    }

    fn transmit_flow(&mut self, now: Instant, id: TcpId, hold: bool, sink: &mut dyn FrameSink) -> Turn {
        let Some(flow) = self.tcp.get_mut(id.0) else { return Turn::Done };
        let config = &self.config;
        let len_max = if config.offload { GSO_BYTES_MAX } else { flow.endpoint.segment_bytes() };
        let mac = self.neighbours.find(flow.key.guest.ip());
        let mut sent = 0;
        while let Some(plan) = flow.endpoint.plan(len_max) {
            if sent >= TURN_BYTES {
                return Turn::More;
            }
            if hold && flow.endpoint.may_wait(&plan) {
                return Turn::Held;
            }
            let Some(mac) = mac else { return Turn::Unresolved };
            let Some(frame_bytes) = send_segment(config, flow, &plan, mac, sink) else {
                return Turn::Blocked;
            };
            self.counters.tail_probes += u64::from(plan.is_probe());
            self.counters.retransmitted += flow.endpoint.commit(now, &plan);
            self.counters.frames_out += 1;
            self.counters.bytes_out += frame_bytes as u64;
            sent += plan.len;
        }
        Turn::Done
    }

    fn await_neighbour(&mut self, now: Instant, id: TcpId) {
        let Some(flow) = self.tcp.get_mut(id.0) else { return };
        let address = flow.key.guest.ip();
        if !std::mem::replace(&mut flow.waiting, true) {
            if self.waiting.len() >= self.config.limits.tcp_flows {
                // Those that are over are in the list until somebody answers.
                let live = &self.tcp;
                self.waiting.retain(|id| live.get(id.0).is_some());
            }
            self.waiting.push(id);
        }
        self.ask_for(now, address);
    }

    /// Puts the timer of a flow in the heap, unless an entry that is early enough is there.
    fn schedule(&mut self, id: TcpId) {
        let Some(flow) = self.tcp.get_mut(id.0) else { return };
        let Some(deadline) = flow.endpoint.deadline() else { return };
        if flow.timer_at.is_none_or(|at| deadline < at) {
            flow.timer_at = Some(deadline);
            self.timers.push(Reverse((deadline, id)));
        }
    }

    pub(super) fn expire_tcp_timers(&mut self, now: Instant) {
        while let Some(Reverse((at, id))) = self.timers.peek().copied() {
            if at > now {
                break;
            }
            self.timers.pop();
            let Some(flow) = self.tcp.get_mut(id.0) else { continue };
            if flow.timer_at != Some(at) {
                continue;
            }
            flow.timer_at = None;
            if flow.endpoint.deadline().is_some_and(|deadline| deadline <= now) {
                let changes = flow.endpoint.on_timer(now);
                self.apply(now, id, changes);
            } else {
                self.schedule(id);
            }
        }
    }
}

/// Data of the largest frame of a flow: whole segments, as many as the link takes at once.
pub(super) fn frame_data_bytes(config: &Config, flow: &TcpFlow) -> usize {
    let segment = flow.endpoint.segment_bytes();
    if !config.offload {
        return segment;
    }
    if segment > GSO_BYTES_MAX { GSO_BYTES_MAX } else { GSO_BYTES_MAX - GSO_BYTES_MAX % segment.max(1) }
}

/// Sends one segment, or super-frame; returns its bytes, or `None` when the link has no room.
fn send_segment(
    config: &Config,
    flow: &TcpFlow,
    plan: &Plan,
    mac: MacAddr,
    sink: &mut dyn FrameSink,
) -> Option<usize> {
    let mut head = [0; ethernet::HEADER_BYTES + ipv6::HEADER_BYTES + HEADER_BYTES_MAX];
    let (src, dst) = (flow.key.remote.ip(), flow.key.guest.ip());
    let tcp_at = ethernet::HEADER_BYTES + ip::header_bytes(dst);
    let header = Header {
        src_port: flow.key.remote.port(),
        dst_port: flow.key.guest.port(),
        seq: plan.seq,
        ack: plan.ack,
        flags: plan.flags,
        window: plan.window,
        options: plan.options(),
    };
    let header_bytes = header.emit(&mut head[tcp_at..]);
    let segment_bytes = header_bytes + plan.len;
    let ip = &mut head[ethernet::HEADER_BYTES..];
    let (ethertype, mut sum) = match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            ipv4::Header::new(src, dst, ip::PROTOCOL_TCP, segment_bytes).emit(ip);
            (ethernet::TYPE_IPV4, Checksum::pseudo_v4(src, dst, ip::PROTOCOL_TCP, segment_bytes))
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            ipv6::Header::new(src, dst, ip::PROTOCOL_TCP, segment_bytes).emit(ip);
            (ethernet::TYPE_IPV6, Checksum::pseudo_v6(src, dst, ip::PROTOCOL_TCP, segment_bytes))
        }
        // Both ends of a flow are of one family.
        _ => return None,
    };
    ethernet::emit(&mut head, mac, config.gateway_mac, ethertype);
    let (first, second) = flow.endpoint.queued(plan.offset, plan.len);
    let mut offload = Offload::NONE;
    let checksum = if config.offload {
        offload.needs_checksum = Some(PartialChecksum { start: tcp_at as u16, offset: 16 });
        if plan.len > usize::from(plan.mss) {
            let mss = plan.mss;
            offload.gso = if dst.is_ipv4() { Gso::TcpV4 { mss } } else { Gso::TcpV6 { mss } };
        }
        sum.partial()
    } else {
        sum.add(&head[tcp_at..tcp_at + header_bytes]);
        sum.add(first);
        sum.add(second);
        sum.finish()
    };
    head[tcp_at + 16..tcp_at + 18].copy_from_slice(&checksum.to_be_bytes());
    let head = &head[..tcp_at + header_bytes];
    let parts = [IoSlice::new(head), IoSlice::new(first), IoSlice::new(second)];
    let used = if !second.is_empty() {
        3
    } else if !first.is_empty() {
        2
    } else {
        1
    };
    sink.send(offload, &parts[..used]).then_some(head.len() + plan.len)
}
