//! The writable tree: nodes for what was entered or changed, references to the repository for the rest.

use std::collections::{BTreeMap, HashMap};

use gix::bstr::BString;

use datakit_git::{Mode, ObjectId};

use super::TransactionError;
use super::content::Content;
use crate::diff::join;
use crate::name::{DEPTH_MAX, FileName, TreePath};
use crate::store::Store;

mod adopt;

/// A file or directory of a transaction. Numbers are never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The tree itself.
    pub const ROOT: NodeId = NodeId(1);
}

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NodeKind {
    /// A directory.
    Directory,
    /// A file.
    File {
        /// Whether the executable bit is set.
        executable: bool,
    },
    /// A symbolic link.
    Link,
    /// A commit of another repository.
    Submodule,
}

impl NodeKind {
    /// The kind of what has this mode.
    pub const fn of(mode: Mode) -> NodeKind {
        match mode {
            Mode::Tree => NodeKind::Directory,
            Mode::File => NodeKind::File { executable: false },
            Mode::Executable => NodeKind::File { executable: true },
            Mode::Link => NodeKind::Link,
            Mode::Submodule => NodeKind::Submodule,
        }
    }
}

/// What is known of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// Its number.
    pub node: NodeId,
    /// What it is.
    pub kind: NodeKind,
    /// Length of a file, or of a link's target, in bytes; of a directory 0.
    pub size: u64,
    /// The object that it is unchanged from.
    pub id: Option<ObjectId>,
}

pub(super) struct Node {
    parent: Option<(NodeId, FileName)>,
    retained: u32,
    pub kind: Kind,
}

pub(super) enum Kind {
    Directory(Directory),
    File { mode: Mode, content: Content },
    Submodule(ObjectId),
}

#[derive(Default)]
pub(super) struct Directory {
    pub base: Option<ObjectId>,
    is_loaded: bool,
    /// Whether it, or something below it, may differ from `base`.
    pub is_changed: bool,
    pub children: BTreeMap<FileName, Child>,
}

#[derive(Clone, Copy)]
pub(super) enum Child {
    Stored(Mode, ObjectId),
    Node(NodeId),
}

pub(super) struct Overlay {
    store: Store,
    nodes: HashMap<NodeId, Node>,
    next: u64,
}

type Result<T, E = TransactionError> = std::result::Result<T, E>;

impl Overlay {
    pub fn new(store: Store, tree: Option<ObjectId>) -> Overlay {
        let root = Directory { base: tree, ..Directory::default() };
        let node = Node { parent: None, retained: 1, kind: Kind::Directory(root) };
        Overlay { store, nodes: HashMap::from([(NodeId::ROOT, node)]), next: 2 }
    }

    /// Forgets everything and gives back what it held.
    pub fn clear(&mut self) {
        let nodes = std::mem::take(&mut self.nodes);
        nodes.values().for_each(|node| self.unaccount(node));
    }

    fn unaccount(&self, node: &Node) {
        if let Kind::File { content, .. } = &node.kind {
            // Shrinking never fails.
            self.store.accounts().resize(content.held(), 0).ok();
        }
    }

    pub fn find(&self, node: NodeId) -> Result<&Node> {
        self.nodes.get(&node).ok_or(TransactionError::NoNode(node))
    }

    fn find_mut(&mut self, node: NodeId) -> Result<&mut Node> {
        self.nodes.get_mut(&node).ok_or(TransactionError::NoNode(node))
    }

    fn name(&self, node: NodeId) -> BString {
        let name = self.nodes.get(&node).and_then(|node| node.parent.as_ref());
        name.map_or_else(|| "/".into(), |(_, name)| name.as_bstr().to_owned())
    }

    fn not_directory(&self, node: NodeId) -> TransactionError {
        TransactionError::NotDirectory { name: self.name(node) }
    }

