//! Network namespaces, named as people name them, and how to get into one that belongs to another user namespace.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::sys::linux::owner_of_namespace;

/// Where ip-netns(8) keeps its namespaces.
const NAMED: &str = "/run/netns";

/// A network namespace: of a process, by path, or by its name for ip-netns(8).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    given: String,
    path: PathBuf,
}

/// Why a namespace cannot be entered.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message documents its variant")]
pub enum NamespaceError {
    #[error("there is no network namespace {given} ({} cannot be opened)", path.display())]
    Open { given: String, path: PathBuf, source: io::Error },
    #[error("{given} is no network namespace")]
    NotOne { given: String, source: io::Error },
    #[error("the user namespace of {given} may not be entered: run as the user who made it, or as root")]
    User { given: String, source: io::Error },
    #[error("the network namespace {given} may not be entered")]
    Enter { given: String, source: io::Error },
}

impl FromStr for Namespace {
    type Err = std::convert::Infallible;

    /// Digits alone are a process, what has a slash is a path, anything else a name.
    fn from_str(given: &str) -> Result<Self, Self::Err> {
        let path = if !given.is_empty() && given.bytes().all(|byte| byte.is_ascii_digit()) {
            PathBuf::from(format!("/proc/{given}/ns/net"))
        } else if given.contains('/') {
            PathBuf::from(given)
        } else {
            PathBuf::from(NAMED).join(given)
        };
        Ok(Self { given: given.to_owned(), path })
    }
}

impl Namespace {
    /// Errs for one that is not there.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn check(&self) -> Result<(), NamespaceError> {
        self.open().map(|_| ())
    }

    fn open(&self) -> Result<File, NamespaceError> {
        File::open(&self.path).map_err(|source| NamespaceError::Open {
            given: self.given.clone(),
            path: self.path.clone(),
            source,
        })
    }

    /// Moves the calling thread into the namespace for good, and into the user namespace that owns it if that is
    /// another. The latter needs a process of one thread: setns(2).
    ///
    /// # Errors
    /// When the namespace is not there, or may not be entered.
    pub fn enter(&self) -> Result<(), NamespaceError> {
        let given = || self.given.clone();
        let file = self.open()?;
        let owner = owner_of_namespace(file.as_fd())
            .map_err(|source| NamespaceError::NotOne { given: given(), source })?;
        let is_ours = is_same(&File::from(
            owner.try_clone().map_err(|source| NamespaceError::User { given: given(), source })?,
        ))
        .map_err(|source| NamespaceError::User { given: given(), source })?;
        if !is_ours {
            move_into_link_name_space(owner.as_fd(), Some(LinkNameSpaceType::User))
                .map_err(|error| NamespaceError::User { given: given(), source: error.into() })?;
        }
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(|error| NamespaceError::Enter { given: given(), source: error.into() })
    }
}

impl Namespace {
    /// Waits until the process that named the namespace has ended, or its path is gone. A device in a namespace keeps
    /// it alive, so that nothing else tells.
    ///
    /// # Errors
    /// When that cannot be watched.
    pub fn wait_until_gone(&self) -> io::Result<()> {
        match self.process() {
            Some(process) => wait_for_process(process),
            None => wait_for_removal(&self.path),
        }
    }

    /// The process that a path below /proc names.
    fn process(&self) -> Option<Pid> {
        let mut parts = self.path.strip_prefix("/proc").ok()?.components();
        let process = parts.next()?.as_os_str().to_str()?;
        if process == "self" { None } else { Pid::from_raw(process.parse().ok()?) }
    }
}

fn wait_for_process(process: Pid) -> io::Result<()> {
    let fd = match pidfd_open(process, PidfdFlags::empty()) {
        Ok(fd) => fd,
        Err(Errno::SRCH) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let mut wanted = [PollFd::new(&fd, PollFlags::IN)];
    loop {
        match poll(&mut wanted, None) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn wait_for_removal(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC)?;
    inotify::add_watch(&watch, folder, inotify::WatchFlags::DELETE | inotify::WatchFlags::MOVED_FROM)?;
    let mut events = [0; 4096];
    while path.exists() {
        match rustix::io::read(&watch, &mut events) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Whether a user namespace is the caller's own.
fn is_same(owner: &File) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let (theirs, ours) = (owner.metadata()?, std::fs::metadata("/proc/self/ns/user")?);
    Ok((theirs.dev(), theirs.ino()) == (ours.dev(), ours.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path_of(given: &str) -> PathBuf {
        let Ok(namespace) = given.parse::<Namespace>();
        namespace.path
    }

    #[test]
    fn processes_paths_and_names_are_told_apart() {
        assert_eq!(path_of("12"), PathBuf::from("/proc/12/ns/net"));
        assert_eq!(path_of("./12"), PathBuf::from("./12"));
        assert_eq!(path_of("lab-1"), PathBuf::from("/run/netns/lab-1"));
    }

    #[test]
    fn the_end_of_a_process_and_of_a_path_are_noticed() {
        let mut process = std::process::Command::new("sleep").arg("0.1").spawn().unwrap();
        let Ok(namespace) = process.id().to_string().parse::<Namespace>();
        namespace.wait_until_gone().unwrap();
        process.wait().unwrap();

        let path = std::env::temp_dir().join(format!("ethlink-gone-{}", std::process::id()));
        std::fs::write(&path, "").unwrap();
        let Ok(namespace) = path.to_str().unwrap().parse::<Namespace>();
        let waiting = std::thread::spawn(move || namespace.wait_until_gone());
        std::fs::remove_file(&path).unwrap();
        waiting.join().unwrap().unwrap();
    }

    #[test]
    fn what_is_no_namespace_is_refused_by_name() {
        let Ok(namespace) = "/dev/null".parse::<Namespace>();
        assert_eq!(namespace.enter().unwrap_err().to_string(), "/dev/null is no network namespace");
        let Ok(namespace) = "not-there".parse::<Namespace>();
        let message = namespace.enter().unwrap_err().to_string();
        assert!(message.starts_with("there is no network namespace not-there"), "{message}");
    }
}
