//! Group commit: moves of branches, asked for by many threads, made by one of them for all.
//!
//! Whoever comes first leads: takes what has gathered, merges each onto what the one before made, and hands objects and
//! refs to the backend in one batch. What gathers meanwhile is the next batch, which another leader makes on top of the
//! heads that are being written, and writes when its turn comes. When those are not written after all, it is made anew.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use gix::bstr::BString;

use datakit_git::{Batch, Commit, ObjectId, ReadError, RefEdit, Signature, WriteError};

use crate::branch::BranchError;
use crate::history::{RECURSION_MAX, is_ancestor, merge_bases, merged};
use crate::merge::{Conflict, MergeDriver, Sides, merge};
use crate::name::BranchName;
use crate::objects::{Fresh, Objects};
use crate::watch::Hub;

/// Most moves in one batch.
const BATCH_MAX: usize = 1024;

/// How often a batch is tried again when others move the branch meanwhile.
const TRIES_MAX: usize = 100;

/// Heads of a branch that are remembered as ancestors of the newest.
const LINE_MAX: usize = 4096;

/// Why a transaction was not committed. It stays open.
#[derive(Debug, Clone, thiserror::Error)]
#[expect(missing_docs, reason = "each message documents its variant")]
pub enum CommitError {
    #[error("Merge conflict: {}", listed(conflicts))]
    Conflicts { conflicts: Vec<Conflict> },
    #[error("conflicts file is not empty: {}", listed(conflicts))]
    Unresolved { conflicts: Vec<Conflict> },
    #[error("the parent {parent} cannot be read: {source}")]
    Parent { parent: ObjectId, source: ReadError },
    #[error(transparent)]
    Transaction(#[from] crate::TransactionError),
    #[error(transparent)]
    Branch(#[from] BranchError),
}

fn listed(conflicts: &[Conflict]) -> String {
    let shown: Vec<String> = conflicts
        .iter()
        .take(20)
        .map(|conflict| format!("{} ({})", conflict.path, conflict.reason))
        .collect();
    let more =
        if conflicts.len() > 20 { format!(" and {} more", conflicts.len() - 20) } else { String::new() };
    shown.join(", ") + &more
}

/// What is to happen to a branch.
pub(crate) enum Move {
    /// Make it.
    Create(ObjectId),
    /// Delete it.
    Delete,
    /// Delete it if it is here.
    DeleteAt(ObjectId),
    /// Move it forward.
    FastForward(ObjectId),
    /// Add a commit, merging where needed.
    Commit(Plan),
}

/// A commit to be added to a branch, and the objects that it needs.
pub(crate) struct Plan {
    pub objects: Fresh,
    pub commit: ObjectId,
    pub driver: MergeDriver,
}

/// Why not.
#[derive(Debug, Clone)]
pub(crate) enum MoveError {
    Conflicts(Vec<Conflict>),
    Branch(BranchError),
}

impl From<ReadError> for MoveError {
    fn from(error: ReadError) -> Self {
        MoveError::Branch(error.into())
    }
}

impl From<BranchError> for MoveError {
    fn from(error: BranchError) -> Self {
        MoveError::Branch(error)
    }
}

type Outcome = Result<Option<ObjectId>, MoveError>;

struct Request {
    branch: BranchName,
    how: Move,
    ticket: Arc<Ticket>,
}

#[derive(Default)]
struct Ticket {
    state: Mutex<TicketState>,
    changed: Condvar,
}

#[derive(Default)]
struct TicketState {
    outcome: Option<Outcome>,
    leads: bool,
}

impl Ticket {
    fn state(&self) -> MutexGuard<'_, TicketState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn finish(&self, outcome: Outcome) {
        self.state().outcome = Some(outcome);
        self.changed.notify_all();
    }
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Request>,
    is_led: bool,
    is_writing: bool,
}

/// Moves branches.
pub(crate) struct Committer {
    objects: Arc<Objects>,
    hub: Arc<Hub>,
    identity: (BString, BString),
    queue: Mutex<Queue>,
    /// Requests came, or a batch was written.
    changed: Condvar,
    lines: Mutex<BTreeMap<BranchName, Line>>,
    /// Where branches are when the batch that is being written is.
    planned: Mutex<BTreeMap<BranchName, Option<ObjectId>>>,
}

/// The last heads of a branch, each an ancestor of the next.
#[derive(Default)]
struct Line {
    order: VecDeque<ObjectId>,
    known: HashSet<ObjectId>,
}

impl Line {
    fn newest(&self) -> Option<ObjectId> {
        self.order.back().copied()
    }

