//! Refs as files: read, locked and moved the way git does it, so that git and we can do it at once.
//!
//! A ref is moved in two steps, so that what it points to can be made durable between them: [`Refs::lock`] takes git's own
//! lock file and checks the old value, [`Locked::publish`] moves the ref and lets go. Deleting, and refs that are
//! symbolic, are left to `gix`.
//!
//! Spec: gitrepository-layout(5), git's lockfile.h and refs/files-backend.c.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use gix::bstr::{BString, ByteSlice};

use crate::backend::{RefEdit, RefName, WriteError};
use crate::disk::Disk;
use crate::{HashKind, ObjectId, parse_id};

/// How long we wait for another program's lock, as git does by default for packed-refs.
const LOCK_WAIT: Duration = Duration::from_millis(1000);

/// Packed refs as they were read.
type PackedRefs = Arc<Vec<(BString, ObjectId)>>;

/// What tells one packed-refs file from another.
type Stamp = (SystemTime, u64, u64);

/// The refs of a repository.
pub(crate) struct Refs {
    folder: PathBuf,
    hash: HashKind,
    disk: Disk,
    packed: Mutex<(Option<Stamp>, PackedRefs)>,
}

/// A ref that is locked and where the edit expects it.
pub(crate) struct Locked {
    path: PathBuf,
    lock: PathBuf,
    exists: bool,
    is_done: bool,
}

impl Refs {
    pub fn new(folder: PathBuf, hash: HashKind, disk: Disk) -> Refs {
        Refs { folder, hash, disk, packed: Mutex::default() }
    }

    pub fn path(&self, name: &RefName) -> PathBuf {
        self.folder.join(OsStr::from_bytes(name.as_bstr()))
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn lock_path(&self, name: &RefName) -> PathBuf {
        let mut lock = self.path(name).into_os_string();
        lock.push(".lock");
        PathBuf::from(lock)
    }

    /// What a ref points to. A symbolic one is followed.
    pub fn try_find(&self, name: &RefName) -> io::Result<Option<ObjectId>> {
        let mut name = name.clone();
        for _ in 0..5 {
            let text = match fs::read(self.path(&name)) {
                Ok(text) => text,
                Err(error) if is_absent(&error) => return self.try_find_packed(&name),
                Err(error) => return Err(error),
            };
            let Some(target) = text.strip_prefix(b"ref:") else {
                let id = parse_id(self.hash, text.trim_end());
                return id.map(Some).map_err(|error| io::Error::other(format!("{name} is damaged: {error}")));
            };
            name =
                RefName::new(target.trim()).ok_or_else(|| io::Error::other(format!("{name} is damaged")))?;
        }
        Err(io::Error::other(format!("{name} is a ref to a ref to a ref too often")))
    }

    fn try_find_packed(&self, name: &RefName) -> io::Result<Option<ObjectId>> {
        let packed = self.packed()?;
        let found = packed.binary_search_by(|(packed, _)| packed.as_bstr().cmp(name.as_bstr()));
        Ok(found.ok().map(|n| packed[n].1))
    }

    fn packed(&self) -> io::Result<PackedRefs> {
        use std::os::unix::fs::MetadataExt;
        let path = self.folder.join("packed-refs");
        let mut held = self.packed.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = match fs::metadata(&path) {
            Ok(found) => Some((found.modified()?, found.len(), found.ino())),
            Err(error) if is_absent(&error) => None,
            Err(error) => return Err(error),
        };
        if held.0 != stamp {
            let text = if stamp.is_some() { fs::read(&path)? } else { Vec::new() };
            let refs = parse_packed(self.hash, &text);
            *held = (stamp, Arc::new(refs));
        }
        Ok(held.1.clone())
    }

    /// All refs whose full name begins with `prefix`, a directory. Damaged ones are left out.
    pub fn list(&self, prefix: &str) -> io::Result<Vec<(RefName, ObjectId)>> {
        let mut found = std::collections::BTreeMap::new();
        let mut folders = vec![self.folder.join(prefix)];
        // Loose first: a ref that is packed meanwhile is then found in the packed ones.
        while let Some(folder) = folders.pop() {
            let entries = match fs::read_dir(&folder) {
                Ok(entries) => entries,
                Err(error) if is_absent(&error) => continue,
                Err(error) => return Err(error),
            };
            for entry in entries {
                let path = entry?.path();
                if path.is_dir() {
                    folders.push(path);
                } else if let Some(name) = self.name(&path)
                    && let Ok(Some(id)) = self.try_find(&name)
                {
                    found.insert(name, id);
                }
            }
        }
        for (name, id) in self.packed()?.iter().filter(|(name, _)| name.starts_with(prefix.as_bytes())) {
            if let Some(name) = RefName::new(name.clone()) {
                found.entry(name).or_insert(*id);
            }
        }
        Ok(found.into_iter().collect())
    }

    /// The ref that a file is; none for locks.
    pub fn name(&self, path: &Path) -> Option<RefName> {
        let relative = path.strip_prefix(&self.folder).ok()?;
        RefName::new(relative.as_os_str().as_bytes())
    }

    /// Locks a ref and checks that it is where the edit expects it. The lock holds the new value, for
    /// [`Locked::publish`]. `None`: it is not for us, but for `gix`.
    pub fn lock(&self, edit: &RefEdit) -> Result<Option<Locked>, WriteError> {
        self.lock_with(edit, line(edit.new).as_bytes())
    }

    /// The same with an empty lock: what the ref is to be is said by [`Locked::publish_at`].
    pub fn lock_empty(&self, edit: &RefEdit) -> Result<Option<Locked>, WriteError> {
        self.lock_with(edit, b"")
    }

    /// Whether an edit is ours to make.
    pub fn is_ours(&self, edit: &RefEdit) -> bool {
        edit.new.is_some() && !fs::read(self.path(&edit.name)).is_ok_and(|text| text.starts_with(b"ref:"))
    }

    fn lock_with(&self, edit: &RefEdit, text: &[u8]) -> Result<Option<Locked>, WriteError> {
        if !self.is_ours(edit) {
            return Ok(None);
        }
        let (path, lock) = (self.path(&edit.name), self.lock_path(&edit.name));
        self.take(&edit.name, &lock, text)?;
        let exists = fs::symlink_metadata(&path).is_ok_and(|found| found.is_file());
        let locked = Locked { exists, path, lock, is_done: false };
        let found = self.try_find(&edit.name).map_err(|error| failed(&edit.name, error))?;
        if found != edit.old {
            return Err(WriteError::Moved { name: edit.name.clone(), expected: edit.old, found });
        }
        if found.is_none() {
            self.check_clash(&edit.name)?;
        }
        Ok(Some(locked))
    }

    fn take(&self, name: &RefName, lock: &Path, text: &[u8]) -> Result<(), WriteError> {
        let deadline = Instant::now() + LOCK_WAIT;
        loop {
            match self.disk.create(lock, text) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                    if Instant::now() > deadline {
                        return Err(WriteError::Locked { name: name.clone(), path: lock.to_owned() });
                    }
                    std::thread::sleep(Duration::from_micros(500));
                }
                Err(error) if error.kind() == ErrorKind::NotFound && Instant::now() < deadline => {
                    let folder = lock.parent().unwrap_or(lock);
                    match fs::create_dir_all(folder) {
                        Ok(()) => {}
                        Err(error) if is_absent(&error) || error.kind() == ErrorKind::AlreadyExists => {
                            self.check_clash(name)?;
                        }
                        Err(error) => return Err(failed(name, error)),
                    }
                }
                Err(error) if error.kind() == ErrorKind::NotADirectory => {
                    self.check_clash(name)?;
                    return Err(failed(name, error));
                }
                Err(error) => return Err(failed(name, error)),
            }
        }
    }

    /// `a` and `a/b` cannot both be refs.
    fn check_clash(&self, name: &RefName) -> Result<(), WriteError> {
        let clash = |other: RefName| WriteError::NameClash { name: name.clone(), other };
        let full = name.as_bstr();
        for at in full.find_iter("/").skip(2) {
            let outer = RefName::new(&full[..at]);
            if let Some(outer) = outer.filter(|outer| self.try_find(outer).is_ok_and(|found| found.is_some()))
            {
                return Err(clash(outer));
            }
        }
        let below = format!("{full}/");
        let inner = self.list(&below).map_err(|error| failed(name, error))?;
        inner.into_iter().next().map_or(Ok(()), |(inner, _)| Err(clash(inner)))
    }
}

