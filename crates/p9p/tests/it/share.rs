//! A share in a temporary directory, with a client attached to it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use p9p::client::{Client, ClientError, Direct};
use p9p::message::Fid;
use p9p::{Errno, HostDir, Session};

pub const MSIZE: u32 = 512_000;

pub struct Share {
    _directory: tempfile::TempDir,
    /// The shared directory; its parent holds what must stay out of reach.
    pub path: PathBuf,
    pub session: Arc<Session>,
    pub client: Client<Direct>,
    pub root: Fid,
}

impl Share {
    pub fn new() -> Self {
        Self::with(false)
    }

    pub fn with(read_only: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("share");
        std::fs::create_dir(&path).unwrap();
        let session = Arc::new(session(&path, read_only));
        let mut client = Client::connect(Direct::new(Arc::clone(&session)), MSIZE).unwrap();
        let root = client.attach(b"root", 0, b"").unwrap();
        Self { _directory: directory, path, session, client, root }
    }

    pub fn host(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub fn fid(&mut self, path: &str) -> Fid {
        self.client.walk_path(self.root, path.as_bytes()).unwrap()
    }

    pub fn root_copy(&mut self) -> Fid {
        self.client.walk(self.root, &[]).unwrap()
    }
}

pub fn session(path: &Path, read_only: bool) -> Session {
    Session::new(Arc::new(HostDir::new(path, read_only).unwrap()), MSIZE)
}

/// The errno of a call that must have failed.
pub fn errno<T>(result: Result<T, ClientError>) -> Errno {
    match result {
        Ok(_) => panic!("the call succeeded"),
        Err(error) => error.errno().unwrap_or_else(|| panic!("{error}")),
    }
}
