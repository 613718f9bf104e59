//! A git repository on disk, served in place.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use gix::objs::Find as _;

use crate::backend::{Backend, Batch, ChangeHook, Content, ReadError, RefEdit, RefName, WriteError};
use crate::disk::Disk;
use crate::inflate::Loose;
use crate::packed::{PackList, Packed};
use crate::watch::Hooks;
use crate::writer::Writer;
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
    /// A batch is acknowledged when all readers of this [`Repository`] see it. Other programs see it 5 ms later and the
    /// time that one pack takes to write, or after [`Backend::sync`]; until then the end of this process takes it back.
    Behind,
}

/// How to open a repository.
#[derive(Debug, Clone)]
pub struct Options {
    /// What "written" means.
    pub durability: Durability,
    /// The disk; tests take one that fails.
    pub disk: Disk,
    /// The largest object that [`Backend::read`] reads at once, in bytes.
    pub object_bytes_max: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options { durability: Durability::Fsync, disk: Disk::default(), object_bytes_max: 512 << 20 }
    }
}

/// Why a repository was not opened.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message documents its variant")]
pub enum OpenError {
    #[error("{} is not a git repository: {detail}", path.display())]
    NotRepository { path: PathBuf, detail: String },
    #[error("{} has the extension {name} = {value}, which is not understood here", path.display())]
    Extension { path: PathBuf, name: String, value: String },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// Why there is no repository to open: what the host says of the directory, and only then what git does.
fn not_opened(path: &Path, error: &dyn std::error::Error) -> OpenError {
    match std::fs::read_dir(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            OpenError::Io { path: path.to_owned(), source }
        }
        _ => OpenError::NotRepository { path: path.to_owned(), detail: chain(error) },
    }
}

/// Extensions that change nothing of how objects and refs are written, or that we follow.
const EXTENSIONS: [&str; 7] = [
    "noop",
    "objectformat",
    "partialclone",
    "preciousobjects",
    "refstorage",
    "relativeworktrees",
    "worktreeconfig",
];

/// What git asks of every implementation: not to touch a repository with an extension that it does not understand. One
/// whose refs are a reftable would look empty.
///
/// Spec: git, Documentation/technical/repository-version.
fn check_extensions(path: &Path, repo: &gix::Repository) -> Result<(), OpenError> {
    let config = repo.config_snapshot();
    if config.integer("core.repositoryFormatVersion").unwrap_or(0) < 1 {
        return Ok(());
    }
    for section in config.plumbing().sections_by_name("extensions").into_iter().flatten() {
        for name in section.value_names() {
            let name = name.to_ascii_lowercase();
            let value = section.value(&name).map(|value| value.to_string()).unwrap_or_default();
            let is_known = EXTENSIONS.contains(&name.as_str());
            if !is_known || name == "refstorage" && value != "files" {
                return Err(OpenError::Extension { path: path.to_owned(), name, value });
            }
        }
    }
    Ok(())
}

/// A repository on disk.
pub struct Repository {
    repo: gix::ThreadSafeRepository,
    git_dir: PathBuf,
    options: Options,
    hooks: Hooks,
    writer: Arc<Writer>,
    threads: Mutex<Threads>,
}

/// What goes on behind the calls, until the repository is closed.
#[derive(Default)]
struct Threads {
    behind: Option<JoinHandle<()>>,
    upkeep: Option<JoinHandle<()>>,
    watch: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Repository {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Repository").field("git_dir", &self.git_dir).finish_non_exhaustive()
    }
}

impl Drop for Repository {
    /// Brings everything to disk in ordinary packs.
    fn drop(&mut self) {
        self.close();
    }
}

/// Packs that may be open at once.
const PACKS_MAX: u16 = 8192;

