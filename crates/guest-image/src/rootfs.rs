//! Root file system of a guest with packages: their files, put where dpkg would put them, and what their maintainer
//! scripts would have made, as far as programs need it.
//!
//! `/usr` is merged. Documentation and translations are left out. Not done: alternatives beyond a few, diversions,
//! users of packages, file capabilities; everything belongs to root.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufWriter, Cursor, Read};
use std::path::{Path, PathBuf};

use crate::deb::{self, EntryKind};
use crate::erofs::{ErofsWriter, NodeId, ROOT};
use crate::error::{BuildError, IoContext, malformed};
use crate::initramfs::Base;
use crate::kernel::Kernel;
use crate::modules::{modules_alias, modules_dep};
use crate::userland::{FOLDERS, SETTINGS, SYMLINKS, applets, is_system_applet};

/// Top folders that a merged `/usr` has taken over.
const MERGED: [&str; 6] = ["bin", "lib", "lib32", "lib64", "libx32", "sbin"];

/// What no guest reads.
const LEFT_OUT: [&str; 9] = [
    "usr/share/doc/",
    "usr/share/man/",
    "usr/share/info/",
    "usr/share/locale/",
    "usr/share/lintian/",
    "usr/share/doc-base/",
    "usr/share/bug/",
    "usr/share/menu/",
    "usr/share/gcc/",
];

/// Names that `update-alternatives` would make, and what they may stand for, best first.
const ALTERNATIVES: [(&str, &[&str]); 12] = [
    ("awk", &["gawk", "mawk", "original-awk"]),
    ("cc", &["gcc", "clang", "tcc"]),
    ("c++", &["g++", "clang++"]),
    ("c99", &["c99-gcc"]),
    ("c89", &["c89-gcc"]),
    ("editor", &["vim.basic", "nano", "vim.tiny"]),
    ("nawk", &["gawk", "mawk"]),
    ("nc", &["nc.openbsd", "nc.traditional"]),
    ("pager", &["less"]),
    ("vi", &["vim.basic", "vim.tiny"]),
    ("vim", &["vim.basic"]),
    ("which", &["which.debianutils"]),
];

/// Most symbolic links that are followed on the way to a file, as in Linux.
const LINKS_MAX: u32 = 40;

/// Writes the image to `path`.
///
/// # Errors
/// [`BuildError::Malformed`] for packages that do not fit together; what reading and writing says.
pub fn write(path: &Path, packages: &[PathBuf], kernel: &Kernel, base: &Base<'_>) -> Result<(), BuildError> {
    let file = File::create(path).at("cannot write", path)?;
    let image = ErofsWriter::new(BufWriter::with_capacity(1 << 20, file)).at("cannot write", path)?;
    let mut tree = Tree { image, certificates: BTreeSet::new(), bundle: Vec::new() };
    tree.add_skeleton().at("cannot write", path)?;
    for package in packages {
        deb::for_each(package, |entry, reader| {
            let what = entry.path.clone();
            tree.add(entry, reader).map_err(|error| match error.kind() {
                io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                    malformed(what, error)
                }
                _ => Err::<(), _>(error).at("cannot write", path).expect_err("made from an error"),
            })
        })?;
    }
    tree.add_modules(kernel)?;
    tree.add_by_hand(base).at("cannot write", path)?;
    let output = tree.image.finish().at("cannot write", path)?;
    let file = output.into_inner().map_err(io::IntoInnerError::into_error).at("cannot write", path)?;
    file.sync_all().at("cannot write", path)
}

struct Tree {
    image: ErofsWriter<BufWriter<File>>,
    certificates: BTreeSet<String>,
    bundle: Vec<u8>,
}

impl Tree {
    fn add_skeleton(&mut self) -> io::Result<()> {
        for (path, permissions) in FOLDERS {
            let (parent, name) = self.place(path)?;
            self.image.folder(parent, &name, permissions as u16)?;
        }
        for (path, target) in SYMLINKS {
            let (parent, name) = split(path);
            let parent = self.folder_at(parent)?;
            self.image.symlink(parent, name, target)?;
        }
        Ok(())
    }

    /// Adds an entry of a package.
    fn add(&mut self, entry: deb::Entry, reader: &mut dyn Read) -> io::Result<()> {
        if LEFT_OUT.iter().any(|folder| entry.path.starts_with(folder)) {
            return Ok(());
        }
        let (parent, name) = self.place(&entry.path)?;
        let there = self.image.try_find(parent, &name);
        let permissions = entry.permissions as u16;
        match entry.kind {
            // As dpkg: a link to a folder stays when a package has a folder in its place, and the other way round.
            EntryKind::Folder if there.is_none() => self.image.folder(parent, &name, permissions).map(|_| ()),
            EntryKind::Symlink(target) if !there.is_some_and(|node| self.image.is_folder(node)) => {
                self.image.symlink(parent, &name, &target).map(|_| ())
            }
            EntryKind::Folder | EntryKind::Symlink(_) => Ok(()),
            EntryKind::HardLink(target) => {
                let (folder, target_name) = self.place(&target)?;
                let node =
                    self.image.try_find(folder, &target_name).filter(|node| !self.image.is_folder(*node));
                let node = node.ok_or_else(|| {
                    io::Error::new(
                        io::ErrorKind::InvalidData,
                        format!("a hard link to {target}, which is not there"),
                    )
                })?;
                self.image.link(parent, &name, node)
            }
            EntryKind::File(_)
                if entry.path.starts_with("usr/share/ca-certificates/") && name.ends_with(".crt") =>
            {
                let mut certificate = Vec::new();
                reader.take(1 << 20).read_to_end(&mut certificate)?;
                if self.certificates.insert(entry.path) {
                    self.bundle.extend(&certificate);
                }
                self.image.file(parent, &name, permissions, &mut &certificate[..]).map(|_| ())
            }
            EntryKind::File(_) => self.image.file(parent, &name, permissions, reader).map(|_| ()),
        }
    }

