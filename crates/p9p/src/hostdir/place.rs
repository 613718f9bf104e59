//! Where a file is: an `O_PATH` descriptor while it is in use, its directory and name once it was left alone.
//!
//! Clients hold as many fids as they like (a kernel one for each file that it remembers), a process may hold few
//! descriptors. So a descriptor that nobody used for a while is closed, and the file found again under its name, if
//! device, inode and time of birth are still the same. What is renamed through the share is followed, and what is
//! removed through it, or open, keeps its descriptor. Only a file that somebody *on the host* moved or removed while its
//! descriptor was closed is lost: ESTALE, upon which a Linux client looks the path up anew.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rustix::fd::OwnedFd;
use rustix::fs::Statx;
use rustix::process::{Resource, getrlimit};

use super::confined::Name;
use super::identity::FileKey;

#[cfg(test)]
mod tests;

/// Bounds of the number of descriptors that files in no use may keep.
const IDLE_MAX: (usize, usize) = (16, 1 << 14);
/// Part of the process's descriptors that one share's files in no use may keep.
const IDLE_SHARE: u64 = 4;
/// How many files are looked at for one that is opened: more than one, so that the number comes down again.
const STEPS: usize = 8;
/// Longest way to the root that is followed to see whether a directory is below another.
const DEPTH_MAX: usize = 4096;

/// Device, inode and when it was made: what an inode that is used again has of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    pub key: FileKey,
    /// Seconds and nanoseconds; 0 on file systems that do not know.
    birth: (i64, u32),
}

impl Identity {
    /// Of a file that was looked at.
    pub fn of(stat: &Statx) -> Self {
        Self { key: FileKey::of(stat), birth: (stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec) }
    }
}

/// An entry of a directory.
#[derive(Clone)]
pub(super) struct At {
    pub directory: Arc<Place>,
    pub name: Arc<[u8]>,
}

impl At {
    /// The entry `name` of `directory`.
    pub fn new(directory: &Arc<Place>, name: Name<'_>) -> Self {
        Self { directory: Arc::clone(directory), name: name.as_bytes().into() }
    }
}

/// A file of a share, one for all fids that reached it by one name.
pub(super) struct Place {
    places: Arc<Places>,
    pub identity: Identity,
    state: Mutex<State>,
    /// Since the hand last came by.
    used: AtomicBool,
}

struct State {
    /// Shared with whoever uses it at the moment: an open file, or a call under way.
    fd: Option<Arc<OwnedFd>>,
    /// `None` keeps the descriptor: of the root, of what was removed, of what cannot be found by name.
    at: Option<At>,
}

impl Place {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The descriptor, if there is one.
    pub fn fd(&self) -> Option<Arc<OwnedFd>> {
        self.used.store(true, Ordering::Relaxed);
        self.state().fd.clone()
    }

    /// Where it is to be found.
    pub fn at(&self) -> Option<At> {
        self.state().at.clone()
    }

    /// Takes the descriptor of a file that was found again, or the one that another found first.
    pub fn reopened(self: &Arc<Self>, fd: Arc<OwnedFd>) -> Arc<OwnedFd> {
        let mut state = self.state();
        if let Some(fd) = &state.fd {
            return Arc::clone(fd);
        }
        state.fd = Some(Arc::clone(&fd));
        drop(state);
        self.places.opened(self);
        fd
    }

    /// Gives the descriptor up unless somebody needs it.
    fn close(&self) -> Option<Arc<OwnedFd>> {
        let mut state = self.state();
        // Others come by it only under this lock.
        let idle = state.at.is_some() && state.fd.as_ref().is_some_and(|fd| Arc::strong_count(fd) == 1);
        if idle { state.fd.take() } else { None }
    }

    /// Whether `other` is on the way from here to the root, or that way is too long to tell.
    fn is_below(self: &Arc<Self>, other: &Arc<Self>) -> bool {
        let mut place = Arc::clone(self);
        for _ in 0..DEPTH_MAX {
            if Arc::ptr_eq(&place, other) {
                return true;
            }
            match place.at() {
                Some(at) => place = at.directory,
                None => return false,
            }
        }
        true
    }
}

impl Drop for Place {
    /// In a loop: directories are nested as deep as a client likes.
    fn drop(&mut self) {
        let mut at = self.state.get_mut().unwrap_or_else(PoisonError::into_inner).at.take();
        while let Some(here) = at.take() {
            self.places.forget(&here);
            if let Some(mut directory) = Arc::into_inner(here.directory) {
                at = directory.state.get_mut().unwrap_or_else(PoisonError::into_inner).at.take();
            }
        }
    }
}

type Entries = HashMap<Arc<[u8]>, Weak<Place>>;

/// The files that fids of a share lead to.
pub(super) struct Places {
    /// By directory and name.
    entries: Mutex<HashMap<FileKey, Entries>>,
    /// Those with a descriptor, and some that have none any more.
    open: Mutex<Clock>,
    /// Changes when an entry was renamed or removed through the share.
    moves: AtomicU64,
}

struct Clock {
    places: Vec<Weak<Place>>,
    hand: usize,
    /// Up to so many nothing is closed.
    idle_max: usize,
}

