//! DNS messages, as far as a forwarder with names of its own needs them. Spec: RFC 1035, RFC 6891 (EDNS).

use std::net::IpAddr;

use super::{ParseError, at_least, be16};

/// Port of servers.
pub const PORT: u16 = 53;
/// Bytes of a header.
pub const HEADER_BYTES: usize = 12;
/// Bytes of the longest name, with its lengths and its end: RFC 1035 §2.3.4.
const NAME_BYTES_MAX: usize = 255;
/// Bytes of the largest answer over UDP to a query without EDNS.
pub const UDP_BYTES_MIN: usize = 512;
/// Type of IPv4 addresses.
pub const TYPE_A: u16 = 1;
/// Type of IPv6 addresses.
pub const TYPE_AAAA: u16 = 28;
/// No error.
pub const NOERROR: u8 = 0;
/// The query is malformed.
pub const FORMERR: u8 = 1;
/// The server failed.
pub const SERVFAIL: u8 = 2;
/// There is no such name.
pub const NXDOMAIN: u8 = 3;
/// The server does not do that.
pub const NOTIMP: u8 = 4;

const CLASS_IN: u16 = 1;
const TYPE_OPT: u16 = 41;
/// Bytes of an OPT record without options.
const OPT_BYTES: usize = 11;
/// Largest message over UDP that is taken here: what the DNS flag day of 2020 settled on.
const EDNS_BYTES: u16 = 1232;

/// A query with one question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// Identifier, repeated in the answer.
    pub id: u16,
    /// The name asked for, in lower case, without the last dot.
    pub name: String,
    /// Type of the records asked for.
    pub qtype: u16,
    /// Class, 1 for the Internet.
    pub class: u16,
    /// Largest answer over UDP that the client takes, in bytes.
    pub udp_bytes: usize,
    /// Whether it speaks EDNS, and is to be answered so: RFC 6891 §6.1.1.
    edns: bool,
    /// Where the question ends.
    question_end: usize,
}

/// Parses a query.
///
/// # Errors
/// When it is short, an answer, not a standard query, or has not exactly one question.
pub fn parse(bytes: &[u8]) -> Result<Query, ParseError> {
    at_least(bytes, HEADER_BYTES)?;
    if bytes[2] & 0xf8 != 0 || be16(bytes, 4) != 1 {
        return Err(ParseError::Protocol);
    }
    let (name, end) = parse_name(bytes, HEADER_BYTES)?;
    at_least(bytes, end + 4)?;
    let question_end = end + 4;
    let edns = edns_bytes(bytes, question_end);
    Ok(Query {
        id: be16(bytes, 0),
        name,
        qtype: be16(bytes, end),
        class: be16(bytes, end + 2),
        udp_bytes: edns.unwrap_or(0).max(UDP_BYTES_MIN),
        edns: edns.is_some(),
        question_end,
    })
}

/// Reads a name without compression: a question has nothing before it to point to.
fn parse_name(bytes: &[u8], start: usize) -> Result<(String, usize), ParseError> {
    let mut name: Vec<u8> = Vec::with_capacity(bytes.len().saturating_sub(start).min(NAME_BYTES_MAX));
    let mut at = start;
    loop {
        let length = usize::from(*bytes.get(at).ok_or(ParseError::Length)?);
        if length == 0 {
            name.make_ascii_lowercase();
            return Ok((text(name), at + 1));
        }
        let label = bytes.get(at + 1..at + 1 + length).ok_or(ParseError::Length)?;
        if length > 63 || at + 2 + length - start > NAME_BYTES_MAX {
            return Err(ParseError::Length);
        }
        if !name.is_empty() {
            name.push(b'.');
        }
        name.extend_from_slice(label);
        at += 1 + length;
    }
}

