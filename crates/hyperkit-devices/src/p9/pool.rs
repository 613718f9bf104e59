//! The threads that answer requests: as many as there are requests under way, up to a limit.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use hyperkit_mem::GuestRam;
use hyperkit_virtio::Chain;

use super::MESSAGE_BYTES_MAX;
use super::backend::{P9Request, P9Service, START_BYTES};
use crate::queue::{self, DeviceQueue};

/// Requests answered at the same time: as many as the queue can hold, as each takes two descriptors at least. A read of a
/// stream may wait for ever, and must not keep others waiting.
const WORKERS_MAX: usize = 128;

/// How long a snapshot waits for the requests under way.
const QUIESCE_TIMEOUT: Duration = Duration::from_secs(5);

/// Length of the smallest message.
const MESSAGE_BYTES_MIN: u64 = 7;

/// A request that waits for a thread.
struct Job {
    chain: Chain,
    request: Box<dyn P9Request>,
}

/// A thread's buffers. The ones used last are used first, so that memory follows the concurrency.
#[derive(Default)]
struct Buffers {
    request: Vec<u8>,
    reply: Vec<u8>,
}

struct State {
    /// `None` once the driver is gone.
    queue: Option<DeviceQueue>,
    jobs: VecDeque<Job>,
    buffers: Vec<Buffers>,
    n_workers: usize,
    n_idle: usize,
    /// Requests that a thread has.
    n_under_way: usize,
}

struct Shared {
    service: Arc<dyn P9Service>,
    ram: Arc<GuestRam>,
    state: Mutex<State>,
    /// There is a job, or no more will come.
    work: Condvar,
    /// A request was answered.
    answered: Condvar,
}

/// The threads of one activation. Dropping it takes the queue away from them; a thread that is held up by the
/// host ends when the host lets it.
pub(super) struct Pool {
    shared: Arc<Shared>,
}

impl Pool {
    /// A pool with one thread.
    ///
    /// # Errors
    /// When the host has no thread to give.
    pub(super) fn start(queue: DeviceQueue, service: Arc<dyn P9Service>) -> io::Result<Pool> {
        let ram = queue.ram();
        let state = State {
            queue: Some(queue),
            jobs: VecDeque::new(),
            buffers: Vec::new(),
            n_workers: 0,
            n_idle: 0,
            n_under_way: 0,
        };
        let shared = Arc::new(Shared {
            service,
            ram,
            state: Mutex::new(state),
            work: Condvar::new(),
            answered: Condvar::new(),
        });
        shared.spawn(&mut shared.lock())?;
        Ok(Pool { shared })
    }

    /// Takes the requests that the driver has made available.
    pub(super) fn kick(&self) {
        let shared = &self.shared;
        let mut state = shared.lock();
        while shared.take(&mut state) {}
        // Without another thread those that there are do it, later.
        while state.jobs.len() > state.n_idle
            && state.n_workers < WORKERS_MAX
            && shared.spawn(&mut state).is_ok()
        {}
    }

    /// Where the queue stands, once nothing is under way (or the host has kept it too long).
    pub(super) fn positions(&self) -> (u16, u16) {
        let state = self.shared.lock();
        let busy = |state: &mut State| !state.jobs.is_empty() || state.n_under_way > 0;
        let waited = self.shared.answered.wait_timeout_while(state, QUIESCE_TIMEOUT, busy);
        let (state, _) = waited.unwrap_or_else(|poisoned| poisoned.into_inner());
        queue::positions(state.queue.as_ref())
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.queue = None;
        let jobs = std::mem::take(&mut state.jobs);
        drop(state);
        drop(jobs);
        self.shared.service.end();
        self.shared.work.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn spawn(self: &Arc<Shared>, state: &mut State) -> io::Result<()> {
        let of_thread = Arc::clone(self);
        std::thread::Builder::new().name("virtio-9p".into()).spawn(move || of_thread.run())?;
        // It counts as idle until it takes its first job, so that nobody spawns another for the same one.
        state.n_workers += 1;
        state.n_idle += 1;
        Ok(())
    }

    /// Takes one request from the driver; `false` when there is none.
    fn take(&self, state: &mut State) -> bool {
        let n_taken = state.jobs.len() + state.n_under_way;
        let Some(queue) = &mut state.queue else { return false };
        let Some(chain) = queue.pop() else { return false };
        let mut start = [0; START_BYTES];
        let n = queue.reader(&chain).read(&mut start);
        // A driver has as many requests under way as the queue has entries, unless it makes one available twice.
        if (n as u64) < MESSAGE_BYTES_MIN || n_taken >= usize::from(queue.size()) {
            queue.refuse();
            return false;
        }
        let request = Arc::clone(&self.service).accept(&start[..n]);
        state.jobs.push_back(Job { chain, request });
        self.work.notify_one();
        true
    }

    /// What a thread does.
    fn run(&self) {
        while let Some((job, mut buffers)) = self.next() {
            let Job { chain, mut request } = job;
            let n = self.answer(&chain, request.as_mut(), &mut buffers);
            let mut state = self.lock();
            if let Some(queue) = &mut state.queue {
                queue.writer(&chain).write(&buffers.reply[..n]);
                queue.push(chain, n as u32);
                queue.interrupt();
            }
            // It counts as idle from here on: the driver may send its next request at once.
            state.n_idle += 1;
            state.n_under_way -= 1;
            state.buffers.push(buffers);
            drop(state);
            drop(request);
            self.answered.notify_all();
        }
    }

    /// Waits for a job; `None` when no more will come. The caller counts as idle before and as busy after.
    fn next(&self) -> Option<(Job, Buffers)> {
        let idle = |state: &mut State| state.queue.is_some() && state.jobs.is_empty();
        let waited = self.work.wait_while(self.lock(), idle);
        let mut state = waited.unwrap_or_else(|poisoned| poisoned.into_inner());
        let job = state.jobs.pop_front()?;
        state.n_idle -= 1;
        state.n_under_way += 1;
        let buffers = state.buffers.pop().unwrap_or_default();
        Some((job, buffers))
    }

    /// Has a request answered and returns how long its reply is, which is at most what the chain has room for.
    fn answer(&self, chain: &Chain, request: &mut dyn P9Request, buffers: &mut Buffers) -> usize {
        let max = self.service.message_bytes_max().min(MESSAGE_BYTES_MAX);
        let n_readable = chain.readable_bytes().min(max as u64) as usize;
        let n_writable = chain.writable_bytes().min(max as u64) as usize;
        grow(&mut buffers.request, n_readable);
        grow(&mut buffers.reply, n_writable);
        let message = &mut buffers.request[..n_readable];
        chain.reader(&self.ram).read(message);
        // A chain may be longer than its message.
        let size = message.first_chunk().map_or(0, |size| u32::from_le_bytes(*size)) as usize;
        let message = message.get(..size).unwrap_or(message);
        request.answer(message, &mut buffers.reply[..n_writable]).min(n_writable)
    }
}

fn grow(buffer: &mut Vec<u8>, len: usize) {
    if buffer.len() < len {
        buffer.resize(len, 0);
    }
}
