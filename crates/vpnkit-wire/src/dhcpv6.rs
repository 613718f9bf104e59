//! DHCPv6 messages between clients and a server on one link. Spec: RFC 8415, RFC 3646 (name servers, domains).

use std::net::Ipv6Addr;

use super::ipv6::address;
use super::{ParseError, at_least, be16, be32};

/// Port of servers.
pub const SERVER_PORT: u16 = 547;
/// Port of clients.
pub const CLIENT_PORT: u16 = 546;
/// Every server and relay of a link.
pub const ALL_AGENTS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
/// Bytes of the longest identifier: RFC 8415 §11.1.
pub const DUID_BYTES_MAX: usize = 130;

/// Status: nothing is wrong.
pub const SUCCESS: u16 = 0;
/// Status: no address is left.
pub const NO_ADDRESS: u16 = 2;
/// Status: the client has no such binding.
pub const NO_BINDING: u16 = 3;
/// Status: the address is not of this link.
pub const NOT_ON_LINK: u16 = 4;

const CLIENT_ID: u16 = 1;
const SERVER_ID: u16 = 2;
const IA_NA: u16 = 3;
const IA_ADDRESS: u16 = 5;
const STATUS: u16 = 13;
const RAPID_COMMIT: u16 = 14;
const DNS_SERVERS: u16 = 23;
const DOMAIN_LIST: u16 = 24;

/// Message types: RFC 8415 §7.3.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the specification's")]
pub enum MessageType {
    Solicit = 1,
    Advertise = 2,
    Request = 3,
    Confirm = 4,
    Renew = 5,
    Rebind = 6,
    Reply = 7,
    Release = 8,
    Decline = 9,
    InformationRequest = 11,
}

impl MessageType {
    fn from_byte(byte: u8) -> Option<Self> {
        use MessageType::{
            Advertise, Confirm, Decline, InformationRequest, Rebind, Release, Renew, Reply, Request, Solicit,
        };
        [Solicit, Advertise, Request, Confirm, Renew, Rebind, Reply, Release, Decline, InformationRequest]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

/// What a client asks for: addresses under a number of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Association {
    /// The number: IAID.
    pub ident: u32,
    /// The address that it has or wants, if it names one; further ones are not read.
    pub address: Option<Ipv6Addr>,
}

/// A client's message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request<'a> {
    /// What it is.
    pub kind: MessageType,
    /// Transaction, of three bytes, repeated in the answer.
    pub transaction: [u8; 3],
    /// The client's identifier; only an information request may have none.
    pub client: Option<&'a [u8]>,
    /// The server that it chose.
    pub server: Option<&'a [u8]>,
    /// What it wants; further associations are not read.
    pub association: Option<Association>,
    /// Whether it takes a reply to its first message.
    pub rapid_commit: bool,
}

/// Parses a client's message.
///
/// # Errors
/// When it is short, an option runs out of it, or the type is no client's.
pub fn parse(bytes: &[u8]) -> Result<Request<'_>, ParseError> {
    at_least(bytes, 4)?;
    let kind = MessageType::from_byte(bytes[0]).ok_or(ParseError::Protocol)?;
    if matches!(kind, MessageType::Advertise | MessageType::Reply) {
        return Err(ParseError::Protocol);
    }
    let mut request = Request {
        kind,
        transaction: [bytes[1], bytes[2], bytes[3]],
        client: None,
        server: None,
        association: None,
        rapid_commit: false,
    };
    for option in Options(&bytes[4..]) {
        let (code, value) = option?;
        match code {
            CLIENT_ID if (1..=DUID_BYTES_MAX).contains(&value.len()) => request.client = Some(value),
            SERVER_ID => request.server = Some(value),
            IA_NA if request.association.is_none() => request.association = Some(association(value)?),
            RAPID_COMMIT => request.rapid_commit = true,
            _ => {}
        }
    }
    Ok(request)
}

fn association(value: &[u8]) -> Result<Association, ParseError> {
    at_least(value, 12)?;
    let mut found = None;
    for option in Options(&value[12..]) {
        let (code, value) = option?;
        if code == IA_ADDRESS && value.len() >= 24 && found.is_none() {
            found = Some(address(value, 0));
        }
    }
    Ok(Association { ident: be32(value, 0), address: found })
}

/// Options one after another: code, length, value.
struct Options<'a>(&'a [u8]);

