//! The tree as a service: for 9P servers, and mounted by FUSE.

use std::hash::RandomState;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use datakit_store::{BranchName, Canceller, Next, ObjectId, Start, Store, Update, Updates};
use p9p::filesystem::{Answer, Attach, Filesystem, Node};
use p9p::qid::{Qid, QidKind};
use p9p_fuse::{Caching, Invalidator, Mount, MountError, MountOptions};

use crate::logs::{Level, Logs, Source};
use crate::metrics::Metrics;
use crate::view::attached::{Attached, Leased, Transport};
use crate::view::branch::escape;
use crate::view::node::{ROOT_NUMBER, ViewNode};

/// Most changed paths of one update that the kernel is told of one by one.
const TOLD_MAX: usize = 10_000;

/// A store, published. Cheap to clone.
#[derive(Clone)]
pub struct Service {
    store: Store,
    logs: Arc<Logs>,
    metrics: Arc<Metrics>,
    leased: Arc<Leased>,
}

impl Service {
    /// Publishes a store.
    pub fn new(store: Store, logs: Logs) -> Self {
        Self { store, logs: Arc::new(logs), metrics: Arc::default(), leased: Arc::default() }
    }

    /// What is published.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Where lines go.
    pub fn logs(&self) -> &Logs {
        &self.logs
    }

    /// What was counted.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    fn attach(
        &self,
        transport: Transport,
        owner: (u32, u32),
        invalidations: Arc<Invalidations>,
    ) -> Arc<ViewNode> {
        Metrics::count(&self.metrics.attaches);
        crate::view::root(Attached {
            store: self.store.clone(),
            transport,
            uid: owner.0,
            gid: owner.1,
            logs: Arc::clone(&self.logs),
            metrics: Arc::clone(&self.metrics),
            leased: Arc::clone(&self.leased),
            invalidations,
            hasher: RandomState::new(),
        })
    }

    /// Mounts it on a directory, as one attach.
    ///
    /// # Errors
    /// See [`MountError`].
    pub fn mount(&self, path: &Path, options: MountOptions) -> Result<FuseMount, MountError> {
        let invalidations = Arc::new(Invalidations::default());
        let owner = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let root = self.attach(Transport::Fuse, owner, Arc::clone(&invalidations));
        let numbers = Arc::clone(root.attached());
        let policy = |node: &dyn Node| {
            (node as &dyn std::any::Any).downcast_ref::<ViewNode>().map_or(Caching::LIVE, ViewNode::caching)
        };
        let options =
            MountOptions { source: "datakit".into(), xattrs: false, policy: Arc::new(policy), ..options };
        // From here on, so that no update is missed.
        let updates = self.store.updates(None, Start::Now);
        let mount = Mount::new(&OneRoot(root), path, options)?;
        invalidations.start(mount.invalidator());
        let Ok(updates) = updates else { return Ok(FuseMount { mount, canceller: None, invalidations }) };
        let canceller = updates.canceller();
        let (store, told) = (self.store.clone(), Arc::clone(&invalidations));
        let follow = move || follow(&store, updates, &numbers, &told);
        let spawned = thread::Builder::new().name("datakit-follow".into()).spawn(follow);
        // Without that thread the kernel's copies are as old as their time to live.
        let canceller = spawned.is_ok().then_some(canceller);
        Ok(FuseMount { mount, canceller, invalidations })
    }
}

/// The root of one attach.
struct OneRoot(Arc<ViewNode>);

impl Filesystem for OneRoot {
    fn attach(&self, _attach: &Attach<'_>) -> Answer<Arc<dyn Node>> {
        Ok(Arc::clone(&self.0) as Arc<dyn Node>)
    }
}

/// A service mounted by FUSE. Unmounted when dropped.
#[derive(Debug)]
pub struct FuseMount {
    mount: Mount,
    canceller: Option<Canceller>,
    invalidations: Arc<Invalidations>,
}

impl FuseMount {
    /// Where.
    pub fn path(&self) -> &Path {
        self.mount.path()
    }

    /// Waits at most so long; says whether somebody unmounted it.
    pub fn wait_timeout(&self, timeout: Duration) -> bool {
        self.mount.wait_timeout(timeout)
    }
}

impl Drop for FuseMount {
    fn drop(&mut self) {
        self.invalidations.stop();
        if let Some(canceller) = &self.canceller {
            canceller.cancel();
        }
    }
}

/// Tells a FUSE mount's kernel of changes; for 9P, of which no kernel keeps anything, nothing.
#[derive(Default)]
pub(crate) struct Invalidations {
    state: Mutex<State>,
    followed: Condvar,
}

