//! `datakit put`, `rm`, `commit` and `merge`: changes, committed at once.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use clap::Args;
use datakit_client::{CommitId, Error, Transaction};
use serde_json::json;

use super::target::{Target, commit as find_commit, failed};
use super::{Failure, output};

/// Largest file that is read from a tar or a file at once, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 30;

#[derive(Args)]
pub struct Put {
    #[command(flatten)]
    target: Target,
    /// The branch
    branch: String,
    /// The file in it
    path: String,
    /// Where the content is; `-` is stdin
    #[arg(default_value = "-")]
    from: PathBuf,
    /// The commit's message
    #[arg(short, long)]
    message: Option<String>,
}

pub fn put(arguments: &Put) -> Result<(), Failure> {
    let bytes = read(&arguments.from)?;
    let message = arguments.message.clone().unwrap_or_else(|| format!("Put {}", arguments.path));
    let made = arguments.target.branch(&arguments.branch)?.update(|transaction| {
        transaction.write(&arguments.path, &bytes)?;
        transaction.set_message(&message)
    });
    committed(made, false)
}

#[derive(Args)]
pub struct Rm {
    #[command(flatten)]
    target: Target,
    /// The branch
    branch: String,
    /// The files or directories in it
    #[arg(required = true)]
    paths: Vec<String>,
    /// The commit's message
    #[arg(short, long)]
    message: Option<String>,
}

pub fn rm(arguments: &Rm) -> Result<(), Failure> {
    let message =
        arguments.message.clone().unwrap_or_else(|| format!("Remove {}", arguments.paths.join(", ")));
    let made = arguments.target.branch(&arguments.branch)?.update(|transaction| {
        arguments.paths.iter().try_for_each(|path| transaction.remove(path))?;
        transaction.set_message(&message)
    });
    committed(made, false)
}

#[derive(Args)]
pub struct Commit {
    #[command(flatten)]
    target: Target,
    /// The branch
    branch: String,
    /// The commit's message
    #[arg(short, long)]
    message: String,
    /// Writes TEXT and a newline to the file PATH
    #[arg(long, value_name = "PATH=TEXT")]
    set: Vec<String>,
    /// Writes what is in FILE to the file PATH
    #[arg(long, value_name = "PATH=FILE")]
    put: Vec<String>,
    /// Removes the file or directory PATH
    #[arg(long, value_name = "PATH")]
    rm: Vec<String>,
    /// Writes all that is in a tar archive; `-` is stdin
    #[arg(long, value_name = "FILE")]
    tar: Option<PathBuf>,
    /// Prints JSON
    #[arg(long)]
    json: bool,
}

/// One thing to do in a transaction.
enum Step {
    Write { path: String, bytes: Vec<u8>, executable: bool },
    Link { path: String, target: String },
    Remove(String),
}

impl Step {
    fn take(&self, transaction: &Transaction) -> Result<(), Error> {
        match self {
            Self::Write { path, bytes, executable } => {
                transaction.write(path, bytes)?;
                if *executable { transaction.set_executable(path, true) } else { Ok(()) }
            }
            Self::Link { path, target } => {
                match transaction.remove(path) {
                    Ok(()) | Err(Error::NotFound { .. }) => {}
                    Err(error) => return Err(error),
                }
                transaction.symlink(path, target)
            }
            Self::Remove(path) => transaction.remove(path),
        }
    }
}

pub fn commit(arguments: &Commit) -> Result<(), Failure> {
    let mut steps: Vec<_> = arguments.rm.iter().cloned().map(Step::Remove).collect();
    if let Some(tar) = &arguments.tar {
        steps.extend(unpack(tar)?);
    }
    for put in &arguments.put {
        let (path, file) = split(put)?;
        steps.push(Step::Write { path, bytes: read(Path::new(&file))?, executable: false });
    }
    for set in &arguments.set {
        let (path, text) = split(set)?;
        steps.push(Step::Write { path, bytes: format!("{text}\n").into_bytes(), executable: false });
    }
    if steps.is_empty() {
        return Err(Failure::usage("nothing to commit: use --set, --put, --rm or --tar"));
    }
    let made = arguments.target.branch(&arguments.branch)?.update(|transaction| {
        steps.iter().try_for_each(|step| step.take(transaction))?;
        transaction.set_message(&arguments.message)
    });
    committed(made, arguments.json)
}

