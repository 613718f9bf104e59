//! The DHCP server: one address a hardware address, from the guest's address on. Spec: RFC 2131 §4.3.

use std::collections::HashSet;
use std::net::Ipv4Addr;

use vpnkit_wire::dhcp::{self, MessageType, Parameters, Request};
use vpnkit_wire::ethernet::{Frame, MacAddr, TYPE_IPV4};
use vpnkit_wire::{ParseError, ipv4, udp};

use super::Stack;
use crate::config::Config;
use crate::drops::DropReason;
use crate::neighbours::Neighbours;

/// Leases at most; a network may have fewer addresses.
const LEASES_MAX: u32 = 4096;

/// What a client's right to its address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Claim {
    /// It was offered, or the client gave it back: it makes way when addresses run out.
    Offered,
    /// The client asked for it.
    Bound,
    /// The client asked for it and left: it is kept for it, and makes way when addresses run out.
    Left,
    /// It was promised to this machine, and is kept whatever happens.
    Promised,
}

#[derive(Debug)]
struct Lease {
    mac: MacAddr,
    address: Ipv4Addr,
    claim: Claim,
}

impl Lease {
    /// Whether somebody else may have the address. A machine that came back and goes on where it was did not ask again.
    fn makes_way(&self, neighbours: &Neighbours) -> bool {
        match self.claim {
            Claim::Offered => true,
            Claim::Left => neighbours.find(self.address.into()) != Some(self.mac),
            Claim::Bound | Claim::Promised => false,
        }
    }
}

/// Who has which address. Lives as long as the stack, so that a machine that reboots keeps its address.
#[derive(Debug)]
pub(crate) struct Leases {
    leases: Vec<Lease>,
    first: u32,
    last: u32,
}

impl Leases {
    pub fn new(config: &Config) -> Self {
        let first = config.guest.to_bits();
        let last = config.guest_last.map_or(config.broadcast().to_bits() - 1, Ipv4Addr::to_bits);
        let last = last.min(first.saturating_add(LEASES_MAX - 1));
        Self { leases: Vec::new(), first, last }
    }

    fn find(&self, mac: MacAddr) -> Option<usize> {
        self.leases.iter().position(|lease| lease.mac == mac)
    }

    /// Returns the lease of `mac`, made if need be; the address wished for if it is free.
    fn offer(
        &mut self,
        mac: MacAddr,
        wish: Option<Ipv4Addr>,
        taken: &[Ipv4Addr],
        neighbours: &Neighbours,
    ) -> Option<usize> {
        if let Some(index) = self.find(mac) {
            return Some(index);
        }
        let leased: HashSet<Ipv4Addr> = self.leases.iter().map(|lease| lease.address).collect();
        let free = |address: &Ipv4Addr| !taken.contains(address) && !leased.contains(address);
        let mut pool = (self.first..=self.last).map(Ipv4Addr::from_bits);
        let wish = wish.filter(|wish| (self.first..=self.last).contains(&wish.to_bits()) && free(wish));
        let address = wish.or_else(|| pool.find(free));
        if let Some(address) = address {
            self.leases.push(Lease { mac, address, claim: Claim::Offered });
            return Some(self.leases.len() - 1);
        }
        let stale = self.leases.iter().position(|lease| lease.makes_way(neighbours))?;
        let address = self.leases.remove(stale).address;
        self.leases.push(Lease { mac, address, claim: Claim::Offered });
        Some(self.leases.len() - 1)
    }
}

impl Stack {
    /// Tells guests another domain, and others to search, when they ask next; those with IPv6 hear at once.
    pub fn set_domains(&mut self, domain: String, search: Vec<String>) {
        self.config.domain = domain;
        self.config.search = search;
        self.announce();
    }

    /// Keeps `address` for the machine of this hardware address; whoever only was offered it has to ask again.
    pub fn reserve(&mut self, mac: MacAddr, address: Ipv4Addr) {
        let leases = &mut self.leases.leases;
        let makes_way = |lease: &Lease| matches!(lease.claim, Claim::Offered | Claim::Left);
        leases.retain(|lease| lease.mac != mac && !(lease.address == address && makes_way(lease)));
        // What a machine has it keeps: two would have it otherwise, and this one is given another.
        let is_anothers = leases.iter().any(|lease| lease.address == address);
        if !is_anothers && leases.len() < LEASES_MAX as usize {
            leases.push(Lease { mac, address, claim: Claim::Promised });
        }
    }

