//! Writes EROFS images: read-only, uncompressed, everything owned by root, the same bytes for the same input.
//!
//! Layout: the superblock's block, the file contents in the order they were added, folders, then all inodes. The last
//! part of a file, when it is small, lies behind its inode. Not used: compression (the guest's CPU is the slow part),
//! extended attributes, inodes of 64 bytes. Spec: `Documentation/filesystems/erofs.rst` and `fs/erofs/erofs_fs.h` of
//! Linux.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom, Write};

const BLOCK_BYTES: u64 = 4096;
const SUPERBLOCK_OFFSET: u64 = 1024;
const MAGIC: u32 = 0xe0f5_e1e2;
/// Bytes of a compact inode, and the unit that inodes are numbered in.
const SLOT_BYTES: u64 = 32;
/// Longest tail that is put behind an inode rather than in a block of its own.
const INLINE_BYTES_MAX: u64 = 2048;
const DIRENT_BYTES: usize = 12;
/// Longest name of Linux.
const NAME_BYTES_MAX: usize = 255;
const S_IFDIR: u16 = 0o040_000;
const S_IFREG: u16 = 0o100_000;
const S_IFLNK: u16 = 0o120_000;

/// Number of a node in the order of making.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeId(usize);

/// The root folder.
pub const ROOT: NodeId = NodeId(0);

struct Node {
    mode: u16,
    n_links: u16,
    bytes: u64,
    /// First block of the part that is in blocks.
    block: u32,
    /// The part that lies behind the inode.
    tail: Vec<u8>,
    children: BTreeMap<Vec<u8>, NodeId>,
    parent: NodeId,
    slot: u64,
}

/// Image being written.
pub struct ErofsWriter<W> {
    output: W,
    nodes: Vec<Node>,
    next_block: u32,
}

fn too_large(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("{what} does not fit an image"))
}

impl<W: Write + Seek> ErofsWriter<W> {
    /// Begins an image; `output` must be empty.
    ///
    /// # Errors
    /// What the output says.
    pub fn new(mut output: W) -> io::Result<Self> {
        output.write_all(&[0; BLOCK_BYTES as usize])?;
        let mut writer = Self { output, nodes: Vec::new(), next_block: 1 };
        writer.push(S_IFDIR | 0o755, ROOT);
        Ok(writer)
    }

    fn push(&mut self, mode: u16, parent: NodeId) -> NodeId {
        let node = Node {
            mode,
            n_links: 0,
            bytes: 0,
            block: 0,
            tail: Vec::new(),
            children: BTreeMap::new(),
            parent,
            slot: 0,
        };
        self.nodes.push(node);
        NodeId(self.nodes.len() - 1)
    }

    /// What a folder has under a name.
    pub fn try_find(&self, folder: NodeId, name: &str) -> Option<NodeId> {
        self.nodes[folder.0].children.get(name.as_bytes()).copied()
    }

    /// Whether a node is a folder.
    pub fn is_folder(&self, node: NodeId) -> bool {
        self.nodes[node.0].mode & 0o170_000 == S_IFDIR
    }

    /// Target of a symbolic link; `None` for everything else.
    pub fn target(&self, node: NodeId) -> Option<String> {
        let node = &self.nodes[node.0];
        (node.mode & 0o170_000 == S_IFLNK).then(|| String::from_utf8_lossy(&node.tail).into_owned())
    }

    /// The folder that a node was made in; the root's is itself.
    pub fn parent(&self, node: NodeId) -> NodeId {
        self.nodes[node.0].parent
    }

    /// Adds a folder, or sets the permissions of the one that is there.
    ///
    /// # Errors
    /// `InvalidInput` for a name that is too long.
    pub fn folder(&mut self, parent: NodeId, name: &str, permissions: u16) -> io::Result<NodeId> {
        if let Some(node) = self.try_find(parent, name).filter(|node| self.is_folder(*node)) {
            self.nodes[node.0].mode = S_IFDIR | permissions;
            return Ok(node);
        }
        let node = self.push(S_IFDIR | permissions, parent);
        self.link(parent, name, node)?;
        Ok(node)
    }

    /// Adds a file and writes its contents; replaces what has the name.
    ///
    /// # Errors
    /// What reader and output say; `InvalidInput` for 4 GiB and more.
    pub fn file(
        &mut self,
        parent: NodeId,
        name: &str,
        permissions: u16,
        contents: &mut dyn Read,
    ) -> io::Result<NodeId> {
        let node = self.push(S_IFREG | permissions, parent);
        self.link(parent, name, node)?;
        self.write_contents(node, contents)?;
        Ok(node)
    }

