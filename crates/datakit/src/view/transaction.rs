//! `transactions/<t>/` and `leases/<name>/`: a transaction's working tree and what is done with it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use datakit_store::{CommitError, MergeDriver, Mode, NodeId, ObjectId, PathValue, Transaction};
use p9p::Errno;
use p9p::filesystem::{Answer, OpenFile, OpenFlags};
use p9p::stat::SetAttributes;
use p9p_fuse::Caching;

use super::attached::{Attached, branch_failed};
use super::directory::{Fixed, Lookup};
use super::item::{Change, Found, Item, ItemStat, LIVE_DIRECTORY};
use super::snapshot::change_lines;
use super::text::{CommandFile, Edited, Shown};
use super::tree::{Root, TreeItem};
use super::work::{WorkItem, now_ns, transaction_failed};
use crate::logs::{Level, Source};
use crate::metrics::Metrics;

/// Tells the working trees of transactions apart.
static NEXT_SERIAL: AtomicU64 = AtomicU64::new(1);

/// Counts of a directory's subdirectories and entries, and as of which change.
type Counts = HashMap<NodeId, (u64, (u64, u64))>;

/// An open transaction, and the files that go with it.
pub(crate) struct OpenTransaction {
    pub attached: Arc<Attached>,
    pub transaction: Transaction,
    /// Whether other attaches may use it, too.
    pub is_shared: bool,
    pub began_ns: u64,
    /// Counts changes of directories.
    pub changes: AtomicU64,
    serial: u64,
    mtimes: Mutex<HashMap<NodeId, u64>>,
    counts: Mutex<Counts>,
    message: Arc<Mutex<Vec<u8>>>,
    parents: Arc<Mutex<Vec<u8>>>,
    control: Arc<Mutex<Vec<u8>>>,
    merged: Arc<Mutex<Vec<u8>>>,
    driver: Arc<Mutex<Vec<u8>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl OpenTransaction {
    pub fn new(attached: &Arc<Attached>, transaction: Transaction, is_shared: bool) -> Arc<Self> {
        Metrics::count(&attached.metrics.transactions);
        let message = Arc::new(Mutex::new(transaction.message().to_vec()));
        let open = Self {
            attached: Arc::clone(attached),
            is_shared,
            began_ns: now_ns(),
            changes: AtomicU64::new(0),
            serial: NEXT_SERIAL.fetch_add(1, Ordering::Relaxed),
            mtimes: Mutex::default(),
            counts: Mutex::default(),
            message,
            parents: Arc::default(),
            control: Arc::default(),
            merged: Arc::default(),
            driver: Arc::default(),
            transaction,
        };
        open.show_parents();
        Arc::new(open)
    }

    pub fn mtimes(&self) -> MutexGuard<'_, HashMap<NodeId, u64>> {
        lock(&self.mtimes)
    }