    /// Folder and name for a path, with `/usr` merged, links followed and missing folders made.
    fn place(&mut self, path: &str) -> io::Result<(NodeId, String)> {
        let top = path.split('/').next().unwrap_or("");
        let path = if MERGED.contains(&top) { format!("usr/{path}") } else { path.to_owned() };
        let (parent, name) = split(&path);
        Ok((self.folder_at(parent)?, name.to_owned()))
    }

    /// The folder at a path; made if it is missing.
    fn folder_at(&mut self, path: &str) -> io::Result<NodeId> {
        let mut parts: Vec<String> =
            path.rsplit('/').filter(|part| !part.is_empty()).map(str::to_owned).collect();
        let (mut node, mut links) = (ROOT, 0);
        while let Some(part) = parts.pop() {
            match part.as_str() {
                "." => continue,
                ".." => {
                    node = self.image.parent(node);
                    continue;
                }
                _ => {}
            }
            let Some(next) = self.image.try_find(node, &part) else {
                node = self.image.folder(node, &part, 0o755)?;
                continue;
            };
            if let Some(target) = self.image.target(next) {
                links += 1;
                if links > LINKS_MAX {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        format!("too many links on the way to {path}"),
                    ));
                }
                if target.starts_with('/') {
                    node = ROOT;
                }
                parts.extend(target.rsplit('/').filter(|part| !part.is_empty()).map(str::to_owned));
            } else if self.image.is_folder(next) {
                node = next;
            } else {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("{part} in {path} is not a folder"),
                ));
            }
        }
        Ok(node)
    }

    /// Adds a file unless something has its name.
    fn add_missing(&mut self, path: &str, permissions: u16, contents: &[u8]) -> io::Result<()> {
        let (parent, name) = self.place(path)?;
        if self.image.try_find(parent, &name).is_none() {
            self.image.file(parent, &name, permissions, &mut Cursor::new(contents))?;
        }
        Ok(())
    }

    fn add_missing_symlink(&mut self, path: &str, target: &str) -> io::Result<()> {
        let (parent, name) = self.place(path)?;
        if self.image.try_find(parent, &name).is_none() {
            self.image.symlink(parent, &name, target)?;
        }
        Ok(())
    }

    fn add_modules(&mut self, kernel: &Kernel) -> Result<(), BuildError> {
        let set = kernel.module_set();
        let modules = set.closure(Kernel::wanted());
        let root = format!("usr/lib/modules/{}", kernel.release);
        let write = |tree: &mut Self, name: &str, bytes: &[u8]| {
            tree.add_missing(&format!("{root}/{name}"), 0o644, bytes).map_err(|error| malformed(name, error))
        };
        for module in &modules {
            write(self, &module.path, &kernel.module_bytes(module)?)?;
        }
        write(self, "modules.dep", modules_dep(&set, &modules).as_bytes())?;
        write(self, "modules.alias", modules_alias(&modules).as_bytes())
    }

    /// What maintainer scripts would have made, and busybox for whatever no package has.
    fn add_by_hand(&mut self, base: &Base<'_>) -> io::Result<()> {
        for (path, text) in SETTINGS {
            self.add_missing(path, if path == "etc/shadow" { 0o600 } else { 0o644 }, text.as_bytes())?;
        }
        self.add_missing("usr/lib/os-release", 0o644, base.os_release)?;
        self.add_missing_symlink("etc/os-release", "../usr/lib/os-release")?;
        if !self.bundle.is_empty() {
            let bundle = std::mem::take(&mut self.bundle);
            self.add_missing("etc/ssl/certs/ca-certificates.crt", 0o644, &bundle)?;
        }
        let programs = self.folder_at("usr/bin")?;
        for (name, targets) in ALTERNATIVES {
            if let Some(target) =
                targets.iter().find(|target| self.image.try_find(programs, target).is_some())
            {
                self.add_missing_symlink(&format!("usr/bin/{name}"), target)?;
            }
        }
        // A shell of the packages' own is faster and more complete than busybox's.
        if self.image.try_find(programs, "dash").is_some() {
            self.add_missing_symlink("usr/bin/sh", "dash")?;
        }
        self.add_missing("usr/bin/busybox", 0o755, base.busybox)?;
        let system_programs = self.folder_at("usr/sbin")?;
        for name in applets(base.busybox) {
            let is_there = [programs, system_programs]
                .iter()
                .any(|folder| self.image.try_find(*folder, &name).is_some());
            let folder = if is_system_applet(&name) { "usr/sbin" } else { "usr/bin" };
            if !is_there {
                self.add_missing_symlink(&format!("{folder}/{name}"), "/usr/bin/busybox")?;
            }
        }
        Ok(())
    }
}

fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}
