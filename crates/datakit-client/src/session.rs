//! One connection: files of the served tree, by path.

use std::sync::Arc;
use std::time::Duration;

use p9p::Errno;
use p9p::client::ClientError;
use p9p::connection::{ConnectOptions, Connection};
use p9p::filesystem::{Cancel, OpenFlags};
use p9p::message::{Dialect, Fid};
use p9p::net::{Address, Socket};
use p9p::stat::SetAttributes;

use crate::branch::{self, Branch};
use crate::error::Error;
use crate::id::CommitId;
use crate::path;
use crate::remote::Remote;
use crate::tree::{Entry, Kind, Snapshot};

/// Largest message that we ask for, in bytes.
const MSIZE: u32 = 1 << 20;
/// Largest file that is read at once, in bytes.
const FILE_BYTES_MAX: usize = 1 << 30;
/// Most that one read of a watch brings, in bytes.
const WATCH_BYTES: usize = 16 << 10;
/// How long connecting may take.
const CONNECT_WITHIN: Duration = Duration::from_secs(20);
/// Uid that stands for nobody in particular (`P9_NONUNAME`).
const NO_UID: u32 = u32::MAX;

/// ESTALE of Linux.
const ESTALE: Errno = Errno(116);

type Dial = Arc<dyn Fn() -> Result<Socket, Error> + Send + Sync>;

/// A connection to a DataKit server. Clones share it.
#[derive(Debug, Clone)]
pub struct DataKit {
    session: Arc<Session>,
}

impl DataKit {
    /// Connects to `tcp://host:port`, `unix://path`, `fd://N` or `vsock://cid:port`.
    ///
    /// # Errors
    /// When the address is none, nobody answers, or it is not DataKit that does.
    pub fn connect(address: &str) -> Result<Self, Error> {
        let address: Address = address.parse()?;
        Self::over(move || Ok(Socket::connect(&address, CONNECT_WITHIN)?))
    }

    /// Connects by `dial`, which is called for the first connection and for those of watches and remotes.
    ///
    /// # Errors
    /// When `dial` fails, or it is not DataKit that answers.
    pub fn over(dial: impl Fn() -> Result<Socket, Error> + Send + Sync + 'static) -> Result<Self, Error> {
        let session = Session::connect(Arc::new(dial))?;
        match session.walk("branch") {
            Ok(fid) => session.forget(fid),
            Err(Error::NotFound { .. }) => return Err(Error::NotDataKit),
            Err(error) => return Err(error),
        }
        Ok(Self { session: Arc::new(session) })
    }

    /// The branch called `name`, which need not exist yet.
    ///
    /// # Errors
    /// [`Error::Path`] when that is no name.
    pub fn branch(&self, name: &str) -> Result<Branch, Error> {
        Branch::new(Arc::clone(&self.session), name)
    }

    /// The names of all branches.
    ///
    /// # Errors
    /// When the connection fails.
    pub fn branches(&self) -> Result<Vec<String>, Error> {
        Ok(self.session.list("branch")?.into_iter().map(|entry| branch::unescape(&entry.name)).collect())
    }

    /// A commit, its tree and where it came from.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such commit.
    pub fn snapshot(&self, commit: &CommitId) -> Result<Snapshot, Error> {
        Snapshot::new(Arc::clone(&self.session), commit)
    }

    /// Names another repository. It has a connection of its own, and is forgotten with it.
    ///
    /// # Errors
    /// When the name or URL is refused.
    pub fn remote(&self, name: &str, url: &str) -> Result<Remote, Error> {
        Remote::new(Arc::new(self.session.another()?), name, url)
    }

    /// Waits until every commit that was acknowledged before is visible to git and on disk. Only a server whose
    /// `--durability` is not `fsync` has anything to wait for.
    ///
    /// # Errors
    /// [`Error::Refused`] with what is in the way, as a full disk; the server goes on trying.
    pub fn sync(&self) -> Result<(), Error> {
        self.session.at("", |connection, fid| {
            connection.open_file(fid, OpenFlags::RDONLY | OpenFlags::DIRECTORY)?;
            connection.sync(fid, false)
        })
    }