    /// Takes note that the machine of this hardware address left the link. It finds its address again when it comes back,
    /// unless all others were taken meanwhile: then those make way whose machines have been gone longest.
    pub fn on_departure(&mut self, mac: MacAddr) {
        self.neighbours.forget(mac);
        let leases = &mut self.leases.leases;
        if let Some(index) = leases.iter().position(|lease| lease.mac == mac && lease.claim == Claim::Bound) {
            let lease = leases.remove(index);
            leases.push(Lease { claim: Claim::Left, ..lease });
        }
    }

    /// The leases: who has which address.
    pub fn leases(&self) -> Vec<(Ipv4Addr, MacAddr)> {
        self.leases.leases.iter().map(|lease| (lease.address, lease.mac)).collect()
    }

    pub(super) fn take_dhcp(&mut self, frame: &Frame<'_>, payload: &[u8]) -> Result<(), ParseError> {
        let request = dhcp::parse(payload)?;
        if request.mac != frame.src || request.server.is_some_and(|server| server != self.config.gateway) {
            return Ok(());
        }
        if let Some((kind, yours)) = self.answer_dhcp(&request) {
            self.send_dhcp(&request, kind, yours);
        } else if matches!(request.kind, MessageType::Discover) {
            self.count_drop(DropReason::NoAddress);
        }
        Ok(())
    }

    /// Decides what a client is told, if anything.
    fn answer_dhcp(&mut self, request: &Request) -> Option<(MessageType, Ipv4Addr)> {
        let taken = [self.config.gateway, self.config.host];
        match request.kind {
            MessageType::Discover => {
                let index = self.leases.offer(request.mac, request.requested, &taken, &self.neighbours)?;
                Some((MessageType::Offer, self.leases.leases[index].address))
            }
            MessageType::Request => {
                let unset = request.client.is_unspecified();
                let wish = request.requested.or((!unset).then_some(request.client))?;
                // A client of an earlier run asks for what it had: it gets it if nobody else has it.
                let index = self.leases.offer(request.mac, Some(wish), &taken, &self.neighbours)?;
                let lease = &mut self.leases.leases[index];
                if lease.address != wish {
                    return Some((MessageType::Nak, Ipv4Addr::UNSPECIFIED));
                }
                if lease.claim != Claim::Promised {
                    lease.claim = Claim::Bound;
                }
                Some((MessageType::Ack, wish))
            }
            MessageType::Inform => Some((MessageType::Ack, Ipv4Addr::UNSPECIFIED)),
            MessageType::Release | MessageType::Decline => {
                if let Some(index) = self.leases.find(request.mac) {
                    let lease = &mut self.leases.leases[index];
                    if lease.claim != Claim::Promised {
                        lease.claim = Claim::Offered;
                    }
                }
                None
            }
            MessageType::Offer | MessageType::Ack | MessageType::Nak => None,
        }
    }

    /// Spec: RFC 2131 §4.1, where the answer goes.
    fn send_dhcp(&mut self, request: &Request, kind: MessageType, yours: Ipv4Addr) {
        let config = &self.config;
        let with = Parameters {
            server: config.gateway,
            mask: config.mask(),
            broadcast: config.broadcast(),
            mtu: config.mtu,
            lease_seconds: config.lease_seconds,
            domain: config.domain.clone(),
            search: config.search.clone(),
            hostname: config.hostname.clone(),
        };
        let message = dhcp::emit(request, kind, yours, &with);
        let (dst, mac) = if kind == MessageType::Nak || (request.broadcast && request.client.is_unspecified())
        {
            (Ipv4Addr::BROADCAST, MacAddr::BROADCAST)
        } else if !request.client.is_unspecified() {
            (request.client, request.mac)
        } else {
            (yours, request.mac)
        };
        let src = config.gateway;
        let header = udp::emit_header((src, dhcp::SERVER_PORT), (dst, dhcp::CLIENT_PORT), &message);
        let mut ip = [0; ipv4::HEADER_BYTES];
        ipv4::Header::new(src, dst, ipv4::PROTOCOL_UDP, header.len() + message.len()).emit(&mut ip);
        self.queue_frame(mac, TYPE_IPV4, &[&ip, &header, &message]);
    }
}