    fn follow(&mut self, course: &Course) {
        for (_, old, new) in course.steps.iter().filter(|(_, old, new)| old != new) {
            match (old, new) {
                (Some(_), Some(_)) => self.extend(*new),
                _ => self.restart(*new),
            }
        }
    }

    fn restart(&mut self, head: Option<ObjectId>) {
        self.order.clear();
        self.known.clear();
        self.extend(head);
    }

    fn extend(&mut self, head: Option<ObjectId>) {
        let Some(head) = head else { return };
        self.order.push_back(head);
        self.known.insert(head);
        if self.order.len() > LINE_MAX {
            self.order.pop_front().map(|old| self.known.remove(&old));
        }
    }
}

/// What a batch does to one branch.
struct Course {
    start: Option<ObjectId>,
    now: Option<ObjectId>,
    steps: Vec<(Request, Option<ObjectId>, Option<ObjectId>)>,
}

/// A batch in the making.
struct Making {
    fresh: Fresh,
    courses: BTreeMap<BranchName, Course>,
    n_steps: usize,
}

impl Making {
    fn new(objects: Arc<Objects>) -> Making {
        Making { fresh: Fresh::new(objects), courses: BTreeMap::new(), n_steps: 0 }
    }
}

impl Committer {
    pub fn new(objects: Arc<Objects>, hub: Arc<Hub>, identity: (BString, BString)) -> Committer {
        Committer {
            objects,
            hub,
            identity,
            queue: Mutex::default(),
            changed: Condvar::new(),
            lines: Mutex::default(),
            planned: Mutex::default(),
        }
    }