    pub fn counts(&self) -> MutexGuard<'_, Counts> {
        lock(&self.counts)
    }

    /// The number of a node, whatever it is called.
    pub fn number(&self, node: NodeId) -> u64 {
        self.attached.entry_number(self.serial, &node.0.to_ne_bytes())
    }

    /// The number of the directory: another's of the same name, made later, is another directory.
    pub fn directory_number(&self) -> u64 {
        // No node's number and no name is spelled so.
        self.attached.entry_number(self.serial, b"/directory")
    }

    /// The directory, as whoever looks for its name finds it.
    pub fn found(self: Arc<Self>) -> Found {
        let number = self.directory_number();
        Found { item: Arc::new(TransactionDirectory(self)), number: Some(number) }
    }

    fn show_parents(&self) {
        let lines: String = self.transaction.parents().iter().map(|parent| format!("{parent}\n")).collect();
        *lock(&self.parents) = lines.into_bytes();
    }

    /// Takes over what was written to `parents`.
    fn take_parents(&self) -> Answer<()> {
        let text = lock(&self.parents).clone();
        let lines = text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty());
        let parents = lines.map(|line| self.attached.parse_id(line)).collect::<Answer<Vec<_>>>()?;
        self.transaction.set_parents(parents);
        Ok(())
    }

    fn commit(&self) -> Answer<()> {
        let message = lock(&self.message).clone();
        self.transaction.set_message(message);
        self.take_parents()?;
        let branch = self.transaction.branch();
        match self.transaction.commit() {
            Ok(head) => {
                Metrics::count(&self.attached.metrics.commits);
                self.attached.logs.log(Source::Store, Level::Info, || format!("{branch} is at {head}"));
                self.attached.settle();
                Ok(())
            }
            Err(error) => {
                self.attached
                    .logs
                    .log(Source::Store, Level::Info, || format!("commit on {branch} refused: {error}"));
                Err(self.commit_failed(&error))
            }
        }
    }

    fn commit_failed(&self, error: &CommitError) -> Errno {
        match error {
            CommitError::Conflicts { .. } | CommitError::Unresolved { .. } => {
                Metrics::count(&self.attached.metrics.conflicts);
                Errno::EBUSY.with_text(error.to_string())
            }
            CommitError::Parent { .. } => Errno::EINVAL.with_text(error.to_string()),
            CommitError::Transaction(error) => transaction_failed(error),
            CommitError::Branch(error) => branch_failed(error),
        }
    }

    fn control(&self, text: &[u8]) -> Answer<Vec<u8>> {
        match text.trim_ascii() {
            b"commit" => self.commit().map(|()| Vec::new()),
            b"close" => {
                self.transaction.close();
                Ok(Vec::new())
            }
            unknown => {
                let unknown = String::from_utf8_lossy(&unknown[..unknown.len().min(100)]);
                Err(Errno::EINVAL.with_text(format!("Unknown command \"{unknown}\"")))
            }
        }
    }

    fn merge(&self, text: &[u8]) -> Answer<Vec<u8>> {
        let commit = self.attached.parse_id(text)?;
        self.take_parents()?;
        self.transaction.merge(commit).map_err(|error| transaction_failed(&error))?;
        self.show_parents();
        self.changes.fetch_add(1, Ordering::AcqRel);
        self.tell_kernel();
        Ok(Vec::new())
    }

    /// The working tree changed behind the back of a FUSE mount's kernel.
    fn tell_kernel(&self) {
        let invalidations = &self.attached.invalidations;
        let root = self.number(Transaction::ROOT);
        invalidations.directory(root);
        let Ok(list) = self.transaction.list(Transaction::ROOT) else { return };
        for (name, _) in list {
            invalidations.entry(root, name.as_bstr());
        }
        let touched: Vec<NodeId> = self.mtimes().keys().copied().collect();
        touched.into_iter().for_each(|node| invalidations.file(self.number(node)));
        self.attached.settle();
    }

    fn set_driver(&self, text: &[u8]) -> Answer<Vec<u8>> {
        let text = String::from_utf8_lossy(text);
        let name = text.trim();
        let driver = match name {
            "" => None,
            name => Some(MergeDriver::parse(name).ok_or_else(|| {
                Errno::EINVAL.with_text(format!("\"{name}\" is not binary, text, union or ours"))
            })?),
        };
        self.transaction.set_merge_driver(driver);
        Ok(driver.map_or_else(Vec::new, |driver| format!("{}\n", driver.as_str()).into_bytes()))
    }

    fn conflicts(&self) -> Vec<u8> {
        let mut lines = Vec::new();
        for conflict in self.transaction.conflicts() {
            lines.extend_from_slice(&conflict.path);
            lines.push(b'\n');
        }
        lines
    }

    /// The root of a tree of the merge under way; none is empty.
    fn side(&self, tree: Option<ObjectId>) -> Answer<TreeItem> {
        let id = tree.unwrap_or_else(|| ObjectId::empty_tree(self.attached.store.hash()));
        let value = PathValue { mode: Mode::Tree, id };
        TreeItem::root(&self.attached, Root::Fixed { value, seconds: self.began_ns / 1_000_000_000 })
    }
}

/// A transaction's directory.
struct TransactionDirectory(Arc<OpenTransaction>);

impl TransactionDirectory {
    fn files(&self) -> Answer<Fixed> {
        let open = &self.0;
        let command = |run: fn(&OpenTransaction, &[u8]) -> Answer<Vec<u8>>, reply| {
            let open = Arc::clone(open);
            CommandFile::new(move |text, _| run(&open, text), reply)
        };
        let (differing, conflicting) = (Arc::clone(open), Arc::clone(open));
        let diff = Lookup::new(move |name| {
            let commit = differing.attached.parse_id(name)?;
            let open = Arc::clone(&differing);
            Found::new(Shown::live(move || {
                let changes = open.transaction.diff(commit).map_err(|error| transaction_failed(&error))?;
                Ok(change_lines(&changes))
            }))
        });
        let mut files = Fixed::new(&open.attached)
            .file("msg", Edited(Arc::clone(&open.message)))
            .file("parents", Edited(Arc::clone(&open.parents)))
            .file("ctl", command(OpenTransaction::control, &open.control))
            .file("merge", command(OpenTransaction::merge, &open.merged))
            .file("merge-driver", command(OpenTransaction::set_driver, &open.driver))
            .file("origin", Shown::fixed(Vec::new()))
            .directory("diff", diff)
            .numbered_directory("rw", WorkItem::new(open, Transaction::ROOT), open.number(Transaction::ROOT));
        if let Some(trees) = open.transaction.merge_trees() {
            files = files
                .directory("ours", open.side(trees.ours)?)
                .directory("theirs", open.side(trees.theirs)?)
                .directory("base", open.side(trees.base)?)
                .file("conflicts", Shown::live(move || Ok(conflicting.conflicts())));
        }
        Ok(files)
    }
}

impl Item for TransactionDirectory {
    fn stat(&self) -> Answer<ItemStat> {
        self.files()?.stat()
    }

    fn caching(&self) -> Caching {
        LIVE_DIRECTORY
    }

    fn find(&self, name: &[u8]) -> Answer<Found> {
        self.files()?.find(name)
    }

    fn open(&self, flags: OpenFlags, number: u64) -> Answer<Arc<dyn OpenFile>> {
        self.files()?.open(flags, number)
    }

    fn change(&self, change: &Change<'_>) -> Answer<()> {
        self.files()?.change(change)
    }

    fn set(&self, change: &SetAttributes) -> Answer<()> {
        self.files()?.set(change)
    }

    fn target(&self) -> Answer<Vec<u8>> {
        Err(Errno::EINVAL)
    }
}
