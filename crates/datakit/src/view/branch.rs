//! `branch/` and what is in a branch.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use datakit_store::{BranchName, LeaseError, LeaseName, Store, TreePath};
use p9p::Errno;
use p9p::filesystem::{Answer, OpenFile, OpenFlags};
use p9p::stat::SetAttributes;
use p9p_fuse::Caching;

use super::attached::{Attached, branch_failed, damaged};
use super::directory::Fixed;
use super::item::{self, Change, Found, Item, ItemStat, Kind, LIVE_DIRECTORY};
use super::listing::{Names, OpenDirectory};
use super::snapshot::diff_directory;
use super::text::{CommandFile, Shown};
use super::transaction::OpenTransaction;
use super::tree::{Root, TreeItem};
use super::watch::{WatchDirectory, branch_stream};
use super::work::transaction_failed;

/// How long a lease lasts that nobody takes up, unless its name says otherwise.
const LEASE_SECONDS: u64 = 3600;

/// What an attach has of branches: those that it named, and its transactions.
#[derive(Default)]
struct Own {
    reserved: BTreeSet<BranchName>,
    transactions: BTreeMap<BranchName, BTreeMap<Vec<u8>, Arc<OpenTransaction>>>,
}

/// `branch/`.
pub(crate) struct Branches {
    attached: Arc<Attached>,
    own: Arc<Mutex<Own>>,
}

fn lock(own: &Mutex<Own>) -> MutexGuard<'_, Own> {
    own.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A file's name from a branch's: what a file name cannot have is escaped as in URLs.
pub(crate) fn escape(branch: &BranchName) -> Vec<u8> {
    let mut name = Vec::new();
    for byte in branch.as_bstr().iter() {
        match byte {
            b'/' => name.extend_from_slice(b"%2F"),
            b'%' => name.extend_from_slice(b"%25"),
            byte => name.push(*byte),
        }
    }
    name
}

fn unescape(name: &[u8]) -> Answer<BranchName> {
    let mut branch = Vec::new();
    let mut rest = name;
    while let Some((first, after)) = rest.split_first() {
        (rest, _) = match (first, after) {
            (b'%', [b'2', b'F' | b'f', after @ ..]) => (after, branch.push(b'/')),
            (b'%', [b'2', b'5', after @ ..]) => (after, branch.push(b'%')),
            (byte, after) => (after, branch.push(*byte)),
        };
    }
    BranchName::new(branch).map_err(|error| Errno::EINVAL.with_text(error.to_string()))
}

impl Branches {
    pub fn new(attached: &Arc<Attached>) -> Self {
        Self { attached: Arc::clone(attached), own: Arc::default() }
    }

    fn store(&self) -> &Store {
        &self.attached.store
    }

    fn has_head(&self, branch: &BranchName) -> Answer<bool> {
        Ok(self.store().head(branch).map_err(|error| branch_failed(&error))?.is_some())
    }

    fn exists(&self, branch: &BranchName) -> Answer<bool> {
        Ok(lock(&self.own).reserved.contains(branch) || self.has_head(branch)?)
    }

    fn remove(&self, branch: &BranchName) -> Answer<()> {
        if !self.exists(branch)? {
            return item::no_entry();
        }
        if self.has_head(branch)? {
            self.store().delete_branch(branch).map_err(|error| branch_failed(&error))?;
        }
        let mut own = lock(&self.own);
        own.reserved.remove(branch);
        let transactions = own.transactions.remove(branch);
        drop(own);
        transactions.iter().flat_map(BTreeMap::values).for_each(|open| open.transaction.close());
        Ok(())
    }

    fn rename(&self, branch: &BranchName, new: &BranchName) -> Answer<()> {
        if self.exists(new)? {
            return Err(Errno::EEXIST.with_text("Is a directory"));
        }
        if self.has_head(branch)? {
            self.store().rename_branch(branch, new).map_err(|error| branch_failed(&error))?;
        } else if !self.exists(branch)? {
            return item::no_entry();
        }
        let mut own = lock(&self.own);
        own.reserved.remove(branch);
        own.reserved.insert(new.clone());
        Ok(())
    }
}

impl Item for Branches {
    fn stat(&self) -> Answer<ItemStat> {
        Ok(ItemStat::directory())
    }

    fn caching(&self) -> Caching {
        LIVE_DIRECTORY
    }

    fn find(&self, name: &[u8]) -> Answer<Found> {
        let Ok(branch) = unescape(name) else { return item::no_entry() };
        if !self.exists(&branch)? {
            return item::no_entry();
        }
        Found::new(branch_directory(&self.attached, &self.own, &branch)?)
    }

