//! `cargo xtask test`: every test of the workspace.

use anyhow::Result;

use crate::packages;
use crate::run::{cargo, run};

/// Installs what the tests want, builds, and runs everything. Arguments go to `cargo test`.
pub fn test(arguments: &[&str]) -> Result<()> {
    packages::ensure(packages::TEST)?;
    crate::tidy::tidy()?;
    // The guest image first, once, so that the tests that boot do not wait for each other's download.
    run(&mut cargo(&["run", "--quiet", "--package", "coracle", "--", "image", "build"]))?;
    let mut tests = cargo(&["test", "--workspace", "--quiet"]);
    tests.args(arguments);
    if !arguments.contains(&"--") {
        // So that a test that lacks its means is heard to say SKIP.
        tests.args(["--", "--show-output"]);
    }
    run(&mut tests)
}
