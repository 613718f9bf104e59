//! The DHCP server: one address a hardware address, from the guest's address on. Spec: RFC 2131 §4.3.

use std::collections::HashSet;
use std::net::Ipv4Addr;

use vpnkit_wire::dhcp::{self, MessageType, Parameters, Request};
use vpnkit_wire::ethernet::{Frame, MacAddr, TYPE_IPV4};
use vpnkit_wire::{ParseError, ipv4, udp};

use super::Stack;
use crate::config::Config;
use crate::drops::DropReason;

/// Leases at most; a network may have fewer addresses.
const LEASES_MAX: u32 = 4096;

#[derive(Debug)]
struct Lease {
    mac: MacAddr,
    address: Ipv4Addr,
    /// Whether the client asked for what it was offered; an offer alone makes way when addresses run out.
    bound: bool,
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
    fn offer(&mut self, mac: MacAddr, wish: Option<Ipv4Addr>, taken: &[Ipv4Addr]) -> Option<usize> {
        if let Some(index) = self.find(mac) {
            return Some(index);
        }
        let leased: HashSet<Ipv4Addr> = self.leases.iter().map(|lease| lease.address).collect();
        let free = |address: &Ipv4Addr| !taken.contains(address) && !leased.contains(address);
        let mut pool = (self.first..=self.last).map(Ipv4Addr::from_bits);
        let wish = wish.filter(|wish| (self.first..=self.last).contains(&wish.to_bits()) && free(wish));
        let address = wish.or_else(|| pool.find(free));
        if let Some(address) = address {
            self.leases.push(Lease { mac, address, bound: false });
            return Some(self.leases.len() - 1);
        }
        let stale = self.leases.iter().position(|lease| !lease.bound)?;
        self.leases[stale].mac = mac;
        Some(stale)
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
        leases.retain(|lease| lease.mac != mac && (lease.bound || lease.address != address));
        if leases.len() < LEASES_MAX as usize {
            leases.push(Lease { mac, address, bound: true });
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
                let index = self.leases.offer(request.mac, request.requested, &taken)?;
                Some((MessageType::Offer, self.leases.leases[index].address))
            }
            MessageType::Request => {
                let unset = request.client.is_unspecified();
                let wish = request.requested.or((!unset).then_some(request.client))?;
                // A client of an earlier run asks for what it had: it gets it if nobody else has it.
                let index = self.leases.offer(request.mac, Some(wish), &taken)?;
                let lease = &mut self.leases.leases[index];
                if lease.address != wish {
                    return Some((MessageType::Nak, Ipv4Addr::UNSPECIFIED));
                }
                lease.bound = true;
                Some((MessageType::Ack, wish))
            }
            MessageType::Inform => Some((MessageType::Ack, Ipv4Addr::UNSPECIFIED)),
            MessageType::Release | MessageType::Decline => {
                if let Some(index) = self.leases.find(request.mac) {
                    self.leases.leases[index].bound = false;
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