    /// Reads any file of the served tree whole.
    ///
    /// # Errors
    /// When it is not there or cannot be read.
    pub fn read_file(&self, path: &str) -> Result<Vec<u8>, Error> {
        self.session.read(&path::below("", path)?)
    }

    /// Lists any directory of the served tree.
    ///
    /// # Errors
    /// When it is not there or is none.
    pub fn list_directory(&self, path: &str) -> Result<Vec<Entry>, Error> {
        self.session.list(&path::below("", path)?)
    }
}

/// The connection beneath. Many calls may be under way at once.
pub struct Session {
    dial: Dial,
    connection: Connection,
    root: Fid,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("connection", &self.connection).finish_non_exhaustive()
    }
}

impl Session {
    fn connect(dial: Dial) -> Result<Self, Error> {
        let options = ConnectOptions { msize: MSIZE, dialects: vec![Dialect::Linux], timeout: None };
        let connection = Connection::over(dial()?, &options).map_err(Error::Connection)?;
        let root = connection.attach(b"datakit", NO_UID, b"").map_err(Error::Connection)?;
        Ok(Self { dial, connection, root })
    }

    /// Another connection to the same server.
    pub fn another(&self) -> Result<Self, Error> {
        Self::connect(Arc::clone(&self.dial))
    }

    pub fn walk(&self, path: &str) -> Result<Fid, Error> {
        self.connection.walk_path(self.root, path.as_bytes()).map_err(|error| refused(path, error))
    }

    pub fn forget(&self, fid: Fid) {
        // When this fails the connection is lost, and the fid with it.
        let _ = self.connection.clunk(fid);
    }

    /// Walks to `path` and does `work` there; the fid is forgotten afterwards.
    fn at<T>(
        &self,
        path: &str,
        work: impl FnOnce(&Connection, Fid) -> Result<T, ClientError>,
    ) -> Result<T, Error> {
        let fid = self.walk(path)?;
        let done = work(&self.connection, fid);
        self.forget(fid);
        done.map_err(|error| refused(path, error))
    }

