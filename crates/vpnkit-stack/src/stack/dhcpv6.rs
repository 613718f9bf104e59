//! The DHCPv6 server: one address for each client's association, name server and domains. Spec: RFC 8415 §18.3.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use vpnkit_wire::dhcpv6::{self, Answer, MessageType, NO_ADDRESS, NO_BINDING, NOT_ON_LINK, Request, SUCCESS};
use vpnkit_wire::{ParseError, ip, udp};

use super::Stack;
use crate::config::Ipv6Network;
use crate::drops::DropReason;
use crate::time::Instant;

/// Leases at most; beyond it the oldest makes way that was only offered or has ended, and without such none is given.
const LEASES_MAX: usize = 1024;
/// Seconds that a lease lasts. Shorter than IPv4's: clients ask again by themselves, and a day outlives any sleep.
const LEASE_SECONDS: u32 = 86_400;

#[derive(Debug)]
struct Lease {
    client: Vec<u8>,
    ident: u32,
    address: Ipv6Addr,
    /// When it ends, if the client asked for what it was offered.
    ends: Option<Instant>,
}

/// Who has which address. Lives as long as the stack.
#[derive(Debug, Default)]
pub(crate) struct Leases(Vec<Lease>);

impl Leases {
    fn find(&self, client: &[u8], ident: u32) -> Option<usize> {
        self.0.iter().position(|lease| lease.ident == ident && lease.client == client)
    }

    /// Returns the lease of a client's association, made if need be; the address wished for if it is free.
    fn offer(
        &mut self,
        now: Instant,
        (client, ident): (&[u8], u32),
        wish: Option<Ipv6Addr>,
        network: &Ipv6Network,
    ) -> Option<usize> {
        if let Some(index) = self.find(client, ident) {
            return Some(index);
        }
        if self.0.len() >= LEASES_MAX {
            let stale = self.0.iter().position(|lease| lease.ends.is_none_or(|ends| ends <= now))?;
            self.0.remove(stale);
        }
        let first = network.guest.to_bits();
        let free = |address: Ipv6Addr| {
            ![network.gateway, network.host].contains(&address)
                && !self.0.iter().any(|lease| lease.address == address)
        };
        let in_pool = |address: Ipv6Addr| {
            (first..first.saturating_add(2 * LEASES_MAX as u128)).contains(&address.to_bits())
        };
        let wish = wish.filter(|wish| in_pool(*wish) && free(*wish));
        let mut pool =
            (0..2 * LEASES_MAX as u128).map(|step| Ipv6Addr::from_bits(first.saturating_add(step)));
        let address = wish.or_else(|| pool.find(|address| network.contains(*address) && free(*address)))?;
        self.0.push(Lease { client: client.to_vec(), ident, address, ends: None });
        Some(self.0.len() - 1)
    }
}

impl Stack {
    /// Takes a datagram to a group: DHCPv6, or nothing.
    pub(super) fn take_dhcpv6_datagram(
        &mut self,
        now: Instant,
        packet: &ip::Packet<'_>,
        verify: bool,
    ) -> Result<(), ParseError> {
        let datagram = udp::parse(packet.payload, verify.then_some((packet.src, packet.dst)))?;
        let ours = packet.dst == IpAddr::V6(dhcpv6::ALL_AGENTS);
        if !ours || datagram.dst_port != dhcpv6::SERVER_PORT {
            self.count_drop(DropReason::OtherDestination);
            return Ok(());
        }
        let request = dhcpv6::parse(datagram.payload)?;
        let client = SocketAddr::new(packet.src, datagram.src_port);
        self.take_dhcpv6(now, client, &request);
        Ok(())
    }

    fn take_dhcpv6(&mut self, now: Instant, client: SocketAddr, request: &Request<'_>) {
        let Some(network) = self.config.ipv6.clone() else { return };
        let server = self.server_id();
        if request.server.is_some_and(|chosen| chosen != server) {
            return;
        }
        // RFC 8415 §16: these name a server and a client, those only a client.
        let (names_server, names_client) = (request.server.is_some(), request.client.is_some());
        use MessageType::{Confirm, Decline, InformationRequest, Rebind, Release, Renew, Request, Solicit};
        let valid = match request.kind {
            Request | Renew | Release | Decline => names_server && names_client,
            Solicit | Confirm | Rebind => !names_server && names_client,
            InformationRequest => true,
            MessageType::Advertise | MessageType::Reply => false,
        };
        if !valid {
            self.count_drop(DropReason::Malformed);
            return;
        }
        let search = self.search_domains();
        let commits = request.kind != Solicit || request.rapid_commit;
        let (association, status) = self.answer_dhcpv6(now, request, &network, commits);
        let answer = Answer {
            kind: if commits { MessageType::Reply } else { MessageType::Advertise },
            server: &server,
            association,
            status,
            rapid_commit: request.kind == Solicit && request.rapid_commit,
            lease_seconds: LEASE_SECONDS,
            dns: network.gateway,
            search: &search,
        };
        let message = dhcpv6::emit(request, &answer);
        let from = SocketAddr::new(self.gateway_like(client.ip()), dhcpv6::SERVER_PORT);
        self.queue_udp(now, from, client, &message);
    }

    /// What becomes of the association, and of the request as a whole.
    #[expect(clippy::type_complexity, reason = "the pair is what an answer is made of")]
    fn answer_dhcpv6(
        &mut self,
        now: Instant,
        request: &Request<'_>,
        network: &Ipv6Network,
        commits: bool,
    ) -> (Option<(u32, Result<Ipv6Addr, u16>)>, Option<u16>) {
        let (Some(client), Some(asked)) = (request.client, request.association) else {
            return (None, None);
        };
        let leases = &mut self.leases_v6;
        match request.kind {
            MessageType::Confirm => {
                let on_link = asked.address.is_none_or(|address| network.contains(address));
                (None, Some(if on_link { SUCCESS } else { NOT_ON_LINK }))
            }
            MessageType::Release | MessageType::Decline => {
                let Some(index) = leases.find(client, asked.ident) else {
                    return (Some((asked.ident, Err(NO_BINDING))), Some(SUCCESS));
                };
                // What was declined stays taken, so that nobody else is offered it; what was released is free.
                match request.kind {
                    MessageType::Decline => {
                        leases.0[index].client.clear();
                        leases.0[index].ends = None;
                    }
                    _ => drop(leases.0.remove(index)),
                }
                (None, Some(SUCCESS))
            }
            _ => {
                let Some(index) = leases.offer(now, (client, asked.ident), asked.address, network) else {
                    self.count_drop(DropReason::NoAddress);
                    return (Some((asked.ident, Err(NO_ADDRESS))), None);
                };
                let lease = &mut leases.0[index];
                if commits {
                    lease.ends = Some(now + Duration::from_secs(LEASE_SECONDS.into()));
                }
                (Some((asked.ident, Ok(lease.address))), None)
            }
        }
    }

    /// The server's identifier, from its hardware address: RFC 8415 §11.4, DUID-LL.
    fn server_id(&self) -> Vec<u8> {
        [&[0, 3, 0, 1][..], &self.config.gateway_mac.0].concat()
    }

    /// The domains that guests search: their own first.
    pub(super) fn search_domains(&self) -> Vec<String> {
        let domain = &self.config.domain;
        let own = (!domain.is_empty() && !self.config.search.contains(domain)).then(|| domain.clone());
        own.into_iter().chain(self.config.search.iter().cloned()).collect()
    }
}
