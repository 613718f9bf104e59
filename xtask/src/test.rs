//! `cargo xtask test`: every test of the workspace.

use anyhow::Result;

use crate::packages;
use crate::run::{cargo, has, run};

/// Longest that one program of tests may take, in seconds: several times what the longest does.
const PROGRAM_SECONDS_MAX: u64 = 1500;

/// How cargo is told through what to run programs of tests, on the hosts where CI runs.
const RUNNER: &str = "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER";

/// Installs what the tests want, builds, and runs everything. Arguments go to `cargo test`.
pub fn test(arguments: &[&str]) -> Result<()> {
    packages::ensure(packages::TEST)?;
    crate::tidy::tidy()?;
    // The guest image first, once, so that the tests that boot do not wait for each other's download.
    run(&mut cargo(&["run", "--quiet", "--package", "coracle", "--", "image", "build"]))?;
    let mut tests = cargo(&["test", "--workspace", "--quiet", "--no-fail-fast"]);
    if has("timeout") {
        // One that hangs is a failure with a name, not a run without an end.
        tests.env(RUNNER, format!("timeout --foreground --verbose --kill-after=10 {PROGRAM_SECONDS_MAX}"));
    }
    tests.args(arguments);
    if !arguments.contains(&"--") {
        // So that a test that lacks its means is heard to say SKIP.
        tests.args(["--", "--show-output"]);
    }
    run(&mut tests)
}