impl Places {
    /// For a share of this process, with a part of the descriptors that it may have.
    pub fn new() -> Arc<Self> {
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let idle_max = usize::try_from(limit / IDLE_SHARE).unwrap_or(usize::MAX);
        Self::with_idle_max(idle_max.clamp(IDLE_MAX.0, IDLE_MAX.1))
    }

    /// Keeps about `idle_max` descriptors of files in no use.
    pub fn with_idle_max(idle_max: usize) -> Arc<Self> {
        let clock = Clock { places: Vec::new(), hand: 0, idle_max };
        Arc::new(Self { entries: Mutex::default(), open: Mutex::new(clock), moves: AtomicU64::new(0) })
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<FileKey, Entries>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A file that keeps its descriptor.
    pub fn kept(self: &Arc<Self>, identity: Identity, fd: Arc<OwnedFd>) -> Arc<Place> {
        let state = Mutex::new(State { fd: Some(fd), at: None });
        Arc::new(Place { places: Arc::clone(self), identity, state, used: AtomicBool::new(true) })
    }

    /// The file just opened at `at`: the one known there, if it is the same, or a new one.
    pub fn found(self: &Arc<Self>, identity: Identity, fd: Arc<OwnedFd>, at: At) -> Arc<Place> {
        let place = self.kept(identity, Arc::clone(&fd));
        place.state().at = Some(at.clone());
        let mut entries = self.entries();
        let entry = entries.entry(at.directory.identity.key).or_default().entry(at.name).or_default();
        let known = entry.upgrade();
        let is_known = known.as_ref().is_some_and(|known| known.identity == identity);
        if !is_known {
            *entry = Arc::downgrade(&place);
        }
        drop(entries);
        match known {
            Some(known) if is_known => {
                known.reopened(fd);
                return known;
            }
            // Somebody on the host put another there.
            Some(replaced) => replaced.state().at = None,
            None => {}
        }
        self.opened(&place);
        place
    }

    /// The file known at an entry.
    pub fn entry(&self, directory: FileKey, name: &[u8]) -> Option<Arc<Place>> {
        self.entries().get(&directory)?.get(name)?.upgrade()
    }

    /// Notes that a file was moved to `to`, or is to keep its descriptor.
    pub fn settle(&self, place: &Arc<Place>, to: Option<At>) {
        // A loop would never be left again. It takes a directory that the host moved and the client then moved back.
        let to = to.filter(|to| !to.directory.is_below(place));
        let former = std::mem::replace(&mut place.state().at, to.clone());
        let mut entries = self.entries();
        if let Some(former) = &former {
            remove(&mut entries, former, |known| std::ptr::eq(known.as_ptr(), Arc::as_ptr(place)));
        }
        if let Some(At { directory, name }) = &to {
            let entry = entries.entry(directory.identity.key).or_default();
            entry.insert(Arc::clone(name), Arc::downgrade(place));
        }
        drop(entries);
        // A directory may end with these, and look for its own entry.
        drop((former, to));
    }

    /// Takes out the entry of a place that is gone.
    fn forget(&self, at: &At) {
        remove(&mut self.entries(), at, |known| known.strong_count() == 0);
    }

    /// How often entries were moved: the same before a name was opened and after it was noted, it still is at that name.
    pub fn moves(&self) -> u64 {
        self.moves.load(Ordering::SeqCst)
    }

    /// To be called after an entry was renamed or removed, and before those noted at it are looked for.
    pub fn count_move(&self) {
        self.moves.fetch_add(1, Ordering::SeqCst);
    }

    fn opened(&self, place: &Arc<Place>) {
        let mut clock = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        clock.places.push(Arc::downgrade(place));
        let closed = clock.advance(STEPS);
        drop(clock);
        drop(closed);
    }

    /// Closes what is in no use, however few it is; whether there was any.
    pub fn close_idle(&self) -> bool {
        let mut clock = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let idle_max = std::mem::replace(&mut clock.idle_max, 0);
        // The first round takes the marks of use away.
        let steps = clock.places.len() * 2;
        let closed = clock.advance(steps);
        clock.idle_max = idle_max;
        drop(clock);
        !closed.is_empty()
    }
}

impl Clock {
    /// Moves the hand on while too many are open; what it closed, to be dropped without the lock.
    fn advance(&mut self, steps: usize) -> Vec<Arc<OwnedFd>> {
        let mut closed = Vec::new();
        for _ in 0..steps {
            if self.places.len() <= self.idle_max {
                break;
            }
            if self.hand >= self.places.len() {
                self.hand = 0;
            }
            let place = self.places[self.hand].upgrade();
            let keeps = place.is_some_and(|place| {
                place.used.swap(false, Ordering::Relaxed) || {
                    let fd = place.close();
                    let keeps = fd.is_none() && place.state().fd.is_some();
                    closed.extend(fd);
                    keeps
                }
            });
            if keeps {
                self.hand += 1;
            } else {
                self.places.swap_remove(self.hand);
            }
        }
        closed
    }
}

fn remove(entries: &mut HashMap<FileKey, Entries>, at: &At, is_it: impl Fn(&Weak<Place>) -> bool) {
    let key = at.directory.identity.key;
    let Some(directory) = entries.get_mut(&key) else { return };
    if directory.get(&at.name).is_some_and(is_it) {
        directory.remove(&at.name);
        if directory.is_empty() {
            entries.remove(&key);
        }
    }
}
