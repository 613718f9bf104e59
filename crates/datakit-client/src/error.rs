//! What goes wrong between a client and DataKit.

use p9p::client::ClientError;
use p9p::net::{AddressError, SocketError};

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message documents its variant")]
pub enum Error {
    #[error(transparent)]
    Address(#[from] AddressError),
    #[error(transparent)]
    Connect(#[from] SocketError),
    #[error("the connection failed")]
    Connection(#[source] ClientError),
    #[error("the server does not publish a DataKit tree: it has no `branch`")]
    NotDataKit,
    #[error("'{path}' is not a path: names are not empty, '.' or '..', at most 255 bytes, and without NUL")]
    Path { path: String },
    #[error("'{name}' cannot be the name of a branch: see git-check-ref-format(1)")]
    BranchName { name: String },
    #[error("{path}: not there")]
    NotFound { path: String },
    #[error("{path}: there already")]
    Exists { path: String },
    #[error("{path}: the server refused: {reason}")]
    Refused { path: String, reason: String },
    /// Others changed the same files. With an empty list the server did not say which.
    #[error("the changes conflict with others'{}", list(paths))]
    Conflict { paths: Vec<String> },
    #[error("{branch} cannot be fast-forwarded to {commit}: it has other commits")]
    NotFastForward { branch: String, commit: String },
    #[error("{path}: what happened then is no longer kept: begin with the present")]
    Gone { path: String },
    #[error("'{text}' is not the id of a commit")]
    CommitId { text: String },
    #[error("{path}: the server answered '{text}'")]
    Answer { path: String, text: String },
    #[error("others changed the same files in each of {attempts} attempts{}", list(paths))]
    Contended { attempts: u32, paths: Vec<String> },
}

impl Error {
    /// Whether it was others' changes that got in the way, so that trying again may help.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Conflict { .. } | Self::NotFastForward { .. } | Self::Contended { .. })
    }
}

fn list(paths: &[String]) -> String {
    if paths.is_empty() { String::new() } else { format!(": {}", paths.join(", ")) }
}
