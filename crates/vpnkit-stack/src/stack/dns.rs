//! The name server at the gateway: own names and the hosts file are answered here, the rest is passed on.
//!
//! Answers of the host's resolvers reach the guest as they are, codes and EDNS included.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use vpnkit_wire::{ParseError, dns};

use super::Stack;
use super::tcp::Owner;
use super::tcp_host::AHEAD_BYTES;
use crate::config::Ipv6Network;
use crate::drops::DropReason;
use crate::event::{DnsId, Effect, TcpId};
use crate::time::Instant;

/// After this time a query is forgotten; the host's resolvers give up earlier.
const LIFETIME: Duration = Duration::from_secs(30);
/// Queries without an answer on one TCP connection; more are not read.
pub(super) const PER_CONNECTION_MAX: u32 = 32;
/// Bytes of the largest query over TCP; real ones have a few hundred.
const TCP_QUERY_BYTES_MAX: usize = 4096;
/// Names taken from a hosts file.
const HOSTS_MAX: usize = 100_000;

/// Names with fixed addresses, from a hosts file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hosts(HashMap<String, Vec<IpAddr>>);

impl Hosts {
    /// Reads `hosts(5)`; lines that are none are skipped.
    pub fn parse(text: &str) -> Self {
        let mut hosts: HashMap<String, Vec<IpAddr>> = HashMap::new();
        for line in text.lines() {
            let line = line.split('#').next().unwrap_or_default();
            let mut words = line.split_ascii_whitespace();
            let Some(Ok(address)) = words.next().map(str::parse::<IpAddr>) else { continue };
            for name in words {
                if hosts.len() >= HOSTS_MAX {
                    break;
                }
                let addresses = hosts.entry(name.trim_end_matches('.').to_ascii_lowercase()).or_default();
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
        }
        Self(hosts)
    }
}

/// Who asked.
#[derive(Debug, Clone, Copy)]
enum Client {
    Udp {
        guest: SocketAddr,
        server: SocketAddr,
        limit_bytes: usize,
    },
    Tcp(TcpId),
    /// The host's own, by its number.
    Host(u64),
}

/// A query that was passed on.
#[derive(Debug)]
pub(super) struct Pending {
    client: Client,
    since: Instant,
    id: u16,
    /// The answer if there is none.
    failure: Vec<u8>,
}

impl Stack {
    /// Replaces the names of the hosts file.
    pub fn set_hosts(&mut self, hosts: Hosts) {
        self.hosts = hosts;
    }

    pub(super) fn take_dns_datagram(
        &mut self,
        now: Instant,
        (guest, server): (SocketAddr, SocketAddr),
        message: &[u8],
    ) {
        let query = dns::parse(message);
        let limit_bytes = query.as_ref().map_or(dns::UDP_BYTES_MIN, |query| query.udp_bytes);
        self.ask(now, Client::Udp { guest, server, limit_bytes }, message, query);
    }

    /// Asks what a guest would ask, on behalf of the host: [`Effect::DnsReply`] brings the answer.
    pub fn dns_ask(&mut self, now: Instant, number: u64, message: &[u8]) {
        self.ask(now, Client::Host(number), message, dns::parse(message));
    }

    /// Answers a query, which is what was parsed of the message, or passes it on.
    fn ask(&mut self, now: Instant, client: Client, message: &[u8], query: Result<dns::Query, ParseError>) {
        if message.len() < dns::HEADER_BYTES || message[2] & 0x80 != 0 {
            // No header to answer, or an answer: RFC 1035 §7.3.
            return;
        }
        let Ok(query) = query else {
            let code = if message[2] & 0x78 != 0 { dns::NOTIMP } else { dns::FORMERR };
            return self.reply(now, client, dns::reply(message, code));
        };
        if let Some(found) = self.resolve_here(&query, self.asker(client)) {
            let answer = match found {
                Ok(addresses) => dns::answer(message, &query, &addresses, 0),
                Err(code) => dns::reply(message, code),
            };
            return self.reply(now, client, answer);
        }
        let mut failure = self.payload(&[]);
        dns::emit_reply(&mut failure, message, Some(&query), dns::SERVFAIL);
        if self.dns.len() >= self.config.limits.dns_queries {
            self.count_drop(DropReason::DnsLimit);
            return self.reply(now, client, failure);
        }
        if let Client::Tcp(flow) = client {
            self.count_pending(flow, 1);
        }
        let id = DnsId(self.dns.insert(Pending { client, since: now, id: query.id, failure }));
        self.arm_sweep(now);
        let message = self.payload(message);
        self.effects.push_back(Effect::DnsQuery {
            query: id,
            tcp: matches!(client, Client::Tcp(_)),
            message,
        });
    }

    fn asker(&self, client: Client) -> Option<IpAddr> {
        match client {
            Client::Udp { guest, .. } => Some(guest.ip()),
            Client::Host(_) => None,
            Client::Tcp(flow) => self.tcp.get(flow.0).map(|flow| flow.key.guest.ip()),
        }
    }

    /// What is known here of a name: its addresses, or a code. The names of host, gateway and guest come first, then
    /// zones, then the hosts file.
    fn resolve_here(&self, query: &dns::Query, guest: Option<IpAddr>) -> Option<Result<Vec<IpAddr>, u8>> {
        let is = |names: &[String]| names.iter().any(|name| name.eq_ignore_ascii_case(&query.name));
        if is(&self.config.host_names) {
            return Some(Ok(self.hosts_own()));
        }
        if is(&self.config.guest_names) {
            return Some(Ok(guest.into_iter().collect()));
        }
        if is(&self.config.gateway_names) {
            return Some(Ok(self.both(self.config.gateway, |ipv6| ipv6.gateway)));
        }
        self.resolve_in_zones(query).or_else(|| self.resolve_in_hosts(query).map(Ok))
    }

