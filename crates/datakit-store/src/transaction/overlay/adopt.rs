//! After a merge: the tree that it made takes the place of the overlay's, and nodes that are the same file stay so.

use datakit_git::{Mode, ObjectId};

use super::{Child, Kind, NodeId, Overlay, Result};
use crate::name::FileName;
use crate::objects::Fresh;

impl Overlay {
    /// Becomes `tree`, parts of which are not written yet. What is equal keeps its nodes.
    pub fn adopt(&mut self, fresh: &Fresh, tree: ObjectId) -> Result<()> {
        self.adopt_directory(fresh, NodeId::ROOT, tree)
    }

    fn adopt_directory(&mut self, fresh: &Fresh, node: NodeId, tree: ObjectId) -> Result<()> {
        let tree = fresh.tree(tree)?;
        let names: Vec<FileName> = self.directory(node)?.children.keys().cloned().collect();
        for name in names.iter().filter(|name| tree.try_find(name.as_bstr()).is_none()) {
            let child = self.directory(node)?.children.get(name).copied();
            let is_empty = match child {
                Some(Child::Node(child)) => {
                    matches!(&self.find(child)?.kind, Kind::Directory(d) if d.base.is_none())
                }
                _ => false,
            };
            if !is_empty {
                self.remove(node, name, true)?;
            }
        }
        for entry in &tree.entries {
            self.adopt_entry(fresh, node, entry)?;
        }
        Ok(())
    }

    fn adopt_entry(&mut self, fresh: &Fresh, directory: NodeId, entry: &datakit_git::Entry) -> Result<()> {
        let name = FileName::stored(entry.name.clone());
        let present = self.directory(directory)?.children.get(&name).copied();
        match present {
            Some(Child::Stored(mode, id)) if (mode, id) == (entry.mode, entry.id) => return Ok(()),
            Some(_) => {
                let node = self.look_up(directory, &name)?;
                let is_directory = matches!(self.find(node)?.kind, Kind::Directory(_));
                if is_directory && entry.mode == Mode::Tree {
                    return self.adopt_directory(fresh, node, entry.id);
                }
                if let Kind::File { mode, content } = &self.find(node)?.kind
                    && *mode == entry.mode
                    && content.id(fresh.stored.hash())? == entry.id
                {
                    return Ok(());
                }
                self.remove(directory, &name, true)?;
            }
            None => {}
        }
        match entry.mode {
            Mode::Tree if fresh.is_new(entry.id) => {
                let node = self.add(directory, &name, Mode::Tree, b"")?;
                self.adopt_directory(fresh, node, entry.id)
            }
            mode if mode.is_blob() && fresh.is_new(entry.id) => {
                let bytes = fresh.blob(entry.id)?;
                self.add(directory, &name, mode, &bytes).map(drop)
            }
            mode => {
                self.directory(directory)?.children.insert(name.clone(), Child::Stored(mode, entry.id));
                let node = self.look_up(directory, &name)?;
                self.changed(node)
            }
        }
    }
}
