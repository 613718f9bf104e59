//! `datakit doctor`: what this host offers.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use datakit_git::Survey;

use super::Failure;

/// What to look at.
#[derive(clap::Args)]
pub struct Arguments {
    /// Look at this repository too: what servers have left to do in it.
    #[arg(long, value_name = "PATH")]
    git: Option<PathBuf>,
}

/// Small packs are made into a larger one after a minute; if they are that old, they are not.
const SMALL_PACK_AGE_MAX: Duration = Duration::from_secs(300);

/// One finding.
struct Finding {
    what: &'static str,
    /// `Err` is that something does not work, and what to do about it.
    found: Result<String, String>,
}

/// Prints a line for each thing.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let mut findings = vec![
        fuse(),
        fusermount(),
        program("git", "needed for --auto-push over ssh"),
        watches(),
        descriptors(),
        v9fs(),
    ];
    if let Some(path) = &arguments.git {
        findings.extend(repository(path)?);
    }
    let mut out = std::io::stdout().lock();
    for Finding { what, found } in &findings {
        let (mark, text) = match found {
            Ok(text) => ("ok", text),
            Err(text) => ("--", text),
        };
        let _ = writeln!(out, "{mark:3} {what:12} {text}");
    }
    Ok(())
}

fn fuse() -> Finding {
    let opened = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse");
    let found = match opened {
        Ok(_) => Ok("/dev/fuse can be opened".to_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err("there is no /dev/fuse: load the module (modprobe fuse), or give the container that device"
                .into())
        }
        Err(error) => Err(format!("/dev/fuse: {error}; --fuse takes root, or a group that may open it")),
    };
    Finding { what: "fuse", found }
}

fn version(program: &str) -> Option<String> {
    let output = Command::new(program).arg("--version").stdin(Stdio::null()).output().ok()?;
    String::from_utf8_lossy(&output.stdout).lines().next().map(ToOwned::to_owned)
}

fn fusermount() -> Finding {
    let found = match (version("fusermount3"), rustix::process::geteuid().is_root()) {
        (Some(version), _) => Ok(version),
        (None, true) => Ok("fusermount3 is not installed, and not needed by root".into()),
        (None, false) => {
            Err("fusermount3 is not installed: --fuse works as root or in a user namespace (package fuse3)"
                .into())
        }
    };
    Finding { what: "fusermount3", found }
}

fn program(name: &'static str, why: &str) -> Finding {
    let found = version(name).ok_or_else(|| format!("{name} is not installed; {why}"));
    Finding { what: name, found }
}

fn number(path: &str) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn watches() -> Finding {
    let found = match number("/proc/sys/fs/inotify/max_user_watches") {
        Some(watches @ 1024..) => Ok(format!("{watches} directories of refs can be watched")),
        Some(watches) => Err(format!("only {watches} inotify watches: raise fs.inotify.max_user_watches")),
        None => Err("no inotify: what others do to refs is seen by asking every second".into()),
    };
    Finding { what: "inotify", found }
}

fn descriptors() -> Finding {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let found = match limit {
        Some(limit @ ..1024) => {
            Err(format!("{limit} open files: raise it (ulimit -n) to serve many clients"))
        }
        Some(limit) => Ok(format!("{limit} open files")),
        None => Ok("any number of open files".into()),
    };
    Finding { what: "files", found }
}

/// What is left to do in a repository, and whether there is room for it.
fn repository(path: &Path) -> Result<[Finding; 3], Failure> {
    let survey = Survey::of(path).map_err(|error| Failure::usage(format!("--git: {error}")))?;
    let Survey { small_packs: packs, oldest_small_pack: oldest, .. } = survey;
    let packs = match oldest {
        None => Ok("no small packs wait to be made into a larger one".into()),
        Some(age) if age < SMALL_PACK_AGE_MAX => Ok(format!("{packs} small packs, {} s old", age.as_secs())),
        Some(age) => Err(format!(
            "{packs} small packs since {} s: the server cannot pack them (its log says why), or died; serve it again",
            age.as_secs()
        )),
    };
    let journals = match (survey.journals_alive, survey.journals_dead) {
        (alive, 0) => Ok(format!("{alive} journals, of servers that run")),
        (_, dead) => {
            Err(format!("{dead} journals of servers that died: the next `datakit serve` replays them"))
        }
    };
    let room = match survey.free_bytes >> 20 {
        free @ ..64 => Err(format!("only {free} MiB are free: commits will fail; make room")),
        free => Ok(format!("{free} MiB are free")),
    };
    Ok([
        Finding { what: "packs", found: packs },
        Finding { what: "journals", found: journals },
        Finding { what: "room", found: room },
    ])
}

fn v9fs() -> Finding {
    let found = match std::fs::read_to_string("/proc/filesystems") {
        Ok(list) if list.lines().any(|line| line.trim_end().ends_with("\t9p")) => {
            Ok("this kernel mounts 9P: mount -t 9p -o trans=tcp,port=5640,version=9p2000.L".into())
        }
        _ => Err("this kernel has no 9P client (modprobe 9p 9pnet); use --fuse or `datakit mount`".into()),
    };
    Finding { what: "v9fs", found }
}