    fn lines(&self) -> MutexGuard<'_, BTreeMap<BranchName, Line>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn planned(&self) -> MutexGuard<'_, BTreeMap<BranchName, Option<ObjectId>>> {
        self.planned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Now, as the author of what the store makes itself.
    pub fn signature(&self) -> Signature {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
        Signature {
            name: self.identity.0.clone(),
            email: self.identity.1.clone(),
            seconds,
            offset_seconds: 0,
        }
    }

    /// Makes one move, together with those of others. Blocks until it is durable.
    pub fn submit(&self, branch: &BranchName, how: Move) -> Outcome {
        let ticket = Arc::new(Ticket::default());
        {
            let mut queue = self.queue();
            queue.waiting.push_back(Request { branch: branch.clone(), how, ticket: ticket.clone() });
            if queue.is_led {
                self.changed.notify_all();
            } else {
                queue.is_led = true;
                ticket.state().leads = true;
            }
        }
        let mut state = ticket.state();
        loop {
            if let Some(outcome) = state.outcome.take() {
                return outcome;
            }
            if state.leads {
                drop(state);
                self.lead();
                state = ticket.state();
            } else {
                state = ticket.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// Makes one batch of what comes until it can be written, hands the lead over, and writes it.
    fn lead(&self) {
        let mut making = Making::new(self.objects.clone());
        while let Some(requests) = self.gather(making.n_steps) {
            requests.into_iter().for_each(|request| self.make(&mut making, request));
        }
        let planned = self.plan(making);
        self.hand_over();
        let mut again = self.write(planned);
        for _ in 1..TRIES_MAX {
            if again.is_empty() {
                break;
            }
            let mut making = Making::new(self.objects.clone());
            again.into_iter().for_each(|request| self.make(&mut making, request));
            again = self.write(self.plan(making));
        }
        for request in again {
            let name = request.branch;
            request.ticket.finish(Err(BranchError::Busy { name, tries: TRIES_MAX }.into()));
        }
        self.queue().is_writing = false;
        self.changed.notify_all();
    }

    /// More requests for a batch of `n_steps`; `None`: it is this leader's turn to write.
    fn gather(&self, n_steps: usize) -> Option<Vec<Request>> {
        let mut queue = self.queue();
        loop {
            let n = queue.waiting.len().min(BATCH_MAX.saturating_sub(n_steps));
            if n > 0 {
                return Some(queue.waiting.drain(..n).collect());
            }
            if !queue.is_writing {
                break;
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        queue.is_writing = true;
        None
    }

    /// Lets whoever waits first make the next batch.
    fn hand_over(&self) {
        let mut queue = self.queue();
        queue.is_led = match queue.waiting.front() {
            Some(next) => {
                next.ticket.state().leads = true;
                next.ticket.changed.notify_all();
                true
            }
            None => false,
        };
    }

    /// Adds what one request does to a batch.
    fn make(&self, making: &mut Making, request: Request) {
        let course = match making.courses.get_mut(&request.branch) {
            Some(course) => course,
            None => match self.start(&request.branch) {
                Ok(course) => making.courses.entry(request.branch.clone()).or_insert(course),
                Err(error) => return request.ticket.finish(Err(error)),
            },
        };
        match self.step(&mut making.fresh, &request, course.now) {
            Ok(new) => {
                let old = std::mem::replace(&mut course.now, new);
                course.steps.push((request, old, new));
                making.n_steps += 1;
            }
            Err(error) => request.ticket.finish(Err(error)),
        }
    }

    /// Where a branch is now, or will be when what is being written is.
    fn start(&self, branch: &BranchName) -> Result<Course, MoveError> {
        let planned = self.planned().get(branch).copied();
        let head = match planned {
            Some(head) => head,
            None => {
                let head = self.objects.backend.try_find_ref(branch.as_ref_name());
                head.map_err(|error| BranchError::Refs(error.into()))?
            }
        };
        let mut lines = self.lines();
        let line = lines.entry(branch.clone()).or_default();
        if line.newest() != head {
            line.restart(head);
        }
        Ok(Course { start: head, now: head, steps: Vec::new() })
    }

    /// What a request makes of a head.
    fn step(&self, fresh: &mut Fresh, request: &Request, head: Option<ObjectId>) -> Outcome {
        let name = || request.branch.clone();
        match (&request.how, head) {
            (Move::Create(_), Some(_)) => Err(BranchError::Exists { name: name() }.into()),
            (Move::Delete | Move::DeleteAt(_), None) => Err(BranchError::Missing { name: name() }.into()),
            (Move::DeleteAt(at), Some(head)) if *at != head => {
                Err(BranchError::Busy { name: name(), tries: 1 }.into())
            }
            (Move::Delete | Move::DeleteAt(_), Some(_)) => Ok(None),
            (Move::Create(commit) | Move::FastForward(commit), None) => Ok(Some(*commit)),
            (Move::FastForward(commit), Some(head)) => {
                if is_ancestor(fresh, head, *commit)? {
                    Ok(Some(*commit))
                } else {
                    Err(BranchError::NotFastForward { name: name(), head, commit: *commit }.into())
                }
            }
            (Move::Commit(plan), head) => self.add(fresh, plan, &request.branch, head),
        }
    }

    /// Adds a commit to a head: fast-forward, or a merge of both.
    fn add(&self, fresh: &mut Fresh, plan: &Plan, branch: &BranchName, head: Option<ObjectId>) -> Outcome {
        let commit = plan.objects.commit(plan.commit)?;
        let Some(head) = head.filter(|head| !commit.parents.contains(head)) else {
            fresh.absorb(&plan.objects);
            return Ok(Some(plan.commit));
        };
        let mark = fresh.mark();
        fresh.absorb(&plan.objects);
        let bases = match commit.parents.as_slice() {
            [only] if self.is_on_line(branch, *only) => vec![*only],
            _ => merge_bases(fresh, head, plan.commit)?,
        };
        if bases == [head] {
            return Ok(Some(plan.commit));
        }
        let base = merged(fresh, bases, plan.driver, RECURSION_MAX)?;
        let sides = Sides { base, ours: Some(fresh.commit(head)?.tree), theirs: Some(commit.tree) };
        let merged = merge(fresh, sides, plan.driver)?;
        if !merged.conflicts.is_empty() {
            fresh.roll_back(mark);
            return Err(MoveError::Conflicts(merged.conflicts));
        }
        let signature = self.signature();
        Ok(Some(fresh.add_commit(Commit {
            tree: merged.tree,
            parents: vec![head, plan.commit],
            author: signature.clone(),
            committer: signature,
            message: "Merge\n".into(),
        })))
    }

    fn is_on_line(&self, branch: &BranchName, commit: ObjectId) -> bool {
        self.lines().get(branch).is_some_and(|line| line.known.contains(&commit))
    }

    /// From now on others build on a batch, which is to be written next.
    fn plan(&self, making: Making) -> (Arc<Fresh>, Vec<(BranchName, Course)>) {
        let fresh = self.objects.begin(making.fresh);
        let moved: Vec<(BranchName, Course)> =
            making.courses.into_iter().filter(|(_, course)| !course.steps.is_empty()).collect();
        for (branch, course) in &moved {
            self.planned().insert(branch.clone(), course.now);
            self.lines().entry(branch.clone()).or_default().follow(course);
        }
        (fresh, moved)
    }

    /// Writes a batch; returns the requests whose branch was moved by others meanwhile.
    fn write(&self, (fresh, moved): (Arc<Fresh>, Vec<(BranchName, Course)>)) -> Vec<Request> {
        if moved.is_empty() {
            self.objects.end(&fresh);
            return Vec::new();
        }
        let edits =
            moved.iter().filter(|(_, course)| course.start != course.now).map(|(branch, course)| RefEdit {
                name: branch.as_ref_name().clone(),
                old: course.start,
                new: course.now,
                reason: "datakit: commit".into(),
            });
        let batch = Batch { edits: edits.collect(), objects: fresh.new.clone() };
        let _moving = self.hub.moving();
        let results = self.objects.backend.write(&batch);
        self.objects.end(&fresh);
        let mut results = results.map(Vec::into_iter);
        let mut again = Vec::new();
        for (branch, course) in moved {
            let result = match &mut results {
                Err(error) => Err(error.clone()),
                Ok(_) if course.start == course.now => Ok(()),
                Ok(results) => results.next().unwrap_or(Ok(())),
            };
            self.settle(&branch, &course, result.is_ok());
            match result {
                Ok(()) => self.finish(&branch, course),
                Err(WriteError::Moved { .. }) => {
                    again.extend(course.steps.into_iter().map(|(request, ..)| request));
                }
                Err(error) => course.steps.iter().for_each(|(request, ..)| refuse(request, error.clone())),
            }
        }
        again
    }

    /// A branch is where it was planned to be, or is not.
    fn settle(&self, branch: &BranchName, course: &Course, is_there: bool) {
        let mut planned = self.planned();
        if !is_there || planned.get(branch) == Some(&course.now) {
            planned.remove(branch);
        }
        drop(planned);
        if !is_there {
            self.lines().remove(branch);
        }
    }

    /// Tells watchers, then those who wait.
    fn finish(&self, branch: &BranchName, course: Course) {
        self.hub.publish(branch, course.start, course.steps.iter().map(|(_, old, new)| (*old, *new)));
        for (request, _, new) in course.steps {
            request.ticket.finish(Ok(new));
        }
    }
}

fn refuse(request: &Request, error: WriteError) {
    request.ticket.finish(Err(BranchError::Write(error).into()));
}
