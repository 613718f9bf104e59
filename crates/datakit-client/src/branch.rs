//! Branches: where they point, moving them, and what happens on them.

use std::sync::Arc;

use p9p::Errno;

use crate::error::Error;
use crate::id::{CommitId, Node};
use crate::path;
use crate::session::Session;
use crate::transaction::Transaction;
use crate::tree::Tree;
use crate::update::{self, Retries};
use crate::watch::{self, Event, From, Watch};

/// A path that differs between two commits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Change {
    /// Only the newer one has it.
    Added(String),
    /// Only the older one has it.
    Removed(String),
    /// Both have it, with different content.
    Changed(String),
}

/// A branch.
#[derive(Debug, Clone)]
pub struct Branch {
    session: Arc<Session>,
    name: String,
    root: String,
}

#[expect(clippy::missing_errors_doc, reason = "all fail with Error, whose variants say when")]
impl Branch {
    pub(crate) fn new(session: Arc<Session>, name: &str) -> Result<Self, Error> {
        let root = path::below("branch", path::name(&escape(name))?)?;
        Ok(Self { session, name: name.to_owned(), root })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Makes the server know it; it has no commit yet. Nothing happens when it does.
    pub fn create(&self) -> Result<(), Error> {
        match self.session.mkdir(&self.root) {
            Err(Error::Exists { .. }) => Ok(()),
            Err(Error::Refused { reason, .. }) if reason == Errno::EINVAL.to_string() => {
                Err(Error::BranchName { name: self.name.clone() })
            }
            made => made,
        }
    }

    /// Deletes it. Its commits stay, for those who know them.
    pub fn delete(&self) -> Result<(), Error> {
        self.session.remove(&self.root)
    }

    /// Gives it another name, which must be free.
    pub fn rename(&self, name: &str) -> Result<Self, Error> {
        let renamed = Self::new(Arc::clone(&self.session), name)?;
        self.session.rename(&self.root, &renamed.root)?;
        Ok(renamed)
    }

    /// The commit it points to, if any.
    pub fn head(&self) -> Result<Option<CommitId>, Error> {
        match self.session.read_text(&format!("{}/head", self.root)) {
            Ok(text) => parse_head(text.trim_end()),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Moves it to `commit`, which must come after where it points.
    pub fn fast_forward(&self, commit: &CommitId) -> Result<(), Error> {
        self.create()?;
        let moved = self.session.command(&format!("{}/fast-forward", self.root), commit.as_str().as_bytes());
        match moved {
            // Anything else than that: nothing can be written there.
            Err(Error::Refused { reason, .. }) if reason == Errno::EBUSY.to_string() => {
                Err(Error::NotFastForward { branch: self.name.clone(), commit: commit.to_string() })
            }
            moved => moved,
        }
    }

    /// The tree of its head, always the newest.
    pub fn tree(&self) -> Tree {
        Tree::new(Arc::clone(&self.session), format!("{}/ro", self.root))
    }

    /// What changed from `commit` to its head.
    pub fn diff(&self, commit: &CommitId) -> Result<Vec<Change>, Error> {
        read_diff(&self.session, &format!("{}/diff/{commit}", self.root))
    }

    /// Begins a transaction with a name of its own; it is given up when dropped.
    pub fn transaction(&self) -> Result<Transaction, Error> {
        self.create()?;
        Transaction::begin(Arc::clone(&self.session), &self.root, &update::fresh_name())
    }

    /// Begins a transaction called `name`.
    pub fn transaction_named(&self, name: &str) -> Result<Transaction, Error> {
        self.create()?;
        Transaction::begin(Arc::clone(&self.session), &self.root, path::name(name)?)
    }

    /// Begins, or takes up again, a transaction that survives its connection: for `seconds` after the last one that used
    /// it. It is not given up when dropped.
    pub fn leased(&self, name: &str, seconds: u64) -> Result<Transaction, Error> {
        self.create()?;
        Transaction::lease(Arc::clone(&self.session), &self.root, path::name(name)?, seconds)
    }

    /// Begins a transaction, has `change` make its changes and commits it; all again while others' changes conflict.
    ///
    /// At most [`Retries::default`] times; [`Branch::update_with`] takes another limit. Returns the commit.
    pub fn update(&self, change: impl FnMut(&Transaction) -> Result<(), Error>) -> Result<CommitId, Error> {
        self.update_with(Retries::default(), change)
    }

    /// As [`Branch::update`], with a limit.
    pub fn update_with(
        &self,
        retries: Retries,
        change: impl FnMut(&Transaction) -> Result<(), Error>,
    ) -> Result<CommitId, Error> {
        update::update(self, retries, change)
    }

    /// Its head, and then every new head; a slow reader may miss some in between, never the last.
    pub fn watch_head(&self) -> Result<Watch<Option<CommitId>>, Error> {
        self.create()?;
        Watch::open(&self.session, format!("{}/head.live", self.root), parse_head)
    }

    /// Every head from `from` on, numbered; none is missed.
    pub fn watch_head_from(&self, from: From) -> Result<Watch<Event<Option<CommitId>>>, Error> {
        self.create()?;
        let live = format!("{}/head.live{}", self.root, from.query());
        let at = live.clone();
        Watch::open(&self.session, live, move |line| watch::parse_event(&at, line, parse_head))
    }

    /// What is at `path`, and then whatever comes to be there; a slow reader may miss some in between, never the last.
    pub fn watch_path(&self, path: &str) -> Result<Watch<Node>, Error> {
        self.create()?;
        let live = self.live(path)?;
        let at = live.clone();
        Watch::open(&self.session, live, move |line| parse_node(&at, line))
    }

    /// Whatever comes to be at `path` from `from` on, numbered; nothing is missed.
    pub fn watch_path_from(&self, path: &str, from: From) -> Result<Watch<Event<Node>>, Error> {
        self.create()?;
        let live = self.live(path)? + &from.query();
        let at = live.clone();
        Watch::open(&self.session, live, move |line| {
            watch::parse_event(&at, line, |value| parse_node(&at, value))
        })
    }

    fn live(&self, path: &str) -> Result<String, Error> {
        let mut live = format!("{}/watch", self.root);
        for name in path::names(path)? {
            live.push('/');
            live.push_str(name);
            live.push_str(".node");
        }
        Ok(live + "/tree.live")
    }

    /// Every head from now on; none is missed.
    pub fn watch_reflog(&self) -> Result<Watch<Option<CommitId>>, Error> {
        self.create()?;
        Watch::open(&self.session, format!("{}/reflog", self.root), parse_head)
    }
}

/// A branch's name as a file's: `/` and `%` are escaped as in URLs.
fn escape(name: &str) -> String {
    name.replace('%', "%25").replace('/', "%2F")
}

/// The opposite of [`escape`].
pub fn unescape(name: &str) -> String {
    name.replace("%2F", "/").replace("%2f", "/").replace("%25", "%")
}

fn parse_head(line: &str) -> Result<Option<CommitId>, Error> {
    if line.is_empty() { Ok(None) } else { line.parse().map(Some) }
}

fn parse_node(path: &str, line: &str) -> Result<Node, Error> {
    Node::parse(line).ok_or_else(|| Error::Answer { path: path.to_owned(), text: line.to_owned() })
}

pub fn read_diff(session: &Session, path: &str) -> Result<Vec<Change>, Error> {
    let text = session.read_text(path)?;
    let parse = |line: &str| {
        let (sign, name) = line.split_once(' ').unwrap_or((line, ""));
        match sign {
            "+" => Ok(Change::Added(name.to_owned())),
            "-" => Ok(Change::Removed(name.to_owned())),
            "*" => Ok(Change::Changed(name.to_owned())),
            _ => Err(Error::Answer { path: path.to_owned(), text: line.to_owned() }),
        }
    };
    text.lines().map(parse).collect()
}
