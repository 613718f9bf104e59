//! `remotes/<r>/`: other repositories, as this attach knows them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use datakit_git::remote::{Outcome, Remote, Transfer, Update};
use datakit_store::{BranchName, ObjectId};
use p9p::Errno;
use p9p::filesystem::{Answer, Cancel, OpenFile, OpenFlags};
use p9p::stat::SetAttributes;
use p9p_fuse::Caching;

use super::attached::Attached;
use super::directory::Fixed;
use super::item::{self, Change, Found, Item, ItemStat, Kind, LIVE_DIRECTORY};
use super::listing::{Names, OpenDirectory};
use super::stream::{Feed, Stream};
use super::text::{CommandFile, Shown};
use crate::logs::{Level, Source};
use crate::metrics::Metrics;

/// Most remotes of one attach.
const REMOTES_MAX: usize = 1024;

/// Tells remotes apart that had the same name one after the other.
static NEXT_SERIAL: AtomicU64 = AtomicU64::new(1);

/// A fetch or a push: of this remote, with this name, as the text says.
type Transferring = fn(&Known, &Attached, &str, &[u8], &Cancel) -> Answer<Vec<u8>>;

/// `remotes/`.
pub(crate) struct Remotes {
    attached: Arc<Attached>,
    known: Mutex<BTreeMap<Vec<u8>, Arc<Known>>>,
}

/// One of them.
struct Known {
    serial: u64,
    url: Arc<Mutex<Vec<u8>>>,
    fetched: Mutex<Heads>,
    transfer: Mutex<Option<Arc<Transfer>>>,
    replies: [Arc<Mutex<Vec<u8>>>; 2],
}

