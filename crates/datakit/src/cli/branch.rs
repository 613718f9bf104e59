//! `datakit branch`: lists, makes, moves and deletes branches.

use clap::{Args, Subcommand};
use serde_json::json;

use super::target::{Target, commit, failed};
use super::{Failure, output};

#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    target: Target,
    #[command(subcommand)]
    action: Option<Action>,
    /// Prints JSON, one object for each branch
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Action {
    /// Lists branches and their heads (the default)
    List,
    /// Prints the head of a branch
    Head { branch: String },
    /// Makes a branch at a commit or at the head of another branch
    Create { branch: String, commit: String },
    /// Deletes a branch; its commits stay
    Delete { branch: String },
    /// Gives a branch another name
    Rename { branch: String, name: String },
    /// Moves a branch forward to a commit or to the head of another branch
    Forward { branch: String, to: String },
}

pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let datakit = arguments.target.connect()?;
    let branch = |name: &str| datakit.branch(name).map_err(failed);
    match arguments.action.as_ref().unwrap_or(&Action::List) {
        Action::List => {
            for name in datakit.branches().map_err(failed)? {
                let head = branch(&name)?.head().map_err(failed)?;
                let head = head.as_ref().map(|head| head.as_str());
                if arguments.json {
                    output::line(json!({ "branch": name, "head": head }))?;
                } else {
                    output::line(format_args!("{} {name}", head.unwrap_or("-")))?;
                }
            }
            Ok(())
        }
        Action::Head { branch: name } => match branch(name)?.head().map_err(failed)? {
            Some(head) if arguments.json => output::line(json!({ "branch": name, "head": head.as_str() })),
            Some(head) => output::line(head),
            None => Err(Failure::other(format!("the branch '{name}' has no commits"))),
        },
        Action::Create { branch: name, commit: start } => {
            if branch(name)?.head().map_err(failed)?.is_some() {
                return Err(Failure::other(format!("the branch '{name}' exists already")));
            }
            branch(name)?.fast_forward(&commit(&datakit, start)?).map_err(failed)
        }
        Action::Delete { branch: name } => branch(name)?.delete().map_err(failed),
        Action::Rename { branch: name, name: new } => branch(name)?.rename(new).map(drop).map_err(failed),
        Action::Forward { branch: name, to } => {
            branch(name)?.fast_forward(&commit(&datakit, to)?).map_err(failed)
        }
    }
}