impl<'a> Iterator for Options<'a> {
    type Item = Result<(u16, &'a [u8]), ParseError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let bytes = std::mem::take(&mut self.0);
        if let Err(error) = at_least(bytes, 4) {
            return Some(Err(error));
        }
        let end = 4 + usize::from(be16(bytes, 2));
        if let Err(error) = at_least(bytes, end) {
            return Some(Err(error));
        }
        self.0 = &bytes[end..];
        Some(Ok((be16(bytes, 0), &bytes[4..end])))
    }
}

/// What a server answers.
#[derive(Debug, Clone, Copy)]
pub struct Answer<'a> {
    /// What it is.
    pub kind: MessageType,
    /// The server's identifier.
    pub server: &'a [u8],
    /// The number of the association and its address, or why it has none.
    pub association: Option<(u32, Result<Ipv6Addr, u16>)>,
    /// How the whole request went.
    pub status: Option<u16>,
    /// Whether the client's first message was enough.
    pub rapid_commit: bool,
    /// Seconds that the address may be used.
    pub lease_seconds: u32,
    /// Name server.
    pub dns: Ipv6Addr,
    /// Domains to search.
    pub search: &'a [String],
}

/// Returns the bytes of an answer to `request`.
pub fn emit(request: &Request<'_>, answer: &Answer<'_>) -> Vec<u8> {
    let [a, b, c] = request.transaction;
    let mut out = vec![answer.kind as u8, a, b, c];
    if let Some(client) = request.client {
        option(&mut out, CLIENT_ID, client);
    }
    option(&mut out, SERVER_ID, answer.server);
    if let Some((ident, result)) = answer.association {
        option(&mut out, IA_NA, &emit_association(ident, result, answer.lease_seconds));
    }
    if let Some(status) = answer.status {
        option(&mut out, STATUS, &status.to_be_bytes());
    }
    if answer.rapid_commit {
        option(&mut out, RAPID_COMMIT, &[]);
    }
    option(&mut out, DNS_SERVERS, &answer.dns.octets());
    let names = super::dhcp::search_list(answer.search);
    if !names.is_empty() {
        option(&mut out, DOMAIN_LIST, &names);
    }
    out
}

fn emit_association(ident: u32, result: Result<Ipv6Addr, u16>, lease_seconds: u32) -> Vec<u8> {
    let mut out = ident.to_be_bytes().to_vec();
    // T1 and T2 as RFC 8415 §21.4 recommends: at a half and at four fifths.
    out.extend_from_slice(&(lease_seconds / 2).to_be_bytes());
    out.extend_from_slice(&(lease_seconds / 5 * 4).to_be_bytes());
    match result {
        Ok(address) => {
            let mut value = address.octets().to_vec();
            value.extend_from_slice(&lease_seconds.to_be_bytes());
            value.extend_from_slice(&lease_seconds.to_be_bytes());
            option(&mut out, IA_ADDRESS, &value);
        }
        Err(status) => option(&mut out, STATUS, &status.to_be_bytes()),
    }
    out
}

/// Appends an option; a value too long to be one is cut.
fn option(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    let value = &value[..value.len().min(usize::from(u16::MAX))];
    out.extend_from_slice(&code.to_be_bytes());
    out.extend_from_slice(&(value.len() as u16).to_be_bytes());
    out.extend_from_slice(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_solicitation_is_read() {
        let mut bytes = vec![1, 7, 8, 9];
        option(&mut bytes, CLIENT_ID, b"client");
        option(&mut bytes, 6, &[0, 23, 0, 24]);
        option(&mut bytes, IA_NA, &emit_association(5, Ok(Ipv6Addr::LOCALHOST), 100));
        option(&mut bytes, RAPID_COMMIT, &[]);
        let request = parse(&bytes).unwrap();
        assert_eq!((request.kind, request.transaction), (MessageType::Solicit, [7, 8, 9]));
        assert_eq!((request.client, request.rapid_commit), (Some(&b"client"[..]), true));
        let expected = Association { ident: 5, address: Some(Ipv6Addr::LOCALHOST) };
        assert_eq!(request.association, Some(expected));
    }

    #[test]
    fn messages_cut_anywhere_are_refused_or_read() {
        let mut bytes = vec![3, 0, 0, 1];
        option(&mut bytes, CLIENT_ID, b"client");
        option(&mut bytes, IA_NA, &emit_association(5, Err(NO_ADDRESS), 100));
        for length in 0..bytes.len() {
            let read = parse(&bytes[..length]);
            assert_eq!(read.is_ok(), length == 4 || length == 14, "{length} bytes");
        }
        assert_eq!(parse(&[7, 0, 0, 0]), Err(ParseError::Protocol));
    }
}
