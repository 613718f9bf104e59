//! Other repositories: fetching branches from them and pushing branches to them.
//!
//! A [`Remote`] is a URL and the repository that it belongs to; `file`, `git`, `ssh`, `http` and `https` are spoken.
//! Fetching is by `gix`; pushing is ours over `gix`'s transports, because it has none: `push` has the negotiation, `select`
//! decides which objects the other side lacks, `report` reads what it says. A [`Transfer`] is watched and cancelled from
//! other threads.
//!
//! Nothing here asks a person: credentials come from git's credential helpers, its program for passwords and ssh's agent,
//! or the call fails.

mod auto;
mod connect;
mod error;
mod fetch;
mod progress;
mod push;
mod report;
mod select;
#[cfg(test)]
mod tests;
mod transfer;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use gix::bstr::ByteSlice;
use gix::url::Scheme;

pub use auto::{AutoPush, AutoPushStatus, Pace};
pub use error::{FetchError, PushError, UrlError};
pub use fetch::{Fetched, FetchedBranch};
pub use push::{Outcome, Pushed, Update};
pub use transfer::{Phase, Status, Transfer};

/// Longest URL, in bytes.
const URL_BYTES_MAX: usize = 4096;

/// Another repository, as seen from one of ours.
#[derive(Debug, Clone)]
pub struct Remote {
    git_dir: PathBuf,
    name: String,
    url: gix::Url,
}

impl Remote {
    /// The remote called `name` at `url`, of the repository at `git_dir`. Connects to nothing.
    ///
    /// What is fetched is kept from garbage collection by the refs `refs/remotes/NAME/BRANCH`.
    ///
    /// # Errors
    /// When the name or the URL cannot be used; the message says why.
    pub fn new(git_dir: &Path, name: &str, url: &str) -> Result<Self, UrlError> {
        let reference = format!("refs/remotes/{name}/x");
        if name.contains('/') || gix::validate::reference::name(reference.as_bytes().as_bstr()).is_err() {
            return Err(UrlError::Name { name: name.to_owned() });
        }
        Ok(Self { git_dir: git_dir.to_owned(), name: name.to_owned(), url: parse(url)? })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its URL as it may be shown: without a password.
    pub fn url(&self) -> String {
        self.url.to_string()
    }

    /// Brings `branch`, or with `None` every branch, into the repository and says where they point.
    ///
    /// Moves no branch of ours. Blocks until it is done, fails or `transfer` is cancelled.
    ///
    /// # Errors
    /// See [`FetchError`].
    pub fn fetch(&self, branch: Option<&str>, transfer: &Arc<Transfer>) -> Result<Fetched, FetchError> {
        if let Some(branch) = branch {
            let reference = format!("refs/heads/{branch}");
            if gix::validate::reference::name(reference.as_bytes().as_bstr()).is_err() {
                return Err(FetchError::BranchName { branch: branch.to_owned() });
            }
        }
        let (remote, branch) = (self.clone(), branch.map(str::to_owned));
        let working = Arc::clone(transfer);
        transfer.supervise("datakit-fetch", move || fetch::fetch(&remote, branch.as_deref(), &working))
    }

    /// Moves refs of the other repository, sending what it lacks.
    ///
    /// With `atomic`, all or none. The result has a line for each update; an update that was refused is no error of the
    /// call. Blocks until it is done, fails or `transfer` is cancelled.
    ///
    /// # Errors
    /// See [`PushError`].
    pub fn push(
        &self,
        updates: Vec<Update>,
        atomic: bool,
        transfer: &Arc<Transfer>,
    ) -> Result<Pushed, PushError> {
        let remote = self.clone();
        let working = Arc::clone(transfer);
        transfer.supervise("datakit-push", move || push::push(&remote, &updates, atomic, &working))
    }
}

/// Parses a URL, a scp-like address (`host:path`) or a path.
fn parse(text: &str) -> Result<gix::Url, UrlError> {
    let refused = |reason: &str| UrlError::Url { url: text.to_owned(), reason: reason.to_owned() };
    if text.is_empty() || text.len() > URL_BYTES_MAX || text.chars().any(char::is_control) {
        return Err(refused("it is empty, too long or has control characters"));
    }
    let url = gix::url::parse(text.as_bytes().as_bstr()).map_err(|error| refused(&error::chain(&error)))?;
    match url.scheme {
        Scheme::File if url.host().is_some() => Err(refused("a file URL has three slashes: file:///path")),
        Scheme::File | Scheme::Git | Scheme::Ssh | Scheme::Http | Scheme::Https => Ok(url),
        _ => Err(refused("use file, git, ssh, http or https")),
    }
}
