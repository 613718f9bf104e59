//! The workers: who waits for events and runs requests, and how many of them there are.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::fd::OwnedFd;
use rustix::io::Errno as OsErrno;

use super::address::Address;
use super::connection::Connection;
use super::job::Job;
use super::socket::{Listener, Socket, SocketError};
use super::watch::Watch;
use crate::auth::Peer;
use crate::filesystem::Filesystem;
use crate::server::{Session, SessionOptions};

/// What `epoll` says when it is the event descriptor.
const WAKE: u64 = 0;
/// How long a worker that is one too many waits for something to do, in seconds.
const IDLE_S_MAX: i64 = 10;
/// For the beginnings of messages; the rest of a long one is read where it belongs.
const STAGING_BYTES: usize = 16 << 10;
/// Reply buffers kept for the next time that a socket is full.
const SPARE_BUFFERS_MAX: usize = 8;
/// Connections accepted before the others have their turn.
const ACCEPTS_MAX: usize = 64;
/// Requests that came together are answered by one worker as long as each takes less than this: waking another one takes
/// as long as most of them.
const QUICK: Duration = Duration::from_micros(100);
/// How often others are woken at once after a request that took longer.
const WAKES_AFTER_SLOW: usize = 8;

/// What a server allows.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Of each connection's session.
    pub session: SessionOptions,
    /// Most threads that answer requests: as many may block at one time.
    pub threads_max: usize,
    /// Most connections; further ones are hung up on.
    pub connections_max: usize,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self { session: SessionOptions::default(), threads_max: 256, connections_max: 1 << 16 }
    }
}

/// A server under way: ended, with all its connections, when dropped.
pub struct Server {
    shared: Arc<Shared>,
    watch: Option<JoinHandle<()>>,
}

/// What all workers have in common.
pub(super) struct Shared {
    pub epoll: OwnedFd,
    wake: OwnedFd,
    filesystem: Arc<dyn Filesystem>,
    options: ServerOptions,
    sources: Mutex<Sources>,
    on_forgotten: Condvar,
    queue: Mutex<VecDeque<Arc<Job>>>,
    /// How many times yet others are woken for what came together.
    wakes: AtomicUsize,
    idle: AtomicUsize,
    n_threads: AtomicUsize,
    threads_min: usize,
    threads: Mutex<Vec<JoinHandle<()>>>,
    pub progress: AtomicUsize,
    stopping: AtomicBool,
    spare: Mutex<Vec<Vec<u8>>>,
    pub watch: Watch,
}

#[derive(Default)]
struct Sources {
    next_id: u64,
    connections: HashMap<u64, Arc<Connection>>,
    listeners: HashMap<u64, Arc<Listener>>,
}

enum Source {
    Connection(Arc<Connection>),
    Listener(Arc<Listener>),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Server {
    /// Starts the workers; nothing is served before [`Server::listen`] or [`Server::serve`].
    ///
    /// # Errors
    /// When the system refuses threads or descriptors.
    pub fn start(filesystem: Arc<dyn Filesystem>, options: ServerOptions) -> io::Result<Self> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let threads_max = options.threads_max.max(2);
        let shared = Arc::new(Shared {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            filesystem,
            sources: Mutex::new(Sources { next_id: WAKE + 1, ..Sources::default() }),
            on_forgotten: Condvar::new(),
            queue: Mutex::default(),
            wakes: AtomicUsize::new(0),
            idle: AtomicUsize::new(0),
            n_threads: AtomicUsize::new(0),
            threads_min: (cores + 1).min(threads_max),
            options: ServerOptions { threads_max, ..options },
            threads: Mutex::default(),
            progress: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
            spare: Mutex::default(),
            watch: Watch::default(),
        });
        let flags = EventFlags::IN | EventFlags::ET;
        epoll::add(&shared.epoll, &shared.wake, EventData::new_u64(WAKE), flags)?;
        let mut server = Self { watch: None, shared: Arc::clone(&shared) };
        for _ in 0..shared.threads_min {
            shared.start_worker()?;
        }
        let watched = Arc::clone(&shared);
        server.watch =
            Some(thread::Builder::new().name("9p watch".into()).spawn(move || watched.watch.run(&watched))?);
        Ok(server)
    }

