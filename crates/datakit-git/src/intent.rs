//! Which locks this process is about to take, for those who find them after its death.
//!
//! A lock file that a killed process leaves behind would stop every later writer, git included. So the names are written
//! down first; the next start removes the locks of the dead, and of nobody else: the file is locked while we live.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use gix::bstr::ByteSlice;

use crate::ObjectId;
use crate::alive;
use crate::backend::RefName;
use crate::refs::Refs;

/// Most bytes of names that are read back.
const BYTES_MAX: u64 = 16 << 20;

/// A ref that is to move: name, new value, old value.
pub(crate) type Noted<'a> = (&'a RefName, Option<ObjectId>, Option<ObjectId>);

/// The names, kept up to date by this process.
pub(crate) struct Intent {
    file: File,
    path: PathBuf,
}

impl Intent {
    pub fn create(folder: &Path, instance: &str) -> io::Result<Intent> {
        let path = folder.join(format!("intent-{instance}"));
        Ok(Intent { file: alive::create(&path)?, path })
    }

    /// Notes what is about to be locked, in place of what was noted before: name, new value, old value.
    pub fn note<'a>(&self, moves: impl Iterator<Item = Noted<'a>>) -> io::Result<()> {
        let mut text = Vec::new();
        for (name, new, old) in moves {
            text.extend_from_slice(name.as_bstr());
            let [new, old] = [new, old].map(|id| id.map_or_else(String::new, |id| id.to_string()));
            text.extend_from_slice(format!(" {new} {old}\n").as_bytes());
        }
        // An empty line ends it: what is behind is older.
        text.extend_from_slice(b"\n");
        std::os::unix::fs::FileExt::write_all_at(&self.file, &text, 0)
    }
}

impl Intent {
    /// Nothing is to be locked any more.
    pub fn end(&self) {
        fs::remove_file(&self.path).ok();
    }
}

impl Drop for Intent {
    fn drop(&mut self) {
        self.end();
    }
}

/// A process that died.
pub(crate) struct Dead {
    /// Its note, to be removed when all that it left is tidied up.
    pub note: PathBuf,
    /// What it called its packs by.
    pub instance: String,
    /// Held, so that nobody else tidies up at the same time.
    _lock: File,
}

/// Removes the locks that dead processes left behind; returns the dead.
pub(crate) fn recover(folder: &Path, refs: &Refs) -> io::Result<Vec<Dead>> {
    let mut dead = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let Some(instance) = name.and_then(|name| name.strip_prefix("intent-")).map(str::to_owned) else {
            continue;
        };
        let Ok(Some(file)) = alive::inherit(&path) else { continue };
        let mut text = Vec::new();
        (&file).take(BYTES_MAX).read_to_end(&mut text)?;
        for line in text.lines().take_while(|line| !line.is_empty()) {
            let Some((name, values)) = line.split_once_str(" ") else { continue };
            let Some((new, old)) = values.split_once_str(" ") else { continue };
            let Some(name) = RefName::new(name) else { continue };
            let lock = refs.lock_path(&name);
            let held = fs::read(&lock).unwrap_or_default();
            // While two names are exchanged the lock holds the old value for a moment.
            if [new, old, b""].contains(&held.trim_end()) {
                fs::remove_file(&lock).ok();
            }
            if new.is_empty() {
                remove_old_lock(&refs.folder().join("packed-refs.lock"));
            }
        }
        dead.push(Dead { note: path, instance, _lock: file });
    }
    Ok(dead)
}

/// Removes a lock that may be the dead process's, unless it is so young that it must be somebody else's.
fn remove_old_lock(lock: &Path) {
    let age = fs::metadata(lock).and_then(|found| found.modified()).ok().and_then(|time| time.elapsed().ok());
    if age.is_some_and(|age| age.as_secs() >= 1) {
        fs::remove_file(lock).ok();
    }
}