impl Locked {
    /// Moves the ref to the value that its lock holds, and unlocks it.
    pub fn publish(mut self, disk: &Disk) -> io::Result<()> {
        self.put(disk)?;
        self.is_done = true;
        Ok(())
    }

    fn put(&self, disk: &Disk) -> io::Result<()> {
        if self.exists {
            return disk.replace(&self.lock, &self.path);
        }
        if self.path.is_dir() {
            remove_empty(&self.path);
        }
        disk.rename(&self.lock, &self.path)
    }

    /// Moves the ref to a value, and unlocks it.
    ///
    /// # Errors
    /// The lock comes back, so that it can be tried again.
    pub fn publish_at(mut self, disk: &Disk, new: ObjectId) -> Result<(), (Locked, io::Error)> {
        let made = disk.overwrite(&self.lock, line(Some(new)).as_bytes()).and_then(|()| self.put(disk));
        match made {
            Ok(()) => {
                self.is_done = true;
                Ok(())
            }
            Err(error) => Err((self, error)),
        }
    }

    /// Moves the ref to a value and keeps it locked. `spare` is a path for a file on the way.
    pub fn publish_and_keep(&mut self, disk: &Disk, new: ObjectId, spare: &Path) -> io::Result<()> {
        fs::remove_file(spare).ok();
        disk.create(spare, line(Some(new)).as_bytes())?;
        if self.exists {
            return disk.replace(spare, &self.path);
        }
        disk.rename(spare, &self.path)?;
        self.exists = true;
        Ok(())
    }
}

/// Reads `packed-refs`; sorted. What is no ref is left out.
pub(crate) fn parse_packed(hash: HashKind, text: &[u8]) -> Vec<(BString, ObjectId)> {
    let lines = text.lines().filter(|line| !line.starts_with(b"#") && !line.starts_with(b"^"));
    let mut refs: Vec<(BString, ObjectId)> = lines
        .filter_map(|line| {
            let (id, name) = line.split_once_str(" ")?;
            Some((BString::from(name), parse_id(hash, id).ok()?))
        })
        .collect();
    refs.sort();
    refs
}

/// What the file of a ref says.
fn line(id: Option<ObjectId>) -> String {
    id.map_or_else(String::new, |id| format!("{id}\n"))
}

impl Drop for Locked {
    fn drop(&mut self) {
        if !self.is_done {
            fs::remove_file(&self.lock).ok();
        }
    }
}

/// Removes a directory of directories in which no files are.
fn remove_empty(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        remove_empty(&entry.path());
    }
    fs::remove_dir(folder).ok();
}

/// Whether there is no such file, nor could be: what was a directory is a file now, or the other way round.
pub(crate) fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::IsADirectory)
}

fn failed(name: &RefName, error: io::Error) -> WriteError {
    WriteError::Io { action: format!("{name} cannot be moved"), source: Arc::new(error) }
}
