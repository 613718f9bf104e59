//! Objects that could not be read though the repository names them: what whoever keeps it has to be told, by name.
//!
//! A client hears an error number, which names nothing.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use datakit_git::{ObjectId, ReadError};

/// Most damaged objects that are told of, each once.
const TOLD_MAX: usize = 1000;

#[derive(Debug, Default)]
struct Told {
    objects: HashSet<ObjectId>,
    /// What nobody took yet, each in a line.
    lines: Vec<String>,
}

/// What was found damaged since the store was opened. At most 1,000 objects are told of.
#[derive(Debug, Default)]
pub struct Damage(Mutex<Told>);

impl Damage {
    fn told(&self) -> MutexGuard<'_, Told> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps what a read failed with, if it is for sure damage: whether an object may be missing, only the caller knows.
    pub(crate) fn keep<T>(&self, read: Result<T, ReadError>) -> Result<T, ReadError> {
        if let Err(error @ (ReadError::Corrupt { .. } | ReadError::Io { .. })) = &read {
            self.add(error);
        }
        read
    }

    /// Keeps an error of which only the caller knows that it means damage, as a missing object that a tree names.
    pub fn add(&self, error: &ReadError) {
        let mut told = self.told();
        if told.objects.len() < TOLD_MAX && told.objects.insert(error.id()) {
            told.lines.push(error.to_string());
        }
    }

    /// What was found since the last call, each object once and in a line that names it.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.told().lines)
    }
}
