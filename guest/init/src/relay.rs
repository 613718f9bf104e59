//! Moves bytes between the command and the host, and knows when all of them have been moved.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{Shutdown, shutdown};

/// How long a process that the command left behind may hold its output open without saying anything.
const GRACE: Duration = Duration::from_millis(200);
/// Bytes moved at once.
const CHUNK_BYTES: usize = 64 << 10;

/// A relay of the command's output to the host.
pub struct OutputRelay {
    state: Arc<State>,
    socket: OwnedFd,
}

#[derive(Default)]
struct State {
    bytes: AtomicU64,
    is_writing: AtomicBool,
    is_done: AtomicBool,
}

impl OutputRelay {
    /// Starts to move what `from` has to the socket `to`; the end of `from` becomes a half-close.
    ///
    /// # Errors
    /// When the socket cannot be duplicated.
    pub fn start(from: OwnedFd, to: OwnedFd) -> std::io::Result<Self> {
        let state = Arc::new(State::default());
        let socket = to.try_clone()?;
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            move_output(File::from(from), File::from(to), &shared);
            shared.is_done.store(true, Ordering::Release);
        });
        Ok(Self { state, socket })
    }
}

fn move_output(mut from: File, mut to: File, state: &State) {
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let n = match from.read(&mut buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            // A terminal says EIO when its last user is gone.
            Ok(0) | Err(_) => break,
            Ok(n) => n,
        };
        state.is_writing.store(true, Ordering::Release);
        if to.write_all(&buffer[..n]).is_err() {
            // The host is not interested any more: the command learns it from a broken pipe, or a hang-up.
            break;
        }
        state.bytes.fetch_add(n as u64, Ordering::Release);
        state.is_writing.store(false, Ordering::Release);
    }
    drop(from);
    let _ = shutdown(to.as_fd(), Shutdown::Write);
}

/// Waits until all output has been moved; what is held open by others and silent for a while is given up.
pub fn drain(relays: &[OutputRelay]) {
    let moved = || relays.iter().map(|relay| relay.state.bytes.load(Ordering::Acquire)).sum::<u64>();
    let mut last = (moved(), Instant::now());
    let mut pause = Duration::from_micros(200);
    loop {
        let mut unfinished =
            relays.iter().filter(|relay| !relay.state.is_done.load(Ordering::Acquire)).peekable();
        if unfinished.peek().is_none() {
            return;
        }
        let now = moved();
        // A host that is slow to read is no reason to lose anything.
        if now != last.0 || unfinished.any(|relay| relay.state.is_writing.load(Ordering::Acquire)) {
            last = (now, Instant::now());
        }
        if last.1.elapsed() > GRACE {
            break;
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
    for relay in relays {
        let _ = shutdown(relay.socket.as_fd(), Shutdown::Write);
    }
}

/// Starts to move what the host sends to the command; the end of it closes `to`.
pub fn start_input(from: OwnedFd, to: OwnedFd) {
    thread::spawn(move || {
        let (mut from, mut to) = (File::from(from), File::from(to));
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let n = match from.read(&mut buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Ok(0) | Err(_) => break,
                Ok(n) => n,
            };
            // A command that closed its stdin does not want the rest.
            if to.write_all(&buffer[..n]).is_err() {
                let _ = shutdown(from.as_fd(), Shutdown::Read);
                break;
            }
        }
    });
}