impl Repository {
    /// Opens a repository: bare, or the top of a work tree, or a linked one. What a process that died has left undone is
    /// done first. One that cannot be written is opened for reading.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(path: impl AsRef<Path>, options: Options) -> Result<Repository, OpenError> {
        let path = path.as_ref();
        let slots = gix::odb::store::init::Slots::Given(PACKS_MAX);
        let how = gix::open::Options::isolated().object_store_slots(slots);
        let repo =
            gix::ThreadSafeRepository::open_opts(path, how).map_err(|error| not_opened(path, &error))?;
        let failed = |source| OpenError::Io { path: path.to_owned(), source };
        let local = repo.to_thread_local();
        check_extensions(path, &local)?;
        let git_dir = local.common_dir().to_owned();
        let objects = local.objects.store_ref().path().to_owned();
        let (hash, disk) = (local.object_hash(), options.disk.clone());
        let writer = Writer::new(git_dir.clone(), objects, hash, disk, options.durability);
        let writer = Arc::new(writer.map_err(failed)?);
        crate::upkeep::recover(&writer).map_err(failed)?;
        let for_behind = Arc::clone(&writer);
        let behind = move || for_behind.behind.iter().for_each(|behind| behind.run(&for_behind));
        let behind = match &writer.behind {
            None => None,
            Some(_) => {
                let named = std::thread::Builder::new().name("datakit-behind".into());
                Some(named.spawn(behind).map_err(failed)?)
            }
        };
        let weak = Arc::downgrade(&writer);
        let upkeep = std::thread::Builder::new().name("datakit-upkeep".into());
        let upkeep = upkeep.spawn(move || crate::upkeep::run(&weak)).map_err(failed)?;
        let (hooks, folder) = (Hooks::default(), git_dir.clone());
        let for_watch = hooks.clone();
        let watch = std::thread::Builder::new().name("datakit-refs".into());
        let watch = watch.spawn(move || crate::watch::run(&folder, &for_watch)).map_err(failed)?;
        let threads = Mutex::new(Threads { behind, upkeep: Some(upkeep), watch: Some(watch) });
        Ok(Repository { repo, git_dir, options, hooks, writer, threads })
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
                .map_err(|error| not_opened(path, &error))?;
        }
        Repository::open(path, options)
    }

    /// `objects` of this repository and of those that it borrows from.
    fn object_folders(&self) -> Vec<PathBuf> {
        let repo = self.repo.to_thread_local();
        let store = repo.objects.store_ref();
        let mut folders = vec![store.path().to_owned()];
        folders.extend(store.alternate_db_paths().unwrap_or_default());
        folders
    }

    /// Looks for an object: again when it is not found, or not whole, and packs came or went meanwhile.
    ///
    /// Whoever moves an object has it in its new place before it leaves the old one, but who looks at one place after the
    /// other can miss it in both. It cannot come to a pack, or from one, without another list of packs. So what is
    /// not there between two lists that are the same is nowhere. See docs/adr/0035-missing.md.
    fn look<T>(&self, id: ObjectId, look: impl Fn() -> Result<Option<T>, ReadError>) -> Result<T, ReadError> {
        if let Ok(Some(found)) = look() {
            return Ok(found);
        }
        let folders = self.object_folders();
        let mut before = PackList::read(&folders);
        for _ in 0..LOOKS_MAX {
            let found = look();
            if let Ok(Some(found)) = found {
                return Ok(found);
            }
            let after = PackList::read(&folders);
            if after == before {
                return found?.ok_or(ReadError::Missing { id });
            }
            before = after;
        }
        look()?.ok_or(ReadError::Missing { id })
    }

    /// Deletes a ref, or moves one that is symbolic.
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
        self.writer.hash
    }

    fn git_dir(&self) -> Option<&Path> {
        Some(self.git_dir.as_path())
    }

    fn read(&self, id: ObjectId) -> Result<Object, ReadError> {
        if let Some(object) = self.writer.recent(&id) {
            return Ok(object);
        }
        let (_, size) = self.header(id)?;
        if size > self.options.object_bytes_max {
            return Err(ReadError::TooLarge { id, size, limit: self.options.object_bytes_max });
        }
        let object = self.look(id, || {
            let repo = self.repo.to_thread_local();
            let object = repo
                .objects
                .try_find(&id, &mut Vec::new())
                .map(|found| found.map(|found| Object { kind: found.kind, bytes: found.data.into() }));
            object.map_err(|error| ReadError::Corrupt { id, detail: chain(&error) })
        })?;
        if crate::hash(self.hash(), object.kind, &object.bytes) != id {
            return Err(ReadError::Corrupt { id, detail: "its content has another hash".to_owned() });
        }
        Ok(object)
    }

    fn header(&self, id: ObjectId) -> Result<(ObjectKind, u64), ReadError> {
        if let Some(object) = self.writer.recent(&id) {
            return Ok((object.kind, object.bytes.len() as u64));
        }
        self.look(id, || {
            let header = self.repo.to_thread_local().try_find_header(id);
            let header = header.map_err(|error| ReadError::Corrupt { id, detail: chain(&error) })?;
            Ok(header.map(|header| (header.kind(), header.size())))
        })
    }

    fn open_blob(&self, id: ObjectId) -> Result<BlobReader, ReadError> {
        let (kind, size) = self.header(id)?;
        if kind != ObjectKind::Blob {
            return Err(ReadError::Kind { id, found: kind, expected: ObjectKind::Blob });
        }
        if size > STREAM_BYTES_MIN {
            // Twice: it may be on its way from one place to the other.
            for _ in 0..2 {
                if let Ok(loose) = Loose::open(id, &self.writer.loose_path(&id)) {
                    return loose.reader(size);
                }
                if let Some(packed) = Packed::find(&self.object_folders(), self.hash(), id, size) {
                    return Ok(BlobReader::from_stream(size, Box::new(packed)));
                }
            }
        }
        Ok(BlobReader::from_bytes(self.read(id)?.bytes))
    }

    fn refs(&self, prefix: &str) -> io::Result<Vec<(RefName, ObjectId)>> {
        self.writer.refs(prefix)
    }

    fn try_find_ref(&self, name: &RefName) -> io::Result<Option<ObjectId>> {
        self.writer.try_find_ref(name)
    }

    fn prepare(&self, file: &File, size: u64) -> Result<(ObjectId, Content), WriteError> {
        let (id, prepared) = self.writer.prepare(file, size)?;
        Ok((id, Content::Prepared(Arc::new(prepared))))
    }

    fn write(&self, batch: &Batch) -> Result<Vec<Result<(), WriteError>>, WriteError> {
        let results = self.writer.write(batch)?;
        let others = |(edit, result): (&RefEdit, Option<_>)| result.unwrap_or_else(|| self.edit(edit));
        Ok(batch.edits.iter().zip(results).map(others).collect())
    }

    fn sync(&self) -> Result<(), WriteError> {
        self.writer.sync()
    }

    fn trouble(&self) -> Option<String> {
        self.writer.trouble()
    }

    fn on_change(&self, hook: ChangeHook) {
        self.hooks.add(hook);
    }

    fn close(&self) {
        let Threads { behind, upkeep, watch } =
            std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        // What is published last is brought to disk as well.
        self.writer.behind.iter().for_each(crate::behind::Behind::stop);
        behind.map(JoinHandle::join);
        self.writer.upkeep.state().stop = true;
        self.writer.upkeep.changed.notify_all();
        self.hooks.stop();
        // Whoever is told of changes may hold the last handle: then this is the thread that watches.
        let is_this = |thread: &JoinHandle<()>| thread.thread().id() == std::thread::current().id();
        for thread in [upkeep, watch].into_iter().flatten().filter(|thread| !is_this(thread)) {
            thread.join().ok();
        }
        // What could not be written stays noted, for the next start.
        if self.writer.trouble().is_none() {
            self.writer.end();
        }
    }
}

/// Blobs larger than this are decompressed as they are read, in bytes.
const STREAM_BYTES_MIN: u64 = 4 << 20;

/// Most looks for an object while packs come and go.
const LOOKS_MAX: usize = 1000;

/// An error and what caused it, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text.replace('\n', " ")
}
