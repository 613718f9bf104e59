//! Reads objects through caches, and ahead of the backend: what a commit under way has made is found here first.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use datakit_git::{
    Backend, Commit, Content, HashKind, NewObject, Object, ObjectId, ObjectKind, ReadError, Tree, hash,
};

use crate::damage::Damage;

/// Parsed trees and commits, shared. Two generations, each of at most half the memory, need no list of uses.
struct Cache {
    young: HashMap<ObjectId, Parsed>,
    old: HashMap<ObjectId, Parsed>,
    young_bytes: usize,
    young_bytes_max: usize,
}

#[derive(Clone)]
enum Parsed {
    Tree(Arc<Tree>),
    Commit(Arc<Commit>),
}

impl Cache {
    fn find(&mut self, id: &ObjectId) -> Option<Parsed> {
        if let Some(found) = self.young.get(id) {
            return Some(found.clone());
        }
        let found = self.old.remove(id)?;
        self.insert(*id, found.clone(), 200);
        Some(found)
    }

    fn insert(&mut self, id: ObjectId, parsed: Parsed, bytes: usize) {
        if self.young_bytes > self.young_bytes_max {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        self.young_bytes += bytes + 200;
        self.young.insert(id, parsed);
    }
}

/// Objects of a backend, parsed and cached.
pub(crate) struct Objects {
    pub backend: Arc<dyn Backend>,
    pub damage: Arc<Damage>,
    cache: Mutex<Cache>,
    /// What is being written.
    in_flight: Mutex<Vec<Arc<Fresh>>>,
}

impl Objects {
    pub fn new(backend: Arc<dyn Backend>, cache_bytes: usize) -> Objects {
        let (young, old) = (HashMap::new(), HashMap::new());
        let cache = Cache { young, old, young_bytes: 0, young_bytes_max: cache_bytes / 2 };
        Objects { backend, damage: Arc::default(), cache: Mutex::new(cache), in_flight: Mutex::default() }
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn hash(&self) -> HashKind {
        self.backend.hash()
    }

    pub fn tree(&self, id: ObjectId) -> Result<Arc<Tree>, ReadError> {
        if let Some(Parsed::Tree(tree)) = self.cache().find(&id) {
            return Ok(tree);
        }
        if id == ObjectId::empty_tree(self.hash()) {
            return Ok(Arc::default());
        }
        if let Some(tree) = self.find_in_flight(|fresh| fresh.trees.get(&id).cloned()) {
            return Ok(tree);
        }
        let object = self.read_kind(id, ObjectKind::Tree)?;
        let tree = Tree::parse(self.hash(), &object.bytes);
        let tree = Arc::new(self.damage.keep(tree.map_err(|detail| ReadError::Corrupt { id, detail }))?);
        self.cache().insert(id, Parsed::Tree(tree.clone()), object.bytes.len() * 2);
        Ok(tree)
    }

    pub fn commit(&self, id: ObjectId) -> Result<Arc<Commit>, ReadError> {
        if let Some(Parsed::Commit(commit)) = self.cache().find(&id) {
            return Ok(commit);
        }
        if let Some(commit) = self.find_in_flight(|fresh| fresh.commits.get(&id).cloned()) {
            return Ok(commit);
        }
        let object = self.read_kind(id, ObjectKind::Commit)?;
        let commit = Commit::parse(self.hash(), &object.bytes);
        let commit = Arc::new(self.damage.keep(commit.map_err(|detail| ReadError::Corrupt { id, detail }))?);
        self.cache().insert(id, Parsed::Commit(commit.clone()), object.bytes.len());
        Ok(commit)
    }

    fn read_kind(&self, id: ObjectId, expected: ObjectKind) -> Result<Object, ReadError> {
        let object = self.damage.keep(self.backend.read(id))?;
        if object.kind == expected {
            Ok(object)
        } else {
            Err(ReadError::Kind { id, found: object.kind, expected })
        }
    }

    fn in_flight(&self) -> MutexGuard<'_, Vec<Arc<Fresh>>> {
        self.in_flight.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find_in_flight<T>(&self, find: impl Fn(&Fresh) -> Option<T>) -> Option<T> {
        self.in_flight().iter().find_map(|fresh| find(fresh))
    }

    /// Objects are being written: from now on they are found, and need not be parsed again.
    pub fn begin(&self, fresh: Fresh) -> Arc<Fresh> {
        let fresh = Arc::new(fresh);
        self.in_flight().push(Arc::clone(&fresh));
        let mut cache = self.cache();
        for (id, tree) in &fresh.trees {
            cache.insert(*id, Parsed::Tree(tree.clone()), tree.entries.len() * 80);
        }
        for (id, commit) in &fresh.commits {
            cache.insert(*id, Parsed::Commit(commit.clone()), 300);
        }
        drop(cache);
        fresh
    }

    /// They were written, or could not be.
    pub fn end(&self, fresh: &Arc<Fresh>) {
        self.in_flight().retain(|other| !Arc::ptr_eq(other, fresh));
    }
}

/// Objects made but not yet written. Reads fall through to what is stored.
pub(crate) struct Fresh {
    pub stored: Arc<Objects>,
    pub new: Vec<NewObject>,
    trees: HashMap<ObjectId, Arc<Tree>>,
    commits: HashMap<ObjectId, Arc<Commit>>,
    blobs: HashMap<ObjectId, Content>,
}

impl Fresh {
    pub fn new(stored: Arc<Objects>) -> Fresh {
        Fresh {
            stored,
            new: Vec::new(),
            trees: HashMap::new(),
            commits: HashMap::new(),
            blobs: HashMap::new(),
        }
    }