    /// A directory with its children loaded.
    fn directory(&mut self, node: NodeId) -> Result<&mut Directory> {
        let base = match &self.find(node)?.kind {
            Kind::Directory(directory) if directory.is_loaded => None,
            Kind::Directory(directory) => Some(directory.base),
            _ => return Err(self.not_directory(node)),
        };
        if let Some(base) = base {
            let tree = base.map(|base| self.store.tree(base)).transpose()?.unwrap_or_default();
            let load = |entry: &datakit_git::Entry| {
                (FileName::stored(entry.name.clone()), Child::Stored(entry.mode, entry.id))
            };
            let children = tree.entries.iter().map(load).collect();
            if let Kind::Directory(directory) = &mut self.find_mut(node)?.kind {
                directory.children = children;
                directory.is_loaded = true;
            }
        }
        match &mut self.nodes.get_mut(&node).ok_or(TransactionError::NoNode(node))?.kind {
            Kind::Directory(directory) => Ok(directory),
            _ => Err(TransactionError::NoNode(node)),
        }
    }

    fn insert(&mut self, parent: Option<(NodeId, FileName)>, kind: Kind) -> NodeId {
        let id = NodeId(self.next);
        self.next += 1;
        self.nodes.insert(id, Node { parent, retained: 0, kind });
        id
    }

    pub fn look_up(&mut self, directory: NodeId, name: &FileName) -> Result<NodeId> {
        let child = self.directory(directory)?.children.get(name).copied();
        let (mode, id) = match child {
            None => return Err(TransactionError::NotFound { name: name.as_bstr().to_owned() }),
            Some(Child::Node(node)) => return Ok(node),
            Some(Child::Stored(mode, id)) => (mode, id),
        };
        let kind = match mode {
            Mode::Tree => Kind::Directory(Directory { base: Some(id), ..Directory::default() }),
            Mode::Submodule => Kind::Submodule(id),
            mode => Kind::File { mode, content: Content::Blob { id, size: None, reader: None } },
        };
        let node = self.insert(Some((directory, name.clone())), kind);
        self.directory(directory)?.children.insert(name.clone(), Child::Node(node));
        Ok(node)
    }

    pub fn walk(&mut self, path: &TreePath) -> Result<NodeId> {
        let mut at = NodeId::ROOT;
        for name in path.components() {
            at = self.look_up(at, name)?;
        }
        Ok(at)
    }

    pub fn parent(&self, node: NodeId) -> Result<Option<NodeId>> {
        if node == NodeId::ROOT {
            return Ok(Some(node));
        }
        Ok(self.find(node)?.parent.as_ref().map(|(parent, _)| *parent))
    }

    /// The names from the root to a node; `None` when it is removed.
    pub fn path(&self, node: NodeId) -> Result<Option<BString>> {
        let (mut at, mut names) = (node, Vec::new());
        while at != NodeId::ROOT {
            let Some((parent, name)) = &self.find(at)?.parent else { return Ok(None) };
            names.push(name);
            at = *parent;
        }
        Ok(Some(names.iter().rev().fold(BString::default(), |path, name| join(&path, name.as_bstr()))))
    }

    /// The path that a name in a directory is or would be.
    pub fn path_of(&self, directory: NodeId, name: &FileName) -> Result<Option<BString>> {
        Ok(self.path(directory)?.map(|path| join(&path, name.as_bstr())))
    }

    pub fn stat(&mut self, node: NodeId) -> Result<Stat> {
        let store = self.store.clone();
        let (kind, size, id) = match &mut self.find_mut(node)?.kind {
            Kind::Directory(directory) => {
                (NodeKind::Directory, 0, directory.base.filter(|_| !directory.is_changed))
            }
            Kind::Submodule(id) => (NodeKind::Submodule, 0, Some(*id)),
            Kind::File { mode, content } => {
                let id = if let Content::Blob { id, .. } = content { Some(*id) } else { None };
                (NodeKind::of(*mode), content.size(&store)?, id)
            }
        };
        Ok(Stat { node, kind, size, id })
    }

    pub fn list(&mut self, directory: NodeId) -> Result<Vec<(FileName, NodeKind)>> {
        let children: Vec<(FileName, Child)> =
            self.directory(directory)?.children.iter().map(|(name, child)| (name.clone(), *child)).collect();
        let kind = |child| -> Result<NodeKind> {
            Ok(match child {
                Child::Stored(mode, _) => NodeKind::of(mode),
                Child::Node(node) => match &self.find(node)?.kind {
                    Kind::Directory(_) => NodeKind::Directory,
                    Kind::File { mode, .. } => NodeKind::of(*mode),
                    Kind::Submodule(_) => NodeKind::Submodule,
                },
            })
        };
        children.into_iter().map(|(name, child)| Ok((name, kind(child)?))).collect()
    }

