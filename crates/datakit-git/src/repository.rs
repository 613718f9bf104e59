//! A git repository on disk, served in place.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use gix::objs::Write as _;

use crate::backend::{Backend, Batch, ChangeHook, Content, ReadError, RefEdit, RefName, WriteError};
use crate::{BlobReader, HashKind, Object, ObjectId, ObjectKind};

/// What "written" means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// A batch is on the disk, and visible to other programs, before it is acknowledged.
    #[default]
    Fsync,
    /// A batch is visible to other programs before it is acknowledged, and survives the end of this process; a power
    /// failure may take back the last ones.
    Visible,
    /// A batch is acknowledged at once and written behind, within milliseconds; the end of this process may take back
    /// the last ones. What is there is always a state that was acknowledged.
    Behind,
}

/// How to open a repository.
#[derive(Debug, Clone)]
pub struct Options {
    /// What "written" means.
    pub durability: Durability,
    /// Memory for objects that were read or written lately, in bytes.
    pub cache_bytes: usize,
    /// The largest object that [`Backend::read`] reads at once, in bytes.
    pub object_bytes_max: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options { durability: Durability::Fsync, cache_bytes: 64 << 20, object_bytes_max: 512 << 20 }
    }
}

/// Why a repository was not opened.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message documents its variant")]
pub enum OpenError {
    #[error("{} is not a git repository: {detail}", path.display())]
    NotRepository { path: PathBuf, detail: String },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// A repository on disk.
pub struct Repository {
    repo: gix::ThreadSafeRepository,
    git_dir: PathBuf,
    options: Options,
    hooks: Mutex<Vec<ChangeHook>>,
}

impl std::fmt::Debug for Repository {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Repository").field("git_dir", &self.git_dir).finish_non_exhaustive()
    }
}

impl Repository {
    /// Opens a repository: bare, or the top of a work tree, or a linked one.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(path: impl AsRef<Path>, options: Options) -> Result<Repository, OpenError> {
        let path = path.as_ref();
        let repo = gix::ThreadSafeRepository::open_opts(path, gix::open::Options::isolated())
            .map_err(|error| OpenError::NotRepository { path: path.to_owned(), detail: error.to_string() })?;
        let git_dir = repo.to_thread_local().common_dir().to_owned();
        Ok(Repository { repo, git_dir, options, hooks: Mutex::default() })
    }

    /// Makes an empty bare repository and opens it; one that exists is opened.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open_or_init(path: impl AsRef<Path>, options: Options) -> Result<Repository, OpenError> {
        let path = path.as_ref();
        let is_empty = std::fs::read_dir(path).map_or(true, |mut entries| entries.next().is_none());
        if is_empty {
            gix::ThreadSafeRepository::init(path, gix::create::Kind::Bare, gix::create::Options::default())
                .map_err(|error| OpenError::NotRepository { path: path.to_owned(), detail: error.to_string() })?;
        }
        Repository::open(path, options)
    }

    fn edit(&self, edit: &RefEdit) -> Result<(), WriteError> {
        use gix::refs::transaction::{Change, LogChange, PreviousValue, RefEdit as Gix, RefLog};
        let repo = self.repo.to_thread_local();
        let name: gix::refs::FullName = edit.name.as_bstr().try_into().map_err(|error| WriteError::Io {
            action: format!("{} is not a ref", edit.name),
            source: Arc::new(io::Error::other(error)),
        })?;
        let expected = match edit.old {
            Some(old) => PreviousValue::MustExistAndMatch(gix::refs::Target::Object(old)),
            None => PreviousValue::MustNotExist,
        };
        let change = match edit.new {
            Some(new) => Change::Update {
                log: LogChange {
                    mode: RefLog::AndReference,
                    force_create_reflog: false,
                    message: edit.reason.clone(),
                },
                expected,
                new: gix::refs::Target::Object(new),
            },
            None => Change::Delete { expected, log: RefLog::AndReference },
        };
        let result = repo.edit_references_as([Gix { change, name, deref: false }], None);
        result.map(drop).map_err(|error| {
            let found = self.try_find_ref(&edit.name).ok().flatten();
            if found == edit.old {
                WriteError::Io {
                    action: format!("{} cannot be moved", edit.name),
                    source: Arc::new(io::Error::other(error.to_string())),
                }
            } else {
                WriteError::Moved { name: edit.name.clone(), expected: edit.old, found }
            }
        })
    }
}

