//! Watches: every move of every branch, numbered; and the newest value of a head or of a path.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use datakit_git::{Changed, Mode, ObjectId, ReadError, RefName};

use crate::name::{BranchName, HEADS, TreePath};
use crate::objects::Objects;
use crate::store::Store;

mod log;
mod paths;
mod slot;

pub use self::slot::{Canceller, Latest, Next, Waker};
use self::slot::{Slot, Wakers};

/// The number of a branch update: each is one more than the one before, in one store, whatever the branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seq(pub u64);

/// A branch moved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Update {
    /// Its number.
    pub seq: Seq,
    /// Which branch.
    pub branch: BranchName,
    /// Where it was; `None`: it did not exist.
    pub old: Option<ObjectId>,
    /// Where it is; `None`: it was deleted.
    pub new: Option<ObjectId>,
}

/// Where a watch of updates begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// With the next update.
    Now,
    /// With the update of this number, which may lie in the past.
    From(Seq),
}

/// The updates asked for are no longer kept, or have not happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("update {} was asked for; there are those from {} on, and the next one is {}", wanted.0, oldest.0, next.0)]
pub struct ResumeError {
    /// The oldest that is kept.
    pub oldest: Seq,
    /// The next one.
    pub next: Seq,
    /// What was asked for.
    pub wanted: Seq,
}

/// What a watched path is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PathValue {
    /// Directory, file, executable, link or submodule.
    pub mode: Mode,
    /// The object.
    pub id: ObjectId,
}

/// What a path is in a tree.
pub(crate) fn resolve(
    objects: &Objects,
    tree: Option<ObjectId>,
    path: &TreePath,
) -> Result<Option<PathValue>, ReadError> {
    let Some(root) = tree else { return Ok(None) };
    let mut at = PathValue { mode: Mode::Tree, id: root };
    for component in path.components() {
        if at.mode != Mode::Tree {
            return Ok(None);
        }
        match objects.tree(at.id)?.try_find(component.as_bstr()) {
            Some(entry) => at = PathValue { mode: entry.mode, id: entry.id },
            None => return Ok(None),
        }
    }
    Ok(Some(at))
}

/// Knows where branches are and who wants to know.
pub(crate) struct Hub {
    objects: Arc<Objects>,
    state: Mutex<State>,
    moving: Mutex<()>,
    next_to_move: Mutex<()>,
}

struct State {
    kept: VecDeque<Update>,
    kept_max: usize,
    /// Where branches were before the first of `kept`.
    base: log::Heads,
    /// How many of `kept`, from its end, the log does not have yet.
    unlogged: usize,
    log: Option<log::Log>,
    has_lost_log: bool,
    next: u64,
    heads: BTreeMap<BranchName, ObjectId>,
    head_slots: HashMap<BranchName, Vec<Weak<Slot<Option<ObjectId>>>>>,
    followers: Vec<Weak<Follower>>,
    paths: HashMap<BranchName, paths::Trie>,
}

/// Somebody who follows updates.
struct Follower {
    wakers: Wakers,
}

impl Hub {
    /// Starts with the branches as they are, and follows the backend's changes.
    pub fn start(objects: Arc<Objects>, kept_max: usize) -> Arc<Hub> {
        let kept_max = kept_max.max(1);
        let now = || heads_now(&objects).unwrap_or_default();
        let (log, past) = match objects.backend.git_dir() {
            Some(folder) => log::Log::open(&folder.join("datakit"), objects.hash(), kept_max, now),
            None => (None, log::Past::new(now)),
        };
        let state = State {
            heads: past.heads(),
            kept: past.kept,
            kept_max,
            base: past.base,
            unlogged: 0,
            log,
            has_lost_log: false,
            next: past.next,
            head_slots: HashMap::new(),
            followers: Vec::new(),
            paths: HashMap::new(),
        };
        let hub = Arc::new(Hub {
            objects,
            state: Mutex::new(state),
            moving: Mutex::default(),
            next_to_move: Mutex::default(),
        });
        // What others moved since the log was written.
        hub.look_again();
        let weak = Arc::downgrade(&hub);
        let look = move |changed: Changed<'_>| {
            let Some(hub) = weak.upgrade() else { return };
            match changed {
                Changed::Any => hub.look_again(),
                Changed::Refs(refs) => refs.iter().for_each(|name| hub.look_at(name)),
            }
        };
        hub.objects.backend.on_change(Box::new(look));
        hub
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be held from before refs are moved until that is published: whoever looks at the refs meanwhile would take
    /// our moves for others'.
    pub fn moving(&self) -> MutexGuard<'_, ()> {
        // In turn: a mutex alone lets whoever has it take it again and again while others wait.
        let _next = self.next_to_move.lock().unwrap_or_else(PoisonError::into_inner);
        self.moving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes moves that this store has made, of a branch that others may have moved to `start` before.
    pub fn publish(
        &self,
        branch: &BranchName,
        start: Option<ObjectId>,
        moves: impl Iterator<Item = (Option<ObjectId>, Option<ObjectId>)>,
    ) {
        let mut state = self.state();
        let known = state.heads.get(branch).copied();
        for (old, new) in std::iter::once((known, start)).chain(moves).filter(|(old, new)| old != new) {
            state.note(branch, old, new);
        }
        self.spread(state, branch);
    }