/// The text of a name; bytes beyond ASCII, which have no meaning there, each count as a character.
fn text(name: Vec<u8>) -> String {
    let each = |name: &[u8]| name.iter().map(|byte| char::from(*byte)).collect();
    match String::from_utf8(name) {
        Ok(name) if name.is_ascii() => name,
        Ok(name) => each(name.as_bytes()),
        Err(error) => each(error.as_bytes()),
    }
}

/// Size from an OPT record right after the question, where queries have it. Spec: RFC 6891 §6.2.3.
fn edns_bytes(bytes: &[u8], at: usize) -> Option<usize> {
    let plain = be16(bytes, 6) == 0 && be16(bytes, 8) == 0 && be16(bytes, 10) > 0;
    if !plain || bytes.len() < at + 11 || bytes[at] != 0 || be16(bytes, at + 1) != TYPE_OPT {
        return None;
    }
    Some(usize::from(be16(bytes, at + 3)))
}

/// Appends an OPT record without options, and counts it. Spec: RFC 6891 §6.1.2.
fn put_opt(message: &mut Vec<u8>) {
    message.push(0);
    message.extend_from_slice(&TYPE_OPT.to_be_bytes());
    message.extend_from_slice(&EDNS_BYTES.to_be_bytes());
    message.extend_from_slice(&[0; 6]);
    message[11] = 1;
}

/// The bytes of the only question of a message: name, type and class; `None` when there is none, or another number.
pub fn question(message: &[u8]) -> Option<&[u8]> {
    if message.len() < HEADER_BYTES || be16(message, 4) != 1 {
        return None;
    }
    let end = skip_name(message, HEADER_BYTES)?;
    message.get(HEADER_BYTES..end + 4)
}

/// The addresses that an answer has, whatever their names: those of the name asked for and of its aliases.
pub fn addresses(answer: &[u8]) -> Vec<IpAddr> {
    let mut found = Vec::new();
    let Some(question) = question(answer) else { return found };
    let mut at = HEADER_BYTES + question.len();
    for _ in 0..be16(answer, 6) {
        let Some(fixed) = skip_name(answer, at) else { return found };
        let Some(head) = answer.get(fixed..fixed + 10) else { return found };
        let length = usize::from(be16(head, 8));
        let Some(content) = answer.get(fixed + 10..fixed + 10 + length) else { return found };
        match be16(head, 0) {
            TYPE_A => found.extend(<[u8; 4]>::try_from(content).map(IpAddr::from)),
            TYPE_AAAA => found.extend(<[u8; 16]>::try_from(content).map(IpAddr::from)),
            _ => {}
        }
        at = fixed + 10 + length;
    }
    found
}

/// Where a name that may be compressed ends: RFC 1035 §4.1.4.
fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        let length = usize::from(*message.get(at)?);
        match length {
            0 => return Some(at + 1),
            0xc0.. => return Some(at + 2),
            64.. => return None,
            _ => at += 1 + length,
        }
    }
}

/// A query for the addresses of a name; `None` when it is none.
pub fn query(id: u16, name: &str, qtype: u16) -> Option<Vec<u8>> {
    let mut out = id.to_be_bytes().to_vec();
    out.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    out.extend(encode_name(name)?);
    out.extend_from_slice(&qtype.to_be_bytes());
    out.extend_from_slice(&CLASS_IN.to_be_bytes());
    Some(out)
}

/// Encodes a name; `None` when it or a label is too long, or a label empty.
pub fn encode_name(name: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(name.len() + 2);
    for label in name.trim_end_matches('.').split('.') {
        if label.is_empty() || label.len() > 63 || out.len() + label.len() + 2 > NAME_BYTES_MAX {
            return None;
        }
        out.push(label.len() as u8);
        out.extend_from_slice(label.as_bytes());
    }
    out.push(0);
    Some(out)
}

