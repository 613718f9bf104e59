//! Turns the overlay into objects: only what changed is hashed.

use datakit_git::{Entry, ObjectId, Tree};

use super::TransactionError;
use super::overlay::{Child, Kind, NodeId, Overlay};
use crate::objects::Fresh;

/// Whether the objects are to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// They are: large files are brought to the repository.
    Write,
    /// Only their ids are wanted, and trees.
    Look,
}

/// Adds the objects of everything that changed; returns the tree. The overlay stays as it is.
pub(super) fn flush(
    overlay: &mut Overlay,
    fresh: &mut Fresh,
    purpose: Purpose,
) -> Result<ObjectId, TransactionError> {
    match directory(overlay, NodeId::ROOT, fresh, purpose)? {
        Some(id) => Ok(id),
        None => Ok(fresh.add_tree(Tree::default())),
    }
}

/// The tree of a directory; `None` when there is nothing in it that git can keep.
fn directory(
    overlay: &mut Overlay,
    node: NodeId,
    fresh: &mut Fresh,
    purpose: Purpose,
) -> Result<Option<ObjectId>, TransactionError> {
    let Kind::Directory(directory_now) = &overlay.find(node)?.kind else {
        return Ok(None);
    };
    if !directory_now.is_changed {
        return Ok(directory_now.base);
    }
    let children: Vec<_> =
        directory_now.children.iter().map(|(name, child)| (name.clone(), *child)).collect();
    let mut entries = Vec::with_capacity(children.len());
    for (name, child) in children {
        let (mode, id) = match child {
            Child::Stored(mode, id) => (mode, id),
            Child::Node(child) => match entry(overlay, child, fresh, purpose)? {
                Some(entry) => entry,
                None => continue,
            },
        };
        entries.push(Entry { name: name.as_bstr().to_owned(), mode, id });
    }
    Ok(if entries.is_empty() { None } else { Some(fresh.add_tree(Tree::new(entries))) })
}

fn entry(
    overlay: &mut Overlay,
    node: NodeId,
    fresh: &mut Fresh,
    purpose: Purpose,
) -> Result<Option<(datakit_git::Mode, ObjectId)>, TransactionError> {
    if matches!(overlay.find(node)?.kind, Kind::Directory(_)) {
        return Ok(directory(overlay, node, fresh, purpose)?.map(|id| (datakit_git::Mode::Tree, id)));
    }
    match &overlay.find(node)?.kind {
        Kind::File { mode, content } => {
            if purpose == Purpose::Look {
                return Ok(Some((*mode, content.id(fresh.stored.hash())?)));
            }
            let (id, written) = content.blob(&*fresh.stored.backend)?;
            if let Some(written) = written {
                fresh.add_blob(id, written);
            }
            Ok(Some((*mode, id)))
        }
        Kind::Submodule(id) => Ok(Some((datakit_git::Mode::Submodule, *id))),
        Kind::Directory(_) => Ok(None),
    }
}
