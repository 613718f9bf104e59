//! The cache folder: what is where, one builder at a time, nothing half done under a final name.
//!
//! ```text
//! lock                     held by the one who builds
//! tmp/                     work in progress; emptied by the next builder
//! archive/SHA256           fetched indexes and packages, verified (`.part`: not yet whole)
//! release/HASH             last verified InRelease of each suite, for --offline
//! kernel/KEY/              vmlinux and modules of one kernel package
//! images/ID/               image.json, initramfs.cpio, rootfs.erofs
//! requests/HASH            ID of the image that a request gave last
//! ```

use std::collections::HashSet;
use std::fs::{DirBuilder, File};
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::error::{BuildError, IoContext};

/// What is known about a finished image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// Content address of the image.
    pub id: String,
    /// Key below `kernel/`.
    pub kernel_key: String,
    /// Release of the kernel, like `6.1.0-56-amd64`.
    pub kernel_version: String,
    /// Whether there is a root file system.
    pub has_rootfs: bool,
    /// `name version` of every package that went into it.
    pub packages: Vec<String>,
    /// Hashes of the packages' files, for pruning.
    pub archives: Vec<String>,
}

/// One line of [`crate::list`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedImage {
    /// Content address.
    pub id: String,
    /// Release of the kernel.
    pub kernel_version: String,
    /// Packages, `name version`.
    pub packages: Vec<String>,
    /// Size on disk of what only this image has (not its kernel), in bytes.
    pub bytes: u64,
    /// When it was last asked for.
    pub used: SystemTime,
}

/// Held while building; released when dropped, or by the kernel when the process dies.
pub struct Lock {
    _file: File,
}

