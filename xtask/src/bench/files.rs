//! `cargo xtask bench files`: files of a directory and of DataKit, through 9P and through FUSE, beside diod and ext4.
//!
//! Rows of 9P are driven by our client, over TCP on the loopback, whoever serves. The host's kernel may have no 9P client,
//! so that diod under a mount is `p9 mount` of it. All servers' files are in the host's page cache, except what a row itself
//! writes. `cold` is the first use of a fresh mount, of which the kernel keeps nothing yet, with a server that was just started;
//! the row without that name is the same a second time. ext4 is always warm. What is synced is in the row's name: `sync` and
//! `commit` end when everything is on the disk, on every side; the other rows of writing sync nothing.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::guest::Folder;
use super::options::Options;
use super::report::{self, Row, Sides};
use super::servers::{self, Mounted, Server, diod, drive, mount, p9, program, seconds};
use crate::packages;
use crate::run::{cargo, output, run};

/// Bytes of the large file.
const BIG_BYTES: usize = 256 << 20;
/// The tree: directories, files of each, bytes of each.
const DIRECTORIES: usize = 500;
const FILES_OF_EACH: usize = 100;
const FILE_BYTES: usize = 1000;
/// Files of the one directory that is listed with attributes.
const WIDE_FILES: usize = 10_000;
/// What `find` on DataKit's mount may take of ext4's time.
const FIND_LIMIT: f64 = 3.0;

/// Rows of our client: the row, whose server is ours, and the tasks; `TREE/` is where the files are.
const DRIVEN: &[(&str, Served, &[&str])] = &[
    ("9p-read", Served::Directory, &["read", "TREE/big", "BIG"]),
    ("9p-write", Served::Directory, &["write", "w", "BIG"]),
    ("9p-write-sync", Served::Directory, &["write-sync", "w", "BIG"]),
    ("9p-find", Served::Directory, &["find", "TREE/tree", "1"]),
    ("9p-tar", Served::Directory, &["tree", "TREE/tree", "1"]),
    ("9p-find-8", Served::Directory, &["find", "TREE/tree", "8"]),
    ("9p-tar-8", Served::Directory, &["tree", "TREE/tree", "8"]),
    ("datakit-9p-read", Served::Repository, &["read", "TREE/big", "BIG"]),
    ("datakit-9p-write", Served::Repository, &["write", "w", "BIG"]),
    ("datakit-9p-commit", Served::Repository, &["write-sync", "w", "BIG"]),
    ("datakit-9p-find", Served::Repository, &["find", "TREE/tree", "1"]),
    ("datakit-9p-tar", Served::Repository, &["tree", "TREE/tree", "1"]),
];

/// Rows of programs under a mount, as shells run them where the files are. `OUT` is where they may write.
const PROGRAMS: &[(&str, &str)] = &[
    ("read", "dd if=big of=/dev/null bs=1M status=none"),
    ("find", "find tree > /dev/null"),
    ("find-size", "find tree -size +1M > /dev/null"),
    ("tar", "tar cf - tree | cat > /dev/null"),
    ("write", "dd if=\"$BIG\" of=\"$OUT/w\" bs=1M status=none"),
    ("write-sync", "dd if=\"$BIG\" of=\"$OUT/w\" bs=1M conv=fsync status=none"),
];

/// Rows of whole client programs, whose server is diod, and what each side's is told.
const CLIENTS: &[(&str, &[&str])] = &[("client-cat", &["cat", "big"]), ("client-ls", &["ls", "-l", "wide"])];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Served {
    Directory,
    Repository,
}

/// Measures all rows that are wanted, and prints them.
pub fn files(arguments: &[&str]) -> Result<()> {
    let options = Options::parse(arguments)?;
    let known = names();
    options.check_rows(&known.iter().map(|(name, _)| *name).collect::<Vec<_>>())?;
    packages::ensure(&[("diod", "diod"), ("git", "git")])?;
    run(&mut cargo(&["build", "--release", "--quiet", "--workspace", "--bin", "p9", "--bin", "datakit"]))?;
    run(&mut cargo(&["build", "--release", "--quiet", "--workspace", "--example", "drive"]))?;
    let folder = Folder::new()?;
    let files = Files::make(folder.path())?;
    let mut rows: Vec<Row> = known
        .into_iter()
        .filter(|(name, _)| options.wants(name))
        .map(|(name, native_limit)| Row { native_limit, ..Row::new(name, Some(1.0)) })
        .collect();
    for turn in 1..=options.runs {
        eprintln!("xtask: turn {turn} of {}", options.runs);
        files.drive_all(&mut rows)?;
        files.mount_all(&mut rows, turn)?;
    }
    let title = format!(
        "{} MiB and {} files, {} runs of each side in turn, page caches warm unless it says cold, on {}",
        BIG_BYTES >> 20,
        DIRECTORIES * FILES_OF_EACH,
        options.runs,
        output(Command::new("findmnt").args(["-n", "-o", "FSTYPE", "-T"]).arg(folder.path()))?.trim(),
    );
    report::print(&title, Sides { ours: "ours", peer: "diod", native: "directly" }, &rows, options.json);
    Ok(())
}

