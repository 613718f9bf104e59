//! Files whose reads wait: they hold no thread, end when their reader does, and can be read line by line.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use p9p::connection::{ConnectOptions, Connection};
use p9p::filesystem::{Answer, Attach, Cancel, Entries, Node, OpenFile, OpenFlags, wait_for};
use p9p::net::{Server, ServerOptions, Socket};
use p9p::qid::{Qid, QidKind};
use p9p::remote::Remote;
use p9p::stat::{Attributes, DirectoryEntry, getattr};
use p9p::{Errno, Filesystem};
use p9p_fuse::{Caching, Mount, MountOptions};

use crate::mount;

/// A service with one file, `ticks`, which has a new line at each [`Ticks::tick`].
#[derive(Clone, Default)]
struct Ticks(Arc<State>);

#[derive(Default)]
struct State {
    waiting: Mutex<(u64, Vec<Waker>)>,
    open: AtomicUsize,
}

impl Ticks {
    fn tick(&self) {
        let woken = {
            let mut waiting = self.0.waiting.lock().unwrap();
            waiting.0 += 1;
            std::mem::take(&mut waiting.1)
        };
        woken.into_iter().for_each(Waker::wake);
    }

    fn n_open(&self) -> usize {
        self.0.open.load(Ordering::SeqCst)
    }

    fn n_waiting(&self) -> usize {
        self.0.waiting.lock().unwrap().1.len()
    }
}

impl Filesystem for Ticks {
    fn attach(&self, _: &Attach<'_>) -> Answer<Arc<dyn Node>> {
        Ok(Arc::new(TickNode { state: Arc::clone(&self.0), is_file: false }))
    }
}

struct TickNode {
    state: Arc<State>,
    is_file: bool,
}

struct TickFile {
    state: Arc<State>,
    seen: Mutex<(u64, Vec<u8>)>,
}

