//! What a benchmark's command line may say.

use anyhow::{Context, Result, bail};

/// Runs of each side when the command line does not say.
const RUNS: usize = 5;

/// How a benchmark is run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Runs of each side.
    pub runs: usize,
    /// Print JSON in place of a table.
    pub json: bool,
    /// Rows to run; all of them when empty.
    pub only: Vec<String>,
    /// QEMU's processor model.
    pub peer_cpu: String,
    /// Leave the peer and the native run out: for profiling ours.
    pub alone: bool,
    /// Our engine, as `coracle run --engine` has it.
    pub engine: String,
}

impl Options {
    /// Reads the arguments.
    ///
    /// # Errors
    /// A line that names the one that is not understood.
    pub fn parse(arguments: &[&str]) -> Result<Options> {
        let mut options = Options {
            runs: RUNS,
            json: false,
            only: Vec::new(),
            peer_cpu: "max".to_owned(),
            alone: false,
            engine: "soft".to_owned(),
        };
        let mut words = arguments.iter();
        while let Some(&word) = words.next() {
            let mut value = || words.next().copied().with_context(|| format!("{word} wants a value"));
            match word {
                "--runs" => {
                    let text = value()?;
                    options.runs =
                        text.parse().with_context(|| format!("`{text}` is not a number of runs"))?;
                }
                "--only" => options.only.extend(value()?.split(',').map(str::to_owned)),
                "--peer-cpu" => value()?.clone_into(&mut options.peer_cpu),
                "--engine" => value()?.clone_into(&mut options.engine),
                "--json" => options.json = true,
                "--alone" => options.alone = true,
                _ => bail!(
                    "`{word}` is not understood; --runs N, --only ROW,…, --json, --alone, --engine E and --peer-cpu MODEL are"
                ),
            }
        }
        if options.runs == 0 {
            bail!("--runs 0 measures nothing");
        }
        Ok(options)
    }

    /// Whether a row is to be run.
    pub fn wants(&self, row: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|name| name == row)
    }

    /// Refuses rows that do not exist.
    ///
    /// # Errors
    /// A line that names the row and those there are.
    pub fn check_rows(&self, known: &[&str]) -> Result<()> {
        match self.only.iter().find(|name| !known.contains(&name.as_str())) {
            Some(unknown) => bail!("there is no row `{unknown}`; there are {}", known.join(", ")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_runs_are_read_and_the_rest_refused() {
        let options = Options::parse(&["--runs", "3", "--only", "gzip,find", "--json"]).unwrap();
        assert_eq!((options.runs, options.json), (3, true));
        assert!(options.wants("find") && !options.wants("tar"));
        assert!(options.check_rows(&["gzip", "find"]).is_ok());
        assert!(options.check_rows(&["gzip"]).unwrap_err().to_string().contains("find"));
        for wrong in [&["--runs", "many"][..], &["--runs", "0"], &["--runs"], &["--fast"]] {
            assert!(Options::parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