/// Returns the answer of somebody who is authoritative for the name: the addresses of the type asked for, which may
/// be none (NODATA).
pub fn answer(query: &[u8], parsed: &Query, addresses: &[IpAddr], ttl_seconds: u32) -> Vec<u8> {
    let mut out = Vec::new();
    emit_head(&mut out, query, Some(parsed), NOERROR);
    out[2] |= 0x04;
    let mut count = 0u16;
    for address in addresses {
        let octets: &[u8] = match (address, parsed.qtype) {
            (IpAddr::V4(v4), TYPE_A) => &v4.octets(),
            (IpAddr::V6(v6), TYPE_AAAA) => &v6.octets(),
            _ => continue,
        };
        if out.len() + 12 + octets.len() + OPT_BYTES > UDP_BYTES_MIN {
            break;
        }
        out.extend_from_slice(&[0xc0, HEADER_BYTES as u8]);
        out.extend_from_slice(&parsed.qtype.to_be_bytes());
        out.extend_from_slice(&CLASS_IN.to_be_bytes());
        out.extend_from_slice(&ttl_seconds.to_be_bytes());
        out.extend_from_slice(&(octets.len() as u16).to_be_bytes());
        out.extend_from_slice(octets);
        count += 1;
    }
    out[6..8].copy_from_slice(&count.to_be_bytes());
    if parsed.edns {
        put_opt(&mut out);
    }
    out
}

/// Returns an answer with nothing but a code; the question is repeated if it can be read.
pub fn reply(query: &[u8], rcode: u8) -> Vec<u8> {
    let mut out = Vec::new();
    emit_reply(&mut out, query, parse(query).ok().as_ref(), rcode);
    out
}

/// Puts what [`reply`] returns into an empty buffer, for a query that was parsed, or could not be.
pub fn emit_reply(out: &mut Vec<u8>, query: &[u8], parsed: Option<&Query>, rcode: u8) {
    emit_head(out, query, parsed, rcode);
    if parsed.is_some_and(|parsed| parsed.edns) {
        put_opt(out);
    }
}

/// Puts header and question into an empty buffer.
fn emit_head(out: &mut Vec<u8>, query: &[u8], parsed: Option<&Query>, rcode: u8) {
    let question_end = parsed.map_or(0, |parsed| parsed.question_end);
    out.reserve(question_end.max(HEADER_BYTES) + OPT_BYTES);
    out.resize(HEADER_BYTES, 0);
    let known = query.len().min(4);
    out[..known].copy_from_slice(&query[..known]);
    // An answer; opcode and "recursion desired" as they were; recursion available.
    out[2] = 0x80 | (out[2] & 0x79);
    out[3] = 0x80 | (rcode & 0xf);
    if question_end > 0 {
        out[5] = 1;
        out.extend_from_slice(&query[HEADER_BYTES..question_end]);
    }
}

/// Returns `answer`, cut to its question and marked truncated when it is larger than `limit_bytes`; who takes more than 512
/// bytes speaks EDNS, and is told that we do.
///
/// Spec: RFC 2181 §9, RFC 6891 §7.
pub fn truncate(answer: &mut Vec<u8>, limit_bytes: usize) {
    if answer.len() <= limit_bytes || answer.len() < HEADER_BYTES {
        return;
    }
    let question = parse_name(answer, HEADER_BYTES).ok().filter(|_| be16(answer, 4) == 1);
    let end = question.map_or(HEADER_BYTES, |(_, end)| (end + 4).min(answer.len()));
    answer.truncate(end);
    answer[2] |= 0x02;
    answer[4] = 0;
    answer[5] = u8::from(end > HEADER_BYTES);
    answer[6..12].fill(0);
    if limit_bytes > UDP_BYTES_MIN {
        put_opt(answer);
    }
}