impl Drop for TickFile {
    fn drop(&mut self) {
        self.state.open.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Node for TickNode {
    fn qid(&self) -> Qid {
        let kind = if self.is_file { QidKind::FILE } else { QidKind::DIRECTORY };
        Qid { kind, version: 0, path: u64::from(self.is_file) + 1 }
    }
    fn walk(&self, name: &[u8]) -> Answer<Arc<dyn Node>> {
        match name {
            b"ticks" if !self.is_file => Ok(Arc::new(Self { state: Arc::clone(&self.state), is_file: true })),
            _ => Err(Errno::ENOENT),
        }
    }
    fn attributes(&self, _: u64) -> Answer<Attributes> {
        let mode = if self.is_file { 0o100_444 } else { 0o040_555 };
        Ok(Attributes { valid: getattr::BASIC, qid: self.qid(), mode, nlink: 1, ..Attributes::default() })
    }
    fn open(&self, _: OpenFlags) -> Answer<Arc<dyn OpenFile>> {
        self.state.open.fetch_add(1, Ordering::SeqCst);
        Ok(Arc::new(TickFile { state: Arc::clone(&self.state), seen: Mutex::default() }))
    }
}

impl OpenFile for TickFile {
    fn read(&self, offset: u64, buffer: &mut [u8], cancel: &Cancel) -> Answer<usize> {
        wait_for(cancel, |waker| self.poll_read(offset, buffer, cancel, waker))
    }
    fn poll_read(&self, _: u64, buffer: &mut [u8], _: &Cancel, waker: &Waker) -> Poll<Answer<usize>> {
        let mut seen = self.seen.lock().unwrap();
        if seen.1.is_empty() {
            let mut waiting = self.state.waiting.lock().unwrap();
            if waiting.0 == seen.0 {
                waiting.1.push(waker.clone());
                return Poll::Pending;
            }
            seen.0 += 1;
            seen.1 = format!("tick {}\n", seen.0).into_bytes();
        }
        let count = buffer.len().min(seen.1.len());
        buffer[..count].copy_from_slice(&seen.1[..count]);
        seen.1.drain(..count);
        Poll::Ready(Ok(count))
    }
    fn read_directory(&self, offset: u64, entries: &mut Entries<'_>) -> Answer<()> {
        let qid = Qid { kind: QidKind::FILE, version: 0, path: 2 };
        if offset == 0 {
            entries.add(&DirectoryEntry { qid, offset: 1, kind: 8, name: b"ticks" });
        }
        Ok(())
    }
}

fn mounted() -> Option<(Ticks, Mount, tempfile::TempDir)> {
    let (ticks, place) = (Ticks::default(), tempfile::tempdir().unwrap());
    let options = MountOptions { policy: Arc::new(|_| Caching::STREAM), ..MountOptions::default() };
    let mount = mount(&ticks, place.path(), options)?;
    Some((ticks, mount, place))
}

fn within_30_s(mut happens: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(30) {
        if happens() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    false
}

#[test]
fn a_shell_reads_line_by_line() {
    let Some((ticks, mount, _place)) = mounted() else { return };
    let script = "while read a b; do echo \"got $b\"; [ $b = 3 ] && break; done < ticks";
    let child = Command::new("sh")
        .args(["-c", script])
        .current_dir(mount.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    for n in 0..3 {
        assert!(within_30_s(|| ticks.n_waiting() > 0), "{n}");
        ticks.tick();
    }
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.stdout, b"got 1\ngot 2\ngot 3\n");
}

#[test]
fn a_cat_that_waits_ends_on_a_signal_and_closes_its_file() {
    let Some((ticks, mount, _place)) = mounted() else { return };
    // Who runs this test may ignore SIGINT, as a script's background job does.
    let mut child = Command::new("env")
        .args(["--default-signal=INT", "cat"])
        .arg(mount.path().join("ticks"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    ticks.tick();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "tick 1\n");
    assert!(within_30_s(|| ticks.n_waiting() > 0));
    assert_eq!(ticks.n_open(), 1);
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert!(!child.wait().unwrap().success());
    assert!(within_30_s(|| ticks.n_open() == 0));
}

#[test]
fn ten_thousand_reads_wait_without_a_thread_each_and_stall_nobody() {
    let Some((ticks, mount, _place)) = mounted() else { return };
    const READERS: usize = 10_000;
    let path = mount.path().join("ticks");
    let n_threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
    let readers: Vec<_> = (0..READERS)
        .map(|_| {
            let path = path.clone();
            std::thread::Builder::new()
                .stack_size(64 << 10)
                .spawn(move || {
                    let mut bytes = [0; 64];
                    let count = File::open(path).unwrap().read(&mut bytes).unwrap();
                    bytes[..count].to_vec()
                })
                .unwrap()
        })
        .collect();
    assert!(within_30_s(|| ticks.n_waiting() >= READERS), "{}", ticks.n_waiting());
    // The readers are threads here, too; what the mount needs besides is a handful. Other tests of this process may
    // have hundreds, for a moment.
    assert!(within_30_s(|| n_threads() < READERS + 100), "{}", n_threads());
    assert!(std::fs::metadata(&path).unwrap().is_file());
    ticks.tick();
    for reader in readers {
        assert_eq!(reader.join().unwrap(), b"tick 1\n");
    }
    assert!(within_30_s(|| ticks.n_open() == 0));
}

/// Such a read occupies a worker: there are a few hundred.
#[test]
fn hundreds_of_reads_wait_for_a_server_and_stall_nobody() {
    const READERS: usize = 300;
    let ticks = Ticks::default();
    let server = Server::start(Arc::new(ticks.clone()), ServerOptions::default()).unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    server.serve(Socket::from(theirs)).unwrap();
    let connection = Connection::over(Socket::from(ours), &ConnectOptions::default()).unwrap();
    let place = tempfile::tempdir().unwrap();
    let options = MountOptions { policy: Arc::new(|_| Caching::STREAM), ..MountOptions::default() };
    let Some(mount) = mount(&Remote::new(connection, None), place.path(), options) else { return };
    let path = mount.path().join("ticks");
    let readers: Vec<_> = (0..READERS)
        .map(|_| {
            let path = path.clone();
            std::thread::spawn(move || {
                let mut bytes = [0; 64];
                let count = File::open(path).unwrap().read(&mut bytes).unwrap();
                bytes[..count].to_vec()
            })
        })
        .collect();
    assert!(within_30_s(|| ticks.n_waiting() >= READERS), "{}", ticks.n_waiting());
    assert!(std::fs::metadata(&path).unwrap().is_file());
    ticks.tick();
    for reader in readers {
        assert_eq!(reader.join().unwrap(), b"tick 1\n");
    }
}

#[test]
fn unmounting_ends_reads_that_wait() {
    let Some((ticks, mount, _place)) = mounted() else { return };
    let path = mount.path().join("ticks");
    let reader = std::thread::spawn(move || File::open(path).unwrap().read(&mut [0; 64]));
    assert!(within_30_s(|| ticks.n_waiting() > 0));
    drop(mount);
    assert!(reader.join().unwrap().is_err());
}
