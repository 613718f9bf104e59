//! Writes batches: journal, small pack, refs, in this order; and later makes large packs of the small ones.
//!
//! Invariant: a ref is moved only when all that it needs is in the repository's `objects`, and, when durable, in the
//! journal. See docs/adr/0007-journal.md.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use crate::backend::{Batch, Content, NewObject, RefName, WriteError};
use crate::behind::Behind;
use crate::disk::Disk;
use crate::intent::{Intent, Noted};
use crate::journal::{Journal, Record};
use crate::pack::{Pack, Packer};
use crate::prepared::{self, Prepared};
use crate::refs::{Locked, Refs};
use crate::stored;
use crate::{Durability, HashKind, Object, ObjectId, ObjectKind};

/// Small packs before they are made into one.
const SMALL_PACKS_MAX: usize = 256;

/// Larger packs of ours before they are made into one of git's own kind.
pub(crate) const MIDDLE_PACKS_MAX: usize = 16;

/// How long small packs may wait for company.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Objects of this many bytes and more are written as loose objects, which are streamed.
const LOOSE_BYTES_MIN: u64 = 1 << 20;

/// What was written since the last journal was begun.
#[derive(Default)]
pub(crate) struct Generation {
    pub journal: Option<Journal>,
    /// Small packs, without extension.
    pub packs: Vec<PathBuf>,
    /// Ref files that moved.
    pub refs: BTreeSet<PathBuf>,
    pub began: Option<Instant>,
}

/// Objects of small packs, which nobody needs to look for.
#[derive(Default)]
struct Recent {
    young: HashMap<ObjectId, Object>,
    old: HashMap<ObjectId, Object>,
}

pub(crate) struct Writer {
    pub hash: HashKind,
    pub folder: PathBuf,
    pub objects: PathBuf,
    pub disk: Disk,
    pub is_durable: bool,
    /// Tells packs and journals of this process from others'.
    pub instance: String,
    pub refs: Refs,
    state: Mutex<State>,
    recent: RwLock<Recent>,
    pub upkeep: Upkeep,
    /// Packs made of others so far.
    pub merged: AtomicU64,
    /// Or why nothing can be written here.
    intent: Result<Intent, Arc<io::Error>>,
    /// When commits are acknowledged before they are visible to all.
    pub behind: Option<Behind>,
}

struct State {
    packer: Packer,
    now: Generation,
    next_pack: u64,
}

/// What is left for the thread that keeps the repository tidy.
#[derive(Default)]
pub(crate) struct Upkeep {
    pub state: Mutex<UpkeepState>,
    pub changed: Condvar,
}

#[derive(Default)]
pub(crate) struct UpkeepState {
    pub closed: Vec<Generation>,
    pub is_busy: bool,
    /// Why nothing comes to disk, as of the last try.
    pub failure: Option<String>,
    pub stop: bool,
}

impl Upkeep {
    pub fn state(&self) -> MutexGuard<'_, UpkeepState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn failed(action: impl Into<String>) -> impl FnOnce(io::Error) -> WriteError {
    let action = action.into();
    move |source| WriteError::Io { action, source: Arc::new(source) }
}

