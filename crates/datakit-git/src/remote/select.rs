//! Which objects the other side lacks, and the pack with them.
//!
//! Whoever has a commit has all that it reaches (`gitprotocol-pack(5)`): so the commits are those that the tips reach and
//! the other side's refs do not, and of a commit's tree only what differs from its parents' trees is looked at. Objects are
//! copied from packs with their deltas where the base comes along, and compressed anew otherwise.

use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use gix::ObjectId;
use gix::objs::{Kind, TreeRefIter};
use gix_pack::data::{Version, output};

use super::progress::Reporter;
use super::transfer::Transfer;

/// Objects that one thread packs at a time.
const CHUNK_OBJECTS: usize = 32;

/// Lists the objects reachable from `tips` but not from `has`, which must all be in the repository.
pub fn select(
    repo: &gix::Repository,
    tips: &[ObjectId],
    has: &[ObjectId],
    transfer: &Transfer,
) -> gix::Result<Vec<ObjectId>> {
    let mut selection = Selection { repo, seen: HashSet::new(), list: Vec::new() };
    let mut commits = Vec::new();
    for tip in tips {
        selection.peel(*tip, &mut commits)?;
    }
    let has = commits_of(repo, has);
    for commit in repo.rev_walk(commits).with_hidden(has).all()? {
        if transfer.is_cancelled() {
            break;
        }
        selection.commit(commit?.id)?;
    }
    Ok(selection.list)
}

/// The commits among `ids`, tags peeled; what is neither cannot be walked from.
fn commits_of(repo: &gix::Repository, ids: &[ObjectId]) -> Vec<ObjectId> {
    let peel =
        |id: &ObjectId| repo.find_object(*id).ok()?.peel_to_kind(Kind::Commit).ok().map(|commit| commit.id);
    ids.iter().filter_map(peel).collect()
}

struct Selection<'repo> {
    repo: &'repo gix::Repository,
    seen: HashSet<ObjectId>,
    list: Vec<ObjectId>,
}

impl Selection<'_> {
    fn add(&mut self, id: ObjectId) -> bool {
        let new = self.seen.insert(id);
        if new {
            self.list.push(id);
        }
        new
    }

    /// Takes tags, trees and blobs that are pushed themselves, and finds the commits to walk from.
    fn peel(&mut self, mut id: ObjectId, commits: &mut Vec<ObjectId>) -> gix::Result<()> {
        loop {
            let object = self.repo.find_object(id)?;
            match object.kind {
                Kind::Commit => {
                    commits.push(id);
                    return Ok(());
                }
                Kind::Tag => {
                    let target = object.try_into_tag()?.target_id()?.detach();
                    self.add(id);
                    id = target;
                }
                Kind::Tree => return self.tree(id, &[]),
                Kind::Blob => {
                    self.add(id);
                    return Ok(());
                }
            }
        }
    }

    fn commit(&mut self, id: ObjectId) -> gix::Result<()> {
        let commit = self.repo.find_commit(id)?;
        // A shallow repository lacks parents; then the whole tree is looked at.
        let parents: Vec<_> = commit
            .parent_ids()
            .filter_map(|parent| self.repo.find_commit(parent).ok()?.tree_id().ok())
            .map(gix::Id::detach)
            .collect();
        let tree = commit.tree_id()?.detach();
        self.add(id);
        if parents.contains(&tree) { Ok(()) } else { self.tree(tree, &parents) }
    }

    /// Takes a tree and what in it no tree of `before` has at the same place.
    fn tree(&mut self, tree: ObjectId, before: &[ObjectId]) -> gix::Result<()> {
        let mut left = vec![(tree, before.to_vec())];
        while let Some((tree, before)) = left.pop() {
            if !self.add(tree) {
                continue;
            }
            let (known, subtrees) = self.entries(&before)?;
            let object = self.repo.find_object(tree)?;
            for entry in TreeRefIter::from_bytes(&object.data, self.repo.object_hash()) {
                let entry = entry?;
                let id = entry.oid.to_owned();
                if entry.mode.is_commit() || known.contains(&id) {
                    continue;
                }
                if entry.mode.is_tree() {
                    let name: &[u8] = entry.filename;
                    left.push((id, subtrees.get(name).cloned().unwrap_or_default()));
                } else {
                    self.add(id);
                }
            }
        }
        Ok(())
    }

    /// All that is in `trees`, and their subtrees by name.
    #[expect(clippy::type_complexity, reason = "two maps that only the caller sees")]
    fn entries(
        &self,
        trees: &[ObjectId],
    ) -> gix::Result<(HashSet<ObjectId>, HashMap<Vec<u8>, Vec<ObjectId>>)> {
        let (mut known, mut subtrees) = (HashSet::new(), HashMap::<Vec<u8>, Vec<ObjectId>>::new());
        for tree in trees {
            let object = self.repo.find_object(*tree)?;
            for entry in TreeRefIter::from_bytes(&object.data, self.repo.object_hash()) {
                let entry = entry?;
                known.insert(entry.oid.to_owned());
                if entry.mode.is_tree() {
                    subtrees.entry(entry.filename.to_vec()).or_default().push(entry.oid.to_owned());
                }
            }
        }
        Ok((known, subtrees))
    }
}

/// Writes a pack of `objects`.
pub fn write_pack(
    repo: &gix::Repository,
    objects: Vec<ObjectId>,
    out: impl Write,
    transfer: &Arc<Transfer>,
) -> gix::Result<()> {
    let mut db = repo.objects.clone().into_inner();
    db.prevent_pack_unload();
    let progress = Reporter::new(transfer);
    let options = output::count::objects::Options {
        thread_limit: Some(1),
        chunk_size: CHUNK_OBJECTS,
        input_object_expansion: output::count::objects::ObjectExpansion::AsIs,
    };
    let ids = Box::new(objects.into_iter().map(Ok));
    let (counts, _) = output::count::objects(db.clone(), ids, &progress, transfer.flag(), options)?;
    let total = u32::try_from(counts.len()).map_err(gix::Error::from_error)?;
    transfer.expect(u64::from(total));
    let options = output::entry::iter_from_counts::Options {
        thread_limit: None,
        mode: output::entry::iter_from_counts::Mode::PackCopyAndBaseObjects,
        allow_thin_pack: false,
        chunk_size: CHUNK_OBJECTS,
        version: Version::V2,
        compression: repo.pack_compression()?,
    };
    let entries = output::entry::iter_from_counts(counts, db, Box::new(progress), options)?;
    let mut written = 0;
    let counted = gix::parallel::InOrderIter::from(entries).inspect(|chunk| {
        written += chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
        transfer.count_objects(written);
    });
    for bytes in output::bytes::FromEntriesIter::new(counted, out, total, Version::V2, repo.object_hash()) {
        transfer.count_bytes(bytes?);
        if transfer.flag().load(Ordering::Relaxed) {
            return Err(gix::Error::from_error(std::io::Error::from(std::io::ErrorKind::Interrupted)));
        }
    }
    Ok(())
}