    /// Adds a symbolic link; replaces what has the name.
    ///
    /// # Errors
    /// `InvalidInput` for a target or name that is too long.
    pub fn symlink(&mut self, parent: NodeId, name: &str, target: &str) -> io::Result<NodeId> {
        if target.len() as u64 > INLINE_BYTES_MAX || target.is_empty() {
            return Err(too_large("the target of a symbolic link"));
        }
        let node = self.push(S_IFLNK | 0o777, parent);
        self.nodes[node.0].bytes = target.len() as u64;
        self.nodes[node.0].tail = target.as_bytes().to_vec();
        self.link(parent, name, node)?;
        Ok(node)
    }

    /// Gives a node another name.
    ///
    /// # Errors
    /// `InvalidInput` for a name that is too long or no name.
    pub fn link(&mut self, parent: NodeId, name: &str, node: NodeId) -> io::Result<()> {
        if name.is_empty()
            || name.len() > NAME_BYTES_MAX
            || name == "."
            || name == ".."
            || name.contains(['/', '\0'])
        {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} is no name")));
        }
        let links =
            self.nodes[node.0].n_links.checked_add(1).ok_or_else(|| too_large("another hard link"))?;
        self.nodes[node.0].n_links = links;
        if let Some(old) = self.nodes[parent.0].children.insert(name.as_bytes().to_vec(), node) {
            self.nodes[old.0].n_links -= 1;
        }
        Ok(())
    }

    /// Streams whole blocks to the output and keeps a small rest.
    fn write_contents(&mut self, node: NodeId, contents: &mut dyn Read) -> io::Result<()> {
        let first = self.next_block;
        let mut buffer = vec![0; 64 * BLOCK_BYTES as usize];
        let (mut total, mut tail) = (0_u64, Vec::new());
        loop {
            let n = read_full(contents, &mut buffer)?;
            total += n as u64;
            if total > u64::from(u32::MAX) {
                return Err(too_large("a file of 4 GiB"));
            }
            let rest = n % BLOCK_BYTES as usize;
            let is_inline = rest as u64 <= INLINE_BYTES_MAX;
            let whole = if is_inline { n - rest } else { n };
            self.write_blocks(&buffer[..whole])?;
            if is_inline {
                tail = buffer[n - rest..n].to_vec();
            }
            if n < buffer.len() {
                break;
            }
        }
        let node = &mut self.nodes[node.0];
        (node.bytes, node.block, node.tail) = (total, first, tail);
        Ok(())
    }

    /// Writes bytes at the next block, padded to whole blocks.
    fn write_blocks(&mut self, bytes: &[u8]) -> io::Result<()> {
        let n_blocks = (bytes.len() as u64).div_ceil(BLOCK_BYTES);
        let end = u64::from(self.next_block) + n_blocks;
        self.next_block = u32::try_from(end).map_err(|_| too_large("16 TiB"))?;
        self.output.write_all(bytes)?;
        let padding = n_blocks * BLOCK_BYTES - bytes.len() as u64;
        io::copy(&mut io::repeat(0).take(padding), &mut self.output).map(|_| ())
    }

    /// Writes folders, inodes and superblock, and gives the output back.
    ///
    /// # Errors
    /// What the output says.
    pub fn finish(mut self) -> io::Result<W> {
        self.count_folder_links()?;
        let inode_bytes = self.assign_slots();
        for index in 0..self.nodes.len() {
            if self.is_folder(NodeId(index)) {
                self.write_folder(NodeId(index))?;
            }
        }
        let meta_block = self.next_block;
        let table = self.inode_table(inode_bytes);
        self.write_blocks(&table)?;
        self.write_superblock(meta_block)?;
        Ok(self.output)
    }

    /// A folder has a link from its parent, one from itself, and one from each folder in it.
    fn count_folder_links(&mut self) -> io::Result<()> {
        for index in 0..self.nodes.len() {
            if self.is_folder(NodeId(index)) {
                let inner =
                    self.nodes[index].children.values().filter(|child| self.is_folder(**child)).count();
                self.nodes[index].n_links =
                    u16::try_from(inner + 2).map_err(|_| too_large("a folder of 65534 folders"))?;
            }
        }
        Ok(())
    }

    /// Numbers the inodes; returns the length of their table. Number 0 is left out: programs take it for "no file".
    fn assign_slots(&mut self) -> u64 {
        let mut at = SLOT_BYTES;
        for index in 0..self.nodes.len() {
            let folder_bytes =
                self.is_folder(NodeId(index)).then(|| folder_length(&self.nodes[index].children));
            let node = &mut self.nodes[index];
            if let Some(bytes) = folder_bytes {
                node.bytes = bytes;
                let rest = bytes % BLOCK_BYTES;
                // Filled in when all inodes have numbers.
                node.tail = if rest <= INLINE_BYTES_MAX { vec![0; rest as usize] } else { Vec::new() };
            }
            let inode_bytes = SLOT_BYTES + node.tail.len() as u64;
            // An inode and its tail share a block.
            if !node.tail.is_empty() && at % BLOCK_BYTES + inode_bytes > BLOCK_BYTES {
                at = at.next_multiple_of(BLOCK_BYTES);
            }
            node.slot = at / SLOT_BYTES;
            at = (at + inode_bytes).next_multiple_of(SLOT_BYTES);
        }
        at
    }

    fn write_folder(&mut self, id: NodeId) -> io::Result<()> {
        let node = &self.nodes[id.0];
        let slot_and_kind = |id: NodeId| {
            let kind = match self.nodes[id.0].mode & 0o170_000 {
                S_IFREG => 1,
                S_IFDIR => 2,
                _ => 7,
            };
            (self.nodes[id.0].slot, kind)
        };
        let mut bytes = Vec::new();
        for block in folder_blocks(&node.children) {
            bytes.resize(bytes.len().next_multiple_of(BLOCK_BYTES as usize), 0);
            let mut name_offset = block.len() * DIRENT_BYTES;
            for name in &block {
                let (slot, kind) = match *name {
                    b"." => slot_and_kind(id),
                    b".." => slot_and_kind(node.parent),
                    _ => slot_and_kind(node.children[*name]),
                };
                bytes.extend(slot.to_le_bytes());
                bytes.extend((name_offset as u16).to_le_bytes());
                bytes.extend([kind, 0]);
                name_offset += name.len();
            }
            bytes.extend(block.concat());
        }
        debug_assert_eq!(bytes.len() as u64, node.bytes, "the length was computed from the same blocks");
        let tail = bytes.split_off(bytes.len() - node.tail.len());
        let first = self.next_block;
        self.write_blocks(&bytes)?;
        (self.nodes[id.0].block, self.nodes[id.0].tail) = (first, tail);
        Ok(())
    }

    fn inode_table(&self, inode_bytes: u64) -> Vec<u8> {
        let mut table = vec![0; inode_bytes as usize];
        for (index, node) in self.nodes.iter().enumerate() {
            let at = (node.slot * SLOT_BYTES) as usize;
            // Bit 0: compact inode; bits 1 to 3: 0 is all in blocks, 2 has its tail inline.
            let format: u16 = if node.tail.is_empty() { 0 } else { 2 << 1 };
            let in_blocks = node.bytes > node.tail.len() as u64;
            let inode = &mut table[at..at + SLOT_BYTES as usize];
            inode[0..2].copy_from_slice(&format.to_le_bytes());
            inode[4..6].copy_from_slice(&node.mode.to_le_bytes());
            inode[6..8].copy_from_slice(&node.n_links.to_le_bytes());
            inode[8..12].copy_from_slice(&(node.bytes as u32).to_le_bytes());
            inode[16..20].copy_from_slice(&if in_blocks { node.block } else { u32::MAX }.to_le_bytes());
            inode[20..24].copy_from_slice(&(index as u32 + 1).to_le_bytes());
            table[at + SLOT_BYTES as usize..][..node.tail.len()].copy_from_slice(&node.tail);
        }
        table
    }

    fn write_superblock(&mut self, meta_block: u32) -> io::Result<()> {
        let mut block = [0; 128];
        block[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        block[12] = BLOCK_BYTES.trailing_zeros() as u8;
        block[14..16].copy_from_slice(&(self.nodes[ROOT.0].slot as u16).to_le_bytes());
        block[16..24].copy_from_slice(&(self.nodes.len() as u64).to_le_bytes());
        block[36..40].copy_from_slice(&self.next_block.to_le_bytes());
        block[40..44].copy_from_slice(&meta_block.to_le_bytes());
        block[64..71].copy_from_slice(b"coracle");
        self.output.seek(SeekFrom::Start(SUPERBLOCK_OFFSET))?;
        self.output.write_all(&block)?;
        self.output.flush()
    }
}

