//! `--introspection`: what a network is doing, as files over 9P, to be read alone. They are those of `--diagnostics`; what is
//! in one is of the moment when it was opened.

use std::sync::Arc;

use p9p::Errno;
use p9p::filesystem::{Answer, Attach, Cancel, Entries, Filesystem, Node, OpenFile, OpenFlags};
use p9p::qid::{Qid, QidKind};
use p9p::stat::{Attributes, DirectoryEntry, getattr};
use vpnkit_control::{Api, diagnostics};

/// The service.
pub struct StateFiles(pub Api);

impl Filesystem for StateFiles {
    fn attach(&self, _attach: &Attach<'_>) -> Answer<Arc<dyn Node>> {
        Ok(Arc::new(StateNode { api: self.0.clone(), path: String::new() }))
    }
}

/// A file, or a folder: the beginning of paths.
struct StateNode {
    api: Api,
    path: String,
}

fn is_file(path: &str) -> bool {
    diagnostics::FILES.contains(&path)
}

/// The names in a folder, without repetition.
fn names(folder: &str) -> Vec<&'static str> {
    let rest = |path: &'static &str| match folder {
        "" => Some(*path),
        folder => path.strip_prefix(folder)?.strip_prefix('/'),
    };
    let mut names: Vec<&str> =
        diagnostics::FILES.iter().filter_map(rest).filter_map(|rest| rest.split('/').next()).collect();
    names.dedup();
    names
}

fn joined(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") }
}

fn qid(path: &str) -> Qid {
    let kind = if is_file(path) { QidKind::FILE } else { QidKind::DIRECTORY };
    // The first file that begins with the path tells folders apart; the lowest bit tells them from files.
    let first = diagnostics::FILES.iter().position(|file| file.starts_with(path)).unwrap_or(0) as u64;
    let path = if path.is_empty() { 0 } else { 2 * first + 2 + u64::from(is_file(path)) };
    Qid { kind, version: 0, path }
}

impl StateNode {
    fn content(&self) -> Vec<u8> {
        diagnostics::file(&self.api, &self.path).unwrap_or_default()
    }
}

impl Node for StateNode {
    fn qid(&self) -> Qid {
        qid(&self.path)
    }

    fn walk(&self, name: &[u8]) -> Answer<Arc<dyn Node>> {
        if is_file(&self.path) {
            return Err(Errno::ENOTDIR);
        }
        let path = match name {
            b"." => self.path.clone(),
            b".." => self.path.rsplit_once('/').map_or("", |(folder, _)| folder).to_owned(),
            name => {
                let known = names(&self.path).into_iter().find(|known| known.as_bytes() == name);
                joined(&self.path, known.ok_or(Errno::ENOENT)?)
            }
        };
        Ok(Arc::new(Self { api: self.api.clone(), path }))
    }

    fn attributes(&self, _mask: u64) -> Answer<Attributes> {
        let mode = if is_file(&self.path) { 0o100_444 } else { 0o040_555 };
        Ok(Attributes {
            valid: getattr::BASIC,
            qid: self.qid(),
            mode,
            nlink: 1,
            size: self.content().len() as u64,
            block_size: 4096,
            ..Attributes::default()
        })
    }

    fn open(&self, flags: OpenFlags) -> Answer<Arc<dyn OpenFile>> {
        if flags.mutates() {
            return Err(self.refusal());
        }
        let mut children = Vec::new();
        if !is_file(&self.path) {
            children.extend([(".", self.qid()), ("..", qid(""))]);
            children.extend(names(&self.path).into_iter().map(|name| (name, qid(&joined(&self.path, name)))));
        }
        Ok(Arc::new(OpenState { content: self.content(), children }))
    }
}

/// An open file, with what was in it, or an open folder.
struct OpenState {
    content: Vec<u8>,
    children: Vec<(&'static str, Qid)>,
}

impl OpenFile for OpenState {
    fn read(&self, offset: u64, buffer: &mut [u8], _cancel: &Cancel) -> Answer<usize> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(self.content.len());
        let count = buffer.len().min(self.content.len() - start);
        buffer[..count].copy_from_slice(&self.content[start..start + count]);
        Ok(count)
    }

    fn read_directory(&self, offset: u64, entries: &mut Entries<'_>) -> Answer<()> {
        let skipped = usize::try_from(offset).unwrap_or(usize::MAX);
        for (index, (name, qid)) in self.children.iter().enumerate().skip(skipped) {
            let kind = if qid.kind.is_directory() { 4 } else { 8 };
            let name = name.as_bytes();
            if !entries.add(&DirectoryEntry { qid: *qid, offset: index as u64 + 1, kind, name }) {
                break;
            }
        }
        Ok(())
    }
}
