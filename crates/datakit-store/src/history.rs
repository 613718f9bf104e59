//! Ancestors and merge bases.
//!
//! Spec: git-merge-base(1); "recursive" of git's merge strategies: several best common ancestors are merged first, oldest
//! first, and what comes out is the base.

use std::collections::{BinaryHeap, HashMap};

use datakit_git::{ObjectId, ReadError};

use crate::merge::{MergeDriver, Sides, merge_bases as merge_trees};
use crate::objects::Fresh;

const OURS: u8 = 1;
const THEIRS: u8 = 2;
const STALE: u8 = 4;
const RESULT: u8 = 8;
const QUEUED: u8 = 16;

/// Merges of bases of bases are made to this depth; below it the newest base is taken.
pub(crate) const RECURSION_MAX: usize = 16;

/// The best common ancestors of two commits, newest first.
pub(crate) fn merge_bases(objects: &Fresh, a: ObjectId, b: ObjectId) -> Result<Vec<ObjectId>, ReadError> {
    best(objects, &[a], b)
}

/// Those of a commit and of one that has not been made, whose parents would be `ours`.
fn best(objects: &Fresh, ours: &[ObjectId], theirs: ObjectId) -> Result<Vec<ObjectId>, ReadError> {
    if ours.contains(&theirs) {
        return Ok(vec![theirs]);
    }
    let found = paint(objects, ours, theirs)?;
    if found.len() < 2 {
        return Ok(found);
    }
    // Clocks that go backwards can leave an ancestor of another candidate among them.
    let mut best = Vec::new();
    for candidate in &found {
        let mut is_redundant = false;
        for other in found.iter().filter(|other| *other != candidate) {
            is_redundant |= paint(objects, &[*candidate], *other)?.contains(candidate);
        }
        if !is_redundant {
            best.push(*candidate);
        }
    }
    Ok(best)
}

/// The tree that a merge of two commits starts from: their best common ancestor's, or a merge of several. `None`: they
/// have nothing in common.
pub(crate) fn base_tree(
    objects: &mut Fresh,
    a: ObjectId,
    b: ObjectId,
    driver: MergeDriver,
) -> Result<Option<ObjectId>, ReadError> {
    let bases = merge_bases(objects, a, b)?;
    merged(objects, bases, driver, RECURSION_MAX)
}

/// One tree of several bases, newest first.
pub(crate) fn merged(
    objects: &mut Fresh,
    bases: Vec<ObjectId>,
    driver: MergeDriver,
    depth: usize,
) -> Result<Option<ObjectId>, ReadError> {
    let tree = |objects: &Fresh, id: ObjectId| objects.commit(id).map(|commit| commit.tree);
    let oldest = if depth == 0 { bases.first() } else { bases.last() };
    let Some(oldest) = oldest.copied() else { return Ok(None) };
    let (mut made, mut parents) = (tree(objects, oldest)?, vec![oldest]);
    for next in bases.iter().rev().skip(1).filter(|_| depth > 0) {
        let below = best(objects, &parents, *next)?;
        let base = merged(objects, below, driver, depth - 1)?;
        let sides = Sides { base, ours: Some(made), theirs: Some(tree(objects, *next)?) };
        made = merge_trees(objects, sides, driver)?;
        parents.push(*next);
    }
    Ok(Some(made))
}

/// Whether `old` is `new`, or one of its ancestors.
pub(crate) fn is_ancestor(objects: &Fresh, old: ObjectId, new: ObjectId) -> Result<bool, ReadError> {
    Ok(old == new || paint(objects, &[old], new)?.contains(&old))
}

/// Commits to look at, newest first, each in the queue once.
struct Walk<'a> {
    objects: &'a Fresh,
    flags: HashMap<ObjectId, u8>,
    queue: BinaryHeap<(i64, ObjectId)>,
    /// How many of the queue are not known to be ancestors of a result.
    live: usize,
}

impl Walk<'_> {
    fn mark(&mut self, id: ObjectId, flags: u8) -> Result<(), ReadError> {
        let before = self.flags.get(&id).copied().unwrap_or(0);
        if before & flags == flags {
            return Ok(());
        }
        let after = before | flags;
        if before & QUEUED == 0 {
            self.queue.push((self.objects.commit(id)?.committer.seconds, id));
            self.live += usize::from(after & STALE == 0);
        } else if before & STALE == 0 && after & STALE != 0 {
            self.live -= 1;
        }
        self.flags.insert(id, after | QUEUED);
        Ok(())
    }

    fn next(&mut self) -> Option<(ObjectId, u8)> {
        let (_, id) = self.queue.pop()?;
        let flags = self.flags.get_mut(&id)?;
        *flags &= !QUEUED;
        self.live -= usize::from(*flags & STALE == 0);
        Some((id, *flags))
    }
}

/// Walks from both sides, newest first, until everything left is known to be common.
fn paint(objects: &Fresh, ours: &[ObjectId], theirs: ObjectId) -> Result<Vec<ObjectId>, ReadError> {
    let mut walk = Walk { objects, flags: HashMap::new(), queue: BinaryHeap::new(), live: 0 };
    for id in ours {
        walk.mark(*id, OURS)?;
    }
    walk.mark(theirs, THEIRS)?;
    let mut results = Vec::new();
    while walk.live > 0 {
        let Some((id, own)) = walk.next() else { break };
        let mut pass = own & (OURS | THEIRS | STALE);
        if pass == OURS | THEIRS {
            if own & RESULT == 0 {
                walk.flags.insert(id, own | RESULT);
                results.push(id);
            }
            pass |= STALE;
        }
        for parent in &objects.commit(id)?.parents {
            walk.mark(*parent, pass)?;
        }
    }
    results.retain(|id| walk.flags.get(id).is_some_and(|flags| flags & STALE == 0));
    Ok(results)
}
