//! `cargo xtask ci`: what a change must pass.

use anyhow::Result;

use crate::run::{cargo, run};

/// Formatting, lints, the rules of the house, and the tests.
pub fn ci() -> Result<()> {
    run(&mut cargo(&["fmt", "--all", "--check"]))?;
    run(&mut cargo(&[
        "clippy",
        "--release",
        "--workspace",
        "--all-targets",
        "--quiet",
        "--",
        "-D",
        "warnings",
    ]))?;
    crate::test::test(&[])
}
