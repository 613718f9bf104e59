//! Every write to disk goes through here, so that tests can make any of them fail.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

/// A step that changes the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// A file is made.
    Create,
    /// Bytes are written.
    Write,
    /// A file or directory is forced to disk.
    Sync,
    /// A file gets its final name.
    Rename,
}

/// Decides whether a step fails. For tests of what happens when a disk does.
pub type Fault = dyn Fn(Step, &Path) -> io::Result<()> + Send + Sync;

/// The disk, or one that fails.
#[derive(Clone, Default)]
pub struct Disk {
    fault: Option<Arc<Fault>>,
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk").field("has_fault", &self.fault.is_some()).finish()
    }
}

impl Disk {
    /// A disk on which a step fails when `fault` says so.
    pub fn with_fault(fault: Arc<Fault>) -> Disk {
        Disk { fault: Some(fault) }
    }

    fn may(&self, step: Step, path: &Path) -> io::Result<()> {
        self.fault.as_ref().map_or(Ok(()), |fault| fault(step, path))
    }

    /// Makes a file that must not exist, with this content.
    pub(crate) fn create(&self, path: &Path, bytes: &[u8]) -> io::Result<File> {
        self.may(Step::Create, path)?;
        let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
        if let Err(error) = self.may(Step::Write, path).and_then(|()| file.write_all(bytes)) {
            std::fs::remove_file(path).ok();
            return Err(error);
        }
        Ok(file)
    }

    /// Writes into a file that exists and has at most as many bytes.
    pub(crate) fn overwrite(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(path)?;
        self.write_at(&file, path, bytes, 0)
    }

    /// Writes at an offset.
    pub(crate) fn write_at(&self, file: &File, path: &Path, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.may(Step::Write, path)?;
        std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
    }

    /// Forces content to disk.
    pub(crate) fn sync(&self, file: &File, path: &Path) -> io::Result<()> {
        self.may(Step::Sync, path)?;
        file.sync_data()
    }

    /// Forces a file or directory by name to disk.
    pub(crate) fn sync_path(&self, path: &Path) -> io::Result<()> {
        self.may(Step::Sync, path)?;
        File::open(path)?.sync_all()
    }

    /// Gives a file another name, replacing what has it.
    pub(crate) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.may(Step::Rename, to)?;
        std::fs::rename(from, to)
    }

    /// Puts `new` in the place of `old`, which must exist, and removes `old`. Where the system can exchange two names it
    /// does: ext4 starts writing to disk on every rename that replaces a file.
    pub(crate) fn replace(&self, new: &Path, old: &Path) -> io::Result<()> {
        self.may(Step::Rename, old)?;
        match crate::sys::exchange(new, old) {
            Ok(()) => std::fs::remove_file(new),
            Err(_) => std::fs::rename(new, old),
        }
    }
}
