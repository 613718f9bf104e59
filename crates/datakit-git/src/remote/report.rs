//! Packet lines as far as pushing needs them, and the report that a push is answered with.
//!
//! Spec: gitprotocol-common(5) "pkt-line Format", gitprotocol-pack(5) "Report Status".

use std::collections::BTreeMap;

/// Longest payload of a packet line.
const LINE_BYTES_MAX: usize = 65516;

/// Why a report was not understood.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ReportError {
    #[error("the answer ends inside a line")]
    Truncated,
    #[error("'{0}' is no length of a line")]
    Length(String),
    #[error("the answer begins with '{0}'")]
    NoUnpack(String),
}

/// What the other side says about a push.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Why it did not take the objects, if it did not.
    pub unpack: Option<String>,
    /// For each ref nothing, or why it was refused.
    pub refs: BTreeMap<String, Option<String>>,
}

/// Appends a packet line. Lines that we make are far shorter than the limit.
pub fn line(out: &mut Vec<u8>, payload: &[u8]) {
    debug_assert!(payload.len() <= LINE_BYTES_MAX, "names of refs are short");
    out.extend_from_slice(format!("{:04x}", payload.len() + 4).as_bytes());
    out.extend_from_slice(payload);
}

/// Appends the end of a list of lines.
pub fn flush(out: &mut Vec<u8>) {
    out.extend_from_slice(b"0000");
}

/// Takes the payloads out of packet lines, up to a flush or the end.
pub fn lines(mut bytes: &[u8]) -> Result<Vec<&[u8]>, ReportError> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let (length, rest) = bytes.split_at_checked(4).ok_or(ReportError::Truncated)?;
        let text =
            std::str::from_utf8(length).ok().filter(|text| text.bytes().all(|b| b.is_ascii_hexdigit()));
        let size = text.and_then(|text| usize::from_str_radix(text, 16).ok());
        let size = size.ok_or_else(|| ReportError::Length(String::from_utf8_lossy(length).into_owned()))?;
        if size < 4 {
            break;
        }
        let (payload, rest) = rest.split_at_checked(size - 4).ok_or(ReportError::Truncated)?;
        found.push(payload);
        bytes = rest;
    }
    Ok(found)
}

/// Parses the lines of a report.
pub fn parse(bytes: &[u8]) -> Result<Report, ReportError> {
    let mut report = Report::default();
    let mut texts = lines(bytes)?.into_iter().map(|line| String::from_utf8_lossy(line).trim_end().to_owned());
    let first = texts.next().unwrap_or_default();
    match first.strip_prefix("unpack ") {
        Some("ok") => {}
        Some(reason) => report.unpack = Some(reason.to_owned()),
        None => return Err(ReportError::NoUnpack(first)),
    }
    for text in texts {
        if let Some(name) = text.strip_prefix("ok ") {
            report.refs.insert(name.to_owned(), None);
        } else if let Some(refused) = text.strip_prefix("ng ") {
            let (name, reason) = refused.split_once(' ').unwrap_or((refused, "refused"));
            report.refs.insert(name.to_owned(), Some(reason.to_owned()));
        }
    }
    Ok(report)
}
