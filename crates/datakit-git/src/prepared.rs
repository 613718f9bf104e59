//! Large objects that are brought to the disk before the batch that has them.
//!
//! Whoever commits does it, so that the thread that writes batches only gives them their names.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::disk::Disk;
use crate::stored::{changed, fill, unfinished};
use crate::{HashKind, ObjectId, ObjectKind};

/// A large object that is on the disk, and not yet among the objects. It goes with its last handle.
pub struct Prepared {
    /// Where it is, until it has its name.
    path: Mutex<Option<PathBuf>>,
    size: u64,
}

impl fmt::Debug for Prepared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prepared").field("size", &self.size).finish_non_exhaustive()
    }
}

impl Prepared {
    /// What is being written as `path`, or was.
    pub(crate) fn new(path: PathBuf, size: u64) -> Prepared {
        Prepared { path: Mutex::new(Some(path)), size }
    }

    /// Its length in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Makes it the object `path`, if it is not yet.
    pub(crate) fn name(&self, disk: &Disk, path: &Path, is_durable: bool) -> io::Result<()> {
        let mut unnamed = self.path.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        if let Some(from) = &*unnamed {
            fs::create_dir_all(folder)?;
            disk.rename(from, path)?;
            *unnamed = None;
        }
        // Also when it has its name already: what failed may have been this.
        if is_durable { disk.sync_path(folder) } else { Ok(()) }
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        if let Some(path) = self.path.get_mut().unwrap_or_else(PoisonError::into_inner) {
            // It may be that it was never made.
            let _ = fs::remove_file(path);
        }
    }
}

/// Where large objects are prepared.
pub(crate) struct Place<'a> {
    pub disk: &'a Disk,
    /// `objects` of the repository.
    pub folder: &'a Path,
    pub is_durable: bool,
}

/// Writes the first `size` bytes of a file as a blob without a name yet, and returns its id. While it is written, another
/// thread looks for attacks on the hash, which takes the longest.
///
/// # Errors
/// What reading and writing fail with, and when the file changes meanwhile.
pub(crate) fn prepare(
    to: Place<'_>,
    hash: HashKind,
    file: &File,
    size: u64,
) -> io::Result<(ObjectId, Prepared)> {
    let path = unfinished(to.folder);
    let prepared = Prepared::new(path.clone(), size);
    std::thread::scope(|scope| {
        let hashing = std::thread::Builder::new().name("datakit-hash".into());
        let hashing = hashing.spawn_scoped(scope, || crate::hash_file(hash, ObjectKind::Blob, file, size))?;
        let what = (hash, ObjectKind::Blob, size);
        let filled = fill(to.disk, &path, what, &mut FromStart { file, position: 0 }, to.is_durable)?;
        let id = hashing.join().map_err(|_| io::Error::other("hashing failed"))??;
        if filled == id { Ok((id, prepared)) } else { Err(changed()) }
    })
}

/// Reads a shared file from its first byte, whatever its position.
struct FromStart<'a> {
    file: &'a File,
    position: u64,
}

impl Read for FromStart<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::io::Write as _;
    use std::sync::Arc;

    use super::*;
    use crate::Step;
    use crate::stored::Stored;

    fn source(size: usize) -> (Vec<u8>, File) {
        let bytes: Vec<u8> = (0..size).map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        (bytes, file)
    }

    fn files(folder: &Path) -> usize {
        fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn what_is_prepared_is_an_object_when_it_has_its_name_and_goes_without_one() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::default();
        // The longer one is forced to disk while it is written.
        for size in [1_500_000, 100_000_000] {
            let (bytes, file) = source(size);
            let place = Place { disk: &disk, folder: folder.path(), is_durable: true };
            let (id, prepared) = prepare(place, HashKind::Sha1, &file, size as u64).unwrap();
            assert_eq!(id, crate::hash(HashKind::Sha1, ObjectKind::Blob, &bytes));
            assert_eq!(files(folder.path()), 1);
            let path = folder.path().join("aa/object");
            prepared.name(&disk, &path, true).unwrap();
            // Once more, as a batch that is tried again does.
            prepared.name(&disk, &path, true).unwrap();
            drop(prepared);
            let stored = Stored::open(&Arc::new(File::open(&path).unwrap()), size as u64).unwrap().unwrap();
            let mut found = vec![0; size];
            stored.read_exact_at(0, &mut found).unwrap();
            assert!(found == bytes);
            fs::remove_dir_all(folder.path().join("aa")).unwrap();
            let place = Place { disk: &disk, folder: folder.path(), is_durable: false };
            drop(prepare(place, HashKind::Sha1, &file, size as u64).unwrap());
            assert_eq!(files(folder.path()), 0);
        }
    }

    #[test]
    fn a_name_that_did_not_reach_the_disk_is_brought_there_by_the_next_try() {
        let folder = tempfile::tempdir().unwrap();
        let (_, file) = source(2_000_000);
        let place = Place { disk: &Disk::default(), folder: folder.path(), is_durable: true };
        let (_, prepared) = prepare(place, HashKind::Sha1, &file, 2_000_000).unwrap();
        let failing = Disk::with_fault(Arc::new(|step, _: &Path| {
            if step == Step::Sync { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
        }));
        let path = folder.path().join("aa/object");
        for _ in 0..2 {
            assert!(prepared.name(&failing, &path, true).is_err());
        }
        prepared.name(&Disk::default(), &path, true).unwrap();
        assert!(path.exists());
    }

    #[test]
    fn a_disk_that_fails_or_a_file_that_is_short_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (_, file) = source(2_000_000);
        for step in [Step::Create, Step::Write, Step::Sync] {
            let disk = Disk::with_fault(Arc::new(move |now, _: &Path| {
                if now == step { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
            }));
            let place = Place { disk: &disk, folder: folder.path(), is_durable: true };
            assert!(prepare(place, HashKind::Sha1, &file, 2_000_000).is_err(), "{step:?}");
            assert_eq!(files(folder.path()), 0);
        }
        let place = Place { disk: &Disk::default(), folder: folder.path(), is_durable: true };
        assert!(prepare(place, HashKind::Sha1, &file, 2_000_001).is_err());
        assert_eq!(files(folder.path()), 0);
    }
}
