//! The thread that executes a block device's requests.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;

use super::backend::BlockBackend;
use super::request::{Executor, ID_BYTES};
use crate::queue::DeviceQueue;

/// What device and thread share.
struct Shared {
    /// Held by the thread from taking a request to giving it back: whoever has it sees no request under way.
    queue: Mutex<DeviceQueue>,
    kicked: Mutex<bool>,
    wake: Condvar,
    stop: AtomicBool,
}

/// A running thread; dropping it ends the thread after the copy that is under way.
pub(super) struct Worker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts a thread that serves `queue`.
    ///
    /// # Errors
    /// When the host has no thread to give.
    pub(super) fn start(
        queue: DeviceQueue,
        backend: Arc<dyn BlockBackend>,
        id: [u8; ID_BYTES],
        write_through: Arc<AtomicBool>,
    ) -> io::Result<Worker> {
        let shared = Arc::new(Shared {
            queue: Mutex::new(queue),
            kicked: Mutex::new(false),
            wake: Condvar::new(),
            stop: AtomicBool::new(false),
        });
        let of_thread = Arc::clone(&shared);
        let body = move || of_thread.run(backend.as_ref(), &id, &write_through);
        let thread = std::thread::Builder::new().name("virtio-blk".into()).spawn(body)?;
        Ok(Worker { shared, thread: Some(thread) })
    }

    /// Says that there may be requests.
    pub(super) fn kick(&self) {
        *lock(&self.shared.kicked) = true;
        self.shared.wake.notify_one();
    }

    /// Where the queue stands, once no request is under way.
    pub(super) fn positions(&self) -> (u16, u16) {
        lock(&self.shared.queue).positions()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.kick();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was reported by its own hook; there is nothing left to clean up.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn run(&self, backend: &dyn BlockBackend, id: &[u8; ID_BYTES], write_through: &AtomicBool) {
        let ram = lock(&self.queue).ram();
        let mut executor =
            Executor { backend, ram: &ram, id, write_through: false, stop: &self.stop, buffer: Vec::new() };
        while self.wait() {
            executor.write_through = write_through.load(Ordering::Relaxed);
            while self.serve_one(&mut executor) {}
        }
    }

    /// Waits for a kick; `false` when the thread is to end.
    fn wait(&self) -> bool {
        let mut kicked = lock(&self.kicked);
        while !*kicked {
            kicked = self.wake.wait(kicked).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        *kicked = false;
        !self.stop.load(Ordering::Relaxed)
    }

    /// Executes the next request; `false` when there is none.
    fn serve_one(&self, executor: &mut Executor<'_>) -> bool {
        let mut queue = lock(&self.queue);
        if self.stop.load(Ordering::Relaxed) {
            return false;
        }
        let Some(chain) = queue.pop() else { return false };
        match executor.execute(&chain) {
            Ok(_) if self.stop.load(Ordering::Relaxed) => return false,
            Ok(written) => queue.push(chain, written),
            Err(_) => {
                queue.refuse();
                return false;
            }
        }
        queue.interrupt();
        true
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
