//! `datakit fetch` and `push`: other repositories.

use clap::Args;
use datakit_client::Error;

use super::target::{Target, failed};
use super::{Failure, output};

/// The name of the remote that these commands make for themselves.
const REMOTE: &str = "command-line";

#[derive(Args)]
pub struct Fetch {
    #[command(flatten)]
    target: Target,
    /// The other repository: http(s)://, ssh://, git://, file:// or a path
    url: String,
    /// The branch there
    branch: String,
    /// Moves this branch forward to what was fetched
    #[arg(long, value_name = "BRANCH")]
    into: Option<String>,
}

pub fn fetch(arguments: &Fetch) -> Result<(), Failure> {
    let datakit = arguments.target.connect()?;
    let remote = datakit.remote(REMOTE, &arguments.url).map_err(failed)?;
    let head = remote.fetch(&arguments.branch).map_err(transfer_failed)?;
    if let Some(into) = &arguments.into {
        datakit.branch(into).and_then(|into| into.fast_forward(&head)).map_err(failed)?;
    }
    output::line(head)
}

#[derive(Args)]
pub struct Push {
    #[command(flatten)]
    target: Target,
    /// The other repository: http(s)://, ssh://, git://, file:// or a path
    url: String,
    /// The branch, here and there
    branch: String,
}

pub fn push(arguments: &Push) -> Result<(), Failure> {
    let datakit = arguments.target.connect()?;
    let remote = datakit.remote(REMOTE, &arguments.url).map_err(failed)?;
    remote.push(&arguments.branch).map_err(|error| match error {
        Error::NotFound { .. } => Failure::usage(format!("there is no branch '{}' here", arguments.branch)),
        error => transfer_failed(error),
    })
}

/// What the server says of a transfer, without the file in which it says so.
fn transfer_failed(error: Error) -> Failure {
    match error {
        Error::Refused { reason, .. } => Failure::other(reason.strip_prefix("error: ").unwrap_or(&reason)),
        error => failed(error),
    }
}
