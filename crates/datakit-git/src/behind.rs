//! Commits that are acknowledged before other programs see them, and a thread that publishes them soon after.
//!
//! A ref's lock is taken by the first commit of a burst and held until the burst is published, so that nobody else can
//! move the ref under what was acknowledged. Readers of this repository see the burst at once.
//! See docs/adr/0019-behind.md.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::backend::{Batch, Content, NewObject, RefEdit, RefName, WriteError};
use crate::refs::Locked;
use crate::writer::Writer;
use crate::{Object, ObjectId};

/// How long commits gather before they are published.
const GATHER: Duration = Duration::from_millis(5);

/// How long a ref stays locked while commits go on; then others get a chance.
const HOLD_MAX: Duration = Duration::from_millis(50);

/// How long that chance is.
const GAP: Duration = Duration::from_millis(2);

/// Most bytes that are acknowledged and not published; beyond, commits wait.
const UNPUBLISHED_BYTES_MAX: usize = 16 << 20;

/// How soon a publication that failed is tried again.
const RETRY: Duration = Duration::from_millis(50);

/// How often a publication is tried again while the repository is being closed.
const CLOSING_TRIES: u32 = 100;

/// What is acknowledged and not published.
pub(crate) struct Behind {
    state: Mutex<State>,
    /// Something is to be published.
    gathered: Condvar,
    /// Something was, or could not be.
    published: Condvar,
    /// Held by who writes: one at a time.
    turn: Mutex<()>,
    spare: PathBuf,
}

#[derive(Default)]
struct State {
    burst: Vec<NewObject>,
    burst_bytes: usize,
    /// When the oldest of what gathers was acknowledged.
    began: Option<Instant>,
    /// Being published.
    in_flight: HashMap<ObjectId, Object>,
    unpublished: HashMap<ObjectId, Object>,
    held: HashMap<RefName, Held>,
    /// Being locked: name, new value, old value.
    taking: Vec<(RefName, Option<ObjectId>, Option<ObjectId>)>,
    is_publishing: bool,
    /// How many batches were acknowledged, and how many of them are published.
    acknowledged: u64,
    published: u64,
    is_urgent: bool,
    /// Why the last publication failed; nothing is acknowledged until one succeeds.
    failure: Option<WriteError>,
    stop: bool,
    /// Nothing is published any more.
    has_ended: bool,
}

/// A ref that is locked.
struct Held {
    lock: Locked,
    /// Where it is for readers of this repository, and will be for all.
    now: ObjectId,
    /// Where it is for other programs.
    on_disk: Option<ObjectId>,
    /// Where it is about to be for them.
    next: Option<ObjectId>,
    since: Instant,
}

/// Refs that were just locked.
type Taken = HashMap<RefName, Result<Locked, WriteError>>;

impl State {
    /// Why nothing is acknowledged at present.
    fn refusal(&self) -> Option<WriteError> {
        let closed = || WriteError::Io {
            action: "nothing can be committed".to_owned(),
            source: Arc::new(std::io::Error::other("the repository is closed")),
        };
        self.failure.clone().or_else(|| self.has_ended.then(closed))
    }

    fn is_clean(&self) -> bool {
        self.began.is_none() && !self.is_publishing && self.held.is_empty()
    }

    /// How long to wait before publishing.
    fn left(&self) -> Option<Duration> {
        let is_now = self.stop || self.is_urgent || self.failure.is_some();
        let left = GATHER.checked_sub(self.began?.elapsed()).filter(|left| !left.is_zero());
        left.filter(|_| !is_now)
    }

    /// Notes all locks for whoever finds them when this process was killed.
    fn note(&self, writer: &Writer) -> Result<(), WriteError> {
        let held = self.held.iter().map(|(name, held)| (name, held.next.or(Some(held.now)), held.on_disk));
        let taking = self.taking.iter().map(|(name, new, old)| (name, *new, *old));
        writer.note(held.chain(taking))
    }