#[derive(Args)]
pub struct Merge {
    #[command(flatten)]
    target: Target,
    /// The branch that is merged into
    branch: String,
    /// A branch, or the id of a commit: what is merged
    other: String,
    /// The commit's message
    #[arg(short, long)]
    message: Option<String>,
    /// Where both changed a path, takes the branch's side
    #[arg(long, conflicts_with = "theirs")]
    ours: bool,
    /// Where both changed a path, takes the other's side
    #[arg(long)]
    theirs: bool,
    /// Prints JSON
    #[arg(long)]
    json: bool,
}

pub fn merge(arguments: &Merge) -> Result<(), Failure> {
    let datakit = arguments.target.connect()?;
    let other = find_commit(&datakit, &arguments.other)?;
    let branch = datakit.branch(&arguments.branch).map_err(failed)?;
    let message = arguments.message.clone().unwrap_or_else(|| format!("Merge {}", arguments.other));
    let made = branch.update(|transaction| {
        transaction.merge(&other)?;
        let conflicts = transaction.conflicts()?;
        if !conflicts.is_empty() && !arguments.ours && !arguments.theirs {
            // Not to be tried again: it would be the same.
            return Err(Error::Contended { attempts: 1, paths: conflicts });
        }
        let side = if arguments.ours { transaction.ours() } else { transaction.theirs() };
        for path in conflicts {
            match side.read(&path) {
                Ok(bytes) => transaction.write(&path, &bytes)?,
                Err(Error::NotFound { .. }) => transaction.remove(&path)?,
                Err(error) => return Err(error),
            }
        }
        transaction.set_message(&message)
    });
    committed(made, arguments.json)
}

/// Says what was made of a change: the commit, or the paths that conflict.
fn committed(made: Result<CommitId, Error>, is_json: bool) -> Result<(), Failure> {
    match made {
        Ok(commit) if is_json => output::line(json!({ "commit": commit.as_str() })),
        Ok(commit) => output::line(commit),
        Err(Error::Contended { paths, .. } | Error::Conflict { paths }) => {
            if is_json {
                output::line(json!({ "conflicts": paths }))?;
            } else {
                paths.iter().try_for_each(|path| output::line(format_args!("conflict {path}")))?;
            }
            Err(Failure::other(format!("{} paths conflict; nothing was committed", paths.len())))
        }
        Err(error) => Err(failed(error)),
    }
}

fn split(argument: &str) -> Result<(String, String), Failure> {
    match argument.split_once('=') {
        Some((path, rest)) if !path.is_empty() => Ok((path.to_owned(), rest.to_owned())),
        _ => Err(Failure::usage(format!("'{argument}' is not PATH=…"))),
    }
}

fn read(from: &Path) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let read = if from == Path::new("-") {
        io::stdin().take(FILE_BYTES_MAX).read_to_end(&mut bytes)
    } else {
        File::open(from).and_then(|file| file.take(FILE_BYTES_MAX).read_to_end(&mut bytes))
    };
    match read {
        Ok(count) if count as u64 == FILE_BYTES_MAX => {
            Err(Failure::usage(format!("{}: more than {FILE_BYTES_MAX} bytes", from.display())))
        }
        Ok(_) => Ok(bytes),
        Err(error) => Err(Failure::usage(format!("{}: {error}", from.display()))),
    }
}

fn unpack(tar: &Path) -> Result<Vec<Step>, Failure> {
    let source: Box<dyn Read> = if tar == Path::new("-") {
        Box::new(io::stdin())
    } else {
        Box::new(File::open(tar).map_err(|error| Failure::usage(format!("{}: {error}", tar.display())))?)
    };
    let refused = |error: io::Error| Failure::usage(format!("{} is no tar archive: {error}", tar.display()));
    let mut steps = Vec::new();
    for entry in tar::Archive::new(source).entries().map_err(refused)? {
        let mut entry = entry.map_err(refused)?;
        let path = entry.path().map_err(refused)?.to_string_lossy().into_owned();
        let path = path.trim_start_matches("./").to_owned();
        let header = entry.header();
        let executable = header.mode().is_ok_and(|mode| mode & 0o100 != 0);
        if header.entry_type().is_file() {
            let mut bytes = Vec::new();
            entry.by_ref().take(FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(refused)?;
            steps.push(Step::Write { path, bytes, executable });
        } else if header.entry_type().is_symlink() {
            let target =
                entry.link_name().map_err(refused)?.unwrap_or_default().to_string_lossy().into_owned();
            steps.push(Step::Link { path, target });
        } else if !header.entry_type().is_dir() {
            return Err(Failure::usage(format!(
                "{}: {path} is neither file, directory nor symlink",
                tar.display()
            )));
        }
    }
    Ok(steps)
}
