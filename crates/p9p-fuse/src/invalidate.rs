//! Telling the kernel that what it kept is no longer so, and that it keeps too much.
//!
//! One thread writes these messages: the kernel takes a directory's lock for them, which a request under way may hold
//! until it is answered, so that no thread that answers requests may write one.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use p9p::qid::Qid;

use crate::abi::notify;
use crate::inodes::Inodes;
use crate::reply::Reply;

/// Most messages that wait; more than that, and the oldest knowledge simply times out.
const WAITING_MAX: usize = 1 << 16;
/// Pause between two rounds of reclaiming: the kernel forgets in its own time.
const RECLAIM_EVERY: Duration = Duration::from_millis(10);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Message {
    Inode(u64),
    Entry(u64, Box<[u8]>),
}

#[derive(Default)]
struct Queue {
    waiting: Vec<Message>,
    known: HashSet<Message>,
    reclaim: bool,
    /// Messages were taken and are not all written yet.
    busy: bool,
    closed: bool,
}

/// Tells the kernel that what it kept is no longer so. Cheap to clone; never blocks.
#[derive(Clone)]
pub struct Invalidator {
    shared: Arc<Shared>,
}

struct Shared {
    inodes: Arc<Inodes>,
    queue: Mutex<Queue>,
    changed: Condvar,
    drained: Condvar,
}

impl Invalidator {
    pub(crate) fn start(inodes: Arc<Inodes>, device: Arc<OwnedFd>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            inodes,
            queue: Mutex::default(),
            changed: Condvar::new(),
            drained: Condvar::new(),
        });
        let worker = Arc::clone(&shared);
        thread::Builder::new().name("fuse-notify".into()).spawn(move || worker.run(&device))?;
        Ok(Self { shared })
    }

    /// Content and attributes of the file with this qid changed.
    pub fn inode(&self, qid: Qid) {
        if let Some(id) = self.shared.inodes.find(qid) {
            self.push(Message::Inode(id));
        }
    }

    /// What `name` in the directory with this qid leads to changed.
    pub fn entry(&self, directory: Qid, name: &[u8]) {
        if let Some(id) = self.shared.inodes.find(directory) {
            self.push(Message::Entry(id, name.into()));
        }
    }

    /// Waits until the kernel was told all that was said so far, at most for `timeout`.
    pub fn flush(&self, timeout: Duration) {
        let queue = self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let under_way = |queue: &mut Queue| !queue.closed && (queue.busy || !queue.waiting.is_empty());
        // Whether in time or not.
        drop(self.shared.drained.wait_timeout_while(queue, timeout, under_way));
    }

    /// The kernel knows more than is good for us.
    pub(crate) fn reclaim(&self) {
        let mut queue = self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.reclaim = true;
        self.shared.changed.notify_one();
    }

    pub(crate) fn close(&self) {
        let mut queue = self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.closed = true;
        self.shared.changed.notify_one();
        self.shared.drained.notify_all();
    }

    fn push(&self, message: Message) {
        let mut queue = self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.waiting.len() < WAITING_MAX && !queue.closed && queue.known.insert(message.clone()) {
            queue.waiting.push(message);
            self.shared.changed.notify_one();
        }
    }
}

impl Shared {
    /// Goes on for as long as it helps.
    fn reclaim(&self, device: &OwnedFd, reply: &mut Reply) {
        let before = self.inodes.len();
        for (parent, name) in self.inodes.surplus() {
            send(device, reply, &Message::Entry(parent, name));
        }
        thread::sleep(RECLAIM_EVERY);
        if self.inodes.is_crowded() && self.inodes.len() < before {
            self.queue.lock().unwrap_or_else(PoisonError::into_inner).reclaim = true;
        }
    }

    fn run(&self, device: &OwnedFd) {
        let mut reply = Reply::default();
        loop {
            let (messages, reclaim) = {
                let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
                while queue.waiting.is_empty() && !queue.reclaim && !queue.closed {
                    queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
                }
                if queue.closed {
                    return;
                }
                queue.known.clear();
                queue.busy = true;
                (std::mem::take(&mut queue.waiting), std::mem::take(&mut queue.reclaim))
            };
            for message in messages {
                send(device, &mut reply, &message);
            }
            self.queue.lock().unwrap_or_else(PoisonError::into_inner).busy = false;
            self.drained.notify_all();
            if reclaim {
                self.reclaim(device, &mut reply);
            }
        }
    }
}

/// ENOENT is that the kernel does not know it any more, ENODEV that it is unmounted: both are fine.
fn send(device: &OwnedFd, reply: &mut Reply, message: &Message) {
    reply.clear();
    let code = match message {
        Message::Inode(id) => {
            reply.u64(*id);
            // From the start to the end of its content.
            reply.u64(0);
            reply.u64(0);
            notify::INVAL_INODE
        }
        Message::Entry(parent, name) => {
            reply.u64(*parent);
            reply.u32(u32::try_from(name.len()).unwrap_or(0));
            reply.u32(0);
            reply.extend(name);
            reply.extend(&[0]);
            notify::INVAL_ENTRY
        }
    };
    let _ = rustix::io::write(device, reply.finish_notification(code));
}

impl std::fmt::Debug for Invalidator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Invalidator").field("inodes", &self.shared.inodes.len()).finish_non_exhaustive()
    }
}