    pub fn tree(&self, id: ObjectId) -> Result<Arc<Tree>, ReadError> {
        self.trees.get(&id).map_or_else(|| self.stored.tree(id), |tree| Ok(tree.clone()))
    }

    pub fn commit(&self, id: ObjectId) -> Result<Arc<Commit>, ReadError> {
        self.commits.get(&id).map_or_else(|| self.stored.commit(id), |commit| Ok(commit.clone()))
    }

    /// Whether an object was made here, and is not in the repository yet.
    pub fn is_new(&self, id: ObjectId) -> bool {
        self.trees.contains_key(&id) || self.blobs.contains_key(&id) || self.commits.contains_key(&id)
    }

    /// A whole blob; only for those that are merged as text, which are small.
    pub fn blob(&self, id: ObjectId) -> Result<Arc<[u8]>, ReadError> {
        match self.blobs.get(&id) {
            Some(Content::Bytes(bytes)) => Ok(bytes.clone()),
            Some(Content::Prepared(prepared)) => {
                Err(ReadError::TooLarge { id, size: prepared.size(), limit: 0 })
            }
            None => {
                let in_flight = self.stored.find_in_flight(|fresh| match fresh.blobs.get(&id) {
                    Some(Content::Bytes(bytes)) => Some(bytes.clone()),
                    _ => None,
                });
                let read = || self.stored.read_kind(id, ObjectKind::Blob).map(|object| object.bytes);
                in_flight.map_or_else(read, Ok)
            }
        }
    }

    pub fn add_blob(&mut self, id: ObjectId, content: Content) {
        if self.blobs.insert(id, content.clone()).is_none() {
            self.new.push(NewObject { id, kind: ObjectKind::Blob, content });
        }
    }

    pub fn add_bytes(&mut self, bytes: Vec<u8>) -> ObjectId {
        let id = hash(self.stored.hash(), ObjectKind::Blob, &bytes);
        self.add_blob(id, Content::Bytes(bytes.into()));
        id
    }

    pub fn add_tree(&mut self, tree: Tree) -> ObjectId {
        let bytes = tree.encode();
        let id = hash(self.stored.hash(), ObjectKind::Tree, &bytes);
        if self.trees.insert(id, Arc::new(tree)).is_none() {
            self.new.push(NewObject { id, kind: ObjectKind::Tree, content: Content::Bytes(bytes.into()) });
        }
        id
    }

    pub fn add_commit(&mut self, commit: Commit) -> ObjectId {
        let bytes = commit.encode();
        let id = hash(self.stored.hash(), ObjectKind::Commit, &bytes);
        if self.commits.insert(id, Arc::new(commit)).is_none() {
            self.new.push(NewObject { id, kind: ObjectKind::Commit, content: Content::Bytes(bytes.into()) });
        }
        id
    }

    /// Where [`Fresh::roll_back`] comes back to.
    pub fn mark(&self) -> usize {
        self.new.len()
    }

    /// Forgets what was made since.
    pub fn roll_back(&mut self, mark: usize) {
        for object in self.new.drain(mark..) {
            self.trees.remove(&object.id);
            self.commits.remove(&object.id);
            self.blobs.remove(&object.id);
        }
    }

    /// Takes over what another has made.
    pub fn absorb(&mut self, other: &Fresh) {
        for object in &other.new {
            let id = object.id;
            let is_new = match object.kind {
                ObjectKind::Tree => insert(&mut self.trees, id, other.trees.get(&id)),
                ObjectKind::Commit => insert(&mut self.commits, id, other.commits.get(&id)),
                ObjectKind::Blob | ObjectKind::Tag => insert(&mut self.blobs, id, Some(&object.content)),
            };
            if is_new {
                self.new.push(object.clone());
            }
        }
    }
}

/// Inserts a copy unless there is one.
fn insert<T: Clone>(map: &mut HashMap<ObjectId, T>, id: ObjectId, value: Option<&T>) -> bool {
    value.is_some_and(|value| map.insert(id, value.clone()).is_none())
}
