//! Ancestors and merge bases.
//!
//! Spec: git-merge-base(1). With several best common ancestors the newest by commit time is taken, as DataKit did; git's
//! recursive strategy would merge them first.

use std::collections::{BinaryHeap, HashMap};

use datakit_git::{ObjectId, ReadError};

use crate::objects::Fresh;

const OURS: u8 = 1;
const THEIRS: u8 = 2;
const STALE: u8 = 4;
const RESULT: u8 = 8;

/// The best common ancestors of two commits, newest first.
pub(crate) fn merge_bases(objects: &Fresh, a: ObjectId, b: ObjectId) -> Result<Vec<ObjectId>, ReadError> {
    if a == b {
        return Ok(vec![a]);
    }
    let found = paint(objects, a, b)?;
    if found.len() < 2 {
        return Ok(found);
    }
    // Clocks that go backwards can leave an ancestor of another candidate among them.
    let mut best = Vec::new();
    for candidate in &found {
        let mut is_redundant = false;
        for other in found.iter().filter(|other| *other != candidate) {
            is_redundant |= paint(objects, *candidate, *other)?.contains(candidate);
        }
        if !is_redundant {
            best.push(*candidate);
        }
    }
    Ok(best)
}

/// Whether `old` is `new`, or one of its ancestors.
pub(crate) fn is_ancestor(objects: &Fresh, old: ObjectId, new: ObjectId) -> Result<bool, ReadError> {
    Ok(old == new || paint(objects, old, new)?.contains(&old))
}

/// Walks from both commits, newest first, until everything left is known to be common.
fn paint(objects: &Fresh, a: ObjectId, b: ObjectId) -> Result<Vec<ObjectId>, ReadError> {
    let mut flags: HashMap<ObjectId, u8> = HashMap::from([(a, OURS), (b, THEIRS)]);
    let mut queue = BinaryHeap::new();
    let mut live = 2usize;
    for id in [a, b] {
        queue.push((objects.commit(id)?.committer.seconds, id));
    }
    let mut results = Vec::new();
    while live > 0 {
        let Some((_, id)) = queue.pop() else { break };
        let own = flags.get(&id).copied().unwrap_or(0);
        if own & STALE == 0 {
            live -= 1;
        }
        let mut pass = own & (OURS | THEIRS | STALE);
        if pass == OURS | THEIRS {
            if own & RESULT == 0 {
                flags.insert(id, own | RESULT);
                results.push(id);
            }
            pass |= STALE;
        }
        let commit = objects.commit(id)?;
        for parent in &commit.parents {
            let before = flags.get(parent).copied().unwrap_or(0);
            if before & pass == pass {
                continue;
            }
            flags.insert(*parent, before | pass);
            queue.push((objects.commit(*parent)?.committer.seconds, *parent));
            live = queue.iter().filter(|(_, id)| flags.get(id).is_some_and(|f| f & STALE == 0)).count();
        }
    }
    results.retain(|id| flags.get(id).is_some_and(|flags| flags & STALE == 0));
    Ok(results)
}
