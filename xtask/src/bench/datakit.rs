//! `cargo xtask bench datakit`: the store's commits, watches, diffs and merges, with git beside it, in turn.
//!
//! Ours and loose objects run in one program, `crates/datakit-store/examples/rates.rs`; git runs as it is used. Durable
//! rows force everything to disk on both sides.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::measure::median;
use crate::run::{cargo, output, root, run};

/// Runs of each side when the command line does not say.
const RUNS: usize = 3;

/// What the program measures: name, what is printed, unit, and which way is better.
const ROWS: &[(&str, &str)] = &[
    ("loose", "durable, 1 client: loose objects + fsync, in process (peer), commits/s"),
    ("one", "durable and visible to git, 1 client: ours, commits/s"),
    ("many", "durable and visible to git, 64 clients, disjoint paths, none lost: ours, commits/s"),
    ("visible", "not durable, visible to git, 1 client: ours, commits/s"),
    ("behind", "not durable, visible to git soon after, 1 client: ours, commits/s"),
    ("lag", "the same: acknowledgement to visible to git: p50 p99 max, ms"),
    ("watch", "1 watcher, not durable, visible: acknowledged to woken, start to woken: p50 p99 max, ms"),
    ("watch-behind", "1 watcher, not durable, visible soon after: likewise"),
    ("watch-10000", "10,000 watchers of one path, the last one's, not durable, visible: likewise"),
    ("open", "a repository of a million objects: open, and open and a file read, ms"),
    ("growth", "10,000 commits in a directory of 200 files: ours once packed, after git gc, bytes a commit"),
    ("diff", "100,000 files, 10 changes: ours, diff and merge, ms"),
];

/// Rows that are git's alone. Its diff and merge are taken with ours, in the same repository.
const PEERS: &[&str] = &["plumbing", "fast-import"];

/// Measures all rows, or some.
pub fn datakit(arguments: &[&str]) -> Result<()> {
    let options = parse(arguments)?;
    crate::packages::ensure(&[("git", "git")])?;
    run(&mut cargo(&["build", "--release", "--quiet", "--workspace", "--example", "rates"]))?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), Into::into);
    let (program, folder): (PathBuf, PathBuf) =
        (target.join("release/examples/rates"), target.join(format!("bench-datakit-{}", std::process::id())));
    std::fs::create_dir_all(&folder)?;
    let result = rows(&program, &folder, &options);
    std::fs::remove_dir_all(&folder)?;
    for (what, columns) in result? {
        let shown: Vec<String> = columns.iter().map(|column| median(column).to_string()).collect();
        println!("{what:<100} {}", shown.join("   "));
    }
    Ok(())
}

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
struct Request<'a> {
    runs: usize,
    /// The rows by name, peers as well; none is all.
    only: Vec<&'a str>,
}

impl Request<'_> {
    fn wants(&self, row: &str) -> bool {
        self.only.is_empty() || self.only.contains(&row)
    }
}

fn parse<'a>(arguments: &[&'a str]) -> Result<Request<'a>> {
    let mut request = Request { runs: RUNS, only: Vec::new() };
    let mut rest = arguments;
    while let [option, value, more @ ..] = rest {
        match *option {
            "--runs" => {
                request.runs = value.parse().with_context(|| format!("`{value}` is not a number of runs"))?;
            }
            "--only" => request.only = value.split(',').collect(),
            other => bail!("`{other}` is not understood; --runs N and --only ROW,ROW are"),
        }
        rest = more;
    }
    let known = |row: &&str| ROWS.iter().any(|(name, _)| name == row) || PEERS.contains(row);
    if let Some(row) = request.only.iter().find(|row| !known(row)) {
        let rows: Vec<&str> = ROWS.iter().map(|(name, _)| *name).chain(PEERS.iter().copied()).collect();
        bail!("there is no row `{row}`; there are {}", rows.join(", "));
    }
    match rest {
        [] => Ok(request),
        [option, ..] => bail!("`{option}` wants a value"),
    }
}

type Rows = Vec<(String, Vec<Vec<f64>>)>;

