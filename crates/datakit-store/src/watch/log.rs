//! Updates on disk, so that watches resume after a restart: `datakit/updates` in the repository.
//!
//! A line for each update is written before anybody is told of it, and not forced to disk: it survives the end of this
//! process, and a power failure perhaps not. So that no number is given twice, what was not closed properly before the
//! machine started anew is not trusted: numbers go on far above, and asking for older ones is an error.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use datakit_git::{HashKind, ObjectId, RefName, parse_id};
use gix::bstr::{BString, ByteSlice};

use super::{Seq, Update};
use crate::name::BranchName;

/// Most bytes that are read back.
const BYTES_MAX: u64 = 256 << 20;

const MAGIC: &str = "datakit-updates 1 ";

/// What stands in the place of the number of the machine's start when the file is not to be trusted.
const BROKEN: &str = "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx";

const CLOSED: &str = "closed";

/// How far above numbers go on that may have been given before.
const LEAP: u64 = 1 << 20;

/// Heads of branches.
pub(super) type Heads = BTreeMap<BranchName, ObjectId>;

/// What was read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Past {
    /// Where branches were before the first of `kept`.
    pub base: Heads,
    /// Updates, each one more than the one before.
    pub kept: VecDeque<Update>,
    /// The number of the next.
    pub next: u64,
}

impl Past {
    /// Nothing has happened to these branches.
    pub fn new(now: impl FnOnce() -> Heads) -> Past {
        Past { base: now(), kept: VecDeque::new(), next: 1 }
    }

    /// The same, with numbers that nobody was given before as far as can be known.
    fn elsewhere(last: u64, now: impl FnOnce() -> Heads) -> Past {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Past { base: now(), kept: VecDeque::new(), next: last.saturating_add(LEAP).max(seconds << 10) }
    }

    /// Where branches are after the last of `kept`.
    pub fn heads(&self) -> Heads {
        let mut heads = self.base.clone();
        self.kept.iter().for_each(|update| apply(&mut heads, update));
        heads
    }
}

/// Moves a branch.
pub(super) fn apply(heads: &mut Heads, update: &Update) {
    match update.new {
        Some(id) => heads.insert(update.branch.clone(), id),
        None => heads.remove(&update.branch),
    };
}

/// The file, written by one store at a time.
pub(super) struct Log {
    path: PathBuf,
    file: File,
    lines: usize,
    /// Locked for as long as this store lives.
    _lock: File,
}

impl Log {
    /// Reads what earlier stores wrote and goes on from there; at most `kept_max` updates are kept. Without a log when
    /// another store has it, or it cannot be written.
    pub fn open(
        folder: &Path,
        hash: HashKind,
        kept_max: usize,
        now: impl Fn() -> Heads,
    ) -> (Option<Log>, Past) {
        let opened = Self::try_open(folder, hash, kept_max, &now);
        opened.map_or_else(|_| (None, Past::elsewhere(0, now)), |(log, past)| (Some(log), past))
    }

    fn try_open(
        folder: &Path,
        hash: HashKind,
        kept_max: usize,
        now: impl Fn() -> Heads,
    ) -> io::Result<(Log, Past)> {
        std::fs::create_dir_all(folder)?;
        let lock = folder.join("updates.held");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(lock)?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive)?;
        let path = folder.join("updates");
        let mut past = match File::open(&path) {
            Ok(file) => {
                let mut text = Vec::new();
                let read = file.take(BYTES_MAX).read_to_end(&mut text);
                let last = read.map_err(|_| 0).and_then(|_| parse(hash, &text, &boot()));
                last.unwrap_or_else(|last| Past::elsewhere(last, now))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Past::new(now),
            Err(error) => return Err(error),
        };
        while past.kept.len() > kept_max {
            past.kept.pop_front().iter().for_each(|update| apply(&mut past.base, update));
        }
        let file = rewrite(&path, &past.base, &past.kept, past.next, true)?;
        Ok((Log { path, file, lines: past.kept.len(), _lock: lock }, past))
    }

    /// How many updates the file has.
    pub fn lines(&self) -> usize {
        self.lines
    }

    /// Appends updates.
    pub fn append<'a>(&mut self, updates: impl Iterator<Item = &'a Update>) -> io::Result<()> {
        let mut text = Vec::new();
        for update in updates {
            line(&mut text, update);
            self.lines += 1;
        }
        self.file.write_all(&text)
    }

    /// Begins the file anew with what is kept.
    pub fn compact(&mut self, base: &Heads, kept: &VecDeque<Update>, next: u64) -> io::Result<()> {
        self.file = rewrite(&self.path, base, kept, next, false)?;
        self.lines = kept.len();
        Ok(())
    }

    /// Something could not be written: whoever opens the file next must not trust it.
    pub fn distrust(&self) {
        if let Ok(file) = OpenOptions::new().write(true).open(&self.path) {
            file.write_all_at(BROKEN.as_bytes(), MAGIC.len() as u64).ok();
        }
    }

    /// Ends it properly: also after a power failure it can be trusted.
    pub fn close(mut self) {
        let closed = writeln!(self.file, "{CLOSED}").and_then(|()| self.file.sync_data());
        if closed.is_err() {
            self.distrust();
        }
    }
}

/// What tells one start of this machine from another; empty where that is not known.
fn boot() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

