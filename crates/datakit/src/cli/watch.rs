//! `datakit watch`: a line for whatever happens to a branch, or to a path in it.

use clap::Args;
use datakit_client::{CommitId, Error, From, Watch};
use serde_json::json;

use super::target::{Target, failed};
use super::{Failure, output};

#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    target: Target,
    /// The branch
    branch: String,
    /// Tells what is at this path, instead of the branch's head
    path: Option<String>,
    /// Misses nothing from the update with this number on, or from `now`; each line begins with its number
    #[arg(long, value_name = "N|now", value_parser = parse_from)]
    from: Option<From>,
    /// Ends after so many lines
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = usize::MAX, hide_default_value = true)]
    count: usize,
    /// Prints JSON, one object for each line
    #[arg(long)]
    json: bool,
}

fn parse_from(text: &str) -> Result<From, String> {
    match text {
        "now" => Ok(From::Now),
        number => number.parse().map(From::Number).map_err(|_| "a number or `now` is wanted".to_owned()),
    }
}

pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let branch = arguments.target.branch(&arguments.branch)?;
    match (&arguments.path, arguments.from) {
        (None, None) => arguments.tell(branch.watch_head(), |head| (None, head_text(head))),
        (None, Some(from)) => arguments
            .tell(branch.watch_head_from(from), |event| (Some(event.number), head_text(&event.value))),
        (Some(path), None) => arguments.tell(branch.watch_path(path), |node| (None, node.tree_name())),
        (Some(path), Some(from)) => arguments
            .tell(branch.watch_path_from(path, from), |event| (Some(event.number), event.value.tree_name())),
    }
}

fn head_text(head: &Option<CommitId>) -> Option<String> {
    head.as_ref().map(ToString::to_string)
}

impl Arguments {
    /// Prints what comes, each as its number, if it has one, and what is.
    fn tell<T>(
        &self,
        watch: Result<Watch<T>, Error>,
        show: impl Fn(&T) -> (Option<u64>, Option<String>),
    ) -> Result<(), Failure> {
        let name = if self.path.is_some() { "node" } else { "head" };
        for event in watch.map_err(failed)?.take(self.count) {
            let (number, value) = show(&event.map_err(failed)?);
            match number {
                Some(number) if self.json => output::line(json!({ "number": number, name: value }))?,
                None if self.json => output::line(json!({ name: value }))?,
                Some(number) => output::line(format_args!("{number} {}", value.unwrap_or_default()))?,
                None => output::line(value.unwrap_or_default())?,
            }
        }
        Ok(())
    }
}
