//! Why an image could not be built: one line each, saying what, where and what to do.

use std::path::{Path, PathBuf};

/// Why a build failed. Every message is one line that can be shown to the user as it is.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message documents its variant")]
#[non_exhaustive]
pub enum BuildError {
    #[error("no Debian or Ubuntu archive in the apt sources below {}: give one with --mirror URL --suite SUITE", .0.display())]
    NoSources(PathBuf),
    #[error("{} line {line}: {reason}", file.display())]
    Sources { file: PathBuf, line: usize, reason: String },
    #[error("bad mirror {0:?}: it must be an http, https or file URL")]
    BadMirror(String),
    #[error(
        "no archive key found for {url}: install debian-archive-keyring or ubuntu-keyring, or set Signed-By in the apt sources"
    )]
    NoKeyring { url: String },
    #[error("keyring {} cannot be read: {reason}", file.display())]
    Keyring { file: PathBuf, reason: String },
    #[error("signature of {url} is not good: {reason}; nothing from this mirror is used")]
    Signature { url: String, reason: String },
    #[error(
        "{url} expired on {until}: the mirror is out of date or the clock is wrong (Acquire::Check-Valid-Until \"false\" in apt.conf ignores this)"
    )]
    Expired { url: String, until: String },
    #[error("{url} cannot be fetched: {reason}; check the network or choose another mirror with --mirror")]
    Fetch { url: String, reason: String },
    #[error(
        "{what} has the wrong SHA-256 ({found} instead of {expected}): the mirror is broken or being updated, try again"
    )]
    Hash { what: String, expected: String, found: String },
    #[error("offline, and {0} is not in the cache: run once with the network")]
    Offline(String),
    #[error("package {name} is in none of the suites {suites}")]
    NoPackage { name: String, suites: String },
    #[error("{what} is malformed: {reason}")]
    Malformed { what: String, reason: String },
    #[error("{what} is not supported: {reason}")]
    Unsupported { what: String, reason: String },
    #[error("no space left on the file system of {}: free some or choose another cache folder", .0.display())]
    NoSpace(PathBuf),
    #[error("{} {}: {source}", action, path.display())]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
}

/// Attaches what was being done, and where, to an I/O error.
pub(crate) trait IoContext<T> {
    /// Names the action (`cannot write`) and the path.
    fn at(self, action: &'static str, path: &Path) -> Result<T, BuildError>;
}

impl<T> IoContext<T> for std::io::Result<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, BuildError> {
        self.map_err(|source| match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                BuildError::NoSpace(path.to_owned())
            }
            _ => BuildError::Io { action, path: path.to_owned(), source },
        })
    }
}

/// Shorthand for [`BuildError::Malformed`].
pub(crate) fn malformed(what: impl Into<String>, reason: impl ToString) -> BuildError {
    BuildError::Malformed { what: what.into(), reason: reason.to_string() }
}
