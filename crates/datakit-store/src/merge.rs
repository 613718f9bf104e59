//! Three-way merge of trees, path by path, and of texts inside files where that is asked for.
//!
//! The rules are DataKit's: what one side changed is taken; what both changed alike is taken; a file and its mode are
//! one; everything else is a conflict, whose path then holds a text that says why.

use gix::bstr::{BString, ByteSlice};
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use datakit_git::{Entry, Mode, ObjectId, ReadError, Tree};

use crate::diff::join;
use crate::name::DEPTH_MAX;
use crate::objects::Fresh;

pub(crate) mod text;

/// How the two sides of a file that both changed are merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum MergeDriver {
    /// Not at all: it is a conflict.
    #[default]
    Binary,
    /// Line by line; overlapping changes are a conflict.
    Text,
    /// Line by line; overlapping changes are both kept.
    Union,
    /// Our side is taken.
    Ours,
}

impl MergeDriver {
    /// Reads `binary`, `text`, `union` or `ours`.
    pub fn parse(name: &str) -> Option<MergeDriver> {
        match name {
            "binary" => Some(MergeDriver::Binary),
            "text" => Some(MergeDriver::Text),
            "union" => Some(MergeDriver::Union),
            "ours" => Some(MergeDriver::Ours),
            _ => None,
        }
    }

    /// The name that [`MergeDriver::parse`] reads.
    pub const fn as_str(self) -> &'static str {
        match self {
            MergeDriver::Binary => "binary",
            MergeDriver::Text => "text",
            MergeDriver::Union => "union",
            MergeDriver::Ours => "ours",
        }
    }
}

/// Why a path is in conflict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ConflictReason {
    /// Both sides changed it, differently.
    Changed,
    /// One side deleted it, the other changed it.
    Deleted,
    /// It is a file on one side and a directory on the other.
    FileAndDirectory,
}

impl fmt::Display for ConflictReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ConflictReason::Changed => "Changed on both branches",
            ConflictReason::Deleted => "Deleted on one branch, changed on the other",
            ConflictReason::FileAndDirectory => "File vs dir",
        })
    }
}

/// A path that could not be merged.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Conflict {
    /// The path with slashes.
    pub path: BString,
    /// Why.
    pub reason: ConflictReason,
}

/// What a merge made.
#[derive(Debug)]
pub(crate) struct Merged {
    /// The merged tree, with a text in the place of each conflict.
    pub tree: ObjectId,
    /// Sorted by path.
    pub conflicts: Vec<Conflict>,
}

/// The trees to merge; `None` is the empty one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sides {
    pub base: Option<ObjectId>,
    pub ours: Option<ObjectId>,
    pub theirs: Option<ObjectId>,
}

/// Merges. Equal subtrees are not read: the cost is that of the changes.
///
/// `driver`: for files that no gitattributes speak of.
pub(crate) fn merge(objects: &mut Fresh, sides: Sides, driver: MergeDriver) -> Result<Merged, ReadError> {
    let mut merge = Merge::new(objects, sides, driver, false);
    let tree = merge.root(sides)?;
    let mut conflicts = merge.conflicts;
    conflicts.sort();
    Ok(Merged { tree, conflicts })
}

/// Merges common ancestors into one tree, which is to be the base of a merge. Where they conflict it has what neither
/// side of that merge has, so that these must agree; a path that one of them deleted is as it was before.
pub(crate) fn merge_bases(
    objects: &mut Fresh,
    sides: Sides,
    driver: MergeDriver,
) -> Result<ObjectId, ReadError> {
    Merge::new(objects, sides, driver, true).root(sides)
}

struct Merge<'a> {
    objects: &'a mut Fresh,
    driver: MergeDriver,
    /// Whether what is made is only the base of another merge.
    is_base: bool,
    attributes: text::Attributes,
    conflicts: Vec<Conflict>,
}

/// Mode and object of a path on one side.
type Side = Option<(Mode, ObjectId)>;