/// A cache folder.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// Names a cache folder; it need not exist.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// Path of something in the cache.
    pub fn path(&self, folder: &str, name: &str) -> PathBuf {
        self.root.join(folder).join(name)
    }

    /// Makes the folders and waits until no other builder is at work; `on_wait` is called before waiting.
    ///
    /// # Errors
    /// [`BuildError::Io`].
    pub fn lock(&self, on_wait: impl FnOnce()) -> Result<Lock, BuildError> {
        for folder in ["archive", "release", "kernel", "images", "requests"] {
            make_folder(&self.root.join(folder))?;
        }
        let path = self.root.join("lock");
        let file =
            File::options().create(true).truncate(false).write(true).open(&path).at("cannot open", &path)?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            on_wait();
            loop {
                match flock(&file, FlockOperation::LockExclusive) {
                    Err(rustix::io::Errno::INTR) => {}
                    result => break result.map_err(Into::into).at("cannot lock", &path)?,
                }
            }
        }
        let tmp = self.root.join("tmp");
        if tmp.exists() {
            std::fs::remove_dir_all(&tmp).at("cannot remove", &tmp)?;
        }
        make_folder(&tmp)?;
        Ok(Lock { _file: file })
    }

    /// Path for work in progress; the lock must be held.
    pub fn temporary(&self, name: &str) -> PathBuf {
        self.root.join("tmp").join(name)
    }

    /// Writes a small file so that it is there whole or not at all; the lock must be held.
    ///
    /// # Errors
    /// [`BuildError::Io`], [`BuildError::NoSpace`].
    pub fn write(&self, folder: &str, name: &str, bytes: &[u8]) -> Result<(), BuildError> {
        let (path, tmp) = (self.path(folder, name), self.temporary(&format!("{folder}-{name}")));
        let mut file = File::create(&tmp).at("cannot write", &tmp)?;
        file.write_all(bytes).at("cannot write", &tmp)?;
        file.sync_all().at("cannot write", &tmp)?;
        std::fs::rename(&tmp, &path).at("cannot write", &path)
    }

    /// Puts a folder of [`Self::temporary`] in its final place, instead of what is there; the lock must be held.
    ///
    /// # Errors
    /// [`BuildError::Io`].
    pub fn commit_folder(&self, tmp: &Path, folder: &str, name: &str) -> Result<(), BuildError> {
        let path = self.path(folder, name);
        if path.exists() {
            std::fs::remove_dir_all(&path).at("cannot remove", &path)?;
        }
        std::fs::rename(tmp, &path).at("cannot write", &path)
    }

    /// Record of the image that a request gave last, if all of it is still there. Reads two small files.
    pub fn find_request(&self, request: &str) -> Option<ImageRecord> {
        let id = std::fs::read_to_string(self.path("requests", request)).ok()?;
        self.find_whole_image(id.trim())
    }

    /// Record of an image, if all of its files and its kernel are there.
    pub fn find_whole_image(&self, id: &str) -> Option<ImageRecord> {
        let record = self.find_image(id)?;
        let kernel = self.path("kernel", &record.kernel_key).join("vmlinux");
        let image = self.path("images", &record.id);
        let has_rootfs = !record.has_rootfs || image.join("rootfs.erofs").exists();
        (kernel.exists() && image.join("initramfs.cpio").exists() && has_rootfs).then_some(record)
    }

    /// Record of an image by its id. A record that cannot be read counts as none.
    fn find_image(&self, id: &str) -> Option<ImageRecord> {
        if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let bytes = std::fs::read(self.path("images", id).join("image.json")).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// All images, the one used last first.
    ///
    /// # Errors
    /// [`BuildError::Io`].
    pub fn list(&self) -> Result<Vec<CachedImage>, BuildError> {
        let mut images = Vec::new();
        for id in names(&self.root.join("images"))? {
            let Some(record) = self.find_image(&id) else { continue };
            let folder = self.path("images", &id);
            images.push(CachedImage {
                id,
                kernel_version: record.kernel_version,
                packages: record.packages,
                bytes: size_of(&folder),
                used: used(&folder),
            });
        }
        images.sort_by(|a, b| b.used.cmp(&a.used).then_with(|| a.id.cmp(&b.id)));
        Ok(images)
    }

    /// Notes that an image was used now.
    pub fn touch(&self, id: &str) {
        if let Ok(file) = File::open(self.path("images", id).join("image.json")) {
            // Only the order of `list` depends on it; a cache that cannot be written is still good to read.
            let _ = file.set_modified(SystemTime::now());
        }
    }

    /// Removes all but the `keep` images used last, and what no image needs; returns the bytes freed.
    ///
    /// # Errors
    /// [`BuildError::Io`].
    pub fn prune(&self, keep: usize) -> Result<u64, BuildError> {
        let _lock = self.lock(|| {})?;
        let images = self.list()?;
        let mut kept: HashSet<String> = HashSet::new();
        let (mut kernels, mut archives) = (HashSet::new(), HashSet::new());
        for image in images.iter().take(keep) {
            if let Some(record) = self.find_image(&image.id) {
                kept.insert(record.id);
                kernels.insert(record.kernel_key);
                archives.extend(record.archives);
            }
        }
        let mut freed = 0;
        for (folder, keeps) in [("images", &kept), ("kernel", &kernels), ("archive", &archives)] {
            for name in names(&self.root.join(folder))?.into_iter().filter(|name| !keeps.contains(name)) {
                freed += remove(&self.path(folder, &name))?;
            }
        }
        for name in names(&self.root.join("requests"))? {
            let path = self.path("requests", &name);
            if !std::fs::read_to_string(&path).is_ok_and(|id| kept.contains(id.trim())) {
                freed += remove(&path)?;
            }
        }
        Ok(freed)
    }
}

fn make_folder(path: &Path) -> Result<(), BuildError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).at("cannot make the folder", path)
}

fn names(folder: &Path) -> Result<Vec<String>, BuildError> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.at("cannot read", folder)?,
    };
    let mut names: Vec<_> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    Ok(names)
}

fn size_of(path: &Path) -> u64 {
    let Ok(metadata) = std::fs::symlink_metadata(path) else { return 0 };
    if !metadata.is_dir() {
        return metadata.len();
    }
    std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| size_of(&entry.path())).sum()
}

fn used(image: &Path) -> SystemTime {
    std::fs::metadata(image.join("image.json"))
        .and_then(|metadata| metadata.modified())
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

fn remove(path: &Path) -> Result<u64, BuildError> {
    let bytes = size_of(path);
    if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }
        .at("cannot remove", path)?;
    Ok(bytes)
}
