//! `cargo xtask fuzz`: the targets of `fuzz/`, one after the other.

use std::fs;

use anyhow::{Context, Result, bail};

use crate::run::{has, output, root, run};

/// How long each target runs unless told otherwise.
const SECONDS: u32 = 60;

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
struct Request<'a> {
    /// One target, or all of them.
    target: Option<&'a str>,
    seconds: u32,
}

/// Runs one target or all, each for a while, from its seeds.
pub fn fuzz(arguments: &[&str]) -> Result<()> {
    let request = parse(arguments)?;
    let targets = targets()?;
    let chosen: Vec<&String> =
        targets.iter().filter(|name| request.target.is_none_or(|wanted| wanted == *name)).collect();
    if chosen.is_empty() {
        bail!("there is no target {}; there are {}", request.target.unwrap_or_default(), targets.join(", "));
    }
    check_installed()?;
    for target in chosen {
        let corpus = root().join("fuzz/corpus").join(target);
        fs::create_dir_all(&corpus).with_context(|| format!("{} cannot be made", corpus.display()))?;
        let mut command = std::process::Command::new("cargo");
        command.current_dir(root()).args(["+nightly", "fuzz", "run", target]);
        // What is found goes to the first folder; the seeds are only read.
        command.arg(&corpus).arg(root().join("fuzz/seeds").join(target));
        run(command.args([
            "--",
            &format!("-max_total_time={}", request.seconds),
            "-timeout=10",
            "-rss_limit_mb=2048",
        ]))?;
    }
    Ok(())
}

fn parse<'a>(arguments: &[&'a str]) -> Result<Request<'a>> {
    let number = |text: &str| text.parse().with_context(|| format!("--seconds wants a number, not {text:?}"));
    match arguments {
        [] => Ok(Request { target: None, seconds: SECONDS }),
        ["--seconds", seconds] => Ok(Request { target: None, seconds: number(seconds)? }),
        [target] => Ok(Request { target: Some(target), seconds: SECONDS }),
        [target, "--seconds", seconds] => Ok(Request { target: Some(target), seconds: number(seconds)? }),
        _ => bail!("usage: cargo xtask fuzz [TARGET] [--seconds N]"),
    }
}

/// Names of the targets, sorted.
fn targets() -> Result<Vec<String>> {
    let folder = root().join("fuzz/fuzz_targets");
    let entries = fs::read_dir(&folder).with_context(|| format!("{} cannot be read", folder.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry?.path();
        names.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
    }
    names.sort();
    Ok(names)
}

fn check_installed() -> Result<()> {
    let nightly = has("rustup")
        && output(std::process::Command::new("rustup").args(["toolchain", "list"]))?.contains("nightly");
    if !nightly || !has("cargo-fuzz") {
        bail!("fuzzing wants `rustup toolchain install nightly` and `cargo install cargo-fuzz`");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn target_and_seconds_are_both_optional() {
        for (arguments, target, seconds) in [
            (&[][..], None, 60),
            (&["p9p_session"], Some("p9p_session"), 60),
            (&["--seconds", "5"], None, 5),
            (&["p9p_session", "--seconds", "5"], Some("p9p_session"), 5),
        ] {
            assert_eq!(parse(arguments).unwrap(), Request { target, seconds });
        }
        assert!(parse(&["--seconds", "soon"]).is_err());
    }

    #[test]
    fn every_target_has_a_binary_and_seeds() {
        let manifest = fs::read_to_string(root().join("fuzz/Cargo.toml")).unwrap();
        for target in targets().unwrap() {
            assert!(manifest.contains(&format!("name = \"{target}\"")), "{target}");
            assert!(fs::read_dir(root().join("fuzz/seeds").join(&target)).unwrap().count() > 0, "{target}");
        }
    }
}
