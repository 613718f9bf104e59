//! `cargo xtask soak`: the long forms of the tests that run Debian's own tests in a guest, whole or a part of them.

use anyhow::{Context, Result, bail};

use crate::run::{cargo, run};

/// A part, and the product test that it is.
const PARTS: [(&str, &str); 5] = [
    ("boots", "processor::the_kernel_starts"),
    ("stress", "processor::stress_ng"),
    ("python", "processor::pythons_own"),
    ("go", "processor::gos_compiler"),
    ("lockstep", "processor::the_tiers_agree"),
];

/// Flags, and the variables by which the tests know of them.
const FLAGS: [(&str, &str); 5] = [
    ("--count", "CORACLE_SOAK_COUNT"),
    ("--cpus", "CORACLE_SOAK_CPUS"),
    ("--seconds", "CORACLE_SOAK_SECONDS"),
    ("--only", "CORACLE_SOAK_ONLY"),
    ("--engine", "CORACLE_SOAK_ENGINE"),
];

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
struct Request<'a> {
    /// Part of the tests' names.
    test: &'static str,
    environment: Vec<(&'static str, &'a str)>,
}

/// Runs all of it or a part.
pub fn soak(arguments: &[&str]) -> Result<()> {
    let request = parse(arguments)?;
    let mut tests = cargo(&["test", "--release", "--package", "coracle", "--test", "it", "--"]);
    run(tests.args(["--nocapture", request.test]).env("CORACLE_SOAK", "1").envs(request.environment))
}

fn parse<'a>(arguments: &[&'a str]) -> Result<Request<'a>> {
    let mut request = Request { test: "processor::", environment: Vec::new() };
    let mut words = arguments.iter();
    while let Some(&word) = words.next() {
        if let Some((_, test)) = PARTS.iter().find(|(part, _)| *part == word) {
            request.test = test;
        } else if let Some((_, variable)) = FLAGS.iter().find(|(flag, _)| *flag == word) {
            let value = words.next().with_context(|| format!("{word} wants a value"))?;
            request.environment.push((variable, value));
        } else {
            let known = PARTS.iter().chain(&FLAGS).map(|(name, _)| *name).collect::<Vec<_>>();
            bail!("`{word}` is not understood; {} are", known.join(", "));
        }
    }
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_and_amounts_are_read_and_the_rest_refused() {
        assert_eq!(parse(&[]).unwrap(), Request { test: "processor::", environment: Vec::new() });
        let boots = parse(&["boots", "--count", "20", "--cpus", "4"]).unwrap();
        assert_eq!(boots.test, "processor::the_kernel_starts");
        assert_eq!(boots.environment, [("CORACLE_SOAK_COUNT", "20"), ("CORACLE_SOAK_CPUS", "4")]);
        for wrong in [&["reboots"][..], &["--count"], &["boots", "--times", "3"]] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn every_part_is_a_test() {
        let tests = crate::run::root().join("crates/coracle/tests/it/processor.rs");
        let tests = std::fs::read_to_string(tests).unwrap();
        for (part, test) in PARTS {
            let name = test.strip_prefix("processor::").unwrap();
            assert!(tests.contains(&format!("fn {name}")), "{part}");
        }
        for (_, variable) in FLAGS {
            let suffix = variable.strip_prefix("CORACLE_SOAK").unwrap();
            assert!(tests.contains(&format!("\"{suffix}\"")), "{variable}");
        }
    }
}
