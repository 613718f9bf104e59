//! `datakit cat`, `ls`, `log` and `diff`: what is there, and what was.

use std::collections::{HashSet, VecDeque};

use clap::Args;
use datakit_client::{Change, Kind};
use serde_json::json;

use super::target::{Target, commit, failed, tree};
use super::{Failure, output};

#[derive(Args)]
pub struct Cat {
    #[command(flatten)]
    target: Target,
    /// A branch, or the id of a commit
    revision: String,
    /// The file
    path: String,
}

pub fn cat(arguments: &Cat) -> Result<(), Failure> {
    let datakit = arguments.target.connect()?;
    let tree = tree(&datakit, &arguments.revision)?;
    let bytes = match tree.kind(&arguments.path).map_err(failed)? {
        Kind::Directory => {
            return Err(Failure::other(format!("{} is a directory: use `datakit ls`", arguments.path)));
        }
        Kind::Symlink => tree.read_link(&arguments.path).map_err(failed)?.into_bytes(),
        Kind::File => tree.read(&arguments.path).map_err(failed)?,
    };
    output::bytes(&bytes)
}

#[derive(Args)]
pub struct Ls {
    #[command(flatten)]
    target: Target,
    /// A branch, or the id of a commit
    revision: String,
    /// The directory
    #[arg(default_value = "")]
    path: String,
    /// Prints JSON, one object for each entry
    #[arg(long)]
    json: bool,
}

pub fn ls(arguments: &Ls) -> Result<(), Failure> {
    let datakit = arguments.target.connect()?;
    for entry in tree(&datakit, &arguments.revision)?.list(&arguments.path).map_err(failed)? {
        let (mark, kind) = match entry.kind {
            Kind::Directory => ("/", "directory"),
            Kind::Symlink => ("@", "symlink"),
            Kind::File => ("", "file"),
        };
        if arguments.json {
            output::line(json!({ "name": entry.name, "kind": kind }))?;
        } else {
            output::line(format_args!("{}{mark}", entry.name))?;
        }
    }
    Ok(())
}

#[derive(Args)]
pub struct Log {
    #[command(flatten)]
    target: Target,
    /// A branch, or the id of a commit
    revision: String,
    /// At most so many commits
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = usize::MAX, hide_default_value = true)]
    count: usize,
    /// Prints JSON, one object for each commit
    #[arg(long)]
    json: bool,
}

pub fn log(arguments: &Log) -> Result<(), Failure> {
    let datakit = arguments.target.connect()?;
    let mut next = VecDeque::from([commit(&datakit, &arguments.revision)?]);
    let mut seen: HashSet<_> = next.iter().cloned().collect();
    let mut left = arguments.count;
    while let Some(id) = next.pop_front() {
        if left == 0 {
            break;
        }
        left -= 1;
        let snapshot = datakit.snapshot(&id).map_err(failed)?;
        let parents = snapshot.parents().map_err(failed)?;
        let message = snapshot.message().map_err(failed)?;
        if arguments.json {
            let parents: Vec<_> = parents.iter().map(|parent| parent.as_str()).collect();
            output::line(json!({ "commit": id.as_str(), "parents": parents, "message": message }))?;
        } else {
            output::line(format_args!("{id} {}", message.lines().next().unwrap_or_default()))?;
        }
        next.extend(parents.into_iter().filter(|parent| seen.insert(parent.clone())));
    }
    Ok(())
}

#[derive(Args)]
pub struct Diff {
    #[command(flatten)]
    target: Target,
    /// A branch, or the id of a commit: the older one
    from: String,
    /// The newer one
    to: String,
    /// Prints JSON, one object for each path
    #[arg(long)]
    json: bool,
}

pub fn diff(arguments: &Diff) -> Result<(), Failure> {
    let datakit = arguments.target.connect()?;
    let from = commit(&datakit, &arguments.from)?;
    let to = commit(&datakit, &arguments.to)?;
    for change in datakit.snapshot(&to).and_then(|to| to.diff(&from)).map_err(failed)? {
        let (sign, word, path) = match &change {
            Change::Added(path) => ('+', "added", path),
            Change::Removed(path) => ('-', "removed", path),
            Change::Changed(path) => ('*', "changed", path),
        };
        if arguments.json {
            output::line(json!({ "path": path, "change": word }))?;
        } else {
            output::line(format_args!("{sign} {path}"))?;
        }
    }
    Ok(())
}