    /// Loopback addresses in the host's hosts file mean the host, which the guest knows by another address.
    fn resolve_in_hosts(&self, query: &dns::Query) -> Option<Vec<IpAddr>> {
        if ![dns::TYPE_A, dns::TYPE_AAAA].contains(&query.qtype) {
            return None;
        }
        let addresses = self.hosts.0.get(&query.name)?;
        let is_localhost = query.name == "localhost";
        let seen = addresses.iter().filter_map(|address| match address {
            IpAddr::V4(v4) if v4.is_loopback() && !is_localhost => {
                Some(self.config.host.into()).filter(|_| !self.config.host.is_unspecified())
            }
            IpAddr::V6(v6) if v6.is_loopback() && !is_localhost => self
                .config
                .ipv6
                .as_ref()
                .map(|ipv6| ipv6.host.into())
                .filter(|host: &IpAddr| !host.is_unspecified()),
            other => Some(*other),
        });
        Some(seen.collect())
    }

    /// The host's addresses, if guests reach it.
    fn hosts_own(&self) -> Vec<IpAddr> {
        let both = self.both(self.config.host, |ipv6| ipv6.host);
        both.into_iter().filter(|address| !address.is_unspecified()).collect()
    }

    /// The addresses of one of the network's own names.
    fn both(&self, v4: Ipv4Addr, v6: impl Fn(&Ipv6Network) -> Ipv6Addr) -> Vec<IpAddr> {
        let v6 = self.config.ipv6.as_ref().map(|ipv6| v6(ipv6).into());
        std::iter::once(v4.into()).chain(v6).collect()
    }

    /// Passes an answer of the host's resolvers on; `None` when they gave none.
    pub fn dns_answered(&mut self, now: Instant, query: DnsId, answer: Option<&[u8]>) {
        let Some(pending) = self.dns.remove(query.0) else { return };
        let mut message = match answer {
            Some(answer) if answer.len() >= dns::HEADER_BYTES => {
                self.recycle(pending.failure);
                self.payload(answer)
            }
            _ => pending.failure,
        };
        message[..2].copy_from_slice(&pending.id.to_be_bytes());
        if let Client::Tcp(flow) = pending.client {
            self.count_pending(flow, -1);
        }
        self.reply(now, pending.client, message);
    }

    fn reply(&mut self, now: Instant, client: Client, mut message: Vec<u8>) {
        match client {
            Client::Udp { guest, server, limit_bytes } => {
                dns::truncate(&mut message, limit_bytes);
                self.queue_udp(now, server, guest, &message);
                self.recycle(message);
            }
            Client::Host(number) => self.effects.push_back(Effect::DnsReply { number, message }),
            Client::Tcp(flow) => {
                let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
                let Some(entry) = self.tcp.get_mut(flow.0) else { return };
                entry.endpoint.push(&length.to_be_bytes());
                entry.endpoint.push(&message[..usize::from(length)]);
                self.account(flow);
                self.touch_tcp(flow);
                self.finish_dns_stream(flow);
                self.recycle(message);
            }
        }
    }

    fn count_pending(&mut self, flow: TcpId, change: i32) {
        if let Some(entry) = self.tcp.get_mut(flow.0)
            && let Owner::Dns { pending } = &mut entry.owner
        {
            *pending = pending.saturating_add_signed(change);
        }
    }

    /// Takes the queries that came over TCP: each has its length before it. Spec: RFC 1035 §4.2.2, RFC 7766.
    pub(super) fn read_dns_stream(&mut self, now: Instant, flow: TcpId) {
        loop {
            let Some(entry) = self.tcp.get_mut(flow.0) else { return };
            let Owner::Dns { pending } = entry.owner else { return };
            let queued_bytes = entry.endpoint.queued_bytes();
            if pending >= PER_CONNECTION_MAX || queued_bytes > AHEAD_BYTES {
                return;
            }
            let (first, second) = entry.endpoint.received();
            let mut bytes = first.iter().chain(second).copied();
            let (Some(high), Some(low)) = (bytes.next(), bytes.next()) else { break };
            let length = usize::from(u16::from_be_bytes([high, low]));
            if length > TCP_QUERY_BYTES_MAX {
                self.abort_tcp(now, flow);
                return;
            }
            let message: Vec<u8> = bytes.take(length).collect();
            if message.len() < length {
                break;
            }
            entry.endpoint.consume(2 + length);
            self.account(flow);
            self.touch_tcp(flow);
            self.ask(now, Client::Tcp(flow), &message, dns::parse(&message));
        }
        self.finish_dns_stream(flow);
    }

    /// Ends our side when the guest ended its own and everything is answered.
    fn finish_dns_stream(&mut self, flow: TcpId) {
        let Some(entry) = self.tcp.get_mut(flow.0) else { return };
        if !matches!(entry.owner, Owner::Dns { pending: 0 }) || !entry.endpoint.is_finished_by_peer() {
            return;
        }
        let rest = entry.endpoint.received_bytes();
        entry.endpoint.consume(rest);
        entry.endpoint.finish();
        self.touch_tcp(flow);
    }

    pub(super) fn sweep_dns(&mut self, now: Instant) {
        let late = |pending: &Pending| now.since(pending.since) >= LIFETIME;
        let old: Vec<_> = self.dns.iter().filter(|(_, query)| late(query)).map(|(key, _)| key).collect();
        for key in old {
            self.dns_answered(now, DnsId(key), None);
        }
    }
}