/// All rows, and what may be promised beside ext4.
fn names() -> Vec<(&'static str, Option<f64>)> {
    let mut names: Vec<_> = DRIVEN.iter().map(|(name, ..)| (*name, None)).collect();
    names.extend(CLIENTS.iter().map(|(name, _)| (*name, None)));
    for side in ["mount", "datakit"] {
        for (name, _) in PROGRAMS {
            let limit = (side == "datakit" && *name == "find").then_some(FIND_LIMIT);
            names.push((row_name(side, name, false), limit));
            if !name.starts_with("write") {
                names.push((row_name(side, name, true), None));
            }
        }
    }
    names
}

/// The name of a row of programs.
fn row_name(side: &str, name: &str, is_cold: bool) -> &'static str {
    let commit = if side == "datakit" { name.replace("write-sync", "commit") } else { name.to_owned() };
    // A few dozen, for as long as the process lives.
    String::leak(format!("{side}-{commit}{}", if is_cold { "-cold" } else { "" }))
}

/// The files that are worked with: in a directory, and the same in a repository.
struct Files {
    /// `big` and `tree`, and what is written.
    directory: PathBuf,
    /// They are on the branch `main`, `big` as DataKit itself stores it; `scratch` is written to.
    repository: PathBuf,
    mountpoint: PathBuf,
}

impl Files {
    fn make(folder: &Path) -> Result<Files> {
        let files = Files {
            directory: folder.join("files"),
            repository: folder.join("repository"),
            mountpoint: folder.join("mounted"),
        };
        for directory in [&files.directory, &files.repository, &files.mountpoint] {
            fs::create_dir(directory)?;
        }
        fs::write(files.directory.join("big"), text(BIG_BYTES, 1))?;
        let mut git = Command::new("git");
        git.current_dir(&files.repository);
        run(git.args(["init", "-q", "--bare", "-b", "main", "."]))?;
        let mut import = Command::new("git")
            .current_dir(&files.repository)
            .args(["fast-import", "--quiet"])
            .stdin(Stdio::piped())
            .spawn()?;
        let mut stream = std::io::BufWriter::new(import.stdin.take().context("git has no stdin")?);
        write!(stream, "commit refs/heads/main\ncommitter a <a@b> 1 +0000\ndata 1\nx\n")?;
        for directory in 0..DIRECTORIES {
            let path = files.directory.join(format!("tree/d{directory}"));
            fs::create_dir_all(&path)?;
            for file in 0..FILES_OF_EACH {
                let bytes = text(FILE_BYTES, (directory * FILES_OF_EACH + file + 2) as u64);
                fs::write(path.join(format!("f{file}")), &bytes)?;
                write!(stream, "M 100644 inline tree/d{directory}/f{file}\ndata {}\n", bytes.len())?;
                stream.write_all(&bytes)?;
                stream.write_all(b"\n")?;
            }
        }
        let wide = files.directory.join("wide");
        fs::create_dir(&wide)?;
        for file in 0..WIDE_FILES {
            fs::write(wide.join(format!("file-{file}")), "")?;
        }
        drop(stream.into_inner().map_err(|error| error.into_error())?);
        if !import.wait()?.success() {
            bail!("git fast-import failed");
        }
        run(Command::new("git").current_dir(&files.repository).args(["branch", "scratch", "main"]))?;
        files.commit_big()?;
        Ok(files)
    }

