//! What happens behind the commits: small packs become larger ones and reach the disk, journals go, the next start after
//! a crash replays what is left.

use std::collections::{BTreeSet, VecDeque};
use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::concatenate::concatenate;
use crate::journal::{Record, orphan};
use crate::pack::Pack;
use crate::refs::is_absent;
use crate::writer::{Generation, MIDDLE_PACKS_MAX, PATIENCE, Writer};

/// How long packs that were replaced stay for those who have listed them and did not open them yet.
const GRACE: Duration = Duration::from_secs(10);

/// Most packs that stay so; beyond, the oldest go.
const REPLACED_MAX: usize = 2048;

/// Packs that were replaced, and since when, oldest first.
#[derive(Default)]
struct Replaced {
    packs: VecDeque<(Instant, PathBuf)>,
}

impl Replaced {
    fn extend(&mut self, packs: Vec<PathBuf>) {
        let now = Instant::now();
        self.packs.extend(packs.into_iter().map(|pack| (now, pack)));
    }

    fn contains(&self, pack: &Path) -> bool {
        self.packs.iter().any(|(_, replaced)| replaced == pack)
    }

    /// Removes those that stayed long enough.
    fn remove_old(&mut self) {
        let surplus = self.packs.len().saturating_sub(REPLACED_MAX);
        let old = self.packs.iter().take_while(|(since, _)| since.elapsed() >= GRACE).count();
        let gone: Vec<PathBuf> = self.packs.drain(..surplus.max(old)).map(|(_, pack)| pack).collect();
        remove(&gone);
    }

    fn remove_all(&mut self) {
        let gone: Vec<PathBuf> = self.packs.drain(..).map(|(_, pack)| pack).collect();
        remove(&gone);
    }
}

/// Largest pack that is still made into a larger one, in bytes.
const MERGED_BYTES_MAX: u64 = 256 << 20;

/// How often there is something to look after, though nobody says so.
const TICK: Duration = Duration::from_millis(500);

/// Runs until the writer is gone.
pub(crate) fn run(writer: &Weak<Writer>) {
    let mut replaced = Replaced::default();
    loop {
        let Some(writer) = writer.upgrade() else { return };
        let stop = {
            let mut state = writer.upkeep.state();
            if state.closed.is_empty() && !state.stop {
                state =
                    writer.upkeep.changed.wait_timeout(state, TICK).unwrap_or_else(PoisonError::into_inner).0;
            }
            state.is_busy = !state.closed.is_empty();
            state.stop
        };
        replaced.remove_old();
        writer.rotate_now(if stop { Duration::ZERO } else { PATIENCE });
        let packs = check_point(&writer, &replaced);
        replaced.extend(packs);
        if stop {
            replaced.remove_all();
            return;
        }
    }
}

/// Brings what is closed to disk. Returns packs that are replaced, besides those that already were.
fn check_point(writer: &Writer, before: &Replaced) -> Vec<PathBuf> {
    let mut replaced = Vec::new();
    loop {
        let Some(mut generation) = ({
            let mut state = writer.upkeep.state();
            state.is_busy = !state.closed.is_empty();
            if state.closed.is_empty() { None } else { Some(state.closed.remove(0)) }
        }) else {
            break;
        };
        match settle(writer, &generation) {
            Ok(()) => {
                if let Some(journal) = generation.journal.take() {
                    journal.remove().ok();
                }
                replaced.append(&mut generation.packs);
                writer.age();
                writer.upkeep.state().failure = None;
            }
            Err(error) => {
                // A full disk: everything stays where it is, journal included, and is tried again later.
                let mut state = writer.upkeep.state();
                state.closed.insert(0, generation);
                state.is_busy = false;
                state.failure = Some(error.to_string());
                drop(state);
                writer.upkeep.changed.notify_all();
                std::thread::sleep(Duration::from_millis(200));
                return replaced;
            }
        }
    }
    writer.upkeep.changed.notify_all();
    match merge_middle(writer, before) {
        Ok(packs) => replaced.extend(packs),
        Err(error) => writer.upkeep.state().failure = Some(error.to_string()),
    }
    replaced
}