/// Whether an answer says that it was cut.
pub fn is_truncated(answer: &[u8]) -> bool {
    answer.len() >= HEADER_BYTES && answer[2] & 0x02 != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(name: &str, qtype: u16, edns: Option<u16>) -> Vec<u8> {
        let mut out = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(edns.is_some())];
        out.extend(encode_name(name).unwrap());
        out.extend(qtype.to_be_bytes());
        out.extend([0, 1]);
        if let Some(size) = edns {
            out.extend([0, 0, 41]);
            out.extend(size.to_be_bytes());
            out.extend([0, 0, 0, 0, 0, 0]);
        }
        out
    }

    #[test]
    fn a_query_is_read() {
        let parsed = parse(&query("Host.Internal", TYPE_A, Some(1232))).unwrap();
        assert_eq!((parsed.id, parsed.name.as_str()), (0x1234, "host.internal"));
        assert_eq!((parsed.qtype, parsed.class, parsed.udp_bytes), (TYPE_A, 1, 1232));
    }

    #[test]
    fn an_answer_has_the_bytes_of_rfc_1035() {
        let bytes = query("a.b", TYPE_A, None);
        let out = answer(&bytes, &parse(&bytes).unwrap(), &["1.2.3.4".parse().unwrap()], 0);
        let head = [0x12, 0x34, 0x85, 0x80, 0, 1, 0, 1, 0, 0, 0, 0, 1, b'a', 1, b'b', 0, 0, 1, 0, 1];
        assert_eq!(out[..21], head);
        assert_eq!(out[21..], [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 1, 2, 3, 4]);
    }

    #[test]
    fn who_speaks_edns_is_answered_so() {
        let opt = [&[0, 0, 41][..], &EDNS_BYTES.to_be_bytes(), &[0; 6]].concat();
        let bytes = query("a.b", TYPE_A, Some(4096));
        let parsed = parse(&bytes).unwrap();
        let many: Vec<IpAddr> = (0..200).map(|last| IpAddr::from([10, 0, 0, last])).collect();
        let mut cut = answer(&query("a.b", TYPE_A, None), &parsed, &[], 0);
        cut.extend([0; 5000]);
        truncate(&mut cut, 4096);
        for out in [answer(&bytes, &parsed, &many, 0), reply(&bytes, SERVFAIL), cut] {
            assert!(out.ends_with(&opt) && be16(&out, 10) == 1, "{out:02x?}");
            assert!(out.len() <= UDP_BYTES_MIN);
        }
        let plain = query("a.b", TYPE_A, None);
        for out in [answer(&plain, &parse(&plain).unwrap(), &many, 0), reply(&plain, SERVFAIL)] {
            assert_eq!(be16(&out, 10), 0);
        }
    }

    #[test]
    fn a_large_answer_is_cut_to_its_question() {
        let mut out = reply(&query("a.b", TYPE_A, None), NOERROR);
        out[7] = 9;
        out.extend([0; 600]);
        truncate(&mut out, 512);
        assert_eq!(out.len(), 21);
        assert!(is_truncated(&out));
        assert_eq!(out[6..8], [0, 0]);
    }

    #[test]
    fn the_longest_name_is_one_of_255_bytes_with_its_lengths() {
        let label = "a".repeat(63);
        let longest = format!("{label}.{label}.{label}.{}", "b".repeat(61));
        assert_eq!(encode_name(&longest).unwrap().len(), NAME_BYTES_MAX);
        assert_eq!(parse(&query(&longest, TYPE_A, None)).unwrap().name, longest);
        assert_eq!(encode_name(&format!("{longest}b")), None);
        assert_eq!(encode_name(&format!("{longest}.b")), None);
        let mut longer = query(&longest, TYPE_A, None);
        let last = HEADER_BYTES + 3 * 64;
        longer[last] += 1;
        longer.insert(last + 1, b'b');
        assert_eq!(parse(&longer), Err(ParseError::Length));
    }

    #[test]
    fn names_that_run_out_of_the_message_are_refused() {
        let mut bytes = query("aaaa.bb", TYPE_A, None);
        bytes.truncate(15);
        assert_eq!(parse(&bytes), Err(ParseError::Length));
    }
}
