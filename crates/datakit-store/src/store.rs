//! The store: a handle that many threads share.

use std::path::Path;
use std::sync::Arc;

use gix::bstr::BString;

use datakit_git::{
    Backend, Batch, BlobReader, Commit, Content, Durability, HashKind, IdError, Memory, NewObject, Object,
    ObjectId, ObjectKind, OpenError, ReadError, Repository, Tree, WriteError, hash, parse_id,
};

use crate::commit::Committer;
use crate::damage::Damage;
use crate::diff::{Change, diff};
use crate::history::merge_bases;
use crate::lease::Leases;
use crate::name::TreePath;
use crate::objects::{Fresh, Objects};
use crate::transaction::Accounts;
use crate::watch::Hub;

/// What bounds the use of memory and disk.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Transactions open at once.
    pub transactions: usize,
    /// Bytes that all open transactions hold, in memory and in spilled files.
    pub transaction_bytes: u64,
    /// A file larger than this many bytes is kept on disk while its transaction is open.
    pub spill_bytes: usize,
    /// Branch updates that are kept in memory for watches that resume.
    pub updates: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { transactions: 10_000, transaction_bytes: 64 << 30, spill_bytes: 1 << 20, updates: 100_000 }
    }
}

/// How to open a store.
#[derive(Debug, Clone)]
pub struct Options {
    /// What an acknowledged commit has survived.
    pub durability: Durability,
    /// Name of the author and committer of what the store makes.
    pub author_name: BString,
    /// And the address.
    pub author_email: BString,
    /// Whether to make a bare repository where there is none (the folder is missing or empty).
    pub create: bool,
    /// Bounds.
    pub limits: Limits,
    /// Memory for trees and commits lately used, in bytes.
    pub cache_bytes: usize,
    /// The disk; tests take one that fails.
    pub disk: datakit_git::Disk,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            durability: Durability::Fsync,
            author_name: "datakit".into(),
            author_email: "datakit@localhost".into(),
            create: false,
            limits: Limits::default(),
            cache_bytes: 64 << 20,
            disk: datakit_git::Disk::default(),
        }
    }
}

/// A store of branches. Cheap to clone; all methods may be called from many threads at once.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    objects: Arc<Objects>,
    hub: Arc<Hub>,
    committer: Committer,
    leases: Leases,
    accounts: Arc<Accounts>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}

impl Inner {
    fn close(&self) {
        self.hub.close();
        // Whoever is being told of a change keeps the backend a little longer: it is not closed by being dropped.
        self.objects.backend.close();
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("git_dir", &self.git_dir()).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens a git repository, bare or not, and serves it in place.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(path: impl AsRef<Path>, options: Options) -> Result<Store, OpenError> {
        let git = datakit_git::Options {
            durability: options.durability,
            disk: options.disk.clone(),
            ..datakit_git::Options::default()
        };
        let backend =
            if options.create { Repository::open_or_init(path, git)? } else { Repository::open(path, git)? };
        Ok(Store::on(Arc::new(backend), options))
    }

    /// A store in memory, empty, gone with its last handle.
    pub fn memory() -> Store {
        Store::on(Arc::new(Memory::new()), Options::default())
    }

    /// A store on any backend.
    pub fn on(backend: Arc<dyn Backend>, options: Options) -> Store {
        let objects = Arc::new(Objects::new(backend, options.cache_bytes));
        let hub = Hub::start(objects.clone(), options.limits.updates);
        let identity = (options.author_name, options.author_email);
        let spill_folder = objects.backend.git_dir().map_or_else(std::env::temp_dir, Path::to_owned);
        Store {
            inner: Arc::new(Inner {
                committer: Committer::new(objects.clone(), hub.clone(), identity),
                leases: Leases::default(),
                accounts: Arc::new(Accounts::new(options.limits, spill_folder)),
                objects,
                hub,
            }),
        }
    }

    pub(crate) fn backend(&self) -> &dyn Backend {
        &*self.inner.objects.backend
    }

    pub(crate) fn fresh(&self) -> Fresh {
        Fresh::new(self.inner.objects.clone())
    }

    pub(crate) fn committer(&self) -> &Committer {
        &self.inner.committer
    }

    pub(crate) fn hub(&self) -> &Arc<Hub> {
        &self.inner.hub
    }

    pub(crate) fn leases(&self) -> &Leases {
        &self.inner.leases
    }

    pub(crate) fn accounts(&self) -> &Arc<Accounts> {
        &self.inner.accounts
    }

    /// The kind of object ids here.
    pub fn hash(&self) -> HashKind {
        self.backend().hash()
    }

    /// The repository's directory; `None` in memory.
    pub fn git_dir(&self) -> Option<&Path> {
        self.backend().git_dir()
    }

    /// Reads an object id.
    ///
    /// # Errors
    /// [`IdError`] when it is not one.
    pub fn parse_id(&self, text: impl AsRef<[u8]>) -> Result<ObjectId, IdError> {
        parse_id(self.hash(), text.as_ref())
    }

    /// Reads a whole object.
    ///
    /// # Errors
    /// [`ReadError`], which names the object.
    pub fn object(&self, id: ObjectId) -> Result<Object, ReadError> {
        self.inner.objects.damage.keep(self.backend().read(id))
    }

    /// Kind and size of an object.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn object_header(&self, id: ObjectId) -> Result<(ObjectKind, u64), ReadError> {
        self.inner.objects.damage.keep(self.backend().header(id))
    }