#[derive(Default)]
struct State {
    invalidator: Option<Invalidator>,
    /// The kernel was told of all updates before this one.
    next: u64,
}

impl Invalidations {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(&self, invalidator: Invalidator) {
        self.state().invalidator = Some(invalidator);
    }

    fn stop(&self) {
        self.state().invalidator = None;
        self.followed.notify_all();
    }

    fn tell(&self, tell: impl FnOnce(&Invalidator)) {
        if let Some(invalidator) = self.state().invalidator.clone() {
            tell(&invalidator);
        }
    }

    /// The entries or attributes of a directory changed.
    pub fn directory(&self, number: u64) {
        self.tell(|invalidator| {
            invalidator.inode(Qid { kind: QidKind::DIRECTORY, version: 0, path: number })
        });
    }

    /// The content of a file changed.
    pub fn file(&self, number: u64) {
        self.tell(|invalidator| invalidator.inode(Qid { kind: QidKind::FILE, version: 0, path: number }));
    }

    /// A name of a directory leads elsewhere.
    pub fn entry(&self, directory: u64, name: &[u8]) {
        let qid = Qid { kind: QidKind::DIRECTORY, version: 0, path: directory };
        self.tell(|invalidator| invalidator.entry(qid, name));
    }

    fn followed_to(&self, next: u64) {
        self.state().next = next;
        self.followed.notify_all();
    }

    /// Waits until the kernel was told of all updates before `next`, at most for `timeout`.
    pub fn flush(&self, next: u64, timeout: Duration) {
        let behind = |state: &mut State| state.invalidator.is_some() && state.next < next;
        let (state, _) = self
            .followed
            .wait_timeout_while(self.state(), timeout, behind)
            .unwrap_or_else(PoisonError::into_inner);
        let invalidator = state.invalidator.clone();
        drop(state);
        if let Some(invalidator) = invalidator {
            invalidator.flush(timeout);
        }
    }
}

impl std::fmt::Debug for Invalidations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Invalidations").finish_non_exhaustive()
    }
}

/// Tells the kernel of every update of a branch, until it is cancelled.
fn follow(store: &Store, mut updates: Updates, attached: &Attached, told: &Invalidations) {
    told.followed_to(updates.position().0);
    loop {
        match updates.next(None) {
            Ok(Next::Value(update)) => {
                if tell(store, &update, attached, told).is_none() {
                    tell_all(&update, attached, told);
                }
            }
            Ok(Next::TimedOut) => {}
            Ok(Next::Cancelled) => return,
            // So many that they are forgotten: what the kernel has will time out.
            Err(_) => match store.updates(None, Start::Now) {
                Ok(anew) => updates = anew,
                Err(_) => return,
            },
        }
        told.followed_to(updates.position().0);
    }
}

/// The number of a branch's directory.
fn branch_number(branch: &BranchName, attached: &Attached) -> u64 {
    let branches = attached.entry_number(ROOT_NUMBER, b"branch");
    attached.entry_number(branches, &escape(branch))
}

/// `None` when there is too much to tell, or it cannot be read.
fn tell(store: &Store, update: &Update, attached: &Attached, told: &Invalidations) -> Option<()> {
    let tree = |commit: Option<ObjectId>| match commit {
        Some(commit) => store.commit_of(commit).ok().map(|commit| Some(commit.tree)),
        None => Some(None),
    };
    let changes = store.diff(tree(update.old)?, tree(update.new)?).ok()?;
    if changes.len() > TOLD_MAX {
        return None;
    }
    let root = attached.entry_number(branch_number(&update.branch, attached), b"ro");
    told.directory(root);
    for change in changes {
        let mut directory = root;
        for name in change.path.split(|byte| *byte == b'/') {
            let number = attached.entry_number(directory, name);
            told.directory(number);
            told.entry(directory, name);
            directory = number;
        }
        told.file(directory);
    }
    Some(())
}

/// Has the kernel forget all of a branch's tree.
fn tell_all(update: &Update, attached: &Attached, told: &Invalidations) {
    told.entry(branch_number(&update.branch, attached), b"ro");
}

/// For 9P: each attach has its own transactions and remotes. Which tree it asks for does not matter.
impl Filesystem for Service {
    fn attach(&self, attach: &Attach<'_>) -> Answer<Arc<dyn Node>> {
        let user = if attach.numeric_user == u32::MAX { 0 } else { attach.numeric_user };
        self.logs.log(Source::Server, Level::Info, || {
            format!(
                "attach by {} ({user})",
                String::from_utf8_lossy(&attach.user[..attach.user.len().min(64)])
            )
        });
        Ok(Self::attach(self, Transport::NineP, (user, user), Arc::default()))
    }
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service").field("store", &self.store).finish_non_exhaustive()
    }
}
