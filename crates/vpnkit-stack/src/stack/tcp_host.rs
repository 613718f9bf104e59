//! What the host says about the sockets of TCP flows.
//!
//! Identifiers of flows that are over are ignored: the host may learn of it later than it happened.

use std::net::SocketAddr;

use vpnkit_wire::ip;
use vpnkit_wire::tcp::SYN;

use super::Stack;
use super::icmp_error::Fate;
use super::tcp::{Owner, TcpFlow};
use super::tcp_output::frame_data_bytes;
use crate::drops::DropReason;
use crate::event::{ConnectError, TcpId};
use crate::table::FlowKey;
use crate::tcp::Endpoint;
use crate::time::Instant;

/// Bytes that one flow may always have queued, beyond what may be under way: what two large reads bring, so that the next
/// frames are there when there is room for them.
pub(super) const AHEAD_BYTES: usize = 256 * 1024;
/// Bytes that a flow may queue when the memory for all is used up: flows go on with little rather than stop.
const SCARCE_BYTES: usize = 4096;
/// Ports tried for a peer whose own port is in use.
const ALIASES_MAX: u16 = 256;

impl Stack {
    fn host_flow(&mut self, id: TcpId) -> Option<&mut TcpFlow> {
        let flow = self.tcp.get_mut(id.0)?;
        (flow.owner == Owner::Host && !flow.host_gone).then_some(&mut **flow)
    }

    /// The guest's end of a flow.
    pub fn tcp_guest(&self, id: TcpId) -> Option<SocketAddr> {
        self.tcp.get(id.0).map(|flow| flow.key.guest)
    }

    /// The connection that [`crate::Effect::TcpConnect`] asked for is there.
    pub fn tcp_connected(&mut self, id: TcpId) {
        let Some(flow) = self.host_flow(id) else { return };
        if !flow.connecting {
            return;
        }
        flow.connecting = false;
        flow.endpoint.accept();
        self.tcp_connecting -= 1;
        self.touch_tcp(id);
    }

    /// The connection that [`crate::Effect::TcpConnect`] asked for cannot be had. The flow is over.
    pub fn tcp_connect_failed(&mut self, id: TcpId, error: ConnectError) {
        let Some(flow) = self.host_flow(id) else { return };
        let (key, irs) = (flow.key, flow.endpoint.irs());
        flow.host_gone = true;
        self.remove_tcp(id, true);
        if error == ConnectError::Refused {
            return self.queue_reset(key, vpnkit_wire::tcp::Seq(0), Some(irs + 1));
        }
        let Some(fate) = Fate::of(error) else { return };
        let mut syn = [0; vpnkit_wire::tcp::HEADER_BYTES_MAX];
        let header = vpnkit_wire::tcp::Header {
            src_port: key.guest.port(),
            dst_port: key.remote.port(),
            seq: irs,
            ack: vpnkit_wire::tcp::Seq(0),
            flags: SYN,
            window: 0,
            options: &[],
        };
        let count = header.emit(&mut syn);
        let ends = (key.guest.ip(), key.remote.ip());
        self.queue_fate(ends, fate, ip::PROTOCOL_TCP, &syn[..count]);
    }

    /// Opens a connection to `guest` for `peer`, who came to a forwarded port. Data may be queued at once; if the
    /// guest refuses, [`crate::Effect::TcpClosed`] tells. `None` when there are too many flows.
    pub fn tcp_open(&mut self, now: Instant, peer: SocketAddr, guest: SocketAddr) -> Option<TcpId> {
        let address = self.alias_of(peer, guest);
        let mut port = peer.port().max(1);
        let mut key = FlowKey { guest, remote: SocketAddr::new(address, port) };
        let mut tries = 0;
        while self.tcp_keys.contains_key(&key) {
            tries += 1;
            if tries == ALIASES_MAX {
                self.count_drop(DropReason::TcpLimit);
                return None;
            }
            port = 32768 + (self.draw() % 28000) as u16;
            key.remote.set_port(port);
        }
        let Some(settings) = self.settings_for(now, key) else {
            self.count_drop(DropReason::TcpLimit);
            return None;
        };
        let id = self.add_tcp(now, key, Endpoint::active(&settings), Owner::Host);
        self.touch_tcp(id);
        Some(id)
    }

    /// What the guest sent and the host has not taken, oldest first.
    pub fn tcp_received(&self, id: TcpId) -> (&[u8], &[u8]) {
        self.tcp.get(id.0).map_or((&[], &[]), |flow| flow.endpoint.received())
    }