    fn file(&mut self, node: NodeId) -> Result<&mut Content> {
        let name = self.name(node);
        match &mut self.find_mut(node)?.kind {
            Kind::File { content, .. } => Ok(content),
            Kind::Directory(_) => Err(TransactionError::IsDirectory { name }),
            Kind::Submodule(_) => Err(TransactionError::Submodule),
        }
    }

    pub fn read(&mut self, file: NodeId, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let store = self.store.clone();
        self.file(file)?.read(&store, offset, buffer)
    }

    pub fn write(&mut self, file: NodeId, offset: u64, bytes: &[u8]) -> Result<()> {
        let store = self.store.clone();
        self.file(file)?.write(&store, offset, bytes)?;
        self.changed(file)
    }

    pub fn truncate(&mut self, file: NodeId, bytes: u64) -> Result<()> {
        let store = self.store.clone();
        self.file(file)?.truncate(&store, bytes)?;
        self.changed(file)
    }

    /// Notes that a node changed, in all directories above it.
    fn changed(&mut self, node: NodeId) -> Result<()> {
        let mut at = self.find(node)?.parent.as_ref().map(|(parent, _)| *parent);
        while let Some(node) = at {
            let node = self.find_mut(node)?;
            if let Kind::Directory(directory) = &mut node.kind {
                directory.is_changed = true;
            }
            at = node.parent.as_ref().map(|(parent, _)| *parent);
        }
        Ok(())
    }

    /// Directories above a node.
    fn depth(&self, node: NodeId) -> Result<usize> {
        let (mut at, mut depth) = (node, 0);
        while let Some((parent, _)) = &self.find(at)?.parent {
            at = *parent;
            depth += 1;
        }
        Ok(depth)
    }

    /// Directories below a node, as far as they were entered.
    fn height(&self, node: NodeId) -> usize {
        let Some(Node { kind: Kind::Directory(directory), .. }) = self.nodes.get(&node) else { return 0 };
        let below = directory.children.values().map(|child| match child {
            Child::Node(node) => self.height(*node),
            Child::Stored(..) => 0,
        });
        1 + below.max().unwrap_or(0)
    }

    /// A removed directory takes nothing new, as on Linux.
    fn is_attached(&self, directory: NodeId) -> Result<()> {
        if directory == NodeId::ROOT || self.find(directory)?.parent.is_some() {
            Ok(())
        } else {
            Err(TransactionError::NotFound { name: self.name(directory) })
        }
    }

    pub fn add(&mut self, directory: NodeId, name: &FileName, mode: Mode, text: &[u8]) -> Result<NodeId> {
        if self.directory(directory)?.children.contains_key(name) {
            return Err(TransactionError::Exists { name: name.as_bstr().to_owned() });
        }
        self.is_attached(directory)?;
        if self.depth(directory)? + 1 > DEPTH_MAX {
            return Err(TransactionError::TooDeep);
        }
        let kind = if mode == Mode::Tree {
            Kind::Directory(Directory { is_loaded: true, is_changed: true, ..Directory::default() })
        } else {
            self.store.accounts().resize(0, text.len() as u64)?;
            Kind::File { mode, content: Content::Memory(text.to_vec()) }
        };
        let node = self.insert(Some((directory, name.clone())), kind);
        self.directory(directory)?.children.insert(name.clone(), Child::Node(node));
        self.changed(node)?;
        Ok(node)
    }

    pub fn link_target(&mut self, link: NodeId) -> Result<BString> {
        let stat = self.stat(link)?;
        if stat.kind != NodeKind::Link {
            return Err(TransactionError::NotLink { name: self.name(link) });
        }
        let mut target = vec![0; usize::try_from(stat.size).unwrap_or(usize::MAX).min(1 << 20)];
        let n = self.read(link, 0, &mut target)?;
        target.truncate(n);
        Ok(target.into())
    }