    /// Has DataKit store the large file.
    fn commit_big(&self) -> Result<()> {
        let server = servers::datakit(&self.repository)?;
        let p9 = |words: &[&str]| {
            run(Command::new(program("p9")).arg(words[0]).arg(&server.url).args(&words[1..]))
        };
        let big = self.directory.join("big");
        p9(&["mkdir", "branch/main/leases/big"])?;
        p9(&["put", "branch/main/leases/big/rw/big", big.to_str().context("the folder is not UTF-8")?])?;
        let commit = self.mountpoint.with_file_name("word");
        fs::write(&commit, "commit")?;
        p9(&["put", "branch/main/leases/big/ctl", commit.to_str().context("the folder is not UTF-8")?])
    }

    /// One turn of the rows without a mount.
    fn drive_all(&self, rows: &mut [Row]) -> Result<()> {
        let (ours, theirs) = (p9(&self.directory)?, diod(&self.directory)?);
        let datakit = servers::datakit(&self.repository)?;
        for (name, served, tasks) in DRIVEN {
            let Some(row) = rows.iter_mut().find(|row| row.name == *name) else { continue };
            let mine = match served {
                Served::Directory => drive(&ours, &words(tasks, ""))?,
                Served::Repository => drive(&datakit, &datakit_words(tasks))?,
            };
            self.clean()?;
            let other = drive(&theirs, &words(tasks, ""))?;
            self.clean()?;
            add(row, mine, other);
        }
        for (name, arguments) in CLIENTS {
            let Some(row) = rows.iter_mut().find(|row| row.name == *name) else { continue };
            let mine = our_client(&theirs, arguments)?;
            add(row, mine, their_client(&theirs, arguments)?);
        }
        Ok(())
    }