    /// Moves a ref for readers of this repository.
    fn edit(&mut self, edit: &RefEdit, lock: Option<Locked>) -> Result<(), WriteError> {
        let moved = |found| WriteError::Moved { name: edit.name.clone(), expected: edit.old, found };
        let now = edit.new.ok_or_else(|| moved(None))?;
        if let Some(held) = self.held.get_mut(&edit.name) {
            if edit.old != Some(held.now) {
                return Err(moved(Some(held.now)));
            }
            held.now = now;
            return Ok(());
        }
        if let Some(other) = self.held.keys().find(|other| other.clashes(&edit.name)) {
            return Err(WriteError::NameClash { name: edit.name.clone(), other: other.clone() });
        }
        let lock = lock.ok_or_else(|| moved(None))?;
        let held = Held { lock, now, on_disk: edit.old, next: None, since: Instant::now() };
        self.held.insert(edit.name.clone(), held);
        Ok(())
    }
}

type Results = Vec<Option<Result<(), WriteError>>>;

impl Behind {
    pub fn new(spare: PathBuf) -> Behind {
        Behind {
            state: Mutex::default(),
            gathered: Condvar::new(),
            published: Condvar::new(),
            turn: Mutex::default(),
            spare,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.published.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// An object that no pack has yet.
    pub fn find(&self, id: &ObjectId) -> Option<Object> {
        let state = self.state();
        state.unpublished.get(id).or_else(|| state.in_flight.get(id)).cloned()
    }

    /// Where a ref is, when that is not published.
    pub fn find_ref(&self, name: &RefName) -> Option<ObjectId> {
        self.state().held.get(name).map(|held| held.now)
    }

    /// All refs that are not published.
    pub fn refs(&self) -> Vec<(RefName, ObjectId)> {
        self.state().held.iter().map(|(name, held)| (name.clone(), held.now)).collect()
    }

    /// Why the last publication failed, if it did.
    pub fn failure(&self) -> Option<WriteError> {
        self.state().failure.clone()
    }

    /// Ends the thread, after it has published everything.
    pub fn stop(&self) {
        self.state().stop = true;
        self.gathered.notify_all();
    }

    /// Waits until everything is published that was acknowledged before.
    ///
    /// # Errors
    /// Why the publication fails. It is tried again.
    pub fn sync(&self) -> Result<(), WriteError> {
        let wanted = self.state().acknowledged;
        self.wait_until(|state| state.published >= wanted)
    }

    fn wait_until(&self, is_done: impl Fn(&State) -> bool) -> Result<(), WriteError> {
        let mut state = self.state();
        while !is_done(&state) {
            state.is_urgent = true;
            self.gathered.notify_all();
            if !state.has_ended {
                state = self.wait(state);
            }
            if let Some(refusal) = state.refusal() {
                return Err(refusal);
            }
        }
        Ok(())
    }

    /// Acknowledges a batch, whose large objects are written already.
    pub fn write(&self, writer: &Writer, batch: &Batch) -> Result<Results, WriteError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let is_ours =
            |edit: &RefEdit| edit.new.is_some() && (self.holds(&edit.name) || writer.refs.is_ours(edit));
        if !batch.edits.iter().all(is_ours) {
            self.wait_until(State::is_clean)?;
            return writer.write_now(batch);
        }
        let (mut state, mut taken) = self.lock(writer, batch)?;
        state.taking.clear();
        let results = batch.edits.iter().map(|edit| {
            let lock = taken.remove(&edit.name).transpose()?;
            state.edit(edit, lock)
        });
        let results = results.map(Some).collect();
        for new in batch.objects.iter().filter(|new| writer.is_small(new)) {
            let Content::Bytes(bytes) = &new.content else { continue };
            state.burst_bytes += bytes.len();
            state.unpublished.insert(new.id, Object { kind: new.kind, bytes: bytes.clone() });
            state.burst.push(new.clone());
        }
        state.acknowledged += 1;
        if state.began.is_none() {
            state.began = Some(Instant::now());
            self.gathered.notify_all();
        }
        Ok(results)
    }

    fn holds(&self, name: &RefName) -> bool {
        self.state().held.contains_key(name)
    }

    /// Locks the refs of a batch that are not locked yet. Readers do not wait meanwhile.
    fn lock<'a>(
        &'a self,
        writer: &Writer,
        batch: &Batch,
    ) -> Result<(MutexGuard<'a, State>, Taken), WriteError> {
        let mut taken = Taken::new();
        loop {
            let mut state = self.room(batch)?;
            let missing =
                |edit: &&RefEdit| !state.held.contains_key(&edit.name) && !taken.contains_key(&edit.name);
            let missing: Vec<&RefEdit> = batch.edits.iter().filter(missing).collect();
            if missing.is_empty() {
                return Ok((state, taken));
            }
            state.taking.extend(missing.iter().map(|edit| (edit.name.clone(), edit.new, edit.old)));
            state.note(writer)?;
            drop(state);
            for edit in missing {
                let moved = || WriteError::Moved { name: edit.name.clone(), expected: edit.old, found: None };
                let lock = writer.refs.lock_empty(edit).and_then(|lock| lock.ok_or_else(moved));
                taken.insert(edit.name.clone(), lock);
            }
        }
    }

