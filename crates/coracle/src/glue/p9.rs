//! Host folders, and 9P servers that are elsewhere, behind 9P devices.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyperkit::devices::p9;
use p9p::connection::{ConnectOptions, Connection};
use p9p::net::Address;
use p9p::remote::Remote;
use p9p::{Filesystem, HostDir};

use crate::failure::chain;

/// What a share serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A folder, or one file of it.
    Host {
        /// The folder behind the device.
        folder: PathBuf,
        /// The file, when the share is a file.
        file: Option<OsString>,
    },
    /// What this 9P server has. It decides itself what may be changed.
    Server(Address),
}

/// Takes apart what is to be shared. 9P devices serve folders, so a file is shared through the one that it is in; a URL
/// is a 9P server's.
///
/// # Errors
/// A line that says why there is nothing to share.
pub fn source(host: &Path) -> Result<Source, String> {
    let refused = |why: &dyn std::fmt::Display| format!("-v {}: {why}", host.display());
    if let Some(url) = host.to_str().filter(|text| text.contains("://")) {
        return url.parse().map(Source::Server).map_err(|error| refused(&error));
    }
    let whole = host.canonicalize().map_err(|error| refused(&error))?;
    if whole.is_dir() {
        return Ok(Source::Host { folder: whole, file: None });
    }
    match (whole.parent(), whole.file_name()) {
        (Some(folder), Some(name)) => {
            Ok(Source::Host { folder: folder.to_owned(), file: Some(name.to_owned()) })
        }
        _ => Err(refused(&"it has no name")),
    }
}

/// Sessions with it, for a device. Connects to a server, once for all of them.
///
/// # Errors
/// A line that says why not.
pub fn sessions(source: &Source, read_only: bool) -> Result<p9::Sessions, String> {
    let filesystem: Arc<dyn Filesystem> = match source {
        Source::Host { folder, .. } => {
            let folder_of = HostDir::new(folder, read_only)
                .map_err(|error| format!("-v {}: {}", folder.display(), chain(&error)))?;
            Arc::new(folder_of)
        }
        Source::Server(url) if read_only => {
            return Err(format!("-v {url}: a server decides itself what may be changed; leave out `:ro`"));
        }
        Source::Server(url) => {
            let connection = Connection::open(url, &ConnectOptions::default())
                .map_err(|error| format!("-v {url}: {}", chain(&error)))?;
            Arc::new(Remote::to_serve(connection, None))
        }
    };
    Ok(p9::serve(filesystem, p9::MESSAGE_BYTES_MAX as u32))
}