/// Makes one pack of many small ones, and brings it and the refs to disk.
fn settle(writer: &Writer, generation: &Generation) -> io::Result<()> {
    if !generation.packs.is_empty() {
        let n = writer.merged.fetch_add(1, Ordering::Relaxed);
        let name = format!("pack-dk1-{}-{n}", writer.instance);
        merge(writer, &generation.packs, Some(&name))?;
    }
    // Refs that others delete or pack meanwhile are theirs to bring to disk, with the folders that become empty.
    let sync = |path: &Path| match writer.disk.sync_path(path) {
        Err(error) if is_absent(&error) => Ok(()),
        result => result,
    };
    let folders: BTreeSet<&Path> = generation.refs.iter().filter_map(|path| path.parent()).collect();
    generation.refs.iter().try_for_each(|path| sync(path))?;
    folders.into_iter().try_for_each(sync)
}

/// Makes one pack of many; on disk when it returns. Without a name it gets the one that git would give it.
fn merge(writer: &Writer, packs: &[PathBuf], name: Option<&str>) -> io::Result<()> {
    let folder = writer.objects.join("pack");
    let unfinished = folder.join(format!("tmp_datakit_{}", writer.instance));
    fs::remove_file(&unfinished).ok();
    let made = (|| {
        let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(&unfinished)?;
        let (index, trailer) = concatenate(writer.hash, packs, &mut file)?;
        writer.disk.sync(&file, &unfinished)?;
        let own = format!("pack-{trailer}");
        let path = folder.join(name.unwrap_or(&own));
        if path.with_extension("idx").exists() {
            // A name of git's kind tells the content; one of ours must be new.
            return if name.is_none() { Ok(()) } else { Err(io::ErrorKind::AlreadyExists.into()) };
        }
        let index_unfinished = path.with_extension("idx-unfinished");
        fs::remove_file(&index_unfinished).ok();
        let index_file = writer.disk.create(&index_unfinished, &index)?;
        writer.disk.sync(&index_file, &index_unfinished)?;
        writer.disk.rename(&unfinished, &path.with_extension("pack"))?;
        writer.disk.rename(&index_unfinished, &path.with_extension("idx"))?;
        writer.disk.sync_path(&folder)
    })();
    fs::remove_file(&unfinished).ok();
    made
}

/// Packs of ours that are many become one of git's own kind, which `git gc` may then treat as it likes.
///
/// Those that already did, and only stay for their readers, do not again.
fn merge_middle(writer: &Writer, replaced: &Replaced) -> io::Result<Vec<PathBuf>> {
    let mut packs = ours(writer, "pack-dk1-")?;
    packs.retain(|pack| !replaced.contains(pack));
    packs.retain(|pack| {
        fs::metadata(pack.with_extension("pack")).is_ok_and(|found| found.len() < MERGED_BYTES_MAX)
    });
    if packs.len() < MIDDLE_PACKS_MAX {
        return Ok(Vec::new());
    }
    let mut total = 0;
    packs.retain(|pack| {
        total += fs::metadata(pack.with_extension("pack")).map_or(0, |found| found.len());
        total < MERGED_BYTES_MAX * 2
    });
    merge(writer, &packs, None)?;
    Ok(packs)
}

/// Complete packs whose name begins so, without extension.
fn ours(writer: &Writer, prefix: &str) -> io::Result<Vec<PathBuf>> {
    let mut packs = Vec::new();
    for entry in fs::read_dir(writer.objects.join("pack"))? {
        let path = entry?.path();
        let is_ours =
            path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(prefix));
        if is_ours
            && path.extension().is_some_and(|extension| extension == "idx")
            && path.with_extension("pack").exists()
        {
            packs.push(path.with_extension(""));
        }
    }
    packs.sort();
    Ok(packs)
}

/// Removes packs: the index first, so that nobody finds half of one.
fn remove(packs: &[PathBuf]) {
    for pack in packs {
        fs::remove_file(pack.with_extension("idx")).ok();
        fs::remove_file(pack.with_extension("pack")).ok();
    }
}

