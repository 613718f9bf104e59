//! What the stack asks of its host, and how flows are named between them.

use std::net::{IpAddr, SocketAddr};

use crate::drops::Drops;
pub use crate::table::Key;

/// A TCP flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TcpId(pub Key);

/// A UDP flow of the guest: one host socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UdpId(pub Key);

/// A stream of echo requests: one host socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PingId(pub Key);

/// A DNS query that waits for its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DnsId(pub Key);

/// A forwarded UDP port, numbered by the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ForwardId(pub u32);

/// What the host is to do. Effects come in order; none waits for another's result.
#[derive(Debug, PartialEq, Eq)]
pub enum Effect {
    /// Connect to `to`, then call `tcp_connected` or `tcp_connect_failed`.
    TcpConnect {
        /// The flow.
        flow: TcpId,
        /// Where to.
        to: SocketAddr,
    },
    /// More bytes wait: write `tcp_received` to the socket and call `tcp_consumed`. Not repeated until then.
    TcpReceived(TcpId),
    /// There is room again after `tcp_room` had none.
    TcpRoom(TcpId),
    /// The guest asked whether its peer is still there: ask the socket's peer too, from now on, and tell with
    /// `tcp_aborted` if it is not.
    TcpKeepalive(TcpId),
    /// Everything from the guest is consumed and it will send no more: shut the socket down for writing.
    TcpShutdown(TcpId),
    /// The flow is over and its identifier void: close the socket. Without a reset everything from the guest is
    /// consumed, and [`Effect::TcpShutdown`] may be missing: closing says the same.
    TcpClosed {
        /// The flow.
        flow: TcpId,
        /// Whether the host's peer is to see a reset.
        reset: bool,
    },
    /// Send a datagram from the socket of the flow, which is made when there is none.
    UdpSend {
        /// The flow.
        flow: UdpId,
        /// Where to.
        to: SocketAddr,
        /// What of the guest's packet goes with it.
        hops: Hops,
        /// The payload; give it back with `recycle`.
        payload: Vec<u8>,
    },
    /// Send an answer of the guest from the socket of a forwarded port.
    UdpReply {
        /// The port.
        forward: ForwardId,
        /// Where to.
        to: SocketAddr,
        /// The payload; give it back with `recycle`.
        payload: Vec<u8>,
    },
    /// The flow is over and its identifier void: close its socket, if any.
    UdpClosed(UdpId),
    /// Send an echo request from the socket of the flow, which is made when there is none.
    PingSend {
        /// The flow.
        flow: PingId,
        /// Where to.
        to: IpAddr,
        /// What of the guest's packet goes with it.
        hops: Hops,
        /// Sequence number.
        sequence: u16,
        /// The payload; give it back with `recycle`.
        payload: Vec<u8>,
    },
    /// The flow is over and its identifier void: close its socket, if any.
    PingClosed(PingId),
    /// Ask the host's resolvers, then call `dns_answered`.
    DnsQuery {
        /// The query.
        query: DnsId,
        /// Whether the guest asked over TCP, so that an answer may have 65535 bytes.
        tcp: bool,
        /// The message as the guest sent it.
        message: Vec<u8>,
    },
    /// The host's own question, begun with `dns_ask`, is answered.
    DnsReply {
        /// The number that it was asked with.
        number: u64,
        /// The answer.
        message: Vec<u8>,
    },
    /// Look at the host's clock, then call `time_answered`.
    TimeQuery {
        /// Who asks.
        guest: SocketAddr,
        /// Whom: the gateway, by the address that the guest used.
        server: SocketAddr,
        /// The message, of 48 bytes.
        request: Vec<u8>,
    },
}

/// How far a datagram may go, and through how narrow links.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hops {
    /// Hops that it may take.
    pub ttl: u8,
    /// Whether nobody may fragment it on the way: too large a datagram comes to an error.
    pub dont_fragment: bool,
}

/// Why the host's connection could not be made, or a datagram not be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectError {
    /// The peer refused: the guest gets a reset.
    Refused,
    /// No route to the network: the guest gets an ICMP error.
    NetUnreachable,
    /// The host does not answer to ARP, or a router says so: the guest gets an ICMP error.
    HostUnreachable,
    /// Forbidden here: the guest gets an ICMP error.
    Prohibited,
    /// No answer in time: the guest gets none either.
    TimedOut,
}

/// An error that a datagram came to, from the host's error queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DatagramError {
    /// Type of the message: of ICMP for an IPv4 destination, of ICMPv6 for an IPv6 one.
    pub kind: u8,
    /// Code of the message.
    pub code: u8,
    /// Next-hop MTU of "too big", else 0.
    pub mtu: u16,
    /// Who says so, if known; else the gateway tells the guest.
    pub from: Option<IpAddr>,
}

/// One TCP flow in a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpSnapshot {
    /// The flow.
    pub flow: TcpId,
    /// The guest's end.
    pub guest: SocketAddr,
    /// The other end, as the guest sees it.
    pub remote: SocketAddr,
    /// State as in RFC 9293 §3.3.2; `CONNECTING` before the host's connection is there.
    pub state: &'static str,
    /// Bytes of data accepted from the guest.
    pub bytes_up: u64,
    /// Bytes of data taken from the host for the guest.
    pub bytes_down: u64,
    /// Memory of its buffers.
    pub buffer_bytes: usize,
}

/// One UDP flow in a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UdpSnapshot {
    /// The guest's end.
    pub guest: SocketAddr,
    /// The peer of a forwarded port; none for a flow that the guest began.
    pub peer: Option<SocketAddr>,
    /// Payload sent by the guest.
    pub bytes_up: u64,
    /// Payload sent to the guest.
    pub bytes_down: u64,
}

/// The flows of a moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Flows {
    /// TCP, those in TIME-WAIT included.
    pub tcp: Vec<TcpSnapshot>,
    /// UDP.
    pub udp: Vec<UdpSnapshot>,
}

/// What happened since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Frames from the guest.
    pub frames_in: u64,
    /// Frames to the guest.
    pub frames_out: u64,
    /// Bytes of frames from the guest.
    pub bytes_in: u64,
    /// Bytes of frames to the guest.
    pub bytes_out: u64,
    /// What was dropped or refused, by reason.
    pub drops: Drops,
    /// TCP segments sent again.
    pub retransmitted: u64,
    /// Retransmission timers of TCP that expired.
    pub timeouts: u64,
    /// Probes of the tail of TCP that were sent, whether again or for the first time.
    pub tail_probes: u64,
    /// Flows that the guest or a time-out reset.
    pub resets: u64,
    /// Bytes of TCP data of guests that went from their frames straight to a socket.
    pub straight_bytes: u64,
    /// Bytes copied out of frames that lie in guests' memory: small frames, the headers of large ones, and data that
    /// waits for room in its socket.
    pub copied_bytes: u64,
}