    /// Listens, and returns where: with the port chosen, if none was asked for. Of an inherited descriptor that is a
    /// connection already, that one is served.
    ///
    /// # Errors
    /// [`SocketError`].
    pub fn listen(&self, address: &Address) -> Result<Address, SocketError> {
        let listener = match Listener::bind(address) {
            Err(SocketError::NotListening { .. }) => {
                let socket = Socket::connect(address, Duration::ZERO)?;
                let failed = |source| SocketError::Connect { address: address.clone(), source };
                self.serve(socket).map_err(failed)?;
                return Ok(address.clone());
            }
            other => other?,
        };
        let bound = listener.address().clone();
        let listener = Arc::new(listener);
        let mut sources = lock(&self.shared.sources);
        let id = sources.fresh_id();
        let failed = |errno: OsErrno| SocketError::Listen { address: bound.clone(), source: errno.into() };
        epoll::add(&self.shared.epoll, &*listener, EventData::new_u64(id), LISTEN).map_err(failed)?;
        sources.listeners.insert(id, listener);
        Ok(bound)
    }

    /// Serves a connection.
    ///
    /// # Errors
    /// When the system refuses to watch it.
    pub fn serve(&self, socket: Socket) -> io::Result<()> {
        socket.set_nonblocking()?;
        Ok(self.shared.adopt(socket)?)
    }

    /// How many connections there are.
    pub fn connection_count(&self) -> usize {
        lock(&self.shared.sources).connections.len()
    }

    /// Waits until there is no connection.
    pub fn wait_until_unused(&self) {
        let sources = lock(&self.shared.sources);
        let busy = |sources: &mut Sources| !sources.connections.is_empty();
        drop(self.shared.on_forgotten.wait_while(sources, busy).unwrap_or_else(PoisonError::into_inner));
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("connections", &self.connection_count()).finish_non_exhaustive()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let shared = &self.shared;
        shared.stopping.store(true, Ordering::Release);
        let sources = std::mem::take(&mut *lock(&shared.sources));
        for connection in sources.connections.values() {
            connection.session.reset();
            connection.socket.hang_up();
        }
        drop(sources);
        shared.watch.stop();
        shared.wake_one();
        if let Some(watch) = self.watch.take() {
            // A thread that panicked is over as well.
            let _ = watch.join();
        }
        let threads = std::mem::take(&mut *lock(&shared.threads));
        for thread in threads {
            let _ = thread.join();
        }
        // Requests and the server know each other.
        lock(&shared.queue).clear();
    }
}

const LISTEN: EventFlags = EventFlags::IN.union(EventFlags::ONESHOT);

impl Sources {
    fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}

