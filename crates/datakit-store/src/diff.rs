//! What differs between two trees.

use gix::bstr::BString;

use datakit_git::{Entry, Mode, ObjectId, ReadError, Tree};

use crate::name::DEPTH_MAX;
use crate::objects::Fresh;

/// What happened to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ChangeKind {
    /// It is only in the new tree.
    Added,
    /// It is only in the old tree.
    Removed,
    /// Content or mode differ.
    Modified,
}

/// One difference. Directories are never named, only what is in them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Change {
    /// The path with slashes.
    pub path: BString,
    /// What happened.
    pub kind: ChangeKind,
}

/// Lists what differs, sorted by path. Equal subtrees are not read.
pub(crate) fn diff(
    objects: &Fresh,
    old: Option<ObjectId>,
    new: Option<ObjectId>,
) -> Result<Vec<Change>, ReadError> {
    let mut walk = Walk { objects, changes: Vec::new() };
    walk.trees(&BString::default(), old, new, 0)?;
    walk.changes.sort();
    Ok(walk.changes)
}

struct Walk<'a> {
    objects: &'a Fresh,
    changes: Vec<Change>,
}

impl Walk<'_> {
    fn trees(
        &mut self,
        at: &BString,
        old: Option<ObjectId>,
        new: Option<ObjectId>,
        depth: usize,
    ) -> Result<(), ReadError> {
        if old == new {
            return Ok(());
        }
        if let (Some(id), true) = (old.or(new), depth > DEPTH_MAX) {
            return Err(ReadError::Corrupt {
                id,
                detail: format!("it is deeper than {DEPTH_MAX} directories"),
            });
        }
        let load = |id: Option<ObjectId>| {
            id.map_or_else(|| Ok(std::sync::Arc::default()), |id| self.objects.tree(id))
        };
        let (old, new): (std::sync::Arc<Tree>, std::sync::Arc<Tree>) = (load(old)?, load(new)?);
        for entry in &old.entries {
            let other = new.try_find(&entry.name);
            if other != Some(entry) {
                self.entries(at, &entry.name, Some(entry), other, depth)?;
            }
        }
        for entry in &new.entries {
            if old.try_find(&entry.name).is_none() {
                self.entries(at, &entry.name, None, Some(entry), depth)?;
            }
        }
        Ok(())
    }

    fn entries(
        &mut self,
        at: &BString,
        name: &BString,
        old: Option<&Entry>,
        new: Option<&Entry>,
        depth: usize,
    ) -> Result<(), ReadError> {
        let path = join(at, name);
        let tree =
            |entry: Option<&Entry>| entry.filter(|entry| entry.mode == Mode::Tree).map(|entry| entry.id);
        let leaf = |entry: Option<&Entry>| entry.is_some_and(|entry| entry.mode != Mode::Tree);
        let kind = match (leaf(old), leaf(new)) {
            (true, true) => Some(ChangeKind::Modified),
            (true, false) => Some(ChangeKind::Removed),
            (false, true) => Some(ChangeKind::Added),
            (false, false) => None,
        };
        self.changes.extend(kind.map(|kind| Change { path: path.clone(), kind }));
        self.trees(&path, tree(old), tree(new), depth + 1)
    }
}

/// A path with one more component.
pub(crate) fn join(at: &BString, name: &[u8]) -> BString {
    let mut path = at.clone();
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}