impl<'a> Merge<'a> {
    fn new(objects: &'a mut Fresh, sides: Sides, driver: MergeDriver, is_base: bool) -> Merge<'a> {
        let attributes = text::Attributes::of(objects, sides.ours);
        Merge { objects, driver, is_base, attributes, conflicts: Vec::new() }
    }

    fn root(&mut self, sides: Sides) -> Result<ObjectId, ReadError> {
        let tree = self.trees(&BString::default(), sides, 0)?;
        Ok(tree.unwrap_or_else(|| self.objects.add_tree(Tree::default())))
    }

    /// Merges a directory; `None` when nothing is left of it.
    fn trees(&mut self, at: &BString, sides: Sides, depth: usize) -> Result<Option<ObjectId>, ReadError> {
        if sides.base == sides.ours || sides.ours == sides.theirs {
            return Ok(sides.theirs);
        }
        if sides.base == sides.theirs {
            return Ok(sides.ours);
        }
        if let (Some(id), true) = (sides.ours.or(sides.theirs), depth > DEPTH_MAX) {
            return Err(ReadError::Corrupt {
                id,
                detail: format!("it is deeper than {DEPTH_MAX} directories"),
            });
        }
        let (base, ours, theirs) = (self.load(sides.base)?, self.load(sides.ours)?, self.load(sides.theirs)?);
        // Only what theirs and the base disagree on can differ from ours.
        let mut changed: BTreeMap<BString, Side> = BTreeMap::new();
        for name in differing(&base, &theirs) {
            let (b, o, t) = (side(&base, name), side(&ours, name), side(&theirs, name));
            if b != t && !changed.contains_key(name) {
                let merged = self.entry(join(at, name), b, o, t, depth)?;
                changed.insert(name.to_owned(), merged);
            }
        }
        let kept = ours.entries.iter().filter(|entry| !changed.contains_key(&entry.name)).cloned();
        let mut entries: Vec<Entry> = kept.collect();
        entries.extend(
            changed
                .into_iter()
                .filter_map(|(name, merged)| merged.map(|(mode, id)| Entry { name, mode, id })),
        );
        if entries.is_empty() {
            return Ok(None);
        }
        Ok(Some(self.objects.add_tree(Tree::new(entries))))
    }

    fn load(&self, id: Option<ObjectId>) -> Result<Arc<Tree>, ReadError> {
        id.map_or_else(|| Ok(Arc::default()), |id| self.objects.tree(id))
    }

    fn entry(
        &mut self,
        path: BString,
        base: Side,
        ours: Side,
        theirs: Side,
        depth: usize,
    ) -> Result<Side, ReadError> {
        if base == ours || ours == theirs {
            return Ok(theirs);
        }
        if base == theirs {
            return Ok(ours);
        }
        let is_tree = |side: Side| side.is_some_and(|(mode, _)| mode == Mode::Tree);
        let is_leaf = |side: Side| side.is_some_and(|(mode, _)| mode != Mode::Tree);
        let tree = |side: Side| side.filter(|(mode, _)| *mode == Mode::Tree).map(|(_, id)| id);
        if !is_leaf(ours) && !is_leaf(theirs) && (is_tree(ours) || is_tree(theirs)) {
            let is_lost_file = is_leaf(base) && (ours.is_none() || theirs.is_none());
            if is_lost_file {
                return Ok(self.conflict(path, ConflictReason::FileAndDirectory));
            }
            let sides = Sides { base: tree(base), ours: tree(ours), theirs: tree(theirs) };
            return Ok(self.trees(&path, sides, depth + 1)?.map(|id| (Mode::Tree, id)));
        }
        let reason = match (ours, theirs) {
            (Some(_), Some(_)) if is_tree(ours) || is_tree(theirs) => ConflictReason::FileAndDirectory,
            (Some(ours), Some(theirs)) => return self.files(path, base, ours, theirs),
            // As git's process_entry in merge-ort.c.
            _ if self.is_base => return Ok(base),
            _ => ConflictReason::Deleted,
        };
        Ok(self.conflict(path, reason))
    }

    fn files(
        &mut self,
        path: BString,
        base: Side,
        ours: (Mode, ObjectId),
        theirs: (Mode, ObjectId),
    ) -> Result<Side, ReadError> {
        let driver = self.attributes.driver(path.as_bstr()).unwrap_or(self.driver);
        let are_files = [Some(ours), Some(theirs), base.filter(|(mode, _)| *mode != Mode::Tree)]
            .into_iter()
            .flatten()
            .all(|(mode, _)| matches!(mode, Mode::File | Mode::Executable));
        if driver == MergeDriver::Ours {
            return Ok(Some(ours));
        }
        if driver == MergeDriver::Binary || !are_files {
            return Ok(self.conflict(path, ConflictReason::Changed));
        }
        let mode = if base.is_some_and(|(mode, _)| mode == ours.0) { theirs.0 } else { ours.0 };
        match text::merge(self.objects, base.map(|(_, id)| id), ours.1, theirs.1, driver)? {
            text::Outcome::Clean(bytes) => Ok(Some((mode, self.objects.add_bytes(bytes)))),
            text::Outcome::Marked(bytes) => {
                self.conflicts.push(Conflict { path, reason: ConflictReason::Changed });
                Ok(Some((mode, self.objects.add_bytes(bytes))))
            }
            text::Outcome::NotText => Ok(self.conflict(path, ConflictReason::Changed)),
        }
    }

    /// Notes a conflict and puts a text in its place.
    fn conflict(&mut self, path: BString, reason: ConflictReason) -> Side {
        let text = format!("** Conflict **\n{reason}\n").into_bytes();
        self.conflicts.push(Conflict { path, reason });
        Some((Mode::File, self.objects.add_bytes(text)))
    }
}

fn side(tree: &Tree, name: &[u8]) -> Side {
    tree.try_find(name).map(|entry| (entry.mode, entry.id))
}

/// Names of entries that two trees do not share, in one pass over both; a name may come twice.
fn differing<'a>(a: &'a Tree, b: &'a Tree) -> Vec<&'a BString> {
    let (mut a, mut b) = (a.entries.iter().peekable(), b.entries.iter().peekable());
    let mut names = Vec::new();
    loop {
        let order = match (a.peek(), b.peek()) {
            (Some(x), Some(y)) => x.cmp_place(y),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return names,
        };
        let (x, y) = (a.next_if(|_| order.is_le()), b.next_if(|_| order.is_ge()));
        if x != y {
            names.extend(x.or(y).map(|entry| &entry.name));
        }
    }
}