fn rewrite(path: &Path, base: &Heads, kept: &VecDeque<Update>, next: u64, force: bool) -> io::Result<File> {
    let boot = boot();
    let boot = if boot.len() == BROKEN.len() { &boot } else { BROKEN };
    let first = kept.front().map_or(next, |update| update.seq.0);
    let mut text = format!("{MAGIC}{boot}\nnext {first}\n").into_bytes();
    for (branch, id) in base {
        text.extend_from_slice(format!("head {id} ").as_bytes());
        text.extend_from_slice(branch.as_bstr());
        text.push(b'\n');
    }
    kept.iter().for_each(|update| line(&mut text, update));
    let unfinished = path.with_extension("unfinished");
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).open(&unfinished)?;
    file.write_all(&text)?;
    if force {
        file.sync_data()?;
    }
    std::fs::rename(&unfinished, path)?;
    Ok(file)
}

fn line(text: &mut Vec<u8>, update: &Update) {
    let show = |id: Option<ObjectId>| id.map_or_else(|| "-".to_owned(), |id| id.to_string());
    let [old, new] = [update.old, update.new].map(show);
    text.extend_from_slice(format!("{} {old} {new} ", update.seq.0).as_bytes());
    text.extend_from_slice(update.branch.as_bstr());
    text.push(b'\n');
}

/// Reads a file. What it ends in the middle of is left out. `Err` is the last number that can be read, when the file is
/// not to be trusted.
pub(super) fn parse(hash: HashKind, text: &[u8], boot: &str) -> Result<Past, u64> {
    let mut past = Past::new(Heads::new);
    let mut is_closed = false;
    let whole = text.rfind_byte(b'\n').map_or(&b""[..], |end| &text[..end]);
    let mut lines = whole.split(|byte| *byte == b'\n');
    let header = lines.next().and_then(|line| line.strip_prefix(MAGIC.as_bytes())).unwrap_or_default();
    for line in lines {
        is_closed = line == CLOSED.as_bytes();
        if !is_closed && read_line(hash, line, &mut past).is_none() {
            return Err(past.next);
        }
    }
    let is_known = header.len() == BROKEN.len() && header != BROKEN.as_bytes();
    if is_known && (is_closed || header == boot.as_bytes()) { Ok(past) } else { Err(past.next) }
}

fn read_line(hash: HashKind, line: &[u8], past: &mut Past) -> Option<()> {
    let mut words = line.splitn(4, |byte| *byte == b' ');
    let branch = |name: &[u8]| {
        let full = [crate::name::HEADS.as_bytes(), name].concat();
        RefName::new(BString::from(full)).and_then(BranchName::of_ref)
    };
    let number = |word: &[u8]| std::str::from_utf8(word).ok()?.parse::<u64>().ok();
    match words.next()? {
        b"next" => past.next = number(words.next()?)?,
        b"head" => {
            let id = parse_id(hash, words.next()?).ok()?;
            past.base.insert(branch(words.next()?)?, id);
        }
        word => {
            let seq = number(word).filter(|seq| *seq == past.next)?;
            let id = |word: &[u8]| match word {
                b"-" => Some(None),
                id => parse_id(hash, id).ok().map(Some),
            };
            let (old, new) = (id(words.next()?)?, id(words.next()?)?);
            past.kept.push_back(Update { seq: Seq(seq), branch: branch(words.next()?)?, old, new });
            past.next = seq.checked_add(1)?;
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: HashKind = HashKind::Sha1;
    const BOOT: &str = "01234567-0123-0123-0123-0123456789ab";

    fn id(digit: u8) -> ObjectId {
        ObjectId::from_bytes_or_panic(&[digit; 20])
    }

    fn updates(n: u64) -> VecDeque<Update> {
        let branch = |seq| BranchName::new(format!("b{}", seq % 2)).unwrap();
        let update = |seq| Update { seq: Seq(seq), branch: branch(seq), old: None, new: Some(id(1)) };
        (1..=n).map(update).collect()
    }

    fn written(n: u64) -> Vec<u8> {
        let mut text = format!("{MAGIC}{BOOT}\nnext 1\nhead {} x\n", id(7)).into_bytes();
        updates(n).iter().for_each(|update| line(&mut text, update));
        text
    }

    #[test]
    fn what_a_killed_process_wrote_is_read_up_to_the_torn_line() {
        let text = written(3);
        let past = parse(HASH, &text[..text.len() - 5], BOOT).unwrap();
        assert_eq!((past.kept, past.next), (updates(2), 3));
        assert_eq!(past.base.len(), 1);
    }

    #[test]
    fn after_a_power_failure_no_number_is_given_twice() {
        let text = written(3);
        let last = parse(HASH, &text, "another start of this machine").unwrap_err();
        let past = Past::elsewhere(last, Heads::new);
        assert!(past.kept.is_empty() && past.next >= 4 + LEAP, "{}", past.next);
        let closed = [&text[..], b"closed\n"].concat();
        assert_eq!(parse(HASH, &closed, "another start of this machine").unwrap().next, 4);
    }

    #[test]
    fn nonsense_is_not_trusted() {
        for text in [&b"what\n"[..], b"", b"datakit-updates 1 x\nnext 5\nnonsense\n", &[0xff; 300]] {
            assert!(parse(HASH, text, BOOT).is_err());
        }
    }
}
