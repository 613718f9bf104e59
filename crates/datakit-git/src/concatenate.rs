//! Makes one pack of many: what is compressed is copied as it is, trees become deltas of their later versions.
//!
//! Time: proportional to the bytes, but for a comparison with up to 512 trees for each. Memory: an entry of the index for each object,
//! and the trees of a [`Window`]. Spec: gitformat-pack(5), pack version 2.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use gix::odb::pack::data::Entry;
use gix::odb::pack::data::entry::Header;
use gix::zlib::{Inflate, Status};

use crate::delta::{TREE_BYTES_MAX, Window};
use crate::pack::{Checksum, DEFLATE_BYTES_MIN, Packer, Place, header, index, offset, store, typed_header};
use crate::{HashKind, ObjectId};

/// Types of entries.
const TREE: u8 = 2;
const OFS_DELTA: u8 = 6;

/// Writes into `out` one pack of the objects of `packs` (paths without extension, oldest first), whose entries have no
/// deltas against other packs; returns its index and its name.
pub(crate) fn concatenate(
    hash: HashKind,
    packs: &[PathBuf],
    out: &mut File,
) -> io::Result<(Vec<u8>, ObjectId)> {
    let opened = packs.iter().rev().map(|path| open(hash, path)).collect::<io::Result<Vec<_>>>()?;
    let mut all = HashSet::new();
    for (_, index) in &opened {
        all.extend((0..index.num_objects()).map(|n| index.oid_at_index(n).to_owned()));
    }
    let count = all.len();
    drop(all);
    let mut writer = Writer {
        out: io::BufWriter::with_capacity(1 << 18, out),
        checksum: Checksum::new(hash),
        at: 0,
        places: Vec::with_capacity(count),
        offsets: HashMap::with_capacity(count),
        window: Window::default(),
        packer: Packer::new(hash),
        inflate: Inflate::default(),
    };
    writer.write(&header(u32::try_from(count).map_err(io::Error::other)?))?;
    // The newest first: they are whole, and the older ones are made of them.
    for pack in &opened {
        writer.pack(hash, pack)?;
    }
    let Writer { mut out, checksum, places, .. } = writer;
    let trailer = checksum.finish()?;
    out.write_all(trailer.as_slice())?;
    out.flush()?;
    Ok((index(hash, places, trailer)?, trailer))
}

type Opened = (gix::odb::pack::data::File, gix::odb::pack::index::File);

fn open(hash: HashKind, path: &Path) -> io::Result<Opened> {
    let failed = |error: gix::Error| io::Error::other(error.to_string());
    let data = gix::odb::pack::data::File::at(path.with_extension("pack"), hash).map_err(failed)?;
    let index = gix::odb::pack::index::File::at(path.with_extension("idx"), hash).map_err(failed)?;
    Ok((data, index))
}

struct Writer<'a> {
    out: io::BufWriter<&'a mut File>,
    checksum: Checksum,
    at: u64,
    places: Vec<Place>,
    /// Where objects are.
    offsets: HashMap<ObjectId, u64>,
    window: Window,
    packer: Packer,
    inflate: Inflate,
}

