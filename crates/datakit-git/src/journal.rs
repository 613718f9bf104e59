//! The journal: one append and one fdatasync make a batch durable.
//!
//! A record holds a whole small pack, its index and the ref moves. It is written before any of them is visible, and
//! replayed by the next start if this process ends before they are on disk by themselves. The file is as long as it will
//! ever be, and zero, from the start: a write into it changes no metadata, which is what makes fdatasync cheap.
//! See docs/adr/0007-journal.md.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use gix::bstr::BString;

use crate::alive;
use crate::disk::Disk;
use crate::{HashKind, ObjectId, RefName};

/// Length of a journal. A batch that does not fit goes to disk without it.
pub(crate) const JOURNAL_BYTES: u64 = 8 << 20;

const MAGIC: [u8; 8] = *b"DKJRNL1\n";

/// What a record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    /// The name of the pack, without extension.
    pub pack: String,
    pub bytes: Vec<u8>,
    pub index: Vec<u8>,
    pub moves: Vec<(RefName, Option<ObjectId>, ObjectId)>,
}

impl Record {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.bytes.len() + self.index.len() + 256);
        let mut field = |bytes: &[u8]| {
            out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
            out.extend_from_slice(bytes);
        };
        field(self.pack.as_bytes());
        field(&self.bytes);
        field(&self.index);
        for (name, old, new) in &self.moves {
            field(name.as_bstr());
            field(old.as_ref().map_or(&[], |old| old.as_slice()));
            field(new.as_slice());
        }
        out
    }

    fn decode(hash: HashKind, mut bytes: &[u8]) -> Option<Record> {
        let id =
            |bytes: &[u8]| (bytes.len() == hash.len_in_bytes()).then(|| ObjectId::from_bytes_or_panic(bytes));
        let pack = String::from_utf8(field(&mut bytes)?.to_vec()).ok()?;
        let is_name = pack.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        let mut record = Record {
            pack,
            bytes: field(&mut bytes)?.to_vec(),
            index: field(&mut bytes)?.to_vec(),
            moves: Vec::new(),
        };
        while !bytes.is_empty() {
            let name = RefName::new(BString::from(field(&mut bytes)?))?;
            let old = field(&mut bytes)?;
            let old = if old.is_empty() { None } else { Some(id(old)?) };
            record.moves.push((name, old, id(field(&mut bytes)?)?));
        }
        is_name.then_some(record)
    }
}

fn field<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, rest) = bytes.split_first_chunk::<8>()?;
    let length = usize::try_from(u64::from_le_bytes(*length)).ok().filter(|length| *length <= rest.len())?;
    let (field, rest) = rest.split_at(length);
    *bytes = rest;
    Some(field)
}

/// A journal that this process writes.
pub(crate) struct Journal {
    file: File,
    path: PathBuf,
    at: u64,
}

impl Journal {
    /// Makes a journal. It is locked for as long as the process lives, so that nobody else takes it for a dead one's.
    pub fn create(disk: &Disk, path: PathBuf) -> io::Result<Journal> {
        let mut file = alive::create(&path)?;
        let zeros = vec![0; 1 << 20];
        let fill = |file: &mut File| {
            for _ in 0..JOURNAL_BYTES >> 20 {
                file.write_all(&zeros)?;
            }
            disk.sync(file, &path)?;
            path.parent().map_or(Ok(()), |folder| disk.sync_path(folder))
        };
        if let Err(error) = fill(&mut file) {
            std::fs::remove_file(&path).ok();
            return Err(error);
        }
        Ok(Journal { file, path, at: 0 })
    }

    /// Where the next record will be.
    pub fn position(&self) -> u64 {
        self.at
    }

    /// Whether a record of this many bytes still fits.
    pub fn has_room(&self, bytes: usize) -> bool {
        self.at + bytes as u64 + 4096 <= JOURNAL_BYTES
    }

    /// Appends a record and forces it to disk. Returns where it is, for [`Journal::take_back`].
    pub fn append(&mut self, disk: &Disk, record: &Record) -> io::Result<u64> {
        let bytes = framed(&record.encode());
        let at = self.at;
        disk.write_at(&self.file, &self.path, &bytes, at)?;
        disk.sync(&self.file, &self.path)?;
        self.at += bytes.len() as u64;
        Ok(at)
    }

    /// Makes a record void: what it says was not done, and is not to be done by the next start.
    pub fn take_back(&mut self, disk: &Disk, at: u64) -> io::Result<()> {
        disk.write_at(&self.file, &self.path, &[0; 24], at)?;
        self.at = at;
        disk.sync(&self.file, &self.path)
    }

    /// Removes the file: everything in it is on disk by itself.
    pub fn remove(self) -> io::Result<()> {
        std::fs::remove_file(&self.path)
    }
}

/// A record as it is in the file.
pub(crate) fn framed(payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(payload.len() + 24);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&(payload.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&u64::from(crc32fast::hash(payload)).to_le_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// A journal that nobody writes any more.
pub(crate) struct Orphan {
    pub records: Vec<Record>,
    /// Held, so that nobody else replays it at the same time.
    _lock: File,
}

/// Opens a journal that nobody writes any more and reads its records; `None` when its process lives, or it is gone.
pub(crate) fn orphan(hash: HashKind, path: &Path) -> io::Result<Option<Orphan>> {
    let Some(mut file) = alive::inherit(path)? else { return Ok(None) };
    let mut bytes = Vec::new();
    Read::by_ref(&mut file).take(JOURNAL_BYTES).read_to_end(&mut bytes)?;
    Ok(Some(Orphan { records: records(hash, &bytes), _lock: file }))
}

/// The whole records that a journal begins with.
pub(crate) fn records(hash: HashKind, bytes: &[u8]) -> Vec<Record> {
    let (mut records, mut rest) = (Vec::new(), bytes);
    while let Some((record, after)) = next(hash, rest) {
        records.push(record);
        rest = after;
    }
    records
}

fn next(hash: HashKind, bytes: &[u8]) -> Option<(Record, &[u8])> {
    let rest = bytes.strip_prefix(&MAGIC)?;
    let (length, rest) = rest.split_first_chunk::<8>()?;
    let (crc, rest) = rest.split_first_chunk::<8>()?;
    let length = usize::try_from(u64::from_le_bytes(*length)).ok().filter(|length| *length <= rest.len())?;
    let (payload, rest) = rest.split_at(length);
    if u64::from(crc32fast::hash(payload)) != u64::from_le_bytes(*crc) {
        return None;
    }
    Some((Record::decode(hash, payload)?, rest))
}