    pub fn set_executable(&mut self, file: NodeId, executable: bool) -> Result<()> {
        let name = self.name(file);
        match &mut self.find_mut(file)?.kind {
            Kind::File { mode, .. } => {
                if *mode != Mode::Link {
                    *mode = if executable { Mode::Executable } else { Mode::File };
                }
            }
            Kind::Directory(_) => return Err(TransactionError::IsDirectory { name }),
            Kind::Submodule(_) => return Err(TransactionError::Submodule),
        }
        self.changed(file)
    }

    pub fn rename(&mut self, from: (NodeId, &FileName), to: (NodeId, &FileName)) -> Result<NodeId> {
        let node = self.look_up(from.0, from.1)?;
        let replaced = match self.look_up(to.0, to.1) {
            Ok(replaced) => Some(replaced),
            Err(TransactionError::NotFound { .. }) => None,
            Err(error) => return Err(error),
        };
        if replaced == Some(node) {
            return Ok(node);
        }
        self.is_attached(to.0)?;
        self.may_move(node, to)?;
        if let Some(replaced) = replaced {
            self.may_replace(node, replaced)?;
            self.remove(to.0, to.1, false)?;
        }
        self.changed(node)?;
        self.directory(from.0)?.children.remove(from.1);
        self.directory(to.0)?.children.insert(to.1.clone(), Child::Node(node));
        self.find_mut(node)?.parent = Some((to.0, to.1.clone()));
        self.changed(node)?;
        Ok(node)
    }

    fn may_move(&self, node: NodeId, to: (NodeId, &FileName)) -> Result<()> {
        let mut above = Some(to.0);
        while let Some(at) = above {
            if at == node {
                return Err(TransactionError::IntoItself);
            }
            above = self.find(at)?.parent.as_ref().map(|(parent, _)| *parent);
        }
        if self.depth(to.0)? + 1 + self.height(node) > DEPTH_MAX {
            return Err(TransactionError::TooDeep);
        }
        Ok(())
    }

    fn may_replace(&mut self, node: NodeId, replaced: NodeId) -> Result<()> {
        let is_directory = |overlay: &Overlay, node| -> Result<bool> {
            Ok(matches!(overlay.find(node)?.kind, Kind::Directory(_)))
        };
        let name = self.name(replaced);
        match (is_directory(self, node)?, is_directory(self, replaced)?) {
            (true, false) => Err(TransactionError::NotDirectory { name }),
            (false, true) => Err(TransactionError::IsDirectory { name }),
            (true, true) if !self.directory(replaced)?.children.is_empty() => {
                Err(TransactionError::NotEmpty { name })
            }
            _ => Ok(()),
        }
    }

    pub fn remove(&mut self, directory: NodeId, name: &FileName, all: bool) -> Result<()> {
        let node = self.look_up(directory, name)?;
        if !all
            && matches!(self.find(node)?.kind, Kind::Directory(_))
            && !self.directory(node)?.children.is_empty()
        {
            return Err(TransactionError::NotEmpty { name: name.as_bstr().to_owned() });
        }
        self.changed(node)?;
        self.directory(directory)?.children.remove(name);
        self.detach(node);
        Ok(())
    }

    /// Takes a node and all below it out of the tree; those that nobody retains are gone.
    fn detach(&mut self, node: NodeId) {
        let mut queue = vec![node];
        while let Some(node) = queue.pop() {
            let Some(found) = self.nodes.get_mut(&node) else { continue };
            found.parent = None;
            if let Kind::Directory(directory) = &mut found.kind {
                directory.is_loaded = true;
                let children = std::mem::take(&mut directory.children);
                queue.extend(children.into_values().filter_map(|child| match child {
                    Child::Node(node) => Some(node),
                    Child::Stored(..) => None,
                }));
            }
            if found.retained == 0 {
                self.forget(node);
            }
        }
    }

    fn forget(&mut self, node: NodeId) {
        if let Some(node) = self.nodes.remove(&node) {
            self.unaccount(&node);
        }
    }

    pub fn retain(&mut self, node: NodeId) {
        if let Some(node) = self.nodes.get_mut(&node) {
            node.retained += 1;
        }
    }

    pub fn release(&mut self, node: NodeId) {
        let Some(found) = self.nodes.get_mut(&node) else { return };
        found.retained = found.retained.saturating_sub(1);
        if found.retained == 0 && found.parent.is_none() && node != NodeId::ROOT {
            self.forget(node);
        }
    }
}
