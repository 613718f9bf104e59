//! Streams of what happens to branches: heads, reflogs, and what paths are.

use std::sync::Arc;
use std::task::{Poll, Waker};

use datakit_store::{BranchName, FileName, Latest, Mode, ObjectId, PathValue, Seq, Start, TreePath, Updates};
use p9p::Errno;
use p9p::filesystem::{Answer, OpenFile, OpenFlags};
use p9p::stat::SetAttributes;
use p9p_fuse::Caching;

use super::attached::{Attached, damaged};
use super::item::{self, Change, Found, Item, ItemStat, Kind, LIVE_DIRECTORY};
use super::listing::{Names, OpenDirectory};
use super::stream::{Feed, Stream};

fn callback(waker: &Waker) -> datakit_store::Waker {
    let waker = waker.clone();
    Arc::new(move || waker.wake_by_ref())
}

/// A head as a line; an empty one is a branch without commits.
fn head_line(head: Option<ObjectId>) -> String {
    head.map_or_else(|| "\n".into(), |id| format!("{id}\n"))
}

/// A path as a line.
fn value_line(value: Option<PathValue>) -> String {
    value.map_or_else(|| "\n".into(), |value| format!("{}-{}\n", letter(value.mode), value.id))
}

/// What `tree.live` and `trees/` call a kind of entry.
pub(crate) fn letter(mode: Mode) -> char {
    match mode {
        Mode::Tree => 'D',
        Mode::File => 'F',
        Mode::Executable => 'X',
        Mode::Link => 'L',
        Mode::Submodule => 'S',
    }
}

/// The newest value of something, as lines.
struct LatestFeed<T> {
    latest: Latest<T>,
    line: Box<dyn Fn(T) -> String + Send>,
}

impl<T: Clone + PartialEq + Send + 'static> Feed for LatestFeed<T> {
    fn poll_next(&mut self, waker: &Waker) -> Poll<Answer<Option<Vec<u8>>>> {
        // First the waker, so that nothing comes in between unheard.
        self.latest.on_wake(callback(waker));
        match self.latest.try_next() {
            Some(value) => Poll::Ready(Ok(Some((self.line)(value).into_bytes()))),
            None => Poll::Pending,
        }
    }
}

/// Where a stream of updates begins, as its name says behind `?from=`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    /// With what is, then with what follows.
    Present,
    /// With the update of this number.
    Number(u64),
}

/// Splits `NAME?from=N` or `NAME?from=now`.
fn split_from(name: &[u8]) -> Answer<(&[u8], Option<From>)> {
    let Some(mark) = name.iter().position(|byte| *byte == b'?') else { return Ok((name, None)) };
    let (stem, query) = (&name[..mark], &name[mark + 1..]);
    let from = match query.strip_prefix(b"from=") {
        Some(b"now") => Some(From::Present),
        Some(number) => std::str::from_utf8(number).ok().and_then(|text| text.parse().ok()).map(From::Number),
        None => None,
    };
    match from {
        Some(from) => Ok((stem, Some(from))),
        None => Err(Errno::ENOENT.with_text("a watch is resumed by ?from=NUMBER or ?from=now")),
    }
}

/// Every update of a branch, none left out.
struct UpdatesFeed {
    attached: Arc<Attached>,
    updates: Updates,
    shows: Shows,
    /// A line that comes before all updates.
    first: Option<String>,
}

/// What a line of updates has.
#[derive(Clone)]
enum Shows {
    /// The new head.
    Reflog,
    /// Number and new head.
    Head,
    /// Number and what a path became, where it changed.
    Path(TreePath),
}

impl UpdatesFeed {
    fn open(
        attached: &Arc<Attached>,
        branch: &BranchName,
        from: Option<From>,
        shows: &Shows,
    ) -> Answer<Box<dyn Feed>> {
        let start = match from {
            Some(From::Number(number)) => Start::From(Seq(number)),
            Some(From::Present) | None => Start::Now,
        };
        let opened = match attached.store.updates(Some(branch), start) {
            // Number 0 is the oldest that there is.
            Err(error) if from == Some(From::Number(0)) => {
                attached.store.updates(Some(branch), Start::From(error.oldest))
            }
            opened => opened,
        };
        let updates = opened.map_err(|error| Errno::ESTALE.with_text(error.to_string()))?;
        let mut feed = Self { attached: Arc::clone(attached), updates, shows: shows.clone(), first: None };
        if from == Some(From::Present) {
            // What is, under the number of the update before the next one.
            let head = attached.store.watch_head(branch).current();
            let number = feed.updates.position().0.saturating_sub(1);
            feed.first = Some(match shows {
                Shows::Reflog | Shows::Head => format!("{number} {}", head_line(head)),
                Shows::Path(path) => format!("{number} {}", value_line(feed.value(head, path)?)),
            });
        }
        Ok(Box::new(feed))
    }

    fn value(&self, head: Option<ObjectId>, path: &TreePath) -> Answer<Option<PathValue>> {
        let store = &self.attached.store;
        let Some(head) = head else { return Ok(empty_root(&self.attached, path)) };
        let tree = store.commit_of(head).map_err(|error| damaged(store, &error))?.tree;
        store.look_up(tree, path).map_err(|error| damaged(store, &error))
    }
}

/// The root of a branch without commits is an empty directory; nothing else is there.
fn empty_root(attached: &Attached, path: &TreePath) -> Option<PathValue> {
    let id = ObjectId::empty_tree(attached.store.hash());
    path.components().is_empty().then_some(PathValue { mode: Mode::Tree, id })
}