/// What fetches brought.
#[derive(Default)]
struct Heads {
    count: u64,
    last: Option<ObjectId>,
    waiting: Vec<Waker>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Known {
    fn new() -> Self {
        Self {
            serial: NEXT_SERIAL.fetch_add(1, Ordering::Relaxed),
            url: Arc::default(),
            fetched: Mutex::default(),
            transfer: Mutex::default(),
            replies: Default::default(),
        }
    }

    /// The number of its directory, whatever it is called: another of the same name is another directory.
    fn number(&self, attached: &Attached) -> u64 {
        // No name is spelled so.
        attached.entry_number(self.serial, b"/remote")
    }

    /// The remote that the URL names, and a transfer that `cancel` ends.
    fn begin(&self, attached: &Attached, name: &str, cancel: &Cancel) -> Answer<(Remote, Arc<Transfer>)> {
        let url = String::from_utf8_lossy(&lock(&self.url)).trim().to_owned();
        if url.is_empty() {
            return Err(Errno::EINVAL.with_text("error: remote url is not defined"));
        }
        let directory = attached.store.git_dir().ok_or_else(|| {
            Errno::EOPNOTSUPP
                .with_text("error: a store in memory cannot fetch or push: serve a repository (--git)")
        })?;
        let remote = Remote::new(directory, name, &url)
            .map_err(|error| Errno::EINVAL.with_text(format!("error: {error}")))?;
        let transfer = Transfer::new();
        let stopping = Arc::clone(&transfer);
        cancel.on_cancel(move || stopping.cancel());
        *lock(&self.transfer) = Some(Arc::clone(&transfer));
        Ok((remote, transfer))
    }

    fn fetch(&self, attached: &Attached, name: &str, text: &[u8], cancel: &Cancel) -> Answer<Vec<u8>> {
        let branch = String::from_utf8_lossy(text).trim().to_owned();
        let (remote, transfer) = self.begin(attached, name, cancel)?;
        let log = |level, line: String| attached.logs.log(Source::Remote, level, || line);
        let fetched = remote.fetch(Some(&branch), &transfer).map_err(|error| {
            Metrics::count(&attached.metrics.transfers_failed);
            let line = once(&format!("cannot fetch {}", remote.url()), &error);
            log(Level::Warning, line.clone());
            Errno::EIO.with_text(format!("error: {line}"))
        })?;
        Metrics::count(&attached.metrics.transfers);
        let head = fetched.branches.first().map(|branch| branch.head);
        let head = head.ok_or_else(|| Errno::ENOENT.with_text("error: no head to fetch"))?;
        log(Level::Info, format!("{branch} of {} is at {head}", remote.url()));
        let waiting = {
            let mut heads = lock(&self.fetched);
            heads.count += 1;
            heads.last = Some(head);
            std::mem::take(&mut heads.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
        Ok(Vec::new())
    }

    /// `BRANCH`, `BRANCH:THEIRS` or `+BRANCH`, which may lose commits of theirs.
    fn push(&self, attached: &Attached, name: &str, text: &[u8], cancel: &Cancel) -> Answer<Vec<u8>> {
        let text = String::from_utf8_lossy(text);
        let text = text.trim();
        let (force, text) = text.strip_prefix('+').map_or((false, text), |text| (true, text));
        let (ours, theirs) = text.split_once(':').unwrap_or((text, text));
        let branch = BranchName::new(ours).map_err(|error| Errno::EINVAL.with_text(error.to_string()))?;
        let head = attached.store.head(&branch).map_err(|error| Errno::EIO.with_text(error.to_string()))?;
        let head =
            head.ok_or_else(|| Errno::ENOENT.with_text(format!("error: there is no branch {branch}")))?;
        let (remote, transfer) = self.begin(attached, name, cancel)?;
        let update = Update { reference: format!("refs/heads/{theirs}"), new: Some(head), force };
        let failed = |why: &dyn std::fmt::Display| {
            Metrics::count(&attached.metrics.transfers_failed);
            let line = once(&format!("cannot push to {}", remote.url()), why);
            attached.logs.log(Source::Remote, Level::Warning, || line.clone());
            Errno::EIO.with_text(format!("error: {line}"))
        };
        let pushed = remote.push(vec![update], false, &transfer).map_err(|error| failed(&error))?;
        match pushed.refs.first() {
            Some((_, Outcome::Refused(why))) => Err(failed(why)),
            _ => {
                Metrics::count(&attached.metrics.transfers);
                Ok(format!("{head}\n").into_bytes())
            }
        }
    }

    fn progress(&self) -> Vec<u8> {
        lock(&self.transfer)
            .as_ref()
            .map_or_else(Vec::new, |transfer| format!("{}\n", transfer.status()).into_bytes())
    }
}

/// `head`: one line for each fetch from its open on; the last one first, if there was one.
struct FetchedFeed {
    known: Arc<Known>,
    seen: u64,
}

impl Feed for FetchedFeed {
    fn poll_next(&mut self, waker: &Waker) -> Poll<Answer<Option<Vec<u8>>>> {
        let mut heads = lock(&self.known.fetched);
        match heads.last {
            Some(head) if heads.count != self.seen => {
                self.seen = heads.count;
                Poll::Ready(Ok(Some(format!("{head}\n").into_bytes())))
            }
            _ => {
                heads.waiting.retain(|other| !other.will_wake(waker));
                heads.waiting.push(waker.clone());
                Poll::Pending
            }
        }
    }
}

impl Remotes {
    pub fn new(attached: &Arc<Attached>) -> Self {
        Self { attached: Arc::clone(attached), known: Mutex::default() }
    }

    fn files(&self, name: &[u8], known: &Arc<Known>) -> Fixed {
        let name = String::from_utf8_lossy(name).into_owned();
        let command = |index: usize, run: Transferring| {
            let (attached, known, name) = (Arc::clone(&self.attached), Arc::clone(known), name.clone());
            let reply = Arc::clone(&known.replies[index]);
            CommandFile::new(move |text, cancel| run(&known, &attached, &name, text, cancel), &reply)
        };
        let url = Arc::clone(&known.url);
        let set_url = CommandFile::new(
            move |text, _| {
                let mut line = text.trim_ascii().to_vec();
                line.push(b'\n');
                *lock(&url) = line.clone();
                Ok(line)
            },
            &known.url,
        );
        let (heads, progress) = (Arc::clone(known), Arc::clone(known));
        Fixed::new(&self.attached)
            .live()
            .file("url", set_url)
            .file("fetch", command(0, Known::fetch))
            .file("push", command(1, Known::push))
            .file("progress", Shown::live(move || Ok(progress.progress())))
            .file(
                "head",
                Stream::new(self.attached.transport, move || {
                    Ok(Box::new(FetchedFeed { known: Arc::clone(&heads), seen: 0 }))
                }),
            )
    }
}

impl Item for Remotes {
    fn stat(&self) -> Answer<ItemStat> {
        Ok(ItemStat { nlink: 2 + lock(&self.known).len() as u64, ..ItemStat::directory() })
    }

    fn caching(&self) -> Caching {
        LIVE_DIRECTORY
    }

    fn find(&self, name: &[u8]) -> Answer<Found> {
        let known = lock(&self.known).get(name).cloned();
        match known {
            Some(known) => Ok(Found {
                item: Arc::new(self.files(name, &known)),
                number: Some(known.number(&self.attached)),
            }),
            None => item::no_entry(),
        }
    }

    fn open(&self, _flags: OpenFlags, number: u64) -> Answer<Arc<dyn OpenFile>> {
        let known = lock(&self.known);
        let entry = |(name, known): (&Vec<u8>, &Arc<Known>)| {
            (name.clone(), Kind::Directory, known.number(&self.attached))
        };
        Ok(OpenDirectory::open(Names(known.iter().map(entry).collect()), number))
    }

    fn change(&self, change: &Change<'_>) -> Answer<()> {
        let mut known = lock(&self.known);
        match change {
            Change::MakeDirectory { name } => {
                if known.contains_key(*name) {
                    return Err(Errno::EEXIST.with_text("Already exists"));
                }
                if known.len() >= REMOTES_MAX {
                    return Err(Errno::ENOSPC);
                }
                known.insert(name.to_vec(), Arc::new(Known::new()));
                Ok(())
            }
            Change::Rename { name, directory, new_name, .. } => {
                let is_here = (*directory as &dyn std::any::Any)
                    .downcast_ref::<Self>()
                    .is_some_and(|other| std::ptr::eq(other, self));
                if !is_here {
                    return Err(Errno::EXDEV);
                }
                if known.contains_key(*new_name) {
                    return Err(Errno::EEXIST.with_text("Already exists"));
                }
                let moved = known.remove(*name).map_or_else(item::no_entry, Ok)?;
                known.insert(new_name.to_vec(), moved);
                Ok(())
            }
            Change::Remove { .. } => item::not_permitted(),
            _ => Err(Errno::EPERM.with_text("Can only contain directories")),
        }
    }

    fn set(&self, _change: &SetAttributes) -> Answer<()> {
        item::read_only_directory()
    }

    fn target(&self) -> Answer<Vec<u8>> {
        Err(Errno::EINVAL)
    }
}

/// What failed, and why; causes that begin with what failed say it once.
fn once(failed: &str, why: &dyn std::fmt::Display) -> String {
    let why = why.to_string();
    if why.starts_with(failed) { why } else { format!("{failed}: {why}") }
}
