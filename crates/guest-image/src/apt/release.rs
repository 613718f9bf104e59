//! The Release file of a suite: which indexes it has and what their hashes are.
//!
//! Spec: <https://wiki.debian.org/DebianRepository/Format>, "Release" files.

use std::collections::HashMap;

use super::deb822::Paragraphs;
use crate::error::{BuildError, malformed};

/// Size and SHA-256 (lower-case hexadecimal) of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checksum {
    /// Length in bytes.
    pub bytes: u64,
    /// Lower-case hexadecimal.
    pub sha256: String,
}

/// What a Release file says.
#[derive(Debug, Clone, Default)]
pub struct Release {
    files: HashMap<String, Checksum>,
    /// apt takes nothing from this suite by itself (backports, experimental).
    pub is_not_automatic: bool,
    /// `Valid-Until`, as written.
    pub valid_until: Option<String>,
}

impl Release {
    /// Reads the signed text of a Release file.
    ///
    /// # Errors
    /// [`BuildError::Malformed`], naming `url`.
    pub fn parse(url: &str, text: &str) -> Result<Self, BuildError> {
        let paragraph = Paragraphs::new(text.as_bytes()).read().map_err(|error| malformed(url, error))?;
        let paragraph = paragraph.ok_or_else(|| malformed(url, "it is empty"))?;
        let list = paragraph.field("SHA256").ok_or_else(|| malformed(url, "it has no SHA256 list"))?;
        let mut files = HashMap::new();
        for line in list.lines().filter(|line| !line.trim().is_empty()) {
            let words: Vec<_> = line.split_whitespace().collect();
            let [sha256, bytes, path] = words.as_slice() else {
                return Err(malformed(url, format!("bad SHA256 line {line:?}")));
            };
            let bytes = bytes.parse().map_err(|_| malformed(url, format!("bad size {bytes:?}")))?;
            files.insert((*path).to_owned(), Checksum { bytes, sha256: sha256.to_ascii_lowercase() });
        }
        let is_not_automatic =
            paragraph.field("NotAutomatic").is_some_and(|value| value.eq_ignore_ascii_case("yes"));
        Ok(Self { files, is_not_automatic, valid_until: paragraph.field("Valid-Until").map(str::to_owned) })
    }

    /// Checksum of a file below the suite, if the suite has it.
    pub fn try_find(&self, path: &str) -> Option<&Checksum> {
        self.files.get(path)
    }

    /// Whether the file is older than it says it may be. `now_s` is in seconds since the epoch.
    ///
    /// A date that cannot be read counts as passed.
    pub fn is_expired(&self, now_s: i64) -> bool {
        self.valid_until.as_deref().is_some_and(|date| seconds(date).is_none_or(|until_s| until_s < now_s))
    }
}

/// Seconds since the epoch of a date as `Sat, 10 Jan 2026 10:05:00 UTC`. Spec: RFC 5322 §3.3, with a zone of UTC.
fn seconds(date: &str) -> Option<i64> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let words: Vec<_> = date.split_whitespace().collect();
    let [_, day, month, year, time, "UTC" | "GMT" | "Z" | "+0000"] = words.as_slice() else { return None };
    let day: i64 = day.parse().ok().filter(|day| (1..=31).contains(day))?;
    let month = MONTHS.iter().position(|name| name == month)? as i64 + 1;
    let year: i64 = year.parse().ok().filter(|year| (1970..=9999).contains(year))?;
    let mut parts =
        time.split(':').map(|part| part.parse::<i64>().ok().filter(|part| (0..=60).contains(part)));
    let (hour, minute, second) = (parts.next()??, parts.next()??, parts.next()??);
    // Days of the Gregorian calendar, counted from March so that the leap day comes last.
    let (shifted_year, shifted_month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * shifted_year + shifted_year / 4 - shifted_year / 100
        + shifted_year / 400
        + (153 * shifted_month + 2) / 5
        + day
        - 1
        - 719_468;
    Some(((days * 24 + hour) * 60 + minute) * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_become_seconds() {
        assert_eq!(seconds("Thu, 01 Jan 1970 00:00:00 UTC"), Some(0));
        assert_eq!(seconds("Tue, 29 Feb 2000 23:59:59 UTC"), Some(951_868_799));
        assert_eq!(seconds("Sun, 22 Nov 2026 05:36:27 UTC"), Some(1_795_325_787));
        assert_eq!(seconds("soon"), None);
    }

    #[test]
    fn the_hash_of_an_index_is_found() {
        let text = "Suite: x\nValid-Until: Thu, 01 Jan 1970 00:00:10 UTC\nMD5Sum:\n 00 1 a\nSHA256:\n AB 12 main/binary-amd64/Packages.xz\n";
        let release = Release::parse("u", text).unwrap();
        assert_eq!(
            release.try_find("main/binary-amd64/Packages.xz"),
            Some(&Checksum { bytes: 12, sha256: "ab".to_owned() })
        );
        assert_eq!(release.try_find("a"), None);
        assert!(release.is_expired(11));
        assert!(!release.is_expired(10));
    }

    #[test]
    fn what_is_no_release_file_is_refused() {
        assert!(Release::parse("u", "<html>\n").is_err());
        assert!(Release::parse("u", "Suite: x\n").is_err());
        assert!(Release::parse("u", "SHA256:\n a b\n").is_err());
    }
}
