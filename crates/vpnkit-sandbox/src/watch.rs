//! Follows files by the folders that they, and the links to them, are in: a file that is replaced, or a link that leads
//! elsewhere, is noticed like one that is written. inotify(7).

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;

/// Bytes read of a file; hosts files for blocking advertisements have a few megabytes.
pub const FILE_BYTES_MAX: u64 = 16 << 20;
/// How long writers are given to finish what they began.
const SETTLE: Duration = Duration::from_millis(50);
/// How often files are looked at whose folders cannot be watched.
const LOOK: Duration = Duration::from_secs(1);
/// Links followed to one file.
const LINKS_MAX: usize = 8;

type Stamp = Option<(SystemTime, u64, u64)>;

#[derive(Debug)]
struct Followed {
    path: PathBuf,
    stamp: Stamp,
    /// The names, of links and of the file, whose changes matter.
    names: Vec<Vec<u8>>,
}

/// Files that are followed.
#[derive(Debug)]
pub struct Watch {
    files: Vec<Followed>,
    queue: Option<OwnedFd>,
    /// Whether every folder is watched.
    whole: bool,
}

impl Watch {
    /// Begins to follow `paths`. Everything counts as changed at first.
    pub fn new(paths: Vec<PathBuf>) -> Self {
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let queue = inotify::init(flags).ok();
        let files = paths.into_iter().map(|path| Followed { path, stamp: None, names: Vec::new() }).collect();
        let mut watch = Self { files, queue, whole: true };
        watch.watch_folders();
        watch
    }

    /// All files as they are now.
    pub fn first(&mut self) -> Vec<(usize, Option<Vec<u8>>)> {
        (0..self.files.len())
            .map(|index| {
                let file = &mut self.files[index];
                file.stamp = stamp(&file.path);
                (index, read(&file.path))
            })
            .collect()
    }

    /// Waits until files change and returns those, with what is in them; a file that is missing has nothing.
    pub fn next(&mut self) -> Vec<(usize, Option<Vec<u8>>)> {
        loop {
            self.wait();
            self.watch_folders();
            let mut changed = Vec::new();
            for (index, file) in self.files.iter_mut().enumerate() {
                let now = stamp(&file.path);
                if now != file.stamp {
                    file.stamp = now;
                    changed.push((index, read(&file.path)));
                }
            }
            if !changed.is_empty() {
                return changed;
            }
        }
    }

    /// Watches the folders of all links on the way to each file, and of the file; and the file itself, which may be written by
    /// another name: one that is mounted in a container is written outside.
    fn watch_folders(&mut self) {
        let Some(queue) = &self.queue else { return self.whole = false };
        let flags = inotify::WatchFlags::CLOSE_WRITE
            | inotify::WatchFlags::CREATE
            | inotify::WatchFlags::DELETE
            | inotify::WatchFlags::MOVED_FROM
            | inotify::WatchFlags::MOVED_TO;
        let mut whole = true;
        for file in &mut self.files {
            file.names.clear();
            for step in steps(&file.path) {
                let folder = step.parent().filter(|folder| !folder.as_os_str().is_empty());
                whole &= inotify::add_watch(queue, folder.unwrap_or(Path::new(".")), flags).is_ok();
                if let Some(name) = step.file_name() {
                    file.names.push(name.as_bytes().to_vec());
                }
            }
            // One that is missing has no other name.
            let _ = inotify::add_watch(queue, &file.path, inotify::WatchFlags::CLOSE_WRITE);
        }
        self.whole = whole;
    }

    /// Waits for an event about a name that matters, or for the time to look.
    fn wait(&self) {
        let Some(queue) = &self.queue else { return std::thread::sleep(LOOK) };
        let look = Timespec { tv_sec: LOOK.as_secs().cast_signed(), tv_nsec: 0 };
        loop {
            let timeout = (!self.whole).then_some(&look);
            let waited = poll(&mut [PollFd::new(queue, PollFlags::IN)], timeout);
            if matches!(waited, Ok(0)) {
                return;
            }
            std::thread::sleep(SETTLE);
            if self.drain(queue) {
                return;
            }
        }
    }

    /// Takes all events; returns whether one of them matters.
    fn drain(&self, queue: &OwnedFd) -> bool {
        let mut matters = false;
        let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(queue, &mut buffer);
        while let Ok(event) = reader.next() {
            let name = event.file_name().map(|name| name.to_bytes());
            matters |= name.is_none_or(|name| {
                self.files.iter().any(|file| file.names.iter().any(|wanted| wanted == name))
            });
        }
        matters
    }
}

/// The path, and what each link on the way leads to.
fn steps(path: &Path) -> Vec<PathBuf> {
    let mut steps = vec![path.to_owned()];
    while steps.len() < LINKS_MAX {
        let last = &steps[steps.len() - 1];
        let Ok(target) = fs::read_link(last) else { break };
        let next = last.parent().unwrap_or(Path::new("/")).join(target);
        steps.push(next);
    }
    steps
}

fn stamp(path: &Path) -> Stamp {
    use std::os::unix::fs::MetadataExt;
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))
}

fn read(path: &Path) -> Option<Vec<u8>> {
    use std::io::Read;
    let file = fs::File::open(path).ok()?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).ok()?;
    (bytes.len() as u64 <= FILE_BYTES_MAX).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(changed: Vec<(usize, Option<Vec<u8>>)>) -> Vec<(usize, Option<String>)> {
        let text = |bytes: Option<Vec<u8>>| bytes.map(|bytes| String::from_utf8(bytes).unwrap());
        changed.into_iter().map(|(index, bytes)| (index, text(bytes))).collect()
    }

    #[test]
    fn files_are_followed_as_they_are_written_replaced_and_linked() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("real"), "one").unwrap();
        std::os::unix::fs::symlink("real", path("link")).unwrap();
        let mut watch = Watch::new(vec![path("link"), path("later")]);
        assert_eq!(text(watch.first()), [(0, Some("one".into())), (1, None)]);
        fs::write(path("real"), "two!").unwrap();
        assert_eq!(text(watch.next()), [(0, Some("two!".into()))]);
        fs::write(path("new"), "three").unwrap();
        fs::rename(path("new"), path("real")).unwrap();
        assert_eq!(text(watch.next()), [(0, Some("three".into()))]);
        // By another name, as a container's file is written from outside.
        let elsewhere = tempfile::tempdir().unwrap();
        fs::hard_link(path("real"), elsewhere.path().join("other")).unwrap();
        fs::write(elsewhere.path().join("other"), "from outside").unwrap();
        assert_eq!(text(watch.next()), [(0, Some("from outside".into()))]);
        fs::write(path("later"), "here").unwrap();
        assert_eq!(text(watch.next()), [(1, Some("here".into()))]);
        fs::remove_file(path("link")).unwrap();
        assert_eq!(text(watch.next()), [(0, None)]);
    }
}
