//! The fids of one session: what each stands for, from the walk that makes it to the clunk that forgets it.
//!
//! A fid is closed, open, or on an extended attribute, and changes at most once; or it carries the proof of who the
//! client is. Nothing here does I/O, so the table's lock is held for moments only.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::auth::Proof;
use crate::errno::Errno;
use crate::filesystem::{Answer, Node, OpenFile, XattrFlags};
use crate::message::Fid;

/// Most fids of one session unless [`SessionOptions::fids_max`](crate::SessionOptions) says another; a Linux client keeps one or two for each file that its cache knows. A fid on a host
/// directory is a file descriptor as well, so that the limit on those may be reached before.
pub const FIDS_MAX: usize = 1 << 18;

/// Most fids of one session that are on an extended attribute, as each may hold [`XATTR_BYTES_MAX`].
const XATTR_FIDS_MAX: usize = 256;

/// Longest extended attribute (`XATTR_SIZE_MAX`).
const XATTR_BYTES_MAX: u64 = 65_536;

/// An extended attribute on its way in: collected by writes, set at the clunk.
#[derive(Debug)]
pub(crate) struct XattrWrite {
    pub name: Vec<u8>,
    pub size: usize,
    pub flags: XattrFlags,
    pub value: Vec<u8>,
}

impl XattrWrite {
    /// Begins an attribute of `size` bytes.
    pub fn new(name: &[u8], size: u64, flags: XattrFlags) -> Answer<Self> {
        if size > XATTR_BYTES_MAX {
            return Err(Errno::E2BIG);
        }
        let size = usize::try_from(size).map_err(|_| Errno::E2BIG)?;
        Ok(Self { name: name.to_vec(), size, flags, value: Vec::with_capacity(size) })
    }

    /// Takes the next piece: pieces come in order and no more than was announced.
    fn write(&mut self, offset: u64, bytes: &[u8]) -> Answer<usize> {
        if offset != self.value.len() as u64 || self.value.len() + bytes.len() > self.size {
            return Err(Errno::EINVAL);
        }
        self.value.extend_from_slice(bytes);
        Ok(bytes.len())
    }
}

/// Where a directory is being read that is read as stats (9P2000, .u).
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// Bytes returned so far: the only offset, beside 0, at which a read may go on.
    pub bytes: u64,
    /// The service's cookie of the last entry returned.
    pub cookie: u64,
}

/// The way from the attach to a node, for the dialects whose stat has a name and whose rename none but the own
/// directory's.
pub(crate) struct Trail {
    pub parent: Option<Arc<Trail>>,
    pub node: Arc<dyn Node>,
    pub name: Box<[u8]>,
}

impl Drop for Trail {
    /// Not recursively, however deep the tree.
    fn drop(&mut self) {
        let mut next = self.parent.take();
        while let Some(mut trail) = next.and_then(Arc::into_inner) {
            next = trail.parent.take();
        }
    }
}

/// What was done with a fid.
pub(crate) enum State {
    /// Only walked to.
    Closed,
    /// Opened or created.
    Open(Arc<dyn OpenFile>),
    /// A directory opened to be read as stats.
    Directory(Arc<dyn OpenFile>, Arc<Mutex<Listing>>),
    /// Created as what cannot be read or written through 9P: a link, a device.
    Special,
    /// On an attribute's value, or the list of names.
    XattrRead(Arc<[u8]>),
    /// Collecting an attribute's value.
    XattrWrite(XattrWrite),
}

/// A fid's node and state.
pub(crate) struct Entry {
    pub node: Arc<dyn Node>,
    pub state: State,
    /// In 9P2000 and .u.
    pub trail: Option<Arc<Trail>>,
    /// Removed when the fid is forgotten (ORCLOSE).
    pub remove_on_clunk: bool,
}

/// What a read is from.
pub(crate) enum Source {
    File(Arc<dyn OpenFile>),
    Directory(Arc<dyn OpenFile>, Arc<Mutex<Listing>>, Arc<Trail>),
    Xattr(Arc<[u8]>),
    Proof(Arc<dyn Proof>),
}

/// What became of a write.
pub(crate) enum Sink {
    File(Arc<dyn OpenFile>),
    /// Taken into the attribute already.
    Xattr(usize),
    Proof(Arc<dyn Proof>),
}