    /// Removes what was written, before it reaches the disk.
    fn clean(&self) -> Result<()> {
        match fs::remove_file(self.directory.join("w")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// One turn of the rows of programs under mounts.
    fn mount_all(&self, rows: &mut [Row], turn: usize) -> Result<()> {
        for side in ["mount", "datakit"] {
            for (name, script) in PROGRAMS {
                let wanted = (row_name(side, name, false), row_name(side, name, true));
                if !rows.iter().any(|row| row.name == wanted.0 || row.name == wanted.1) {
                    continue;
                }
                // A new one for each row: diod has ended by itself after many mounts.
                let theirs = diod(&self.directory)?;
                let figures = if side == "mount" {
                    let ours = p9(&self.directory)?;
                    self.under(&mount(&ours, &self.mountpoint)?, &self.mountpoint, &self.mountpoint, script)?
                } else {
                    self.under_datakit(&format!("{name}-{turn}"), script)?
                };
                note(rows, wanted, figures, |row| &mut row.ours);
                let mounted = mount(&theirs, &self.mountpoint)?;
                let figures = self.under(&mounted, &self.mountpoint, &self.mountpoint, script)?;
                drop(mounted);
                note(rows, wanted, figures, |row| &mut row.peer);
                let warm = self.shell(&self.directory, &self.directory, script)?;
                self.clean()?;
                note(rows, wanted, (None, Some(warm)), |row| &mut row.native);
                let last = |values: &[f64]| values.last().copied().unwrap_or(f64::NAN);
                for row in rows.iter().filter(|row| row.name == wanted.0 || row.name == wanted.1) {
                    let (ours, peer, native) = (last(&row.ours), last(&row.peer), last(&row.native));
                    eprintln!(
                        "xtask:   {:<24} {ours:8.3} s, diod {peer:8.3} s, directly {native:8.3} s",
                        row.name
                    );
                }
            }
        }
        Ok(())
    }

    /// A fresh mount of the repository, and its figures.
    fn under_datakit(&self, transaction: &str, script: &str) -> Result<(Option<f64>, Option<f64>)> {
        let mounted = servers::mount_datakit(&self.repository, &self.mountpoint)?;
        let files = self.mountpoint.join("branch/main/ro");
        if !script.contains("OUT") {
            return self.under(&mounted, &files, &files, script);
        }
        let transaction = self.mountpoint.join("branch/scratch/transactions").join(transaction);
        fs::create_dir(&transaction)?;
        let script = if script.contains("fsync") {
            format!("{script} && echo commit > \"$OUT/../ctl\"")
        } else {
            script.to_owned()
        };
        self.under(&mounted, &files, &transaction.join("rw"), &script)
    }

    /// The seconds of a program's first run under a fresh mount, if it reads, and those of the next one.
    fn under(
        &self,
        _mounted: &Mounted,
        files: &Path,
        out: &Path,
        script: &str,
    ) -> Result<(Option<f64>, Option<f64>)> {
        let first = self.shell(files, out, script)?;
        if script.contains("OUT") {
            self.clean()?;
            return Ok((None, Some(first)));
        }
        Ok((Some(first), Some(self.shell(files, out, script)?)))
    }

    fn shell(&self, files: &Path, out: &Path, script: &str) -> Result<f64> {
        let mut command = Command::new("sh");
        command.current_dir(files).args(["-c", script]);
        command.env("BIG", self.directory.join("big")).env("OUT", out);
        seconds(&mut command)
    }
}

/// `p9` with diod: how long the whole process runs.
fn our_client(server: &Server, words: &[&str]) -> Result<f64> {
    let mut command = Command::new(program("p9"));
    command.arg(words[0]).arg(&server.url).args(&words[1..]).args(["--tree", &server.tree]);
    seconds(&mut command)
}

/// diod's own client.
fn their_client(server: &Server, words: &[&str]) -> Result<f64> {
    let mut command = Command::new(format!("/usr/sbin/diod{}", words[0]));
    command.args(["-s", &format!("127.0.0.1:{}", server.port), "-a", &server.tree, "-m", "1048576"]);
    command.args(&words[1..]);
    seconds(&mut command)
}

/// Adds a turn's figures to a row, and shows them.
fn add(row: &mut Row, ours: f64, peer: f64) {
    eprintln!("xtask:   {:<24} {ours:8.3} s, diod {peer:8.3} s", row.name);
    row.ours.push(ours);
    row.peer.push(peer);
}

/// Adds the figures of a first and a second run to their rows, where those are wanted.
fn note(
    rows: &mut [Row],
    (warm, cold): (&str, &str),
    figures: (Option<f64>, Option<f64>),
    side: impl Fn(&mut Row) -> &mut Vec<f64>,
) {
    for (name, figure) in [(cold, figures.0), (warm, figures.1)] {
        if let Some(row) = rows.iter_mut().find(|row| row.name == name) {
            side(row).extend(figure);
        }
    }
}

/// The tasks with what stands for names and sizes replaced.
fn words(tasks: &[&str], tree: &str) -> Vec<String> {
    tasks.iter().map(|word| word.replace("TREE/", tree).replace("BIG", &BIG_BYTES.to_string())).collect()
}

/// The same with DataKit's names. What is written is in a transaction, which `write-sync` commits.
fn datakit_words(tasks: &[&str]) -> Vec<String> {
    let [task, name, number] = tasks else { return words(tasks, "branch/main/ro/") };
    if !task.starts_with("write") {
        return words(tasks, "branch/main/ro/");
    }
    let transaction = "branch/scratch/transactions/t";
    let mut all = vec!["mkdir".to_owned(), transaction.to_owned(), "0".to_owned()];
    all.extend(words(&["write", &format!("{transaction}/rw/{name}"), number], ""));
    if *task == "write-sync" {
        all.extend(["say-commit".to_owned(), format!("{transaction}/ctl"), "0".to_owned()]);
    }
    all
}

/// Lines of hexadecimal digits, other ones for each seed: it shrinks to a little more than half.
fn text(bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut text = Vec::with_capacity(bytes + 64);
    while text.len() < bytes {
        for _ in 0..4 {
            // xorshift64 of Marsaglia.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            text.extend_from_slice(format!("{state:016x}").as_bytes());
        }
        text.push(b'\n');
    }
    text.truncate(bytes);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_have_names_of_their_own() {
        let names = names();
        for (n, (name, _)) in names.iter().enumerate() {
            assert!(!names[..n].iter().any(|(other, _)| other == name), "{name}");
        }
        let find = names.iter().find(|(name, _)| *name == "datakit-find").unwrap();
        assert_eq!(find.1, Some(FIND_LIMIT));
        assert!(names.iter().any(|(name, _)| *name == "datakit-commit"));
    }

    #[test]
    fn what_is_written_to_a_repository_is_in_a_transaction_that_ends() {
        let said = datakit_words(&["write-sync", "w", "BIG"]).join(" ");
        let t = "branch/scratch/transactions/t";
        assert_eq!(said, format!("mkdir {t} 0 write {t}/rw/w {BIG_BYTES} say-commit {t}/ctl 0"));
        assert_eq!(datakit_words(&["find", "TREE/tree", "8"]), ["find", "branch/main/ro/tree", "8"]);
    }

    #[test]
    fn texts_have_their_length_and_differ() {
        assert_eq!(text(1000, 2).len(), 1000);
        assert_ne!(text(1000, 2), text(1000, 3));
    }
}