    /// Opens a blob of any size for reading at offsets.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn open_blob(&self, id: ObjectId) -> Result<BlobReader, ReadError> {
        self.inner.objects.damage.keep(self.backend().open_blob(id))
    }

    /// Reads a tree.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn tree(&self, id: ObjectId) -> Result<Arc<Tree>, ReadError> {
        self.inner.objects.tree(id)
    }

    /// Reads a commit.
    ///
    /// # Errors
    /// [`ReadError`]; `Kind` when it is something else.
    pub fn commit_of(&self, id: ObjectId) -> Result<Arc<Commit>, ReadError> {
        self.inner.objects.commit(id)
    }

    /// Mode and object of a path in a tree; `None` when there is nothing.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn look_up(&self, tree: ObjectId, path: &TreePath) -> Result<Option<crate::PathValue>, ReadError> {
        crate::watch::resolve(&self.inner.objects, Some(tree), path)
    }

    /// Writes a blob. Nothing keeps it from git's garbage collection until a branch reaches it.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn write_blob(&self, bytes: &[u8]) -> Result<ObjectId, WriteError> {
        self.write_object(ObjectKind::Blob, bytes.to_vec())
    }

    /// Writes a tree, likewise.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn write_tree(&self, tree: &Tree) -> Result<ObjectId, WriteError> {
        self.write_object(ObjectKind::Tree, tree.encode())
    }

    /// Writes a commit, likewise.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn write_commit(&self, commit: &Commit) -> Result<ObjectId, WriteError> {
        self.write_object(ObjectKind::Commit, commit.encode())
    }

    fn write_object(&self, kind: ObjectKind, bytes: Vec<u8>) -> Result<ObjectId, WriteError> {
        let id = hash(self.hash(), kind, &bytes);
        let object = NewObject { id, kind, content: Content::Bytes(bytes.into()) };
        self.backend().write(&Batch { objects: vec![object], edits: Vec::new() })?;
        Ok(id)
    }

    /// Waits until everything that was acknowledged is visible to other programs and on disk, whatever the store was
    /// opened for.
    ///
    /// # Errors
    /// [`WriteError`] that says what is in the way. It is tried again.
    pub fn sync(&self) -> Result<(), WriteError> {
        self.backend().sync()
    }

    /// Brings everything to disk, in the form in which it is to stay, and ends what goes on behind the commits. The last
    /// handle that is dropped does the same. Nothing may be committed afterwards.
    pub fn close(&self) {
        self.inner.close();
    }

    /// What goes wrong behind the commits at present, in one line; it is tried again.
    pub fn trouble(&self) -> Option<String> {
        self.backend().trouble().or_else(|| self.hub().trouble())
    }

    /// Objects that cannot be read, to be told to whoever keeps the repository.
    pub fn damage(&self) -> &Arc<Damage> {
        &self.inner.objects.damage
    }

    /// What differs between two trees, sorted by path; `None` is the empty tree.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn diff(&self, old: Option<ObjectId>, new: Option<ObjectId>) -> Result<Vec<Change>, ReadError> {
        diff(&self.fresh(), old, new)
    }

    /// The best common ancestor of two commits. Of several the newest.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn merge_base(&self, a: ObjectId, b: ObjectId) -> Result<Option<ObjectId>, ReadError> {
        Ok(merge_bases(&self.fresh(), a, b)?.first().copied())
    }
}