/// A node and what was opened through the same fid.
pub(crate) type NodeAndFile = (Arc<dyn Node>, Option<Arc<dyn OpenFile>>);

impl Entry {
    /// A fid that was only walked to.
    pub fn closed(node: Arc<dyn Node>, trail: Option<Arc<Trail>>) -> Self {
        Self::new(node, State::Closed, trail)
    }

    /// A fid in any state.
    pub fn new(node: Arc<dyn Node>, state: State, trail: Option<Arc<Trail>>) -> Self {
        Self { node, state, trail, remove_on_clunk: false }
    }

    /// Ends the fid, and the file with it where that was asked for.
    pub fn forget(self) {
        let Self { node, state, remove_on_clunk, .. } = self;
        drop(state);
        if remove_on_clunk {
            // Nobody is there to be told.
            let _gone = node.remove();
        }
    }

    fn is_xattr(&self) -> bool {
        matches!(self.state, State::XattrRead(_) | State::XattrWrite(_))
    }
}

/// All fids of a session.
pub(crate) struct FidTable {
    fids: Mutex<Fids>,
}

struct Fids {
    entries: HashMap<Fid, Entry>,
    proofs: HashMap<Fid, Arc<dyn Proof>>,
    n_xattrs: usize,
    fids_max: usize,
}

impl FidTable {
    /// A table of at most `fids_max` fids.
    pub fn new(fids_max: usize) -> Self {
        let (entries, proofs) = (HashMap::new(), HashMap::new());
        Self { fids: Mutex::new(Fids { entries, proofs, n_xattrs: 0, fids_max }) }
    }

    fn lock(&self) -> MutexGuard<'_, Fids> {
        self.fids.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The node that `fid` stands for.
    pub fn node(&self, fid: Fid) -> Answer<Arc<dyn Node>> {
        self.lock().entries.get(&fid).map(|entry| Arc::clone(&entry.node)).ok_or(Errno::EBADF)
    }

    /// The node and what was opened through the same fid.
    pub fn node_and_file(&self, fid: Fid) -> Answer<NodeAndFile> {
        let fids = self.lock();
        let entry = fids.entries.get(&fid).ok_or(Errno::EBADF)?;
        let file = match &entry.state {
            State::Open(file) | State::Directory(file, _) => Some(Arc::clone(file)),
            _ => None,
        };
        Ok((Arc::clone(&entry.node), file))
    }

    /// The node of a fid that is not open yet.
    pub fn closed_node(&self, fid: Fid) -> Answer<Arc<dyn Node>> {
        match self.lock().entries.get(&fid).ok_or(Errno::EBADF)? {
            Entry { node, state: State::Closed, .. } => Ok(Arc::clone(node)),
            _ => Err(Errno::EINVAL),
        }
    }

    /// The way to a fid's node.
    pub fn trail(&self, fid: Fid) -> Answer<Arc<Trail>> {
        let fids = self.lock();
        fids.entries.get(&fid).and_then(|entry| entry.trail.clone()).ok_or(Errno::EBADF)
    }

    /// Takes note that a fid's node has another name now.
    pub fn rename(&self, fid: Fid, name: &[u8]) {
        let mut fids = self.lock();
        let Some(Entry { trail: Some(trail), .. }) = fids.entries.get_mut(&fid) else { return };
        let renamed =
            Trail { parent: trail.parent.clone(), node: Arc::clone(&trail.node), name: name.into() };
        let old = std::mem::replace(trail, Arc::new(renamed));
        drop(fids);
        drop(old);
    }

    /// The open file or directory of a fid.
    pub fn file(&self, fid: Fid) -> Answer<Arc<dyn OpenFile>> {
        match self.lock().entries.get(&fid) {
            Some(Entry { state: State::Open(file) | State::Directory(file, _), .. }) => Ok(Arc::clone(file)),
            _ => Err(Errno::EBADF),
        }
    }

    /// What a read of `fid` is from.
    pub fn source(&self, fid: Fid) -> Answer<Source> {
        let fids = self.lock();
        let Some(entry) = fids.entries.get(&fid) else {
            return fids.proofs.get(&fid).map(|proof| Source::Proof(Arc::clone(proof))).ok_or(Errno::EBADF);
        };
        match (&entry.state, &entry.trail) {
            (State::Open(file), _) => Ok(Source::File(Arc::clone(file))),
            (State::Directory(file, listing), Some(trail)) => {
                Ok(Source::Directory(Arc::clone(file), Arc::clone(listing), Arc::clone(trail)))
            }
            (State::XattrRead(value), _) => Ok(Source::Xattr(Arc::clone(value))),
            _ => Err(Errno::EBADF),
        }
    }

