//! Builds the guest kernel and file systems from Debian packages.
//!
//! [`build`] takes the host's apt sources (or a mirror that the caller names), verifies what it fetches as apt does,
//! and makes a kernel, an initramfs and, when packages are asked for, a root file system. It needs no root, mounts
//! nothing and runs no maintainer script. Everything is cached by content; [`try_cached`] answers without network.
//! No environment variable is read and nothing is printed: the caller passes folders, proxies and a [`Progress`].
#![forbid(unsafe_code)]

pub mod apt;
mod build;
pub mod cache;
mod cpio;
mod deb;
mod erofs;
mod error;
mod fetch;
mod initramfs;
mod kernel;
mod modules;
mod rootfs;
#[cfg(test)]
mod tests;
mod userland;
mod vmlinux;

use std::path::{Path, PathBuf};

pub use build::{build, try_cached};
pub use cache::CachedImage;
pub use error::BuildError;
pub use fetch::Proxies;

/// What to build.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// Base URL of an archive (`http:`, `https:` or `file:`) to use instead of the host's sources.
    pub mirror: Option<String>,
    /// Suite of `mirror`; without one, that of the host's release.
    pub suite: Option<String>,
    /// Packages of the root file system. With none, the guest is busybox in an initramfs.
    pub packages: Vec<String>,
    /// Use only what the cache has.
    pub offline: bool,
    /// Cache folder; made if it is missing.
    pub cache_dir: PathBuf,
    /// PID 1: a static x86-64 executable.
    pub init: &'a [u8],
    /// Folder that has `etc/apt` and `usr/share/keyrings`: `/`.
    pub apt_root: PathBuf,
    /// Proxies of the environment; those of apt's own configuration win.
    pub proxies: Proxies,
}

/// What a machine boots from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestImage {
    /// ELF kernel with a PVH note.
    pub kernel: PathBuf,
    /// Uncompressed initramfs.
    pub initramfs: PathBuf,
    /// Read-only image for the first virtio block device (`/dev/vda`), if packages were asked for.
    pub rootfs: Option<PathBuf>,
    /// Content address: the same inputs give the same.
    pub id: String,
    /// Release of the kernel.
    pub kernel_version: String,
    /// `name version` of all packages used.
    pub packages: Vec<String>,
}

/// Is told how far a build is. Called from the thread that builds.
pub trait Progress: Send + Sync {
    /// A stage begins; `total_bytes` when it is known.
    fn stage(&self, name: &str, total_bytes: Option<u64>);
    /// So many bytes more of the stage are done.
    fn advance(&self, bytes: u64);
    /// The last stage is done.
    fn finish(&self);
}

/// Cached images, the one used last first. A folder that does not exist has none.
///
/// # Errors
/// [`BuildError::Io`].
pub fn list(cache_dir: &Path) -> Result<Vec<CachedImage>, BuildError> {
    cache::Cache::new(cache_dir).list()
}

/// Removes all but the `keep` images used last, and the downloads that none of them needs; returns the bytes freed.
///
/// # Errors
/// [`BuildError::Io`].
pub fn prune(cache_dir: &Path, keep: usize) -> Result<u64, BuildError> {
    cache::Cache::new(cache_dir).prune(keep)
}
