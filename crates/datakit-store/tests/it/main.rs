//! The store as its users see it; real git is the oracle.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests, which say what they skip")]

mod behind;
mod crash;
mod fault;
mod git;
mod growth;
mod merge;
mod moving;
mod transaction;
mod watch;

use std::path::Path;
use std::process::Command;

use datakit_store::{BranchName, FileName, ObjectId, Options, Store, TreePath};

/// Runs git, which must succeed; returns what it printed.
fn git(folder: &Path, arguments: &[&str]) -> String {
    let output = git_command(folder, arguments).output().unwrap();
    let (said, failed) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "git {arguments:?}: {said}{failed}");
    said.trim_end().to_owned()
}

fn git_command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("git");
    command.current_dir(folder).args(arguments);
    for who in ["AUTHOR", "COMMITTER"] {
        command.env(format!("GIT_{who}_NAME"), "test").env(format!("GIT_{who}_EMAIL"), "test@localhost");
    }
    command.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_GLOBAL", "/dev/null");
    command
}

/// Nothing is damaged or missing.
fn fsck(folder: &Path) {
    let output = git_command(folder, &["fsck", "--full", "--strict"]).output().unwrap();
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let bad: Vec<&str> =
        said.lines().filter(|line| !line.starts_with("dangling") && !line.starts_with("notice")).collect();
    assert!(output.status.success() && bad.is_empty(), "git fsck: {said}");
}

fn path(text: &str) -> TreePath {
    TreePath::parse(text).unwrap()
}

fn name(text: &str) -> FileName {
    FileName::new(text).unwrap()
}

fn main_branch() -> BranchName {
    BranchName::new("main").unwrap()
}

fn commit(store: &Store, files: &[(&str, &str)]) -> ObjectId {
    let transaction = store.begin(&main_branch()).unwrap();
    for (file, text) in files {
        transaction.write_file(&path(file), text.as_bytes()).unwrap();
    }
    transaction.commit().unwrap()
}

fn created() -> Options {
    Options { create: true, ..Options::default() }
}

fn repository() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), created()).unwrap();
    (folder, store)
}
