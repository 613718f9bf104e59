//! Watched paths of one branch, as a trie: a new tree is compared with the old one only where somebody watches.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use gix::bstr::BString;

use datakit_git::{Mode, ObjectId, Tree};

use super::{PathValue, Slot};
use crate::name::TreePath;
use crate::objects::Objects;

type PathSlot = Slot<Option<PathValue>>;

/// Whom to tell, and what.
pub(super) type Woken = Vec<(Arc<PathSlot>, Option<PathValue>)>;

/// The watched paths of a branch.
pub(super) struct Trie {
    root: Node,
    /// The tree that everybody knows of.
    tree: Option<ObjectId>,
}

#[derive(Default)]
struct Node {
    children: BTreeMap<BString, Node>,
    slots: Vec<Weak<PathSlot>>,
}

impl Trie {
    pub fn new(tree: Option<ObjectId>) -> Trie {
        Trie { root: Node::default(), tree }
    }

    pub fn add(&mut self, path: &TreePath, slot: &Arc<PathSlot>) {
        let mut node = &mut self.root;
        for component in path.components() {
            node = node.children.entry(component.as_bstr().to_owned()).or_default();
        }
        node.slots.push(Arc::downgrade(slot));
    }

    /// Takes the tree of a new head; returns whose path changed. What cannot be read counts as absent.
    pub fn update(&mut self, objects: &Objects, tree: Option<ObjectId>) -> Woken {
        let value = |id: Option<ObjectId>| id.map(|id| PathValue { mode: Mode::Tree, id });
        let mut woken = Vec::new();
        self.root.update(objects, value(self.tree), value(tree), &mut woken);
        self.tree = tree;
        woken
    }
}

impl Node {
    /// Returns whether anybody still watches here or below.
    fn update(
        &mut self,
        objects: &Objects,
        old: Option<PathValue>,
        new: Option<PathValue>,
        woken: &mut Woken,
    ) -> bool {
        if old == new {
            return true;
        }
        self.slots.retain(|slot| slot.strong_count() > 0);
        woken.extend(self.slots.iter().filter_map(Weak::upgrade).map(|slot| (slot, new)));
        if !self.children.is_empty() {
            let (old, new) = (load(objects, old), load(objects, new));
            self.children
                .retain(|name, child| child.update(objects, find(&old, name), find(&new, name), woken));
        }
        !self.slots.is_empty() || !self.children.is_empty()
    }
}

fn load(objects: &Objects, value: Option<PathValue>) -> Option<Arc<Tree>> {
    value.filter(|value| value.mode == Mode::Tree).and_then(|value| objects.tree(value.id).ok())
}

fn find(tree: &Option<Arc<Tree>>, name: &[u8]) -> Option<PathValue> {
    tree.as_ref()?.try_find(name).map(|entry| PathValue { mode: entry.mode, id: entry.id })
}
