//! Linux: renameat2(2), inotify(7).

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, RenameFlags, inotify, renameat_with};

/// Exchanges two names in one step.
pub(crate) fn exchange(a: &Path, b: &Path) -> io::Result<()> {
    Ok(renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE)?)
}

/// Tells which names in watched directories changed.
pub(crate) struct Watch {
    fd: OwnedFd,
    directories: HashMap<i32, PathBuf>,
}

impl Watch {
    pub fn new() -> io::Result<Watch> {
        let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        Ok(Watch { fd, directories: HashMap::new() })
    }

    /// Watches a directory, not what is below it; once more is nothing.
    pub fn add(&mut self, directory: &Path) -> io::Result<()> {
        use inotify::WatchFlags as Flags;
        let flags = Flags::CREATE | Flags::MOVED_TO | Flags::DELETE | Flags::CLOSE_WRITE | Flags::ONLYDIR;
        let id = inotify::add_watch(&self.fd, directory, flags)?;
        self.directories.insert(id, directory.to_owned());
        Ok(())
    }

    /// The paths that changed; empty when the time is up or when too much changed to be told.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<Vec<PathBuf>> {
        let timeout = Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        };
        match poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], Some(&timeout)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(Vec::new()),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        let mut buffer = [MaybeUninit::uninit(); 16 << 10];
        let mut reader = inotify::Reader::new(&self.fd, &mut buffer);
        let mut changed = Vec::new();
        loop {
            let event = match reader.next() {
                Ok(event) => event,
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => break,
                Err(error) => return Err(error.into()),
            };
            if event.events().contains(inotify::ReadFlags::QUEUE_OVERFLOW) {
                return Ok(Vec::new());
            }
            if let (Some(directory), Some(name)) = (self.directories.get(&event.wd()), event.file_name()) {
                changed.push(directory.join(OsStr::from_bytes(name.to_bytes())));
            }
            if reader.is_buffer_empty() {
                break;
            }
        }
        Ok(changed)
    }
}