impl Shared {
    /// Whether the server is ending.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    fn adopt(self: &Arc<Self>, socket: Socket) -> Result<(), OsErrno> {
        let mut options = self.options.session.clone();
        options.peer = Peer { credentials: socket.peer_ids() };
        let session = Session::with_options(Arc::clone(&self.filesystem), options);
        let mut sources = lock(&self.sources);
        if self.is_stopping() {
            return Err(OsErrno::SHUTDOWN);
        }
        let connection = Arc::new(Connection::new(sources.fresh_id(), socket, session));
        sources.connections.insert(connection.id, Arc::clone(&connection));
        drop(sources);
        connection.register(self).inspect_err(|_| self.forget(connection.id))
    }

    /// Forgets a connection that is closed.
    pub fn forget(&self, id: u64) {
        let gone = lock(&self.sources).connections.remove(&id);
        drop(gone);
        self.on_forgotten.notify_all();
    }

    /// Has somebody run a job.
    pub fn push(&self, job: Arc<Job>) {
        lock(&self.queue).push_back(job);
        self.share_out();
    }

    /// Has somebody run these: the worker that pushes them, as soon as it comes to it, unless requests are slow.
    pub fn push_all(&self, jobs: impl ExactSizeIterator<Item = Arc<Job>>) {
        if jobs.len() == 0 {
            return;
        }
        lock(&self.queue).extend(jobs);
        if self.wakes.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| n.checked_sub(1)).is_ok() {
            self.share_out();
        } else {
            self.watch.note_busy();
        }
    }

    /// Has another worker look at the queue, if there is one that waits.
    pub fn share_out(&self) {
        if self.idle.load(Ordering::SeqCst) > 0 {
            self.wake_one();
        }
    }

    /// Whether requests wait for a worker.
    pub fn has_queued(&self) -> bool {
        !lock(&self.queue).is_empty()
    }

    fn run(&self, job: Arc<Job>, reply: &mut Vec<u8>) {
        let began = Instant::now();
        job.run(reply);
        if began.elapsed() > QUICK {
            self.wakes.store(WAKES_AFTER_SLOW, Ordering::Release);
        }
    }

    fn wake_one(&self) {
        // Fails only when the counter is full, and then somebody is being woken.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// A buffer for replies.
    pub fn spare_buffer(&self) -> Vec<u8> {
        lock(&self.spare).pop().unwrap_or_default()
    }

    /// Keeps a buffer for later.
    pub fn keep_buffer(&self, buffer: Vec<u8>) {
        let mut spare = lock(&self.spare);
        if spare.len() < SPARE_BUFFERS_MAX && buffer.len() > STAGING_BYTES {
            spare.push(buffer);
        }
    }

    fn start_worker(self: &Arc<Self>) -> io::Result<()> {
        let shared = Arc::clone(self);
        self.n_threads.fetch_add(1, Ordering::AcqRel);
        let started = thread::Builder::new().name("9p worker".into()).spawn(move || shared.work());
        let mut threads = lock(&self.threads);
        threads.retain(|thread| !thread.is_finished());
        threads.push(started.inspect_err(|_| {
            self.n_threads.fetch_sub(1, Ordering::AcqRel);
        })?);
        Ok(())
    }

    /// Whether every worker is at work, so that nobody waits for events.
    pub fn is_starved(&self) -> bool {
        self.idle.load(Ordering::SeqCst) == 0
    }

    /// Starts half as many workers again, within the limit.
    pub fn grow(self: &Arc<Self>) {
        let now = self.n_threads.load(Ordering::Acquire);
        let more = (now / 2).max(1).min(self.options.threads_max.saturating_sub(now));
        for _ in 0..more {
            // Without another thread it goes on when one of these is done.
            let _ = self.start_worker();
        }
    }

    fn work(self: &Arc<Self>) {
        let mut staging = vec![0; STAGING_BYTES];
        let mut reply = Vec::new();
        let mut events = Vec::with_capacity(1);
        while !self.is_stopping() {
            let next = lock(&self.queue).pop_front();
            if let Some(job) = next {
                self.run(job, &mut reply);
                self.progress.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            self.idle.fetch_add(1, Ordering::SeqCst);
            let waited = if lock(&self.queue).is_empty() { self.wait(&mut events) } else { Ok(false) };
            if self.idle.fetch_sub(1, Ordering::SeqCst) == 1 {
                self.watch.note_busy();
            }
            if waited == Ok(true) && self.retire() {
                return;
            }
            for event in events.drain(..) {
                self.on_event(event, &mut staging, &mut reply);
            }
            self.progress.fetch_add(1, Ordering::Relaxed);
        }
        self.n_threads.fetch_sub(1, Ordering::AcqRel);
        // The next one, who may be waiting.
        self.wake_one();
    }

    /// Waits for an event; `true` when it took so long that this worker may be one too many.
    fn wait(&self, events: &mut Vec<Event>) -> Result<bool, OsErrno> {
        let surplus = self.n_threads.load(Ordering::Acquire) > self.threads_min;
        let timeout = surplus.then_some(Timespec { tv_sec: IDLE_S_MAX, tv_nsec: 0 });
        let count = epoll::wait(&self.epoll, spare_capacity(events), timeout.as_ref())?;
        Ok(surplus && count == 0)
    }

    /// Whether this worker ends: there are enough others.
    fn retire(&self) -> bool {
        let fewer = |now| (now > self.threads_min).then(|| now - 1);
        self.n_threads.fetch_update(Ordering::AcqRel, Ordering::Acquire, fewer).is_ok()
    }

    fn on_event(self: &Arc<Self>, event: Event, staging: &mut [u8], reply: &mut Vec<u8>) {
        let (id, flags) = (event.data.u64(), event.flags);
        if id == WAKE {
            return;
        }
        match self.source(id) {
            Some(Source::Connection(connection)) => {
                if let Some(job) = connection.on_event(self, flags, staging) {
                    self.run(job, reply);
                }
            }
            Some(Source::Listener(listener)) => self.accept_all(id, &listener),
            None => {}
        }
    }

    fn source(&self, id: u64) -> Option<Source> {
        let sources = lock(&self.sources);
        let connection = sources.connections.get(&id).map(|found| Source::Connection(Arc::clone(found)));
        connection.or_else(|| sources.listeners.get(&id).map(|found| Source::Listener(Arc::clone(found))))
    }

    fn accept_all(self: &Arc<Self>, id: u64, listener: &Listener) {
        for _ in 0..ACCEPTS_MAX {
            match listener.accept() {
                Ok(socket) => {
                    if lock(&self.sources).connections.len() >= self.options.connections_max {
                        socket.hang_up();
                    } else {
                        // One that cannot be watched is closed by being dropped.
                        let _ = self.adopt(socket);
                    }
                }
                Err(OsErrno::INTR | OsErrno::CONNABORTED) => {}
                Err(OsErrno::AGAIN) => break,
                // Out of descriptors or memory: again when some may be free.
                Err(_) => return self.watch.pause(id),
            }
        }
        self.listen_again(id);
    }

    /// Has epoll watch a listener again.
    pub fn listen_again(&self, id: u64) {
        if let Some(listener) = lock(&self.sources).listeners.get(&id) {
            let _ = epoll::modify(&self.epoll, &**listener, EventData::new_u64(id), LISTEN);
        }
    }
}