    /// Waits until there is room for a batch, and until refs that were locked for long have been free for a while.
    fn room(&self, batch: &Batch) -> Result<MutexGuard<'_, State>, WriteError> {
        let mut state = self.state();
        let mut was_long = false;
        loop {
            if let Some(refusal) = state.refusal() {
                return Err(refusal);
            }
            let is_long = batch
                .edits
                .iter()
                .any(|edit| state.held.get(&edit.name).is_some_and(|held| held.since.elapsed() > HOLD_MAX));
            if !is_long && state.burst_bytes < UNPUBLISHED_BYTES_MAX {
                if !was_long {
                    return Ok(state);
                }
                was_long = false;
                drop(state);
                std::thread::sleep(GAP);
                state = self.state();
                continue;
            }
            was_long |= is_long;
            state.is_urgent = true;
            self.gathered.notify_all();
            state = self.wait(state);
        }
    }

    /// Publishes until told to stop.
    pub fn run(&self, writer: &Writer) {
        let mut tries = 0;
        loop {
            let mut state = self.state();
            while !state.stop && state.began.is_none() && state.failure.is_none() {
                state = self.gathered.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            while let Some(left) = state.left() {
                state = self.gathered.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            }
            if state.stop && (state.is_clean() || tries > CLOSING_TRIES) {
                state.has_ended = true;
                drop(state);
                self.published.notify_all();
                return;
            }
            state.is_urgent = false;
            state.is_publishing = true;
            let result = self.publish(writer, state);
            let mut state = self.state();
            state.is_publishing = false;
            let has_failed = result.is_err();
            state.failure = result.err();
            drop(state);
            self.published.notify_all();
            if has_failed {
                tries += 1;
                std::thread::sleep(RETRY);
            }
        }
    }

    /// Writes one pack of what has gathered, and moves the refs.
    fn publish(&self, writer: &Writer, mut state: MutexGuard<'_, State>) -> Result<(), WriteError> {
        for held in state.held.values_mut() {
            held.next = Some(held.now);
        }
        state.note(writer)?;
        let taken = state.acknowledged;
        let burst = std::mem::take(&mut state.burst);
        let began = state.began.take();
        let bytes = std::mem::take(&mut state.burst_bytes);
        let fresh = std::mem::take(&mut state.unpublished);
        state.in_flight.extend(fresh);
        drop(state);
        let packed = if burst.is_empty() { Ok(()) } else { writer.write_small(&burst) };
        let mut state = self.state();
        if let Err(error) = packed {
            // It gathers on, in front of what came meanwhile.
            let later = std::mem::replace(&mut state.burst, burst);
            state.burst.extend(later);
            state.burst_bytes += bytes;
            state.began = began;
            let back = std::mem::take(&mut state.in_flight);
            state.unpublished.extend(back);
            return Err(error);
        }
        state.in_flight.clear();
        self.move_refs(writer, &mut state)?;
        state.published = taken;
        Ok(())
    }

    fn move_refs(&self, writer: &Writer, state: &mut State) -> Result<(), WriteError> {
        let mut result = Ok(());
        for (name, mut held) in std::mem::take(&mut state.held) {
            let Some(next) = held.next.take() else {
                state.held.insert(name, held);
                continue;
            };
            let cannot =
                |error| WriteError::Io { action: format!("{name} cannot be moved"), source: Arc::new(error) };
            writer.moved(&name);
            if next == held.now {
                let Held { lock, now, on_disk, since, .. } = held;
                if let Err((lock, error)) = lock.publish_at(&writer.disk, next) {
                    result = Err(cannot(error));
                    state.held.insert(name, Held { lock, now, on_disk, next: None, since });
                }
                continue;
            }
            match held.lock.publish_and_keep(&writer.disk, next, &self.spare) {
                Ok(()) => held.on_disk = Some(next),
                Err(error) => result = Err(cannot(error)),
            }
            state.held.insert(name, held);
        }
        result
    }
}
