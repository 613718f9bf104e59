//! Why frames are dropped or flows refused, and how often each happened.

/// Why a frame came to nothing, or something made way for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DropReason {
    /// It is no valid packet of its protocol.
    Malformed,
    /// It is for a station that the network is not.
    OtherDestination,
    /// Its sender has an address that it cannot have.
    ForgedSource,
    /// It is of a protocol that is not spoken.
    Unsupported,
    /// Too many connections are being made: a SYN is dropped, or the one that waited longest is given up.
    ConnectingLimit,
    /// There are too many TCP flows, or there is no memory for another: it is refused.
    TcpLimit,
    /// There are too many UDP flows: the one idle longest makes way, or a peer finds no port.
    UdpLimit,
    /// There are too many ping flows: the one idle longest makes way.
    PingLimit,
    /// Too many DNS queries wait: it is answered with SERVFAIL.
    DnsLimit,
    /// All addresses are leased.
    NoAddress,
    /// Too many packets wait for hardware addresses: the oldest is dropped.
    NoNeighbour,
    /// Too many frames wait for the link, or for a slow machine: one for a guest is dropped.
    QueueFull,
}

impl DropReason {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Malformed,
        Self::OtherDestination,
        Self::ForgedSource,
        Self::Unsupported,
        Self::ConnectingLimit,
        Self::TcpLimit,
        Self::UdpLimit,
        Self::PingLimit,
        Self::DnsLimit,
        Self::NoAddress,
        Self::NoNeighbour,
        Self::QueueFull,
    ];

    /// A word for it, as metrics have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::OtherDestination => "other_destination",
            Self::ForgedSource => "forged_source",
            Self::Unsupported => "unsupported",
            Self::ConnectingLimit => "connecting_limit",
            Self::TcpLimit => "tcp_limit",
            Self::UdpLimit => "udp_limit",
            Self::PingLimit => "ping_limit",
            Self::DnsLimit => "dns_limit",
            Self::NoAddress => "no_address",
            Self::NoNeighbour => "no_neighbour",
            Self::QueueFull => "queue_full",
        }
    }

    /// A sentence for people, without a full stop.
    pub fn text(self) -> &'static str {
        match self {
            Self::Malformed => "dropped: no valid packet of its protocol",
            Self::OtherDestination => "dropped: for a station that the network is not",
            Self::ForgedSource => "dropped: from an address that its sender cannot have",
            Self::Unsupported => "dropped: of a protocol that is not spoken",
            Self::ConnectingLimit => "dropped: too many connections are being made",
            Self::TcpLimit => "refused: too many TCP flows",
            Self::UdpLimit => "too many UDP flows: one made way",
            Self::PingLimit => "too many ping flows: one made way",
            Self::DnsLimit => "refused: too many DNS queries wait",
            Self::NoAddress => "dropped: all addresses are leased",
            Self::NoNeighbour => "too many packets wait for hardware addresses: one was dropped",
            Self::QueueFull => "its answer was dropped: too many frames wait for the link",
        }
    }
}

/// How often each happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Drops([u64; DropReason::ALL.len()]);

impl Drops {
    /// How often it happened for this reason.
    pub fn of(&self, reason: DropReason) -> u64 {
        self.0[reason as usize]
    }

    /// All reasons with their counts.
    pub fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> {
        DropReason::ALL.into_iter().zip(self.0)
    }

    /// Adds what was dropped outside of the stack, as by a switch.
    pub fn add_count(&mut self, reason: DropReason, count: u64) {
        self.0[reason as usize] += count;
    }

    pub(crate) fn add(&mut self, reason: DropReason) {
        self.0[reason as usize] += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_counted_by_itself() {
        let mut drops = Drops::default();
        for (count, reason) in DropReason::ALL.into_iter().enumerate() {
            (0..count).for_each(|_| drops.add(reason));
        }
        for (count, (reason, counted)) in drops.iter().enumerate() {
            assert_eq!((reason, counted), (DropReason::ALL[count], count as u64));
            assert_eq!(drops.of(reason), count as u64);
        }
    }
}