fn rows(program: &Path, folder: &Path, request: &Request<'_>) -> Result<Rows> {
    let mut rows: Rows = Vec::new();
    let mut note = |what: &str, figures: Vec<f64>| {
        if !rows.iter().any(|(known, _)| known == what) {
            rows.push((what.to_owned(), vec![Vec::new(); figures.len()]));
        }
        let row = rows.iter_mut().find(|(known, _)| known == what);
        for (column, figure) in row.into_iter().flat_map(|(_, columns)| columns).zip(figures) {
            column.push(figure);
        }
    };
    let large = folder.join("large");
    if request.wants("open") {
        million(&large)?;
    }
    for turn in 0..request.runs {
        for (row, what) in ROWS.iter().filter(|(row, _)| request.wants(row)) {
            let place = if *row == "open" { large.clone() } else { folder.join(format!("{row}-{turn}")) };
            let printed = output(Command::new(program).arg(place).arg(row))?;
            let figures = printed.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
            note(what, figures);
        }
        if request.wants("plumbing") {
            note(
                "durable, 1 client: git plumbing (peer), commits/s",
                vec![plumbing(&folder.join(format!("p{turn}")))?],
            );
        }
        if request.wants("fast-import") {
            note(
                "not durable, visible to git, 1 client: git fast-import, a checkpoint each (peer), commits/s",
                vec![fast_import(&folder.join(format!("i{turn}")))?],
            );
        }
        if !request.wants("diff") {
            continue;
        }
        let tree = folder.join(format!("diff-{turn}"));
        let diff = milliseconds(git(&tree).args(["diff-tree", "-r", "other~1", "other"]))?;
        let merge = milliseconds(git(&tree).args(["merge-tree", "--write-tree", "main", "other"]))?;
        note("100,000 files, 10 changes: git diff-tree and merge-tree (peers), ms", vec![diff, merge]);
    }
    Ok(rows)
}

fn git(folder: &Path) -> Command {
    let mut command = Command::new("git");
    command.current_dir(folder).env("GIT_CONFIG_GLOBAL", "/dev/null");
    for who in ["AUTHOR", "COMMITTER"] {
        command.env(format!("GIT_{who}_NAME"), "bench").env(format!("GIT_{who}_EMAIL"), "bench@localhost");
    }
    command
}

/// Milliseconds that a command takes, which must succeed.
fn milliseconds(command: &mut Command) -> Result<f64> {
    let began = Instant::now();
    output(command)?;
    Ok(began.elapsed().as_secs_f64() * 1000.0)
}

fn init(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    output(git(folder).args(["init", "-q", "--bare", "."])).map(drop)
}

/// Gives a command its input and returns what it prints.
fn pipe(command: &mut Command, input: &[u8]) -> Result<String> {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("git cannot be started")?;
    child.stdin.take().context("it has no stdin")?.write_all(input)?;
    let done = child.wait_with_output()?;
    if !done.status.success() {
        bail!("git failed: {}", done.status);
    }
    Ok(String::from_utf8(done.stdout)?.trim().to_owned())
}

/// A repository of a million blobs and their trees.
fn million(folder: &Path) -> Result<()> {
    init(folder)?;
    let mut stream = String::from("commit refs/heads/main\ncommitter a <a@b> 1 +0000\ndata 1\nx\n");
    for n in 0..1_000_000 {
        let text = n.to_string();
        stream += &format!("M 100644 inline d{}/f{}\ndata {}\n{text}\n", n / 1000, n % 1000, text.len());
    }
    pipe(git(folder).args(["fast-import", "--quiet"]), stream.as_bytes()).map(drop)
}

fn plumbing(folder: &Path) -> Result<f64> {
    const COMMITS: usize = 40;
    init(folder)?;
    let durable = ["-c", "core.fsync=all"];
    let (mut old, began) = (String::new(), Instant::now());
    for n in 0..COMMITS {
        let text = n.to_string();
        let blob = pipe(git(folder).args(durable).args(["hash-object", "-w", "--stdin"]), text.as_bytes())?;
        let tree =
            pipe(git(folder).args(durable).arg("mktree"), format!("100644 blob {blob}\tf\n").as_bytes())?;
        let mut commit = git(folder);
        commit.args(durable).args(["commit-tree", "-m", "x", &tree]);
        if !old.is_empty() {
            commit.args(["-p", &old]);
        }
        let new = pipe(&mut commit, b"")?;
        output(git(folder).args(durable).args(["update-ref", "refs/heads/main", &new, &old]))?;
        old = new;
    }
    Ok(COMMITS as f64 / began.elapsed().as_secs_f64())
}

fn fast_import(folder: &Path) -> Result<f64> {
    const COMMITS: usize = 100;
    init(folder)?;
    let mut stream = String::new();
    for n in 0..COMMITS {
        let text = n.to_string();
        stream += &format!(
            "commit refs/heads/main\ncommitter a <a@b> {n} +0000\ndata {0}\n{text}\nM 100644 inline f\ndata {0}\n{text}\ncheckpoint\n\n",
            text.len()
        );
    }
    let began = Instant::now();
    pipe(git(folder).args(["fast-import", "--quiet"]), stream.as_bytes())?;
    Ok(COMMITS as f64 / began.elapsed().as_secs_f64())
}
