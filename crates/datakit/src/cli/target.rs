//! Where the commands without a mount find their DataKit: a server, or a repository served in this process.

use std::path::PathBuf;

use clap::Args;
use datakit_client::{Branch, CommitId, DataKit, Error, Tree};
use p9p::Errno;

use super::Failure;

/// Where the tree is.
#[derive(Args, Debug)]
pub struct Target {
    /// The server: tcp://HOST:PORT, unix://PATH, fd://N or vsock://CID:PORT
    #[arg(long, value_name = "URL", env = "DATAKIT", global = true)]
    at: Option<String>,
    /// A git repository, instead of a server
    #[arg(long, value_name = "PATH", global = true)]
    git: Option<PathBuf>,
}

impl Target {
    /// Connects.
    pub fn connect(&self) -> Result<DataKit, Failure> {
        match (&self.git, &self.at) {
            (Some(git), _) => super::local::serve(git),
            (None, Some(at)) => DataKit::connect(at).map_err(failed),
            (None, None) => Err(Failure::usage(
                "no server named: use --at tcp://HOST:PORT or --at unix://PATH, set DATAKIT, or use --git PATH",
            )),
        }
    }

    /// Connects and finds a branch, which need not exist.
    pub fn branch(&self, name: &str) -> Result<Branch, Failure> {
        self.connect()?.branch(name).map_err(failed)
    }
}

/// What went wrong, as a person is told: what they got wrong themselves has exit code 2.
pub fn failed(error: Error) -> Failure {
    let error = in_the_persons_words(error);
    match error {
        Error::Address(_) | Error::Path { .. } | Error::BranchName { .. } | Error::CommitId { .. } => {
            Failure::usage(&error)
        }
        Error::Refused { path, reason } if reason == Errno::EIO.to_string() => {
            let why =
                super::local::damage().unwrap_or_else(|| format!("{reason}; the server's log says more"));
            Failure::other(format!("{path}: {why}"))
        }
        error => Failure::from(anyhow::Error::new(error)),
    }
}

/// Paths as the person gave them: without the transaction or snapshot that a command made for itself.
fn in_the_persons_words(error: Error) -> Error {
    let own = |path: String| {
        // What concerns a transaction as a whole, or its head, is the branch's.
        if let Some(path) = path.strip_prefix("branch/") {
            let transaction = path.split_once("/transactions/client-").filter(|_| path.ends_with("/ctl"));
            if let Some(branch) = transaction.map(|(branch, _)| branch).or(path.strip_suffix("/fast-forward"))
            {
                return branch.to_owned();
            }
        }
        let below =
            |root: &str| path.starts_with(root).then(|| path.split_once("/ro/").or(path.split_once("/rw/")));
        match below("snapshots/").or_else(|| below("branch/")).flatten() {
            Some((_, path)) => path.to_owned(),
            None => path,
        }
    };
    match error {
        Error::NotFound { path } => Error::NotFound { path: own(path) },
        Error::Exists { path } => Error::Exists { path: own(path) },
        Error::Refused { path, reason } => Error::Refused { path: own(path), reason },
        error => error,
    }
}

/// The commit that a person named: by its id, or by a branch that points to it.
pub fn commit(datakit: &DataKit, revision: &str) -> Result<CommitId, Failure> {
    if let Ok(id) = revision.parse() {
        return Ok(id);
    }
    match datakit.branch(revision).and_then(|branch| branch.head()).map_err(failed)? {
        Some(head) => Ok(head),
        None => {
            Err(Failure::usage(format!("'{revision}' is neither a commit's id nor a branch with commits")))
        }
    }
}

/// The tree of the commit that a person named.
pub fn tree(datakit: &DataKit, revision: &str) -> Result<Tree, Failure> {
    let id = commit(datakit, revision)?;
    Ok(datakit.snapshot(&id).map_err(failed)?.tree())
}
