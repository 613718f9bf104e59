//! Packet lines, reports and URLs. Real servers are in `tests/it`.

use std::path::Path;

use super::report::{self, Report, ReportError};
use super::{Remote, UrlError};

#[test]
fn a_report_says_what_became_of_each_ref() {
    let mut bytes = Vec::new();
    for text in ["unpack ok\n", "ok refs/heads/a\n", "ng refs/heads/b hook declined\n", "ng refs/heads/c"] {
        report::line(&mut bytes, text.as_bytes());
    }
    report::flush(&mut bytes);
    let refs = [("a", None), ("b", Some("hook declined")), ("c", Some("refused"))]
        .map(|(name, reason)| (format!("refs/heads/{name}"), reason.map(str::to_owned)));
    assert_eq!(report::parse(&bytes), Ok(Report { unpack: None, refs: refs.into() }));
}

#[test]
fn a_report_that_is_none_is_refused() {
    let check = |bytes: &[u8], error| assert_eq!(report::parse(bytes), Err(error));
    check(b"", ReportError::NoUnpack(String::new()));
    check(b"00", ReportError::Truncated);
    check(b"00ffunpack", ReportError::Truncated);
    check(b"+00f", ReportError::Length("+00f".to_owned()));
    check(b"0009hello", ReportError::NoUnpack("hello".to_owned()));
}

#[test]
fn a_failed_unpack_says_why() {
    let mut bytes = Vec::new();
    report::line(&mut bytes, b"unpack disk full\n");
    assert_eq!(report::parse(&bytes).unwrap().unpack.as_deref(), Some("disk full"));
}

#[test]
fn urls_of_every_kind_are_taken() {
    for url in [
        "https://example.com/a.git",
        "http://localhost:8080/a",
        "git://example.com/a",
        "ssh://me@example.com:2222/a",
        "me@example.com:a.git",
        "file:///srv/a.git",
        "/srv/a.git",
        "../a.git",
    ] {
        let made = Remote::new(Path::new("/nowhere"), "r", url);
        assert!(made.is_ok(), "{url}: {made:?}");
    }
}

#[test]
fn urls_that_run_commands_or_are_none_are_refused() {
    for url in ["", "ext::sh -c true", "helper::x", "ftp://example.com/a", "a\nb", "file://host/a"] {
        let made = Remote::new(Path::new("/nowhere"), "r", url);
        assert!(matches!(made, Err(UrlError::Url { .. })), "{url}: {made:?}");
    }
}

#[test]
fn names_that_are_no_refs_are_refused() {
    for name in ["", "..", "a b", "a/b", "a~", "x.lock"] {
        let made = Remote::new(Path::new("/nowhere"), name, "/srv/a.git");
        assert!(matches!(made, Err(UrlError::Name { .. })), "{name}: {made:?}");
    }
}

#[test]
fn a_password_is_not_shown() {
    let made = Remote::new(Path::new("/nowhere"), "r", "https://me:secret@example.com/a").unwrap();
    assert!(!made.url().contains("secret"), "{}", made.url());
}
