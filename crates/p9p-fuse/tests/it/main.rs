//! Mounts by FUSE, used by real system calls and programs.
#![expect(clippy::unwrap_used, reason = "these are tests")]

mod hostdir;
mod lifecycle;
mod programs;
mod streams;

use std::path::Path;

use p9p::HostDir;
use p9p_fuse::{Mount, MountError, MountOptions};
use tempfile::TempDir;

/// A host directory and where it is mounted.
struct Mounted {
    mount: Option<Mount>,
    host: TempDir,
    _place: TempDir,
}

impl Mounted {
    /// `None`, and SKIP is said, where mounting is not possible.
    fn hostdir(options: MountOptions) -> Option<Self> {
        let (host, place) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let service = HostDir::new(host.path(), false).unwrap();
        let mount = mount(&service, place.path(), options)?;
        Some(Self { mount: Some(mount), host, _place: place })
    }

    fn path(&self) -> &Path {
        self.mount.as_ref().unwrap().path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.mount = None;
    }
}

/// Mounts, or says SKIP.
fn mount(service: &dyn p9p::Filesystem, place: &Path, options: MountOptions) -> Option<Mount> {
    match Mount::new(service, place, options) {
        Ok(mount) => Some(mount),
        Err(error @ (MountError::NoDevice | MountError::NotPermitted { .. })) => {
            eprintln!("SKIP: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Whether a program is there, or SKIP is said.
fn has(program: &str) -> bool {
    let found = std::process::Command::new(program).arg("--version").output().is_ok();
    if !found {
        eprintln!("SKIP: {program} is not installed");
    }
    found
}
