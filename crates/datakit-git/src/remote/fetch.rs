//! Fetching: `gix` speaks the protocol; here is what it fetches and where that is kept.

use std::sync::Arc;

use gix::ObjectId;
use gix::bstr::ByteSlice;
use gix::protocol::handshake::Ref;
use gix::remote::{Direction, fetch::Tags};

use super::Remote;
use super::connect;
use super::error::{FetchError, chain};
use super::progress::Reporter;
use super::transfer::{Phase, Transfer};

/// A branch of the other repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchedBranch {
    /// Its name.
    pub branch: String,
    /// The commit at its head, which our repository has now.
    pub head: ObjectId,
}

/// What a fetch brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// The branches, in the order of their names; never none.
    pub branches: Vec<FetchedBranch>,
    /// How many objects were received.
    pub objects: u64,
}

/// Fetches one branch, or all.
pub fn fetch(remote: &Remote, branch: Option<&str>, transfer: &Arc<Transfer>) -> Result<Fetched, FetchError> {
    let local = |error: gix::Error| FetchError::Repository { reason: chain(&error) };
    let repo = connect::open(&remote.git_dir).map_err(local)?;
    let spec = format!("+refs/heads/{0}:refs/remotes/{1}/{0}", branch.unwrap_or("*"), remote.name);
    let theirs = repo
        .remote_at(remote.url.clone())
        .and_then(|theirs| theirs.with_refspecs(Some(spec.as_str()), Direction::Fetch))
        .map_err(local)?
        .with_fetch_tags(Tags::None);
    receive(&repo, &theirs, branch, transfer).map_err(|failed| match failed {
        _ if transfer.is_cancelled() => FetchError::Cancelled,
        Failed::Refused(error) => classify(remote.url(), &error),
        Failed::NoHead => match branch {
            Some(branch) => FetchError::NoBranch { branch: branch.to_owned(), url: remote.url() },
            None => FetchError::Empty { url: remote.url() },
        },
    })
}

enum Failed {
    Refused(gix::Error),
    NoHead,
}

impl From<gix::Error> for Failed {
    fn from(error: gix::Error) -> Self {
        Self::Refused(error)
    }
}

fn receive(
    repo: &gix::Repository,
    theirs: &gix::Remote<'_>,
    branch: Option<&str>,
    transfer: &Arc<Transfer>,
) -> Result<Fetched, Failed> {
    transfer.enter(Phase::Connecting);
    let transport = connect::transport(repo, theirs, Direction::Fetch, transfer)?;
    let mut connection =
        theirs.to_connection_with_transport(transport).with_credentials(connect::credentials(repo));
    if let Some(url) = theirs.url(Direction::Fetch)
        && let Some(options) = connect::options(repo, url)?
    {
        connection = connection.with_transport_options(options);
    }
    let mut progress = Reporter::new(transfer);
    let prepared = connection.prepare_fetch(&mut progress, Default::default())?;
    transfer.enter(Phase::Negotiating);
    let mut branches: Vec<_> =
        prepared.ref_map().remote_refs.iter().filter_map(|found| head_of(found, branch)).collect();
    branches.sort_by(|one, other| one.branch.cmp(&other.branch));
    if branches.is_empty() {
        return Err(Failed::NoHead);
    }
    let outcome = prepared.receive(progress, transfer.flag())?;
    let objects = match outcome.status {
        gix::remote::fetch::Status::Change { write_pack_bundle, .. } => write_pack_bundle.index.num_objects,
        gix::remote::fetch::Status::NoPackReceived { .. } => 0,
    };
    Ok(Fetched { branches, objects: u64::from(objects) })
}

fn head_of(found: &Ref, wanted: Option<&str>) -> Option<FetchedBranch> {
    let (name, head) = match found {
        Ref::Direct { full_ref_name, object } => (full_ref_name, object),
        Ref::Peeled { full_ref_name, object, .. } | Ref::Symbolic { full_ref_name, object, .. } => {
            (full_ref_name, object)
        }
        Ref::Unborn { .. } => return None,
    };
    let branch = name.strip_prefix(b"refs/heads/")?.to_str().ok()?;
    wanted
        .is_none_or(|wanted| wanted == branch)
        .then(|| FetchedBranch { branch: branch.to_owned(), head: *head })
}

fn classify(url: String, error: &gix::Error) -> FetchError {
    let reason = chain(error);
    if error.is_unauthenticated() {
        FetchError::Credentials { url, reason }
    } else {
        FetchError::Connect { url, reason }
    }
}