    /// Looks at one ref that somebody may have moved.
    fn look_at(&self, name: &RefName) {
        let Some(branch) = BranchName::of_ref(name.clone()) else { return };
        // Most of what we are told of we did ourselves, and know: nobody who commits is to wait for that.
        let now = self.objects.backend.try_find_ref(name);
        if now.is_ok_and(|now| self.state().heads.get(&branch).copied() == now) {
            return;
        }
        let _moving = self.moving();
        let Ok(new) = self.objects.backend.try_find_ref(name) else { return };
        let mut state = self.state();
        let old = state.heads.get(&branch).copied();
        if old != new {
            state.note(&branch, old, new);
            self.spread(state, &branch);
        }
    }

    /// Compares the refs with what is known, for those who move them behind our back.
    fn look_again(&self) {
        let _moving = self.moving();
        let Ok(heads) = heads_now(&self.objects) else { return };
        let mut state = self.state();
        let gone: Vec<BranchName> =
            state.heads.keys().filter(|name| !heads.contains_key(*name)).cloned().collect();
        let differs: Vec<(BranchName, Option<ObjectId>)> = heads
            .iter()
            .filter(|(name, id)| state.heads.get(*name) != Some(*id))
            .map(|(name, id)| (name.clone(), Some(*id)))
            .chain(gone.into_iter().map(|name| (name, None)))
            .collect();
        for (branch, new) in differs {
            let old = state.heads.get(&branch).copied();
            state.note(&branch, old, new);
            self.spread(state, &branch);
            state = self.state();
        }
    }

    /// Whether the log cannot be written.
    pub fn trouble(&self) -> Option<String> {
        let lost = "the numbers of updates cannot be written to disk: they end with this server";
        self.state().has_lost_log.then(|| lost.to_owned())
    }

    /// Ends the log: numbers go on from there when the repository is opened again.
    pub fn close(&self) {
        if let Some(log) = self.state().log.take() {
            log.close();
        }
    }

    /// Wakes whoever watches a branch.
    fn spread(&self, mut state: MutexGuard<'_, State>, branch: &BranchName) {
        state.log();
        let head = state.heads.get(branch).copied();
        let slots: Vec<_> = match state.head_slots.get_mut(branch) {
            Some(slots) => {
                slots.retain(|slot| slot.strong_count() > 0);
                slots.iter().filter_map(Weak::upgrade).collect()
            }
            None => Vec::new(),
        };
        state.followers.retain(|follower| follower.strong_count() > 0);
        let followers: Vec<_> = state.followers.iter().filter_map(Weak::upgrade).collect();
        let woken = match state.paths.get_mut(branch) {
            Some(trie) => trie.update(&self.objects, root_of(&self.objects, head)),
            None => Vec::new(),
        };
        drop(state);
        for slot in slots {
            slot.set(head);
        }
        for follower in followers {
            follower.wakers.wake();
        }
        for (slot, value) in woken {
            slot.set(value);
        }
    }
}

impl State {
    fn note(&mut self, branch: &BranchName, old: Option<ObjectId>, new: Option<ObjectId>) {
        match new {
            Some(id) => self.heads.insert(branch.clone(), id),
            None => self.heads.remove(branch),
        };
        self.kept.push_back(Update { seq: Seq(self.next), branch: branch.clone(), old, new });
        self.next += 1;
        self.unlogged += 1;
    }

    /// Writes to the log what it does not have yet, before anybody is told; forgets what is too much to keep.
    fn log(&mut self) {
        let unlogged = std::mem::take(&mut self.unlogged);
        if let Some(log) = &mut self.log {
            let written = if log.lines() > self.kept_max * 2 {
                log.compact(&self.base, &self.kept, self.next)
            } else {
                log.append(self.kept.iter().skip(self.kept.len() - unlogged))
            };
            if written.is_err() {
                log.distrust();
                self.log = None;
                self.has_lost_log = true;
            }
        }
        while self.kept.len() > self.kept_max {
            self.kept.pop_front().iter().for_each(|update| log::apply(&mut self.base, update));
        }
    }

    fn resume_error(&self, wanted: u64) -> ResumeError {
        ResumeError { oldest: Seq(self.oldest()), next: Seq(self.next), wanted: Seq(wanted) }
    }

    fn oldest(&self) -> u64 {
        self.kept.front().map_or(self.next, |update| update.seq.0)
    }
}

