//! Files whose lock says that who made them lives.
//!
//! Several servers may come and go in one repository at once. So a file may be found, and even removed, between its
//! making and its locking; and who makes it, or finds it, looks whether it is still the one of that name.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

/// Makes a file and locks it, until it is dropped.
///
/// # Errors
/// When there is one of that name, or the disk fails.
pub(crate) fn create(path: &Path) -> io::Result<File> {
    loop {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        // Waits for somebody who takes it for a dead one's, or only looks at it.
        flock(&file, FlockOperation::LockExclusive)?;
        if is_at(&file, path)? {
            return Ok(file);
        }
    }
}

/// Opens and locks what a dead process left; `None` when its maker lives, or it is gone.
///
/// # Errors
/// When the disk fails.
pub(crate) fn inherit(path: &Path) -> io::Result<Option<File>> {
    let file = match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(is_at(&file, path)?.then_some(file)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether this is still the file of that name.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match fs::metadata(path) {
        Ok(found) => Ok((found.dev(), found.ino()) == (ours.dev(), ours.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::sync::atomic::{AtomicBool, Ordering};

    /// Who makes a file holds the one of that name, whoever else looks for what the dead left.
    #[test]
    fn a_file_that_is_being_made_is_not_taken_for_a_dead_ones() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal-1");
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        if let Some(_dead) = inherit(&path).unwrap() {
                            fs::remove_file(&path).unwrap();
                        }
                    }
                });
            }
            let maker = scope.spawn(|| {
                for _ in 0..20_000 {
                    let file = create(&path).unwrap();
                    assert!(inherit(&path).unwrap().is_none());
                    assert!(is_at(&file, &path).unwrap());
                    fs::remove_file(&path).unwrap();
                }
            });
            let made = maker.join();
            stop.store(true, Ordering::Relaxed);
            made.unwrap();
        });
    }

    #[test]
    fn what_the_dead_left_is_one_heirs() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal-1");
        assert!(inherit(&path).unwrap().is_none());
        drop(create(&path).unwrap());
        let held = inherit(&path).unwrap();
        assert!(held.is_some());
        assert!(inherit(&path).unwrap().is_none());
    }
}
