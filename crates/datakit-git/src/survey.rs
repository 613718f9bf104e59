//! What servers have left to do in a repository, as anybody can see it from outside.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::Duration;

use crate::OpenError;

/// What was found. Nothing is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Survey {
    /// Packs of single batches, which are to be made into larger ones.
    pub small_packs: usize,
    /// The age of the oldest of them.
    pub oldest_small_pack: Option<Duration>,
    /// Journals of processes that live.
    pub journals_alive: usize,
    /// Journals of processes that died, to be replayed by the next start.
    pub journals_dead: usize,
    /// Room on the disk, in bytes, for those who are not root.
    pub free_bytes: u64,
}

impl Survey {
    /// Looks at a repository.
    ///
    /// # Errors
    /// [`OpenError`] when it is none, or cannot be read.
    pub fn of(path: &Path) -> Result<Survey, OpenError> {
        let repo = gix::ThreadSafeRepository::open_opts(path, gix::open::Options::isolated())
            .map_err(|error| OpenError::NotRepository { path: path.to_owned(), detail: error.to_string() })?;
        let repo = repo.to_thread_local();
        let look = || -> io::Result<Survey> {
            let disk = rustix::fs::statvfs(repo.common_dir())?;
            let mut survey = Survey {
                small_packs: 0,
                oldest_small_pack: None,
                journals_alive: 0,
                journals_dead: 0,
                free_bytes: disk.f_bavail.saturating_mul(disk.f_frsize),
            };
            let packs = repo.objects.store_ref().path().join("pack");
            each(&packs, "pack-dk0-", |path| survey.add_pack(path))?;
            each(&repo.common_dir().join("datakit"), "journal-", |path| survey.add_journal(path))?;
            Ok(survey)
        };
        look().map_err(|source| OpenError::Io { path: path.to_owned(), source })
    }

    fn add_pack(&mut self, path: &Path) {
        if path.extension().is_none_or(|extension| extension != "pack") {
            return;
        }
        self.small_packs += 1;
        let age =
            fs::metadata(path).and_then(|found| found.modified()).ok().and_then(|time| time.elapsed().ok());
        self.oldest_small_pack = self.oldest_small_pack.max(age);
    }

    fn add_journal(&mut self, path: &Path) {
        let Ok(file) = File::open(path) else { return };
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockShared) {
            Ok(()) => self.journals_dead += 1,
            Err(_) => self.journals_alive += 1,
        }
    }
}

/// Each file of a folder, which need not exist, whose name begins so.
fn each(folder: &Path, prefix: &str, mut see: impl FnMut(&Path)) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix)) {
            see(&path);
        }
    }
    Ok(())
}
