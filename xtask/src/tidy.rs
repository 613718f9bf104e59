//! `cargo xtask tidy`: the rules of the house that a compiler does not know.
//!
//! - a source file has at most 500 lines of code, tests apart; exemptions are listed with a reason;
//! - the families hyperkit, vpnkit and guest-image never import one another, and nobody imports `coracle`;
//! - crates outside the list below forbid `unsafe`;
//! - nothing marks unfinished work.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::run::{cargo, output, root};

/// Lines of code that a file may have.
const LINES_MAX: usize = 500;

/// Files that may be longer, and why.
const LONG: &[(&str, &str)] = &[];

/// Crates with `unsafe`, and what for.
const UNSAFE: &[(&str, &str)] = &[
    ("hyperkit-mem", "guest memory is raw host memory"),
    ("hyperkit-hv", "KVM's ioctls"),
    ("hyperkit-soft", "guest memory through the TLB, and the host's SSE and x87"),
    ("guest-loops", "the loops are in assembly"),
    ("vpnkit-sandbox", "fork, leaving namespaces, and giving memory back"),
    ("ethlink", "ioctls of TAP devices and namespaces, and inherited descriptors"),
    ("guest-init", "system calls that no safe crate has"),
];

/// Crates that every family may import.
const LEAVES: &[&str] = &["p9p", "p9p-fuse", "ethlink", "vpnkit-wire", "guest-protocol"];

/// Marks that must not land, spelt so that this file does not trip over itself.
const MARKS: &[&str] =
    &[concat!("FIX", "ME"), concat!("XX", "X:"), concat!("unimpl", "emented!("), concat!("#[ig", "nore")];

/// Checks all rules; every violation is one line.
pub fn tidy() -> Result<()> {
    let mut wrong = Vec::new();
    let mut files = Vec::new();
    for folder in ["crates", "fuzz/fuzz_targets", "guest", "xtask"] {
        sources(&root().join(folder), &mut files)?;
    }
    for file in &files {
        check_file(file, &mut wrong)?;
    }
    check_edges(&mut wrong)?;
    if wrong.is_empty() {
        return Ok(());
    }
    bail!("the rules of the house are broken:\n  {}", wrong.join("\n  "));
}

fn sources(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("{} cannot be read", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            sources(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

fn check_file(path: &Path, wrong: &mut Vec<String>) -> Result<()> {
    let text = fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
    let name = path.strip_prefix(root()).unwrap_or(path).display().to_string();
    let is_test = name.contains("/tests/") || name.ends_with("/tests.rs");
    let code = text.find("#[cfg(test)]\nmod tests {").map_or(text.as_str(), |end| &text[..end]);
    let lines = code.lines().count();
    if !is_test && lines > LINES_MAX && !LONG.iter().any(|(long, _)| *long == name) {
        wrong.push(format!("{name} has {lines} lines of code, at most {LINES_MAX} are allowed"));
    }
    if !text.starts_with("//!") && !text.starts_with("#!") {
        wrong.push(format!("{name} does not say at its top what it is (`//!`)"));
    }
    for mark in MARKS {
        if text.contains(mark) {
            wrong.push(format!("{name} contains `{mark}`"));
        }
    }
    let is_root = name.ends_with("src/lib.rs") || name.ends_with("src/main.rs");
    let allowed = UNSAFE
        .iter()
        .any(|(package, _)| name.contains(&format!("/{package}/")) || name.starts_with("guest/"));
    if is_root
        && !allowed
        && !text.contains("#![forbid(unsafe_code)]")
        && !text.contains("#![deny(unsafe_code)]")
    {
        wrong.push(format!("{name} does not forbid unsafe code"));
    }
    Ok(())
}

/// Which family a crate belongs to.
fn family(package: &str) -> &str {
    ["hyperkit", "vpnkit", "datakit", "guest"]
        .into_iter()
        .find(|family| package.starts_with(family))
        .unwrap_or(package)
}

fn check_edges(wrong: &mut Vec<String>) -> Result<()> {
    let metadata = output(&mut cargo(&["metadata", "--format-version", "1", "--no-deps", "--offline"]))?;
    let metadata: serde_json::Value =
        serde_json::from_str(&metadata).context("cargo metadata is not JSON")?;
    let mut imports: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let name = package["name"].as_str().unwrap_or_default().to_owned();
        let of_workspace = package["dependencies"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|import| import["path"].is_string());
        imports.insert(
            name,
            of_workspace.filter_map(|import| import["name"].as_str().map(str::to_owned)).collect(),
        );
    }
    for (package, names) in &imports {
        for import in names {
            let crosses = family(package) != family(import)
                && package != "coracle"
                && !LEAVES.contains(&import.as_str());
            if crosses || import == "coracle" {
                wrong.push(format!("{package} imports {import}: families meet only in coracle"));
            }
        }
    }
    Ok(())
}