    /// Walks to the directory of `path` and does `work` there with the last name.
    fn in_parent<T>(
        &self,
        path: &str,
        work: impl FnOnce(&Connection, Fid, &[u8]) -> Result<T, ClientError>,
    ) -> Result<T, Error> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let fid = self.walk(parent)?;
        let done = work(&self.connection, fid, name.as_bytes());
        self.forget(fid);
        done.map_err(|error| refused(path, error))
    }

    pub fn read(&self, path: &str) -> Result<Vec<u8>, Error> {
        self.at(path, |connection, fid| {
            connection.open_file(fid, OpenFlags::RDONLY)?;
            connection.read_to_end(fid, FILE_BYTES_MAX)
        })
    }

    pub fn read_text(&self, path: &str) -> Result<String, Error> {
        let bytes = self.read(path)?;
        String::from_utf8(bytes).map_err(|error| Error::Answer {
            path: path.to_owned(),
            text: String::from_utf8_lossy(error.as_bytes()).into_owned(),
        })
    }

    /// Opens for reading and keeps the fid.
    pub fn open(&self, path: &str) -> Result<Fid, Error> {
        let fid = self.walk(path)?;
        self.connection.open_file(fid, OpenFlags::RDONLY).map_err(|error| {
            self.forget(fid);
            refused(path, error)
        })?;
        Ok(fid)
    }

    /// Reads what a watch has next; waits until there is something, or `cancel` gives it up.
    pub fn read_next(&self, path: &str, fid: Fid, offset: u64, cancel: &Cancel) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; WATCH_BYTES];
        let read = self.connection.read_or_cancel(fid, offset, &mut bytes, cancel);
        bytes.truncate(read.map_err(|error| refused(path, error))?);
        Ok(bytes)
    }

    /// Writes to a file that is there, in one piece where that is possible: a command.
    pub fn command(&self, path: &str, bytes: &[u8]) -> Result<(), Error> {
        self.at(path, |connection, fid| {
            connection.open_file(fid, OpenFlags::WRONLY)?;
            connection.write_all(fid, 0, bytes)
        })
    }

    /// Makes the content of a file `bytes`, creating it if need be.
    pub fn write(&self, path: &str, bytes: &[u8]) -> Result<(), Error> {
        let replaced = self.at(path, |connection, fid| {
            connection.open_file(fid, OpenFlags::WRONLY | OpenFlags::TRUNC)?;
            connection.write_all(fid, 0, bytes)
        });
        match replaced {
            Err(Error::NotFound { .. }) => self.in_parent(path, |connection, fid, name| {
                connection.create_file(fid, name, OpenFlags::WRONLY, 0o644, NO_UID)?;
                connection.write_all(fid, 0, bytes)
            }),
            replaced => replaced,
        }
    }

    pub fn list(&self, path: &str) -> Result<Vec<Entry>, Error> {
        let listed = self.at(path, |connection, fid| {
            connection.open_file(fid, OpenFlags::RDONLY | OpenFlags::DIRECTORY)?;
            connection.list(fid)
        })?;
        let is_entry = |name: &[u8]| name != b"." && name != b"..";
        let entries = listed.into_iter().filter(|found| is_entry(&found.name)).map(|found| Entry {
            name: String::from_utf8_lossy(&found.name).into_owned(),
            kind: Kind::from_dirent(found.kind),
        });
        Ok(entries.collect())
    }

    pub fn kind(&self, path: &str) -> Result<Kind, Error> {
        let mode = self.at(path, |connection, fid| connection.attributes(fid))?.mode;
        Ok(Kind::from_mode(mode))
    }

    pub fn mkdir(&self, path: &str) -> Result<(), Error> {
        self.in_parent(path, |connection, fid, name| {
            connection.make_directory(fid, name, 0o755, NO_UID).map(drop)
        })
    }

    pub fn symlink(&self, path: &str, target: &str) -> Result<(), Error> {
        self.in_parent(path, |connection, fid, name| {
            connection.make_symlink(fid, name, target.as_bytes(), NO_UID).map(drop)
        })
    }

    pub fn read_link(&self, path: &str) -> Result<String, Error> {
        let target = self.at(path, |connection, fid| connection.read_link(fid))?;
        Ok(String::from_utf8_lossy(&target).into_owned())
    }

    /// Removes a file, or a directory with all that is in it as the server does it.
    pub fn remove(&self, path: &str) -> Result<(), Error> {
        let fid = self.walk(path)?;
        self.connection.remove(fid).map_err(|error| refused(path, error))
    }

    pub fn chmod(&self, path: &str, mode: u32) -> Result<(), Error> {
        let change = SetAttributes {
            valid: p9p::stat::setattr::MODE,
            mode,
            uid: NO_UID,
            gid: NO_UID,
            size: 0,
            atime: Default::default(),
            mtime: Default::default(),
        };
        self.at(path, |connection, fid| connection.set_attributes(fid, &change))
    }

    pub fn rename(&self, from: &str, to: &str) -> Result<(), Error> {
        let (from_parent, from_name) = from.rsplit_once('/').unwrap_or(("", from));
        let (to_parent, to_name) = to.rsplit_once('/').unwrap_or(("", to));
        let (source, target) = (self.walk(from_parent)?, self.walk(to_parent)?);
        let renamed = self.connection.rename(source, from_name.as_bytes(), target, to_name.as_bytes());
        self.forget(source);
        self.forget(target);
        renamed.map_err(|error| refused(from, error))
    }
}

/// What the server's refusal means for `path`.
fn refused(path: &str, error: ClientError) -> Error {
    let path = path.to_owned();
    match error.errno() {
        Some(Errno::ENOENT) => Error::NotFound { path },
        Some(ESTALE) => Error::Gone { path },
        Some(Errno::EEXIST) => Error::Exists { path },
        Some(errno) => Error::Refused { path, reason: errno.to_string() },
        None => Error::Connection(error),
    }
}