fn heads_now(objects: &Objects) -> std::io::Result<BTreeMap<BranchName, ObjectId>> {
    let refs = objects.backend.refs(HEADS)?;
    Ok(refs.into_iter().filter_map(|(name, id)| Some((BranchName::of_ref(name)?, id))).collect())
}

/// The tree of a head. A head that cannot be read has none.
fn root_of(objects: &Objects, head: Option<ObjectId>) -> Option<ObjectId> {
    head.and_then(|head| objects.commit(head).ok()).map(|commit| commit.tree)
}

/// Every update of a store, or of one branch, in order and without loss.
pub struct Updates {
    hub: Arc<Hub>,
    branch: Option<BranchName>,
    next: u64,
    follower: Arc<Follower>,
}

impl std::fmt::Debug for Updates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Updates")
            .field("branch", &self.branch)
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}

impl Updates {
    /// The number that the next update will have at least; where to resume.
    pub const fn position(&self) -> Seq {
        Seq(self.next)
    }

    /// The next update, if there is one already.
    ///
    /// # Errors
    /// [`ResumeError`] when so many went by unread that it is no longer kept.
    pub fn try_next(&mut self) -> Result<Option<Update>, ResumeError> {
        let hub = self.hub.clone();
        let state = hub.state();
        self.take(&state)
    }

    fn take(&mut self, state: &State) -> Result<Option<Update>, ResumeError> {
        let oldest = state.oldest();
        if self.next < oldest {
            return Err(state.resume_error(self.next));
        }
        let skip = usize::try_from(self.next - oldest).unwrap_or(usize::MAX);
        for update in state.kept.iter().skip(skip) {
            self.next = update.seq.0 + 1;
            if self.branch.as_ref().is_none_or(|branch| *branch == update.branch) {
                return Ok(Some(update.clone()));
            }
        }
        Ok(None)
    }

    /// Waits for the next update, at most `timeout`; for ever without.
    ///
    /// # Errors
    /// As [`Updates::try_next`].
    pub fn next(&mut self, timeout: Option<Duration>) -> Result<Next<Update>, ResumeError> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            let ticket = self.follower.wakers.ticket();
            if let Some(update) = self.try_next()? {
                return Ok(Next::Value(update));
            }
            match self.follower.wakers.wait(ticket, deadline) {
                Next::Value(()) => {}
                Next::TimedOut => return Ok(Next::TimedOut),
                Next::Cancelled => return Ok(Next::Cancelled),
            }
        }
    }

    /// Ends a wait of [`Updates::next`] from another thread, now and later.
    pub fn canceller(&self) -> Canceller {
        let follower = self.follower.clone();
        Canceller::new(move || follower.wakers.cancel())
    }

    /// Calls this whenever there may be an update; from any thread, must return soon.
    pub fn on_wake(&self, waker: Waker) {
        self.follower.wakers.set(waker);
    }
}

impl Store {
    /// Follows the updates of one branch, or of all.
    ///
    /// # Errors
    /// [`ResumeError`] when updates that were asked for are no longer kept.
    pub fn updates(&self, branch: Option<&BranchName>, start: Start) -> Result<Updates, ResumeError> {
        let follower = Arc::new(Follower { wakers: Wakers::default() });
        let mut state = self.hub().state();
        let next = match start {
            Start::Now => state.next,
            Start::From(seq) if seq.0 < state.oldest() || seq.0 > state.next => {
                return Err(state.resume_error(seq.0));
            }
            Start::From(seq) => seq.0,
        };
        state.followers.push(Arc::downgrade(&follower));
        drop(state);
        Ok(Updates { hub: self.hub().clone(), branch: branch.cloned(), next, follower })
    }

    /// Watches the head of a branch. The first value is the present one.
    pub fn watch_head(&self, branch: &BranchName) -> Latest<Option<ObjectId>> {
        let mut state = self.hub().state();
        let slot = Arc::new(Slot::new(state.heads.get(branch).copied()));
        state.head_slots.entry(branch.clone()).or_default().push(Arc::downgrade(&slot));
        Latest::new(slot)
    }

    /// Watches what a path is at the head of a branch. The first value is the present one; later ones come only when
    /// mode or object id change.
    ///
    /// # Errors
    /// When the tree cannot be read.
    pub fn watch_path(
        &self,
        branch: &BranchName,
        path: &TreePath,
    ) -> Result<Latest<Option<PathValue>>, ReadError> {
        let hub = self.hub();
        let mut state = hub.state();
        let root = root_of(&hub.objects, state.heads.get(branch).copied());
        let trie = state.paths.entry(branch.clone()).or_insert_with(|| paths::Trie::new(root));
        let value = resolve(&hub.objects, root, path)?;
        let slot = Arc::new(Slot::new(value));
        trie.add(path, &slot);
        Ok(Latest::new(slot))
    }
}