    /// Where a write to `fid` goes; a piece of an attribute is taken at once.
    pub fn sink(&self, fid: Fid, offset: u64, bytes: &[u8]) -> Answer<Sink> {
        let mut fids = self.lock();
        let Some(entry) = fids.entries.get_mut(&fid) else {
            return fids.proofs.get(&fid).map(|proof| Sink::Proof(Arc::clone(proof))).ok_or(Errno::EBADF);
        };
        match &mut entry.state {
            State::Open(file) => Ok(Sink::File(Arc::clone(file))),
            State::XattrWrite(xattr) => xattr.write(offset, bytes).map(Sink::Xattr),
            _ => Err(Errno::EBADF),
        }
    }

    /// Whether `fid` can be made: it is not there, and there are not too many.
    pub fn check_new(&self, fid: Fid) -> Answer<()> {
        self.lock().check_new(fid)
    }

    /// Makes a fid that is not there yet.
    pub fn insert(&self, fid: Fid, entry: Entry) -> Answer<()> {
        let mut fids = self.lock();
        fids.check_new(fid)?;
        fids.count_xattr(&entry)?;
        fids.entries.insert(fid, entry);
        Ok(())
    }

    /// Changes a closed fid, if it still stands for `node`: another request may have been faster.
    pub fn transform(&self, fid: Fid, node: &Arc<dyn Node>, entry: Entry) -> Answer<()> {
        let mut fids = self.lock();
        let old = fids.entries.get(&fid).ok_or(Errno::EBADF)?;
        if !Arc::ptr_eq(&old.node, node) || !matches!(old.state, State::Closed) {
            return Err(Errno::EINVAL);
        }
        fids.count_xattr(&entry)?;
        let old = fids.entries.insert(fid, entry);
        drop(fids);
        // Closing a file may take its time: not under the lock.
        drop(old);
        Ok(())
    }

    /// Makes a fid over which the client proves who it is.
    pub fn insert_proof(&self, fid: Fid, proof: Arc<dyn Proof>) -> Answer<()> {
        let mut fids = self.lock();
        fids.check_new(fid)?;
        fids.proofs.insert(fid, proof);
        Ok(())
    }

    /// The proof that a fid is.
    pub fn proof(&self, fid: Fid) -> Answer<Arc<dyn Proof>> {
        self.lock().proofs.get(&fid).cloned().ok_or(Errno::EBADF)
    }

    /// Forgets a fid that is a proof; whether it was one.
    pub fn remove_proof(&self, fid: Fid) -> bool {
        let proof = self.lock().proofs.remove(&fid);
        proof.is_some()
    }

    /// Forgets a fid and returns what it was.
    pub fn remove(&self, fid: Fid) -> Answer<Entry> {
        let mut fids = self.lock();
        let entry = fids.entries.remove(&fid).ok_or(Errno::EBADF)?;
        fids.n_xattrs -= usize::from(entry.is_xattr());
        Ok(entry)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.lock().len()
    }
}

impl Drop for FidTable {
    /// The session is over, which clunks all fids.
    fn drop(&mut self) {
        let fids = self.fids.get_mut().unwrap_or_else(PoisonError::into_inner);
        for (_, entry) in fids.entries.drain() {
            entry.forget();
        }
    }
}

impl Fids {
    fn len(&self) -> usize {
        self.entries.len() + self.proofs.len()
    }

    fn check_new(&self, fid: Fid) -> Answer<()> {
        if fid == Fid::NONE || self.entries.contains_key(&fid) || self.proofs.contains_key(&fid) {
            return Err(Errno::EBADF);
        }
        if self.len() >= self.fids_max {
            return Err(Errno::EMFILE);
        }
        Ok(())
    }

    fn count_xattr(&mut self, entry: &Entry) -> Answer<()> {
        if entry.is_xattr() {
            if self.n_xattrs >= XATTR_FIDS_MAX {
                return Err(Errno::EMFILE);
            }
            self.n_xattrs += 1;
        }
        Ok(())
    }
}