impl Feed for UpdatesFeed {
    fn poll_next(&mut self, waker: &Waker) -> Poll<Answer<Option<Vec<u8>>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Ok(Some(first.into_bytes())));
        }
        self.updates.on_wake(callback(waker));
        loop {
            let update = match self.updates.try_next() {
                Ok(Some(update)) => update,
                Ok(None) => return Poll::Pending,
                Err(error) => return Poll::Ready(Err(Errno::ESTALE.with_text(error.to_string()))),
            };
            let line = match &self.shows {
                Shows::Reflog => head_line(update.new),
                Shows::Head => format!("{} {}", update.seq.0, head_line(update.new)),
                Shows::Path(path) => {
                    let (old, new) = (self.value(update.old, path), self.value(update.new, path));
                    match (old, new) {
                        (Ok(old), Ok(new)) if old == new => continue,
                        (_, Ok(new)) => format!("{} {}", update.seq.0, value_line(new)),
                        (_, Err(errno)) => return Poll::Ready(Err(errno)),
                    }
                }
            };
            return Poll::Ready(Ok(Some(line.into_bytes())));
        }
    }
}

/// `head.live`, `reflog`, and both with `?from=`; ENOENT for other names.
pub(crate) fn branch_stream(attached: &Arc<Attached>, branch: &BranchName, name: &[u8]) -> Answer<Found> {
    let (stem, from) = split_from(name)?;
    let (context, branch) = (Arc::clone(attached), branch.clone());
    match (stem, from) {
        (b"head.live", None) => Found::new(Stream::new(attached.transport, move || {
            let latest = context.store.watch_head(&branch);
            Ok(Box::new(LatestFeed { latest, line: Box::new(head_line) }))
        })),
        (b"reflog", None) => Found::new(Stream::new(attached.transport, move || {
            UpdatesFeed::open(&context, &branch, None, &Shows::Reflog)
        })),
        (b"head.live" | b"reflog", from) => Found::new(Stream::new(attached.transport, move || {
            UpdatesFeed::open(&context, &branch, from, &Shows::Head)
        })),
        _ => item::no_entry(),
    }
}

fn path_stream(attached: &Arc<Attached>, branch: &BranchName, path: &TreePath, from: Option<From>) -> Stream {
    let (context, branch, path) = (Arc::clone(attached), branch.clone(), path.clone());
    Stream::new(attached.transport, move || {
        if from.is_some() {
            return UpdatesFeed::open(&context, &branch, from, &Shows::Path(path.clone()));
        }
        let latest =
            context.store.watch_path(&branch, &path).map_err(|error| damaged(&context.store, &error))?;
        let empty = empty_root(&context, &path);
        let line = Box::new(move |value: Option<PathValue>| value_line(value.or(empty)));
        Ok(Box::new(LatestFeed { latest, line }))
    })
}

/// `watch/` and the directories below it: one `NAME.node` for each name, there or not, and `tree.live`.
pub(crate) struct WatchDirectory {
    attached: Arc<Attached>,
    branch: BranchName,
    path: TreePath,
}

impl WatchDirectory {
    pub fn new(attached: &Arc<Attached>, branch: &BranchName, path: TreePath) -> Self {
        Self { attached: Arc::clone(attached), branch: branch.clone(), path }
    }
}

impl Item for WatchDirectory {
    fn stat(&self) -> Answer<ItemStat> {
        Ok(ItemStat::directory())
    }

    fn caching(&self) -> Caching {
        LIVE_DIRECTORY
    }

    fn find(&self, name: &[u8]) -> Answer<Found> {
        if let Some(name) = name.strip_suffix(b".node") {
            let invalid = |error: datakit_store::NameError| Errno::EINVAL.with_text(error.to_string());
            let mut components = self.path.components().to_vec();
            components.push(FileName::new(name).map_err(invalid)?);
            let path = TreePath::of(components).map_err(invalid)?;
            return Found::new(Self::new(&self.attached, &self.branch, path));
        }
        match split_from(name)? {
            (b"tree.live", from) => Found::new(path_stream(&self.attached, &self.branch, &self.path, from)),
            _ => item::no_entry(),
        }
    }

    /// `tree.live`, and a directory for each child that there is now.
    fn open(&self, _flags: OpenFlags, number: u64) -> Answer<Arc<dyn OpenFile>> {
        let mut names =
            vec![(b"tree.live".to_vec(), Kind::File, self.attached.entry_number(number, b"tree.live"))];
        let store = &self.attached.store;
        let head = store.watch_head(&self.branch).current();
        if let Some(head) = head {
            let tree = store.commit_of(head).map_err(|error| damaged(store, &error))?.tree;
            let value = store.look_up(tree, &self.path).map_err(|error| damaged(store, &error))?;
            if let Some(PathValue { mode: Mode::Tree, id }) = value {
                let tree = store.tree(id).map_err(|error| damaged(store, &error))?;
                names.extend(tree.entries.iter().map(|entry| {
                    let name = [entry.name.as_slice(), b".node"].concat();
                    let number = self.attached.entry_number(number, &name);
                    (name, Kind::Directory, number)
                }));
            }
        }
        Ok(OpenDirectory::open(Names(names), number))
    }

    fn change(&self, change: &Change<'_>) -> Answer<()> {
        match change {
            Change::Remove { .. } | Change::Rename { .. } => item::not_permitted(),
            _ => item::read_only_directory(),
        }
    }

    fn set(&self, _change: &SetAttributes) -> Answer<()> {
        item::read_only_directory()
    }

    fn target(&self) -> Answer<Vec<u8>> {
        Err(Errno::EINVAL)
    }
}
