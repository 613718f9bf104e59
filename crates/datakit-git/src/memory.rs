//! A backend that keeps everything in memory.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use crate::backend::{Backend, Batch, ChangeHook, Content, ReadError, RefName, WriteError};
use crate::{BlobReader, HashKind, Object, ObjectId, ObjectKind};

/// Objects and refs in memory, gone when it is dropped.
#[derive(Default)]
pub struct Memory {
    objects: RwLock<HashMap<ObjectId, Object>>,
    refs: Mutex<BTreeMap<RefName, ObjectId>>,
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Memory").finish_non_exhaustive()
    }
}

impl Memory {
    /// An empty one.
    pub fn new() -> Memory {
        Memory::default()
    }

    fn refs_now(&self) -> MutexGuard<'_, BTreeMap<RefName, ObjectId>> {
        self.refs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Backend for Memory {
    fn hash(&self) -> HashKind {
        HashKind::Sha1
    }

    fn git_dir(&self) -> Option<&Path> {
        None
    }

    fn read(&self, id: ObjectId) -> Result<Object, ReadError> {
        let objects = self.objects.read().unwrap_or_else(PoisonError::into_inner);
        objects.get(&id).cloned().ok_or(ReadError::Missing { id })
    }

    fn header(&self, id: ObjectId) -> Result<(ObjectKind, u64), ReadError> {
        self.read(id).map(|object| (object.kind, object.bytes.len() as u64))
    }

    fn open_blob(&self, id: ObjectId) -> Result<BlobReader, ReadError> {
        let object = self.read(id)?;
        match object.kind {
            ObjectKind::Blob => Ok(BlobReader::from_bytes(object.bytes)),
            found => Err(ReadError::Kind { id, found, expected: ObjectKind::Blob }),
        }
    }

    fn refs(&self, prefix: &str) -> io::Result<Vec<(RefName, ObjectId)>> {
        let all = self.refs_now();
        let wanted = all.iter().filter(|(name, _)| name.as_bstr().starts_with(prefix.as_bytes()));
        Ok(wanted.map(|(name, id)| (name.clone(), *id)).collect())
    }

    fn try_find_ref(&self, name: &RefName) -> io::Result<Option<ObjectId>> {
        Ok(self.refs_now().get(name).copied())
    }

    fn write(&self, batch: &Batch) -> Result<Vec<Result<(), WriteError>>, WriteError> {
        {
            let mut objects = self.objects.write().unwrap_or_else(PoisonError::into_inner);
            for new in &batch.objects {
                let bytes = content_bytes(&new.content)?;
                objects.insert(new.id, Object { kind: new.kind, bytes });
            }
        }
        let mut refs = self.refs_now();
        let mut results = Vec::with_capacity(batch.edits.len());
        for edit in &batch.edits {
            let found = refs.get(&edit.name).copied();
            results.push(if found != edit.old {
                Err(WriteError::Moved { name: edit.name.clone(), expected: edit.old, found })
            } else if let Some(other) =
                edit.new.and_then(|_| refs.keys().find(|other| other.clashes(&edit.name)).cloned())
            {
                Err(WriteError::NameClash { name: edit.name.clone(), other })
            } else {
                match edit.new {
                    Some(id) => refs.insert(edit.name.clone(), id),
                    None => refs.remove(&edit.name),
                };
                Ok(())
            });
        }
        Ok(results)
    }

    fn prepare(&self, file: &File, size: u64) -> Result<(ObjectId, Content), WriteError> {
        let failed = |source: io::Error| WriteError::Io {
            action: "a large file cannot be read back".to_owned(),
            source: Arc::new(source),
        };
        let size = usize::try_from(size).map_err(|error| failed(io::Error::other(error)))?;
        let mut bytes = vec![0; size];
        std::os::unix::fs::FileExt::read_exact_at(file, &mut bytes, 0).map_err(failed)?;
        Ok((crate::hash(self.hash(), ObjectKind::Blob, &bytes), Content::Bytes(bytes.into())))
    }

    /// There is nothing but memory.
    fn sync(&self) -> Result<(), WriteError> {
        Ok(())
    }

    /// Memory does not fail.
    fn trouble(&self) -> Option<String> {
        None
    }

    /// Nobody else can reach this memory, so there is nothing to tell.
    fn on_change(&self, _hook: ChangeHook) {}

    /// Nothing goes on behind the calls.
    fn close(&self) {}
}

fn content_bytes(content: &Content) -> Result<Arc<[u8]>, WriteError> {
    match content {
        Content::Bytes(bytes) => Ok(bytes.clone()),
        // What we prepare is in memory.
        Content::Prepared(_) => Err(WriteError::Io {
            action: "an object was prepared for another repository".to_owned(),
            source: Arc::new(io::ErrorKind::InvalidInput.into()),
        }),
    }
}
