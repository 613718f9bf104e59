//! `cargo xtask bench 9p`: our server beside diod, each driven by our client; and our client beside diod's.
//!
//! Both servers have the same files, over TCP on the loopback, and take their turns. Everything is in the page cache,
//! and nothing is synced: what is measured is the protocol.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::measure::median;
use super::servers::{Server, diod, drive, p9, program, seconds};
use crate::packages;
use crate::run::{cargo, run};

/// Runs of each side when the command line does not say.
const RUNS: usize = 3;
/// Bytes of the file that is read and written.
const FILE_BYTES: u64 = 256 << 20;
struct Row {
    name: &'static str,
    ours: Vec<f64>,
    theirs: Vec<f64>,
}

fn server_row(name: &'static str, sides: (&Server, &Server), words: &[&str], runs: usize) -> Result<Row> {
    let mut row = Row { name, ours: Vec::new(), theirs: Vec::new() };
    for _ in 0..runs {
        row.ours.push(drive(sides.0, words)?);
        row.theirs.push(drive(sides.1, words)?);
    }
    Ok(row)
}

/// Whole processes that copy the file to nowhere, from diod.
fn client_row(server: &Server, runs: usize) -> Result<Row> {
    let mut row = Row { name: "client: read 256 MiB", ours: Vec::new(), theirs: Vec::new() };
    for _ in 0..runs {
        let mut ours = Command::new(program("p9"));
        ours.args(["cat", &server.url, "big", "--tree", &server.tree]);
        row.ours.push(seconds(&mut ours)?);
        let mut theirs = Command::new("/usr/sbin/diodcat");
        theirs.args([
            "-s",
            &format!("127.0.0.1:{}", server.port),
            "-a",
            &server.tree,
            "-m",
            "1048576",
            "big",
        ]);
        row.theirs.push(seconds(&mut theirs)?);
    }
    Ok(row)
}

/// Runs all rows and prints them.
pub fn ninep(arguments: &[&str]) -> Result<()> {
    let runs = match arguments {
        [] => RUNS,
        ["--runs", n] => n.parse().with_context(|| format!("`{n}` is not a number of runs"))?,
        other => bail!("`{}` is not understood; --runs N is", other.join(" ")),
    };
    packages::ensure(&[("diod", "diod")])?;
    run(&mut cargo(&["build", "--release", "--quiet", "--package", "p9"]))?;
    run(&mut cargo(&["build", "--release", "--quiet", "--package", "p9p", "--example", "drive"]))?;
    let folder = std::env::temp_dir().join(format!("bench-9p-{}", std::process::id()));
    fs::create_dir(&folder)?;
    let rows = measure(&folder, runs);
    // What stays behind is in the folder for temporary files.
    let _ = fs::remove_dir_all(&folder);
    println!(
        "9P over TCP, {runs} runs each in turn, medians (min-max), seconds; the goal is a ratio of at most 1"
    );
    println!("{:<26} {:>22} {:>22} {:>7}", "row", "ours", "diod's", "ratio");
    for row in rows? {
        let (ours, theirs) = (median(&row.ours), median(&row.theirs));
        println!("{:<26} {:>22} {:>22} {:>7.2}", row.name, ours, theirs, ours.middle / theirs.middle);
    }
    Ok(())
}

fn measure(folder: &Path, runs: usize) -> Result<Vec<Row>> {
    let (ours, theirs) = (p9(folder)?, diod(folder)?);
    let sides = (&ours, &theirs);
    let bytes = FILE_BYTES.to_string();
    drive(&ours, &["write", "big", &bytes])?;
    drive(&ours, &["make", "tree", "1"])?;
    Ok(vec![
        server_row("server: read 256 MiB", sides, &["read", "big", &bytes], runs)?,
        server_row("server: write 256 MiB", sides, &["write", "written", &bytes], runs)?,
        server_row("server: 50,000 files", sides, &["tree", "tree", "1"], runs)?,
        server_row("the same, 8 threads", sides, &["tree", "tree", "8"], runs)?,
        client_row(&theirs, runs)?,
    ])
}