    /// The host took `count` bytes of [`Stack::tcp_received`].
    pub fn tcp_consumed(&mut self, now: Instant, id: TcpId, count: usize) {
        let Some(flow) = self.host_flow(id) else { return };
        flow.endpoint.consume(count);
        flow.quiet = false;
        if flow.endpoint.received_bytes() == 0 {
            flow.received_told = false;
        }
        self.widen(id);
        self.touch_tcp(id);
        self.settle(now, id);
    }

    /// Widens the window of a flow whose data the host takes fast, while there is memory.
    pub(super) fn widen(&mut self, id: TcpId) {
        let budget = self.config.limits.buffer_bytes;
        let used = self.buffered.promised + self.buffered.queued;
        if let Some(flow) = self.host_flow(id)
            && let Some(more) = flow.endpoint.wants_window()
            && used + u64::from(more) <= budget / 2
        {
            flow.endpoint.grow_window();
            self.account(id);
        }
    }

    /// Bytes that the host may queue for the guest now. After zero, [`crate::Effect::TcpRoom`] tells when there is
    /// room again.
    pub fn tcp_room(&mut self, id: TcpId) -> usize {
        let limit = self.queue_limit(id);
        let Some(flow) = self.host_flow(id) else { return 0 };
        let room = flow.endpoint.room_bytes(limit);
        flow.starved = room == 0;
        room
    }

    /// Bytes that a flow may have in its queue for the guest: what may be under way and something ahead of it, so that
    /// neither end waits for the other. A guest that takes nothing has little queued for it.
    pub(super) fn queue_limit(&self, id: TcpId) -> usize {
        let limits = &self.config.limits;
        let used = self.buffered.promised + self.buffered.queued;
        if used >= limits.buffer_bytes {
            return SCARCE_BYTES;
        }
        let Some(flow) = self.tcp.get(id.0) else { return 0 };
        let others = self.buffered.queued.saturating_sub(flow.endpoint.queued_bytes() as u64);
        let share = limits.send_bytes.saturating_sub(usize::try_from(others).unwrap_or(usize::MAX));
        (flow.endpoint.flight_bytes() + AHEAD_BYTES).min(share).max(AHEAD_BYTES)
    }

    /// Data that fills one frame to the guest: reads of a multiple of it make whole frames.
    pub fn tcp_frame_bytes(&self, id: TcpId) -> usize {
        self.tcp.get(id.0).map_or(1, |flow| frame_data_bytes(&self.config, flow).max(1))
    }

    /// Where the host reads up to `want` bytes for the guest to; at most [`Stack::tcp_room`].
    pub fn tcp_buffer(&mut self, id: TcpId, want: usize) -> (&mut [u8], &mut [u8]) {
        let limit = self.config.limits.send_bytes;
        match self.tcp.get_mut(id.0) {
            Some(flow) => flow.endpoint.room(want.min(flow.endpoint.room_bytes(limit))),
            None => (&mut [], &mut []),
        }
    }

    /// The host has read `count` bytes to [`Stack::tcp_buffer`].
    pub fn tcp_filled(&mut self, id: TcpId, count: usize) {
        let Some(flow) = self.host_flow(id) else { return };
        flow.endpoint.filled(count);
        flow.quiet = false;
        flow.bytes_down += count as u64;
        self.account(id);
        self.touch_tcp(id);
    }

    /// The host's peer will send no more.
    pub fn tcp_finished(&mut self, id: TcpId) {
        if let Some(flow) = self.host_flow(id) {
            flow.endpoint.finish();
            self.touch_tcp(id);
        }
    }

    /// The host's connection broke: the guest gets a reset. The flow is over.
    pub fn tcp_aborted(&mut self, now: Instant, id: TcpId) {
        if let Some(flow) = self.host_flow(id) {
            flow.host_gone = true;
            self.abort_tcp(now, id);
        }
    }

    /// Resets a flow towards the guest and removes it.
    pub(super) fn abort_tcp(&mut self, _now: Instant, id: TcpId) {
        let Some(flow) = self.tcp.get(id.0) else { return };
        let (key, (seq, ack)) = (flow.key, flow.endpoint.reset_numbers());
        let opening = flow.connecting;
        self.remove_tcp(id, true);
        self.queue_reset(key, if opening { vpnkit_wire::tcp::Seq(0) } else { seq }, Some(ack));
    }
}