impl Backend for Repository {
    fn hash(&self) -> HashKind {
        self.repo.to_thread_local().object_hash()
    }

    fn git_dir(&self) -> Option<&Path> {
        Some(self.git_dir.as_path())
    }

    fn read(&self, id: ObjectId) -> Result<Object, ReadError> {
        let (_, size) = self.header(id)?;
        if size > self.options.object_bytes_max {
            return Err(ReadError::TooLarge { id, size, limit: self.options.object_bytes_max });
        }
        let repo = self.repo.to_thread_local();
        let object = repo.try_find_object(id);
        let object = object.map_err(|error| ReadError::Corrupt { id, detail: error.to_string() })?;
        let mut object = object.ok_or(ReadError::Missing { id })?;
        Ok(Object { kind: object.kind, bytes: std::mem::take(&mut object.data).into() })
    }

    fn header(&self, id: ObjectId) -> Result<(ObjectKind, u64), ReadError> {
        let header = self.repo.to_thread_local().try_find_header(id);
        let header = header.map_err(|error| ReadError::Corrupt { id, detail: error.to_string() })?;
        header.map(|header| (header.kind(), header.size())).ok_or(ReadError::Missing { id })
    }

    fn open_blob(&self, id: ObjectId) -> Result<BlobReader, ReadError> {
        let object = self.read(id)?;
        match object.kind {
            ObjectKind::Blob => Ok(BlobReader::from_bytes(object.bytes)),
            found => Err(ReadError::Kind { id, found, expected: ObjectKind::Blob }),
        }
    }

    fn refs(&self, prefix: &str) -> io::Result<Vec<(RefName, ObjectId)>> {
        let repo = self.repo.to_thread_local();
        let platform = repo.references().map_err(|error| io::Error::other(error.to_string()))?;
        let all = platform.all().map_err(|error| io::Error::other(error.to_string()))?;
        let mut found = Vec::new();
        for reference in all.flatten() {
            let name = reference.name().as_bstr();
            let target = reference.target();
            let (true, Some(id)) = (name.starts_with(prefix.as_bytes()), target.try_id()) else { continue };
            found.extend(RefName::new(name.to_owned()).map(|name| (name, id.to_owned())));
        }
        found.sort();
        Ok(found)
    }

    fn try_find_ref(&self, name: &RefName) -> io::Result<Option<ObjectId>> {
        let repo = self.repo.to_thread_local();
        let found =
            repo.try_find_reference(name.as_bstr()).map_err(|error| io::Error::other(error.to_string()))?;
        Ok(found.and_then(|reference| reference.target().try_id().map(ToOwned::to_owned)))
    }

    fn write(&self, batch: &Batch) -> Result<Vec<Result<(), WriteError>>, WriteError> {
        let repo = self.repo.to_thread_local();
        for new in &batch.objects {
            let result = match &new.content {
                Content::Bytes(bytes) => repo.objects.write_buf(new.kind, bytes),
                Content::File { file, size } => {
                    let mut reader = io::BufReader::new(FromStart { file, position: 0 });
                    repo.objects.write_stream(new.kind, *size, &mut reader)
                }
            };
            result.map_err(|error| WriteError::Io {
                action: format!("object {} cannot be written", new.id),
                source: Arc::new(io::Error::other(error.to_string())),
            })?;
        }
        Ok(batch.edits.iter().map(|edit| self.edit(edit)).collect())
    }

    fn on_change(&self, hook: ChangeHook) {
        self.hooks.lock().unwrap_or_else(PoisonError::into_inner).push(hook);
    }
}

/// Reads a shared file from its first byte, whatever its position.
struct FromStart<'a> {
    file: &'a std::fs::File,
    position: u64,
}

impl io::Read for FromStart<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = std::os::unix::fs::FileExt::read_at(self.file, buffer, self.position)?;
        self.position += n as u64;
        Ok(n)
    }
}
