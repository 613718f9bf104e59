//! Host folders behind 9P devices.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyperkit::devices::p9;
use p9p::{HostDir, HostDirError};

/// What a share serves: a folder, or one file of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The folder behind the device.
    pub folder: PathBuf,
    /// The file, when the share is a file.
    pub file: Option<OsString>,
}

/// Takes a path of the host apart: 9P devices serve folders, so a file is shared through the one that it is in.
///
/// # Errors
/// A line that says why there is nothing to share.
pub fn source(path: &Path) -> Result<Source, String> {
    let refused = |why: &dyn std::fmt::Display| format!("-v {}: {why}", path.display());
    let whole = path.canonicalize().map_err(|error| refused(&error))?;
    if whole.is_dir() {
        return Ok(Source { folder: whole, file: None });
    }
    match (whole.parent(), whole.file_name()) {
        (Some(folder), Some(name)) => Ok(Source { folder: folder.to_owned(), file: Some(name.to_owned()) }),
        _ => Err(refused(&"it has no name")),
    }
}

/// Sessions with the folder, for a device.
///
/// # Errors
/// [`HostDirError`] when the folder cannot be opened.
pub fn sessions(source: &Source, read_only: bool) -> Result<p9::Sessions, HostDirError> {
    let folder = HostDir::new(&source.folder, read_only)?;
    Ok(p9::serve(Arc::new(folder), p9::MESSAGE_BYTES_MAX as u32))
}