impl Writer<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.checksum.update(bytes);
        self.out.write_all(bytes)?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    /// Writes what no pack before had.
    fn pack(&mut self, hash: HashKind, (data, index): &Opened) -> io::Result<()> {
        let mut entries: Vec<(u64, ObjectId)> = (0..index.num_objects())
            .map(|n| (index.pack_offset_at_index(n), index.oid_at_index(n).to_owned()))
            .collect();
        // As they are in the pack, so that what a delta is made of comes before it.
        entries.sort_unstable();
        for (n, (start, id)) in entries.iter().enumerate() {
            if self.offsets.contains_key(id) {
                continue;
            }
            let end = entries.get(n + 1).map_or(data.pack_end() as u64, |(next, _)| *next);
            let unfit = || io::Error::other("an index does not fit its pack");
            let bytes = data.entry_slice(*start..end).ok_or_else(unfit)?;
            // What is torn, as after a power failure, is copied: whoever reads it is told its name.
            let entry = Entry::from_bytes(bytes, *start, hash).ok();
            let content = |at: u64| usize::try_from(at - start).ok().and_then(|at| bytes.get(at..));
            let entry = entry.and_then(|entry| Some((content(entry.data_offset)?, entry)));
            let made = match entry {
                Some((content, Entry { header: Header::Tree, decompressed_size, .. })) => {
                    self.tree(content, decompressed_size)?
                }
                Some((
                    content,
                    Entry { header: Header::OfsDelta { base_distance }, decompressed_size, .. },
                )) => {
                    let base = start.checked_sub(base_distance).ok_or_else(unfit)?;
                    let base =
                        entries.binary_search_by_key(&base, |(offset, _)| *offset).map_err(|_| unfit())?;
                    let base = *self.offsets.get(&entries[base].1).ok_or_else(unfit)?;
                    Some(self.delta_entry(base, decompressed_size, content))
                }
                _ => None,
            };
            let bytes = made.as_deref().unwrap_or(bytes);
            self.places.push(Place { id: *id, crc: crc32fast::hash(bytes), offset: offset(self.at)? });
            self.offsets.insert(*id, self.at);
            self.write(bytes)?;
        }
        Ok(())
    }

    /// A whole tree as it is to be written here, if that is another way than it was.
    fn tree(&mut self, content: &[u8], size: u64) -> io::Result<Option<Vec<u8>>> {
        let Some(size) = usize::try_from(size).ok().filter(|size| (1..=TREE_BYTES_MAX).contains(size)) else {
            return Ok(None);
        };
        let mut tree = vec![0; size];
        self.inflate.reset();
        // Damaged ones are copied as well.
        if !matches!(self.inflate.once(content, &mut tree), Ok((Status::StreamEnd, _, n)) if n == size) {
            return Ok(None);
        }
        let delta = self.window.delta(&tree);
        let made = match &delta {
            Some(delta) => {
                let mut compressed = Vec::new();
                self.compress(&delta.instructions, &mut compressed)?;
                Some(self.delta_entry(delta.base, delta.instructions.len() as u64, &compressed))
            }
            None => {
                let mut entry = Vec::with_capacity(size + 16);
                typed_header(&mut entry, TREE, size as u64);
                self.compress(&tree, &mut entry)?;
                Some(entry).filter(|_| size >= DEFLATE_BYTES_MIN)
            }
        };
        self.window.add(self.at, delta.as_ref(), tree);
        Ok(made)
    }

    fn compress(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        if bytes.len() >= DEFLATE_BYTES_MIN {
            return self.packer.deflate(bytes, out);
        }
        store(bytes, out);
        Ok(())
    }

    /// An entry for a delta of `size` bytes, compressed, against what is at `base`.
    fn delta_entry(&self, base: u64, size: u64, compressed: &[u8]) -> Vec<u8> {
        let mut entry = Vec::with_capacity(compressed.len() + 24);
        typed_header(&mut entry, OFS_DELTA, size);
        let mut distance = self.at - base;
        let mut digits = vec![(distance & 0x7f) as u8];
        while distance > 0x7f {
            distance = (distance >> 7) - 1;
            digits.push((distance & 0x7f) as u8 | 0x80);
        }
        entry.extend(digits.into_iter().rev());
        entry.extend_from_slice(compressed);
        entry
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::ObjectKind;

    /// After a power failure an index may be on disk and its pack be zero: the next start is not to fail for that.
    #[test]
    fn a_torn_pack_is_put_together_with_the_others() {
        let folder = tempfile::tempdir().unwrap();
        // Versions of a directory: one of its entries is another in each.
        let entry = |id: u8| [&b"40000 directory-with-a-name\0"[..], &[id; 20]].concat();
        let tree = |n: u8| [entry(99).repeat(15), entry(n), entry(99).repeat(14)].concat();
        let ids: Vec<ObjectId> = (1..=6).map(|n| ObjectId::from_bytes_or_panic(&[n; 20])).collect();
        let mut packer = Packer::new(HashKind::Sha1);
        let paths: Vec<PathBuf> = [0, 3]
            .map(|first| {
                let trees: Vec<Vec<u8>> = (first..first + 3).map(|n| tree(n as u8)).collect();
                let objects = trees.iter().enumerate();
                let objects = objects.map(|(n, tree)| (ids[first + n], ObjectKind::Tree, tree.as_slice()));
                let mut pack = packer.pack(objects).unwrap();
                if first == 0 {
                    pack.bytes[200..].fill(0);
                }
                let path = folder.path().join(format!("pack-{first}"));
                std::fs::write(path.with_extension("pack"), pack.bytes).unwrap();
                std::fs::write(path.with_extension("idx"), pack.index).unwrap();
                path
            })
            .into();
        let out = folder.path().join("pack-all");
        let mut file = File::create(out.with_extension("pack")).unwrap();
        let (index, _) = concatenate(HashKind::Sha1, &paths, &mut file).unwrap();
        std::fs::write(out.with_extension("idx"), index).unwrap();
        let (data, index) = open(HashKind::Sha1, &out).unwrap();
        assert_eq!(index.num_objects(), 6);
        let kind = |id: &ObjectId| {
            let at = index.pack_offset_at_index(index.lookup(id).unwrap());
            data.entry(at).map(|entry| entry.header).ok()
        };
        // The last pack is read first: one whole tree, and two that are made of it.
        assert_eq!(kind(&ids[3]), Some(Header::Tree));
        assert!(ids[4..].iter().all(|id| matches!(kind(id), Some(Header::OfsDelta { .. }))));
    }
}
