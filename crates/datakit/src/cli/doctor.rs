//! `datakit doctor`: what this host offers.

use std::io::Write;
use std::process::{Command, Stdio};

use super::Failure;

/// What to look at.
#[derive(clap::Args)]
pub struct Arguments {}

/// One finding.
struct Finding {
    what: &'static str,
    /// `Err` is that something does not work, and what to do about it.
    found: Result<String, String>,
}

/// Prints a line for each thing.
pub fn run(_: &Arguments) -> Result<(), Failure> {
    let findings = vec![
        fuse(),
        fusermount(),
        program("git", "needed for --auto-push over ssh"),
        watches(),
        descriptors(),
        v9fs(),
    ];
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

fn v9fs() -> Finding {
    let found = match std::fs::read_to_string("/proc/filesystems") {
        Ok(list) if list.lines().any(|line| line.trim_end().ends_with("\t9p")) => {
            Ok("this kernel mounts 9P: mount -t 9p -o trans=tcp,port=5640,version=9p2000.L".into())
        }
        _ => Err("this kernel has no 9P client (modprobe 9p 9pnet); use --fuse or `datakit mount`".into()),
    };
    Finding { what: "v9fs", found }
}