    fn open(&self, _flags: OpenFlags, number: u64) -> Answer<Arc<dyn OpenFile>> {
        let heads = self.store().branches().map_err(|error| branch_failed(&error))?;
        let mut branches: BTreeSet<BranchName> = heads.into_iter().map(|(branch, _)| branch).collect();
        branches.extend(lock(&self.own).reserved.iter().cloned());
        let names = branches.iter().map(|branch| {
            let name = escape(branch);
            let number = self.attached.entry_number(number, &name);
            (name, Kind::Directory, number)
        });
        Ok(OpenDirectory::open(Names(names.collect()), number))
    }

    fn change(&self, change: &Change<'_>) -> Answer<()> {
        match change {
            Change::MakeDirectory { name } => {
                let branch = unescape(name)?;
                if !self.has_head(&branch)? {
                    lock(&self.own).reserved.insert(branch);
                }
                Ok(())
            }
            Change::Remove { name, is_directory: Some(true) | None } => self.remove(&unescape(name)?),
            Change::Remove { .. } => Err(Errno::EISDIR.with_text("Is a directory")),
            Change::Rename { name, directory, new_name, .. } => {
                let is_here = (*directory as &dyn std::any::Any)
                    .downcast_ref::<Self>()
                    .is_some_and(|other| Arc::ptr_eq(&other.own, &self.own));
                if !is_here {
                    return Err(Errno::EXDEV);
                }
                self.rename(&unescape(name)?, &unescape(new_name)?)
            }
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

/// `branch/<b>/`.
fn branch_directory(attached: &Arc<Attached>, own: &Arc<Mutex<Own>>, branch: &BranchName) -> Answer<Fixed> {
    let head = {
        let (attached, branch) = (Arc::clone(attached), branch.clone());
        Shown::live(move || {
            let head = attached.store.head(&branch).map_err(|error| branch_failed(&error))?;
            Ok(head.map_or_else(|| "\n".into(), |head| format!("{head}\n")).into_bytes())
        })
    };
    let forward = {
        let (attached, branch) = (Arc::clone(attached), branch.clone());
        let run = move |text: &[u8], _: &_| {
            let commit = attached.parse_id(text)?;
            attached.store.fast_forward(&branch, commit).map_err(|error| branch_failed(&error))?;
            attached.settle();
            Ok(Vec::new())
        };
        CommandFile::new(run, &Arc::default())
    };
    let diff = {
        let (context, branch) = (Arc::clone(attached), branch.clone());
        diff_directory(attached, move || {
            let head = context.store.head(&branch).map_err(|error| branch_failed(&error))?;
            let Some(head) = head else { return Ok(None) };
            Ok(Some(context.store.commit_of(head).map_err(|error| damaged(&context.store, &error))?.tree))
        })
    };
    let latest = attached.store.watch_head(branch);
    let streams = {
        let (attached, branch) = (Arc::clone(attached), branch.clone());
        move |name: &[u8]| branch_stream(&attached, &branch, name)
    };
    let mut files = Fixed::new(attached)
        .file("head", head)
        .file("fast-forward", forward)
        .directory("ro", TreeItem::root(attached, Root::Head(latest))?)
        .directory("diff", diff)
        .directory("transactions", Transactions::new(attached, own, branch))
        .directory("leases", Leases { attached: Arc::clone(attached), branch: branch.clone() })
        .directory("watch", WatchDirectory::new(attached, branch, TreePath::ROOT));
    for name in ["head.live", "reflog"] {
        files = files.shared(name, Kind::File, branch_stream(attached, branch, name.as_bytes())?.item);
    }
    Ok(files.hidden(streams))
}

/// `transactions/` of one attach.
struct Transactions {
    attached: Arc<Attached>,
    own: Arc<Mutex<Own>>,
    branch: BranchName,
}

impl Transactions {
    fn new(attached: &Arc<Attached>, own: &Arc<Mutex<Own>>, branch: &BranchName) -> Self {
        Self { attached: Arc::clone(attached), own: Arc::clone(own), branch: branch.clone() }
    }

    /// Those that are open, by name.
    fn with<T>(&self, with: impl FnOnce(&mut BTreeMap<Vec<u8>, Arc<OpenTransaction>>) -> T) -> T {
        let mut own = lock(&self.own);
        let open = own.transactions.entry(self.branch.clone()).or_default();
        let gone: Vec<_> = open
            .iter()
            .filter(|(_, open)| !open.transaction.is_open())
            .map(|(name, open)| (name.clone(), Arc::clone(open)))
            .collect();
        gone.iter().for_each(|(name, _)| drop(open.remove(name)));
        let result = with(open);
        drop(own);
        result
    }
}

impl Item for Transactions {
    fn stat(&self) -> Answer<ItemStat> {
        Ok(ItemStat { nlink: 2 + self.with(|open| open.len()) as u64, ..ItemStat::directory() })
    }

    fn caching(&self) -> Caching {
        LIVE_DIRECTORY
    }

    fn find(&self, name: &[u8]) -> Answer<Found> {
        match self.with(|open| open.get(name).cloned()) {
            Some(open) => Ok(open.found()),
            None => item::no_entry(),
        }
    }

    fn open(&self, _flags: OpenFlags, number: u64) -> Answer<Arc<dyn OpenFile>> {
        let entry = |(name, open): (&Vec<u8>, &Arc<OpenTransaction>)| {
            (name.clone(), Kind::Directory, open.directory_number())
        };
        let names = self.with(|open| open.iter().map(entry).collect());
        Ok(OpenDirectory::open(Names(names), number))
    }

    fn change(&self, change: &Change<'_>) -> Answer<()> {
        match change {
            Change::MakeDirectory { name } => {
                let exists = || Errno::EEXIST.with_text("Already exists");
                if self.with(|open| open.contains_key(*name)) {
                    return Err(exists());
                }
                let begun = self.attached.store.begin(&self.branch);
                let transaction = begun.map_err(|error| transaction_failed(&error))?;
                let new = OpenTransaction::new(&self.attached, transaction, false);
                self.with(|open| match open.contains_key(*name) {
                    true => Err(exists()),
                    false => {
                        open.insert(name.to_vec(), new);
                        Ok(())
                    }
                })
            }
            // They end by their ctl.
            Change::Remove { .. } | Change::Rename { .. } => item::not_permitted(),
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

/// `leases/`: transactions that outlive their attach, by name.
struct Leases {
    attached: Arc<Attached>,
    branch: BranchName,
}

/// A lease's name, and how long it lasts: `NAME` or `NAME?ttl=SECONDS`.
fn lease_name(name: &[u8]) -> Answer<(LeaseName, Duration)> {
    let (name, seconds) = match name.iter().position(|byte| *byte == b'?') {
        None => (name, Some(LEASE_SECONDS)),
        Some(mark) => {
            let query = name[mark..].strip_prefix(b"?ttl=").and_then(|text| std::str::from_utf8(text).ok());
            (&name[..mark], query.and_then(|text| text.parse().ok()))
        }
    };
    let wrong = || Errno::EINVAL.with_text("a lease is called NAME or NAME?ttl=SECONDS");
    let name = LeaseName::new(name).map_err(|_| wrong())?;
    Ok((name, Duration::from_secs(seconds.ok_or_else(wrong)?)))
}

fn lease_failed(error: &LeaseError) -> Errno {
    match error {
        LeaseError::Exists { .. } => Errno::EEXIST.with_text("Already exists"),
        LeaseError::Missing { .. } => Errno::ENOENT.with_text("No such file or directory"),
        LeaseError::Transaction(error) => transaction_failed(error),
    }
}

impl Item for Leases {
    fn stat(&self) -> Answer<ItemStat> {
        let leased = self.attached.store.leased(&self.branch).len();
        Ok(ItemStat { nlink: 2 + leased as u64, ..ItemStat::directory() })
    }

    fn caching(&self) -> Caching {
        LIVE_DIRECTORY
    }

    fn find(&self, name: &[u8]) -> Answer<Found> {
        let Ok((name, _)) = lease_name(name) else { return item::no_entry() };
        if !self.attached.store.leased(&self.branch).contains(&name) {
            return item::no_entry();
        }
        let transaction = self.attached.store.resume(&name).map_err(|error| lease_failed(&error))?;
        Ok(self.attached.leased.open(&self.attached, &name, transaction).found())
    }

    fn open(&self, _flags: OpenFlags, number: u64) -> Answer<Arc<dyn OpenFile>> {
        let entry = |name: LeaseName| {
            // Not resumed for being listed, which would prolong it: so one that nobody used yet has no number of its own.
            let known = self.attached.leased.number(&name);
            let number = known.unwrap_or_else(|| self.attached.entry_number(number, name.as_bstr()));
            (name.as_bstr().to_vec(), Kind::Directory, number)
        };
        let leased = self.attached.store.leased(&self.branch);
        Ok(OpenDirectory::open(Names(leased.into_iter().map(entry).collect()), number))
    }

    fn change(&self, change: &Change<'_>) -> Answer<()> {
        match change {
            Change::MakeDirectory { name } => {
                let (name, time_to_live) = lease_name(name)?;
                let leased = self.attached.store.lease(&name, &self.branch, time_to_live);
                leased.map(drop).map_err(|error| lease_failed(&error))
            }
            Change::Remove { name, is_directory: Some(true) | None } => {
                let (name, _) = lease_name(name)?;
                let transaction = self.attached.store.resume(&name).map_err(|error| lease_failed(&error))?;
                transaction.close();
                Ok(())
            }
            Change::Remove { .. } | Change::Rename { .. } => item::not_permitted(),
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