/// Does what the journals of dead processes say, and tidies up behind them. What is already done is left alone; all of it
/// is left to others where nothing can be written.
pub(crate) fn recover(writer: &Writer) -> io::Result<()> {
    if writer.is_read_only() {
        return Ok(());
    }
    let folder = writer.folder.join("datakit");
    let dead = crate::intent::recover(&folder, &writer.refs)?;
    let mut journals: Vec<PathBuf> = fs::read_dir(&folder)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("journal-"))
        })
        .collect();
    journals.sort_by_key(|path| fs::metadata(path).and_then(|found| found.modified()).ok());
    for path in journals {
        let Some(orphan) = orphan(writer.hash, &path)? else { continue };
        let mut packs = Vec::new();
        let mut refs = BTreeSet::new();
        for record in &orphan.records {
            packs.extend(replay(writer, record, &mut refs)?);
        }
        let generation = Generation { packs: packs.clone(), refs, ..Generation::default() };
        settle(writer, &generation)?;
        fs::remove_file(&path)?;
        remove(&packs);
    }
    for dead in &dead {
        let packs = ours(writer, &format!("pack-dk0-{}-", dead.instance))?;
        settle(writer, &Generation { packs: packs.clone(), ..Generation::default() })?;
        remove(&packs);
        fs::remove_file(folder.join(format!("ref-{}", dead.instance))).ok();
        fs::remove_file(&dead.note)?;
    }
    Ok(())
}

fn replay(writer: &Writer, record: &Record, refs: &mut BTreeSet<PathBuf>) -> io::Result<Option<PathBuf>> {
    let path = writer.pack_path(&record.pack);
    let is = |extension: &str, bytes: &[u8]| {
        fs::read(path.with_extension(extension)).is_ok_and(|found| found == bytes)
    };
    let has_objects = record.bytes.get(8..12) != Some(&[0; 4]);
    if has_objects && !(is("pack", &record.bytes) && is("idx", &record.index)) {
        let pack = Pack { bytes: record.bytes.clone(), index: record.index.clone() };
        writer.write_pack(&path, &pack, true)?;
    }
    for (name, old, new) in &record.moves {
        let file = writer.refs.path(name);
        let is_torn = fs::read(&file)
            .is_ok_and(|text| text.len() != writer.hash.len_in_hex() + 1 && !text.starts_with(b"ref:"));
        if is_torn || writer.refs.try_find(name)? == *old {
            file.parent().map_or(Ok(()), fs::create_dir_all)?;
            let unfinished = writer.folder.join("datakit").join(format!("ref-{}", writer.instance));
            fs::remove_file(&unfinished).ok();
            writer.disk.create(&unfinished, format!("{new}\n").as_bytes())?;
            writer.disk.rename(&unfinished, &file)?;
        }
        refs.insert(file);
    }
    Ok(has_objects.then_some(path))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::pack::Packer;
    use crate::{Disk, Durability, HashKind, ObjectId, ObjectKind};

    /// A pack of ours of the middle size, with one object.
    fn middle_pack(writer: &Writer, n: u8) {
        let id = ObjectId::from_bytes_or_panic(&[n; 20]);
        let object = [(id, ObjectKind::Blob, &b"text"[..])].into_iter();
        let pack = Packer::new(HashKind::Sha1).pack(object).unwrap();
        writer.write_pack(&writer.pack_path(&format!("pack-dk1-test-{n}")), &pack, false).unwrap();
    }

    #[test]
    fn packs_that_stay_for_their_readers_are_not_put_together_again() {
        let folder = tempfile::tempdir().unwrap();
        gix::init_bare(folder.path()).unwrap();
        let objects = folder.path().join("objects");
        let disk = Disk::default();
        let writer =
            Writer::new(folder.path().to_owned(), objects, HashKind::Sha1, disk, Durability::Visible)
                .unwrap();
        let mut replaced = Replaced::default();
        for n in 0..MIDDLE_PACKS_MAX {
            assert!(merge_middle(&writer, &replaced).unwrap().is_empty(), "{n} are few");
            middle_pack(&writer, n as u8);
        }
        let packs = merge_middle(&writer, &replaced).unwrap();
        assert_eq!(packs.len(), MIDDLE_PACKS_MAX);
        replaced.extend(packs);
        middle_pack(&writer, 99);
        assert!(merge_middle(&writer, &replaced).unwrap().is_empty());
    }
}
