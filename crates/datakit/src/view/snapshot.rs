//! What never changes, by its object id: `snapshots/`, `trees/`, `commits/`.

use std::sync::Arc;

use datakit_store::{Change, ChangeKind, Mode, ObjectId, ObjectKind, PathValue, Signature};
use p9p::Errno;
use p9p::filesystem::Answer;
use serde_json::json;

use super::attached::{Attached, damaged, read_failed};
use super::directory::{Fixed, Lookup};
use super::item::{self, Found};
use super::text::Shown;
use super::tree::{Root, TreeItem};

/// `snapshots/<commit>/`.
pub(crate) fn snapshots(attached: &Arc<Attached>) -> Lookup {
    let attached = Arc::clone(attached);
    Lookup::new(move |name| {
        let id = attached.parse_id(name)?;
        let commit = attached.store.commit_of(id).map_err(|error| read_failed(&error))?;
        let parents: String = commit.parents.iter().map(|parent| format!("{parent}\n")).collect();
        let value = PathValue { mode: Mode::Tree, id: commit.tree };
        let seconds = u64::try_from(commit.committer.seconds).unwrap_or(0);
        let mut message = commit.message.to_vec();
        if !message.ends_with(b"\n") {
            message.push(b'\n');
        }
        let tree = commit.tree;
        let snapshot = Fixed::new(&attached)
            .directory("ro", TreeItem::root(&attached, Root::Fixed { value, seconds })?)
            .file("hash", Shown::fixed(id.to_string().into_bytes()))
            .file("msg", Shown::fixed(message))
            .file("parents", Shown::fixed(parents.into_bytes()))
            .directory("diff", diff_directory(&attached, move || Ok(Some(tree))));
        Found::new(snapshot)
    })
}

/// `diff/<commit>`: how `tree` differs from that commit's.
pub(crate) fn diff_directory(
    attached: &Arc<Attached>,
    tree: impl Fn() -> Answer<Option<ObjectId>> + Send + Sync + Clone + 'static,
) -> Lookup {
    let attached = Arc::clone(attached);
    Lookup::new(move |name| {
        let id = attached.parse_id(name)?;
        let old = attached.store.commit_of(id).map_err(|error| read_failed(&error))?.tree;
        let (attached, tree) = (Arc::clone(&attached), tree.clone());
        Found::new(Shown::live(move || {
            let changes =
                attached.store.diff(Some(old), tree()?).map_err(|error| damaged(&attached.store, &error))?;
            Ok(change_lines(&changes))
        }))
    })
}

/// `+ path`, `- path` and `* path`.
pub(crate) fn change_lines(changes: &[Change]) -> Vec<u8> {
    let mut lines = Vec::new();
    for change in changes {
        lines.extend_from_slice(match change.kind {
            ChangeKind::Added => b"+ ",
            ChangeKind::Removed => b"- ",
            ChangeKind::Modified => b"* ",
        });
        lines.extend_from_slice(&change.path);
        lines.push(b'\n');
    }
    lines
}

/// `trees/<D|F|X|L>-<id>`, as `tree.live` tells them.
pub(crate) fn trees(attached: &Arc<Attached>) -> Lookup {
    let attached = Arc::clone(attached);
    Lookup::new(move |name| {
        let (mode, id) = match name.split_first_chunk::<2>() {
            Some((b"D-", id)) => (Mode::Tree, id),
            Some((b"F-", id)) => (Mode::File, id),
            Some((b"X-", id)) => (Mode::Executable, id),
            Some((b"L-", id)) => (Mode::Link, id),
            _ => return item::no_entry(),
        };
        let id = attached.parse_id(id)?;
        let wanted = if mode == Mode::Tree { ObjectKind::Tree } else { ObjectKind::Blob };
        let is_empty = id == ObjectId::empty_tree(attached.store.hash());
        if !is_empty || wanted != ObjectKind::Tree {
            let (found, _) = attached.store.object_header(id).map_err(|error| read_failed(&error))?;
            if found != wanted {
                return Err(Errno::ENOENT.with_text(format!("object {id} is a {found}, not a {wanted}")));
            }
        }
        Found::new(TreeItem::root(&attached, Root::Fixed { value: PathValue { mode, id }, seconds: 0 })?)
    })
}

/// `commits/<id>`: a commit as JSON.
pub(crate) fn commits(attached: &Arc<Attached>) -> Lookup {
    let attached = Arc::clone(attached);
    Lookup::new(move |name| {
        let id = attached.parse_id(name)?;
        let commit = attached.store.commit_of(id).map_err(|error| read_failed(&error))?;
        let signature = |signature: &Signature| {
            json!({
                "name": signature.name.to_string(),
                "email": signature.email.to_string(),
                "seconds": signature.seconds,
                "offset_seconds": signature.offset_seconds,
            })
        };
        let parents: Vec<String> = commit.parents.iter().map(ToString::to_string).collect();
        let text = json!({
            "hash": id.to_string(),
            "tree": commit.tree.to_string(),
            "parents": parents,
            "author": signature(&commit.author),
            "committer": signature(&commit.committer),
            "message": commit.message.to_string(),
        });
        Found::new(Shown::fixed(format!("{text}\n").into_bytes()))
    })
}
