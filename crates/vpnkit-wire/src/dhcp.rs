//! DHCP messages, as far as a server needs them. Spec: RFC 2131, RFC 2132, RFC 3397 (domain search).

use std::net::Ipv4Addr;

use super::ethernet::MacAddr;
use super::{ParseError, address, at_least, be16, be32};

/// Port of servers.
pub const SERVER_PORT: u16 = 67;
/// Port of clients.
pub const CLIENT_PORT: u16 = 68;

const FIXED_BYTES: usize = 240;
const COOKIE: [u8; 4] = [99, 130, 83, 99];

/// Message types: RFC 2132 §9.6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the specification's")]
pub enum MessageType {
    Discover = 1,
    Offer = 2,
    Request = 3,
    Decline = 4,
    Ack = 5,
    Nak = 6,
    Release = 7,
    Inform = 8,
}

impl MessageType {
    fn from_byte(byte: u8) -> Option<Self> {
        use MessageType::{Ack, Decline, Discover, Inform, Nak, Offer, Release, Request};
        [Discover, Offer, Request, Decline, Ack, Nak, Release, Inform]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

/// A client's message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// What it is.
    pub kind: MessageType,
    /// Transaction, repeated in the answer.
    pub xid: u32,
    /// Whether the answer is to be broadcast.
    pub broadcast: bool,
    /// Address that the client has and can be reached at.
    pub client: Ipv4Addr,
    /// The client's hardware address.
    pub mac: MacAddr,
    /// Address that it asks for: option 50.
    pub requested: Option<Ipv4Addr>,
    /// The server that it chose: option 54.
    pub server: Option<Ipv4Addr>,
}

/// Parses a client's message.
///
/// # Errors
/// When it is short, not a request over Ethernet, or has no message type.
pub fn parse(bytes: &[u8]) -> Result<Request, ParseError> {
    at_least(bytes, FIXED_BYTES)?;
    if bytes[0] != 1 || bytes[1] != 1 || bytes[2] != 6 || bytes[236..240] != COOKIE {
        return Err(ParseError::Protocol);
    }
    let (mut kind, mut requested, mut server) = (None, None, None);
    let mut rest = &bytes[FIXED_BYTES..];
    while let Some((&code, after)) = rest.split_first() {
        if code == 0 {
            rest = after;
            continue;
        }
        let Some(&length) = after.first() else { break };
        let Some(value) = after.get(1..1 + usize::from(length)) else { break };
        match (code, value) {
            (255, _) => break,
            (50, [_, _, _, _]) => requested = Some(address(value, 0)),
            (53, [byte]) => kind = MessageType::from_byte(*byte),
            (54, [_, _, _, _]) => server = Some(address(value, 0)),
            _ => {}
        }
        rest = &after[1 + usize::from(length)..];
    }
    let mut mac = [0; 6];
    mac.copy_from_slice(&bytes[28..34]);
    Ok(Request {
        kind: kind.ok_or(ParseError::Protocol)?,
        xid: be32(bytes, 4),
        broadcast: be16(bytes, 10) & 0x8000 != 0,
        client: address(bytes, 12),
        mac: MacAddr(mac),
        requested,
        server,
    })
}

/// What a lease says besides the address.
#[derive(Debug, Clone)]
pub struct Parameters {
    /// The server, which is also router, name server and time server.
    pub server: Ipv4Addr,
    /// Network mask.
    pub mask: Ipv4Addr,
    /// Broadcast address.
    pub broadcast: Ipv4Addr,
    /// Largest packet of the link.
    pub mtu: u16,
    /// Seconds that the lease lasts.
    pub lease_seconds: u32,
    /// Domain of the network, if any.
    pub domain: String,
    /// Domains to search.
    pub search: Vec<String>,
    /// Name for the client, if any.
    pub hostname: String,
}

/// Returns an answer to `request`. `yours` is the address leased; unspecified in a NAK and for an INFORM.
pub fn emit(request: &Request, kind: MessageType, yours: Ipv4Addr, with: &Parameters) -> Vec<u8> {
    let mut out = vec![0; FIXED_BYTES];
    out[0] = 2;
    out[1] = 1;
    out[2] = 6;
    out[4..8].copy_from_slice(&request.xid.to_be_bytes());
    out[10] = u8::from(request.broadcast) << 7;
    out[12..16].copy_from_slice(&request.client.octets());
    out[16..20].copy_from_slice(&yours.octets());
    out[28..34].copy_from_slice(&request.mac.0);
    out[236..240].copy_from_slice(&COOKIE);
    option(&mut out, 53, &[kind as u8]);
    option(&mut out, 54, &with.server.octets());
    if kind != MessageType::Nak {
        if !yours.is_unspecified() {
            option(&mut out, 51, &with.lease_seconds.to_be_bytes());
        }
        option(&mut out, 1, &with.mask.octets());
        option(&mut out, 28, &with.broadcast.octets());
        option(&mut out, 3, &with.server.octets());
        option(&mut out, 6, &with.server.octets());
        option(&mut out, 42, &with.server.octets());
        option(&mut out, 26, &with.mtu.to_be_bytes());
        option(&mut out, 12, with.hostname.as_bytes());
        option(&mut out, 15, with.domain.as_bytes());
        option(&mut out, 119, &search_list(&with.search));
    }
    out.push(255);
    // Some clients drop anything shorter than BOOTP's 300 bytes.
    out.resize(out.len().max(300), 0);
    out
}

/// Appends an option; an empty value is left out, one longer than 255 bytes is split (RFC 3396).
fn option(out: &mut Vec<u8>, code: u8, value: &[u8]) {
    for piece in value.chunks(255) {
        out.push(code);
        out.push(piece.len() as u8);
        out.extend_from_slice(piece);
    }
}

/// Encodes domains as DNS names, without compression: RFC 3397 §2. Names that are not valid are left out.
pub(super) fn search_list(domains: &[String]) -> Vec<u8> {
    domains.iter().filter_map(|domain| super::dns::encode_name(domain)).flatten().collect()
}