impl Writer {
    pub fn new(
        folder: PathBuf,
        objects: PathBuf,
        hash: HashKind,
        disk: Disk,
        durability: Durability,
    ) -> io::Result<Writer> {
        let nanos =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_nanos();
        let instance = format!("{:x}{:x}", std::process::id(), nanos & 0xffff_ffff);
        let ours = folder.join("datakit");
        let made = fs::create_dir_all(&ours).and_then(|()| fs::create_dir_all(objects.join("pack")));
        let intent = match made.and_then(|()| Intent::create(&ours, &instance)) {
            Ok(intent) => Ok(intent),
            Err(error) if is_read_only(&error) => Err(Arc::new(error)),
            Err(error) => return Err(error),
        };
        let is_behind = durability == Durability::Behind;
        let spare = ours.join(format!("ref-{instance}"));
        Ok(Writer {
            refs: Refs::new(folder.clone(), hash, disk.clone()),
            intent,
            instance,
            state: Mutex::new(State { packer: Packer::new(hash), now: Generation::default(), next_pack: 1 }),
            recent: RwLock::default(),
            upkeep: Upkeep::default(),
            merged: AtomicU64::new(1),
            hash,
            folder,
            objects,
            disk,
            is_durable: durability == Durability::Fsync,
            behind: is_behind.then(|| Behind::new(spare)),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the repository can be read and not written: on a disk that is read-only, or another user's.
    pub fn is_read_only(&self) -> bool {
        self.intent.is_err()
    }

    fn intent(&self) -> Result<&Intent, WriteError> {
        let action = || "the repository cannot be written".to_owned();
        self.intent.as_ref().map_err(|source| WriteError::Io { action: action(), source: Arc::clone(source) })
    }

    /// An object that was written lately.
    pub fn recent(&self, id: &ObjectId) -> Option<Object> {
        if let Some(object) = self.behind.as_ref().and_then(|behind| behind.find(id)) {
            return Some(object);
        }
        let recent = self.recent.read().unwrap_or_else(PoisonError::into_inner);
        recent.young.get(id).or_else(|| recent.old.get(id)).cloned()
    }

    /// Forgets the objects of the generation before the last: they are found in packs now.
    pub fn age(&self) {
        let mut recent = self.recent.write().unwrap_or_else(PoisonError::into_inner);
        recent.old = std::mem::take(&mut recent.young);
    }

    /// Writes a batch whose edits this writer can make; the results say which refs moved. Edits that are not ours are
    /// `None`.
    pub fn write(&self, batch: &Batch) -> Result<Vec<Option<Result<(), WriteError>>>, WriteError> {
        self.intent()?;
        for new in &batch.objects {
            match &new.content {
                Content::Prepared(prepared) => {
                    let named = prepared.name(&self.disk, &self.loose_path(&new.id), self.is_durable);
                    named.map_err(failed(format!("object {} cannot be written", new.id)))?;
                }
                Content::Bytes(bytes) if !self.is_small(new) => {
                    self.write_loose(new, &mut &bytes[..], bytes.len() as u64)?;
                }
                Content::Bytes(_) => {}
            }
        }
        match &self.behind {
            Some(behind) => behind.write(self, batch),
            None => self.write_now(batch),
        }
    }

    /// Writes a batch, whose large objects are written already, as durable as it is to be, and visible to all.
    pub fn write_now(&self, batch: &Batch) -> Result<Vec<Option<Result<(), WriteError>>>, WriteError> {
        let mut state = self.state();
        self.note(batch.edits.iter().map(|edit| (&edit.name, edit.new, edit.old)))?;
        let mut locks: Vec<Result<Option<Locked>, WriteError>> =
            batch.edits.iter().map(|edit| self.refs.lock(edit)).collect();
        let small: Vec<&NewObject> = batch.objects.iter().filter(|new| self.is_small(new)).collect();
        let pack = state.packer.pack(contents(&small)).map_err(failed("a pack cannot be made"))?;
        let moves: Vec<_> = batch
            .edits
            .iter()
            .zip(&locks)
            .filter(|(_, lock)| matches!(lock, Ok(Some(_))))
            .filter_map(|(edit, _)| Some((edit.name.clone(), edit.old, edit.new?)))
            .collect();
        if small.is_empty() && moves.is_empty() {
            return Ok(locks
                .into_iter()
                .map(|lock| lock.map(|_| ()).map_or_else(|error| Some(Err(error)), |()| None))
                .collect());
        }
        let record = Record { pack: self.name_pack(&mut state), bytes: pack.bytes, index: pack.index, moves };
        self.store(&mut state, &record, !small.is_empty())?;
        self.remember(&small);
        let mut results = Vec::with_capacity(locks.len());
        for (edit, lock) in batch.edits.iter().zip(locks.drain(..)) {
            results.push(match lock {
                Ok(Some(lock)) => {
                    state.now.refs.insert(self.refs.path(&edit.name));
                    let moved = lock.publish(&self.disk);
                    Some(moved.map_err(failed(format!("{} cannot be moved", edit.name))))
                }
                Ok(None) => None,
                Err(error) => Some(Err(error)),
            });
        }
        self.rotate_when_due(&mut state);
        Ok(results)
    }

    /// Writes one pack of small objects, as visible and as little durable as a file is.
    pub fn write_small(&self, objects: &[NewObject]) -> Result<(), WriteError> {
        self.intent()?;
        let objects: Vec<&NewObject> = objects.iter().collect();
        let mut state = self.state();
        let pack = state.packer.pack(contents(&objects)).map_err(failed("a pack cannot be made"))?;
        let path = self.pack_path(&self.name_pack(&mut state));
        self.write_pack(&path, &pack, false).map_err(failed("a pack cannot be written"))?;
        state.now.began.get_or_insert_with(Instant::now);
        state.now.packs.push(path);
        self.remember(&objects);
        self.rotate_when_due(&mut state);
        Ok(())
    }

    /// Leaves nothing behind, when all is written.
    pub fn end(&self) {
        self.intent.iter().for_each(Intent::end);
    }

    /// Notes what is locked, or about to be.
    pub fn note<'a>(&self, moves: impl Iterator<Item = Noted<'a>>) -> Result<(), WriteError> {
        self.intent()?.note(moves).map_err(failed("what is to be locked cannot be noted"))
    }

    /// Remembers that a ref moves, so that it comes to disk with the rest.
    pub fn moved(&self, name: &RefName) {
        let mut state = self.state();
        state.now.began.get_or_insert_with(Instant::now);
        state.now.refs.insert(self.refs.path(name));
    }

    /// Whether an object belongs into a pack.
    pub fn is_small(&self, new: &NewObject) -> bool {
        matches!(&new.content, Content::Bytes(bytes) if (bytes.len() as u64) < LOOSE_BYTES_MIN)
    }

    fn name_pack(&self, state: &mut State) -> String {
        state.next_pack += 1;
        format!("pack-dk0-{}-{}", self.instance, state.next_pack)
    }

    /// Where a ref is for readers of this repository.
    pub fn try_find_ref(&self, name: &RefName) -> io::Result<Option<ObjectId>> {
        let unpublished = self.behind.as_ref().and_then(|behind| behind.find_ref(name));
        unpublished.map_or_else(|| self.refs.try_find(name), |id| Ok(Some(id)))
    }

    /// All refs for readers of this repository, sorted.
    pub fn refs(&self, prefix: &str) -> io::Result<Vec<(RefName, ObjectId)>> {
        let Some(behind) = &self.behind else { return self.refs.list(prefix) };
        // Before and after: what is published meanwhile is in neither place alone.
        let before = behind.refs();
        let mut found: std::collections::BTreeMap<_, _> = self.refs.list(prefix)?.into_iter().collect();
        let unpublished = before.into_iter().chain(behind.refs());
        found.extend(unpublished.filter(|(name, _)| name.as_bstr().starts_with(prefix.as_bytes())));
        Ok(found.into_iter().collect())
    }

    /// What goes wrong behind the commits.
    pub fn trouble(&self) -> Option<String> {
        let unpublished = self.behind.as_ref().and_then(Behind::failure);
        let unpublished = unpublished.map(|error| format!("commits cannot be published: {error}"));
        let unpacked = || {
            let failure = self.upkeep.state().failure.clone();
            failure.map(|error| format!("packs cannot be made of small ones: {error}"))
        };
        unpublished.or_else(unpacked)
    }

    /// Waits until everything is visible to other programs, and on disk.
    pub fn sync(&self) -> Result<(), WriteError> {
        self.behind.as_ref().map_or(Ok(()), Behind::sync)?;
        if self.is_durable {
            return Ok(());
        }
        self.rotate_now(Duration::ZERO);
        let mut state = self.upkeep.state();
        loop {
            if state.closed.is_empty() && !state.is_busy {
                return Ok(());
            }
            if let Some(failure) = &state.failure {
                return Err(WriteError::Io {
                    action: "what was written cannot be brought to disk".into(),
                    source: Arc::new(io::Error::other(failure.clone())),
                });
            }
            state = self.upkeep.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Writes a large object at once, durably, as it is: compressing takes longer than most disks.
    fn write_loose(&self, new: &NewObject, reader: &mut dyn io::Read, size: u64) -> Result<(), WriteError> {
        let object = (new.id, new.kind, size);
        stored::write(&self.disk, &self.loose_path(&new.id), object, reader, self.is_durable)
            .map_err(failed(format!("object {} cannot be written", new.id)))
    }

    /// Writes a large blob without a name yet.
    pub fn prepare(&self, file: &fs::File, size: u64) -> Result<(ObjectId, Prepared), WriteError> {
        self.intent()?;
        let to = prepared::Place { disk: &self.disk, folder: &self.objects, is_durable: self.is_durable };
        prepared::prepare(to, self.hash, file, size).map_err(failed("a large file cannot be written"))
    }

    pub fn loose_path(&self, id: &ObjectId) -> PathBuf {
        let hex = id.to_string();
        self.objects.join(&hex[..2]).join(&hex[2..])
    }

    /// Makes a record durable, then its pack visible. When any of it fails, none of it counts.
    fn store(&self, state: &mut State, record: &Record, has_objects: bool) -> Result<(), WriteError> {
        let at = if self.is_durable { self.append(state, record)? } else { None };
        let path = self.pack_path(&record.pack);
        let pack = Pack { bytes: record.bytes.clone(), index: record.index.clone() };
        let written = if has_objects { self.write_pack(&path, &pack, false) } else { Ok(()) };
        let written = written.and_then(|()| self.sync_when_unjournalled(at, &path, has_objects));
        if let Err(error) = written {
            self.take_back(state, at);
            return Err(failed("a pack cannot be written")(error));
        }
        state.now.began.get_or_insert_with(Instant::now);
        if has_objects {
            state.now.packs.push(path);
        }
        Ok(())
    }

    /// A batch too large for the journal goes to disk by itself.
    fn sync_when_unjournalled(&self, at: Option<u64>, path: &Path, has_objects: bool) -> io::Result<()> {
        if !self.is_durable || at.is_some() || !has_objects {
            return Ok(());
        }
        self.disk.sync_path(&path.with_extension("pack"))?;
        self.disk.sync_path(&path.with_extension("idx"))?;
        self.disk.sync_path(&self.objects.join("pack"))
    }

    fn append(&self, state: &mut State, record: &Record) -> Result<Option<u64>, WriteError> {
        let bytes = record.bytes.len() + record.index.len() + record.moves.len() * 4200;
        if bytes as u64 + 4096 > crate::journal::JOURNAL_BYTES {
            return Ok(None);
        }
        if state.now.journal.as_ref().is_some_and(|journal| !journal.has_room(bytes)) {
            self.rotate(state);
        }
        if state.now.journal.is_none() {
            let path =
                self.folder.join("datakit").join(format!("journal-{}-{}", self.instance, state.next_pack));
            let made = Journal::create(&self.disk, path).map_err(failed("a journal cannot be made"))?;
            state.now.journal = Some(made);
        }
        let Some(journal) = &mut state.now.journal else { return Ok(None) };
        match journal.append(&self.disk, record) {
            Ok(at) => Ok(Some(at)),
            Err(error) => {
                // What is on disk now is not known: void the record, and trust this file no further.
                let at = journal.position();
                journal.take_back(&self.disk, at).ok();
                self.rotate(state);
                Err(failed("the journal cannot be written")(error))
            }
        }
    }

    fn take_back(&self, state: &mut State, at: Option<u64>) {
        if let (Some(at), Some(journal)) = (at, &mut state.now.journal)
            && journal.take_back(&self.disk, at).is_err()
        {
            self.rotate(state);
        }
    }

    pub fn pack_path(&self, name: &str) -> PathBuf {
        self.objects.join("pack").join(name)
    }

    /// Writes pack and index; readers see it when its index has its name.
    pub fn write_pack(&self, path: &Path, pack: &Pack, may_exist: bool) -> io::Result<()> {
        let (data, index) = (path.with_extension("pack"), path.with_extension("idx"));
        let unfinished = path.with_extension("idx-unfinished");
        if may_exist {
            for old in [&index, &data, &unfinished] {
                fs::remove_file(old).ok();
            }
        }
        self.disk.create(&data, &pack.bytes)?;
        let named =
            self.disk.create(&unfinished, &pack.index).and_then(|_| self.disk.rename(&unfinished, &index));
        if named.is_err() {
            fs::remove_file(&data).ok();
            fs::remove_file(&unfinished).ok();
        }
        named
    }

    fn remember(&self, objects: &[&NewObject]) {
        let mut recent = self.recent.write().unwrap_or_else(PoisonError::into_inner);
        for new in objects {
            if let Content::Bytes(bytes) = &new.content {
                recent.young.insert(new.id, Object { kind: new.kind, bytes: bytes.clone() });
            }
        }
    }

    fn rotate_when_due(&self, state: &mut State) {
        let is_idle = || {
            let upkeep = self.upkeep.state();
            upkeep.closed.is_empty() && !upkeep.is_busy
        };
        if state.now.packs.len() >= SMALL_PACKS_MAX && is_idle() {
            self.rotate(state);
        }
    }

    /// Hands what was written so far to the upkeep.
    fn rotate(&self, state: &mut State) {
        let closed = std::mem::take(&mut state.now);
        self.upkeep.state().closed.push(closed);
        self.upkeep.changed.notify_all();
    }

    /// The same when it has waited long enough, or at once.
    pub fn rotate_now(&self, patience: Duration) {
        let mut state = self.state();
        if state.now.began.is_some_and(|began| began.elapsed() >= patience) {
            self.rotate(&mut state);
        }
    }
}

fn is_read_only(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied)
}

/// What goes into a pack.
fn contents<'a>(objects: &[&'a NewObject]) -> impl Iterator<Item = (ObjectId, ObjectKind, &'a [u8])> {
    objects.iter().filter_map(|new| match &new.content {
        Content::Bytes(bytes) => Some((new.id, new.kind, &**bytes)),
        Content::Prepared(_) => None,
    })
}