/// Names of a folder, by the block that they go to. They are in byte order, `.` and `..` among them.
fn folder_blocks(children: &BTreeMap<Vec<u8>, NodeId>) -> Vec<Vec<&[u8]>> {
    let mut names: Vec<&[u8]> =
        [&b"."[..], b".."].into_iter().chain(children.keys().map(Vec::as_slice)).collect();
    names.sort_unstable();
    let mut blocks: Vec<Vec<&[u8]>> = Vec::new();
    let mut used = BLOCK_BYTES as usize;
    for name in names {
        let entry_bytes = DIRENT_BYTES + name.len();
        if used + entry_bytes > BLOCK_BYTES as usize {
            blocks.push(Vec::new());
            used = 0;
        }
        used += entry_bytes;
        if let Some(block) = blocks.last_mut() {
            block.push(name);
        }
    }
    blocks
}

fn folder_length(children: &BTreeMap<Vec<u8>, NodeId>) -> u64 {
    let blocks = folder_blocks(children);
    let last: usize =
        blocks.last().map_or(0, |block| block.iter().map(|name| DIRENT_BYTES + name.len()).sum());
    (blocks.len() as u64 - 1) * BLOCK_BYTES + last as u64
}

/// Reads until the buffer is full or the input ends.
fn read_full(input: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut n = 0;
    while n < buffer.len() {
        match input.read(&mut buffer[n..]) {
            Ok(0) => break,
            Ok(more) => n += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(n)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::process::Command;

    fn image(write: impl FnOnce(&mut ErofsWriter<io::Cursor<Vec<u8>>>) -> io::Result<()>) -> Vec<u8> {
        let mut writer = ErofsWriter::new(io::Cursor::new(Vec::new())).unwrap();
        write(&mut writer).unwrap();
        writer.finish().unwrap().into_inner()
    }

    /// Unpacks with `fsck.erofs`; `None` when it is not installed.
    fn unpacked(image: &[u8]) -> Option<tempfile::TempDir> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        std::fs::write(&path, image).unwrap();
        let extract = format!("--extract={}", folder.path().join("tree").display());
        let Ok(output) =
            Command::new("fsck.erofs").args([extract.as_str(), "--no-preserve-owner"]).arg(&path).output()
        else {
            eprintln!("SKIP: fsck.erofs is not installed");
            return None;
        };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Some(folder)
    }

    fn pattern(n: usize) -> Vec<u8> {
        (0..n).map(|index| (index * 31 % 251) as u8).collect()
    }

    #[test]
    fn files_of_every_length_come_back() {
        let lengths =
            [0, 1, 2047, 2048, 2049, 4095, 4096, 4097, 8192, 262_143, 262_144, 262_145, 266_241, 1_000_000];
        let image = image(|writer| {
            for length in lengths {
                writer.file(ROOT, &format!("f{length}"), 0o640, &mut &pattern(length)[..])?;
            }
            Ok(())
        });
        let Some(folder) = unpacked(&image) else { return };
        for length in lengths {
            let path = folder.path().join(format!("tree/f{length}"));
            assert!(std::fs::read(&path).unwrap() == pattern(length), "{length}");
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o640);
        }
    }

    #[test]
    fn folders_of_every_size_links_and_symlinks_come_back() {
        let image = image(|writer| {
            for count in [0, 1, 100, 200, 250, 3000] {
                let folder = writer.folder(ROOT, &format!("d{count}"), 0o750)?;
                for index in 0..count {
                    writer.symlink(folder, &format!("link-{index}"), "../target")?;
                }
            }
            let file = writer.file(ROOT, "-a", 0o4755, &mut &b"x"[..])?;
            let folder = writer.try_find(ROOT, "d0").unwrap();
            writer.link(folder, "hard", file)
        });
        let Some(folder) = unpacked(&image) else { return };
        let tree = folder.path().join("tree");
        for count in [1, 100, 200, 250, 3000] {
            assert_eq!(tree.join(format!("d{count}")).read_dir().unwrap().count(), count);
        }
        assert_eq!(std::fs::read_link(tree.join("d3000/link-2999")).unwrap().to_str(), Some("../target"));
        assert_eq!(std::fs::read(tree.join("d0/hard")).unwrap(), b"x");
        assert_eq!(std::fs::metadata(tree.join("-a")).unwrap().mode() & 0o7777, 0o4755);
    }

    #[test]
    fn a_file_can_be_replaced() {
        let image = image(|writer| {
            writer.file(ROOT, "f", 0o644, &mut &pattern(9000)[..])?;
            writer.file(ROOT, "f", 0o644, &mut &b"new"[..])?;
            Ok(())
        });
        let Some(folder) = unpacked(&image) else { return };
        assert_eq!(std::fs::read(folder.path().join("tree/f")).unwrap(), b"new");
    }

    #[test]
    fn names_that_are_none_are_refused() {
        let mut writer = ErofsWriter::new(io::Cursor::new(Vec::new())).unwrap();
        for name in ["", ".", "..", "a/b", "a\0b", &"x".repeat(256)] {
            assert!(writer.symlink(ROOT, name, "t").is_err(), "{name:?}");
        }
    }
}
