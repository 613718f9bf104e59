//! The process outside of the sandbox: it follows files, makes and removes Unix sockets, and says when something that the
//! network is for has gone. What it may be asked for is settled before the other process is confined.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ethlink::pass;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{Pid, WaitOptions, waitpid};

use crate::code::Code;
use crate::sys;
use crate::watch::{FILE_BYTES_MAX, Watch};

/// Bytes of a path, as sockaddr_un has them at most.
const PATH_BYTES_MAX: usize = 108;
/// Sockets removed in the end.
const OWNED_MAX: usize = 1024;

/// Something that ends: it returns when it has, or errs when that cannot be seen.
pub type Ending = Box<dyn FnOnce() -> io::Result<()> + Send>;

/// Reads the sockets that a file names out of its text.
pub type Named = fn(&str) -> Vec<PathBuf>;

/// What the warden is charged with.
#[derive(Default)]
pub struct Charge {
    /// Files that are followed, by number.
    pub files: Vec<PathBuf>,
    /// Something whose end is told.
    pub ending: Option<Ending>,
    /// Folders that sockets may be bound in; `None` is any.
    pub folders: Option<Vec<PathBuf>>,
    /// Sockets that may be connected to.
    pub sockets: Vec<PathBuf>,
    /// The file, by number, that names more of them, and how to read it.
    pub connects: Option<(usize, Named)>,
}

impl std::fmt::Debug for Charge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Charge").field("files", &self.files).finish_non_exhaustive()
    }
}

/// What the warden says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A file is there, or has changed.
    File(usize, Vec<u8>),
    /// A file is missing, unreadable or too large.
    Missing(usize),
    /// What was watched has ended.
    Ended,
}

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ask {
    /// The socket at this path is to be removed in the end.
    Own = 1,
    /// From now on nothing new is owned.
    Seal,
    Bind,
    Connect,
    /// The socket at this path is to be removed now.
    Remove,
}

/// A running warden. Dropping it ends it, when the sockets are removed.
#[derive(Debug)]
pub struct Warden {
    asks: Mutex<UnixStream>,
    pid: Pid,
}

/// What a warden says, in order.
#[derive(Debug)]
pub struct Events(UnixStream);

impl Warden {
    /// Starts it. This process must have one thread. All files are among the first events, in order.
    ///
    /// # Errors
    /// When there is a second thread, or the system has no process or descriptor left.
    pub fn start(charge: Charge) -> io::Result<(Self, Events)> {
        let (asks, asked) = UnixStream::pair()?;
        let (events, telling) = UnixStream::pair()?;
        match sys::fork()? {
            Some(pid) => Ok((Self { asks: Mutex::new(asks), pid }, Events(events))),
            None => {
                // Neither copy of the other's ends, nor anything else that is open, is for this process.
                sys::close_all_but(vec![asked.as_raw_fd(), telling.as_raw_fd()]);
                std::mem::forget((asks, events));
                sys::ignore_signals();
                let _ = rustix::thread::set_no_new_privs(true);
                let _ = rustix::thread::set_name(c"vpnkit-warden");
                serve(charge, asked, telling);
                sys::leave();
            }
        }
    }

    fn asks(&self) -> MutexGuard<'_, UnixStream> {
        self.asks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(&self, what: Ask, path: &Path) -> io::Result<MutexGuard<'_, UnixStream>> {
        let path = path.as_os_str().as_bytes();
        if path.len() > PATH_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the path is too long for a socket"));
        }
        let mut asks = self.asks();
        asks.write_all(&[&[what as u8, path.len() as u8][..], path].concat())?;
        Ok(asks)
    }

    /// Has the socket at `path`, which is there, removed in the end.
    ///
    /// # Errors
    /// When the warden is gone.
    pub fn own(&self, path: &Path) -> io::Result<()> {
        self.ask(Ask::Own, &absolute(path)).map(drop)
    }

    /// Ends what [`Warden::own`] is for: to be called before anything hostile may speak.
    ///
    /// # Errors
    /// When the warden is gone.
    pub fn seal(&self) -> io::Result<()> {
        self.ask(Ask::Seal, Path::new("")).map(drop)
    }

    /// Makes a listening socket at `path`, in a folder that it is charged with. A socket that nobody listens to any more
    /// is replaced.
    ///
    /// # Errors
    /// As bind(2); permission denied elsewhere.
    pub fn bind(&self, path: &Path) -> io::Result<UnixListener> {
        let asks = self.ask(Ask::Bind, path)?;
        Ok(answer(&asks)?.into())
    }

    /// Removes a socket that [`Warden::bind`] made.
    ///
    /// # Errors
    /// When the warden is gone.
    pub fn remove(&self, path: &Path) -> io::Result<()> {
        self.ask(Ask::Remove, path).map(drop)
    }

    /// Connects to a socket that it is charged with, or that the file for it names.
    ///
    /// # Errors
    /// As connect(2); permission denied for others.
    pub fn connect(&self, path: &Path) -> io::Result<UnixStream> {
        let asks = self.ask(Ask::Connect, path)?;
        Ok(answer(&asks)?.into())
    }
}

impl Drop for Warden {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.asks().shutdown(std::net::Shutdown::Both);
        let _ = waitpid(Some(self.pid), WaitOptions::empty());
    }
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Takes a descriptor, or the error in its place.
fn answer(mut asks: &UnixStream) -> io::Result<OwnedFd> {
    if let Some(fd) = pass::receive(asks)? {
        return Ok(fd);
    }
    let mut code = [0; 4];
    asks.read_exact(&mut code)?;
    Err(io::Error::from_raw_os_error(i32::from_le_bytes(code)))
}

impl Iterator for Events {
    type Item = Event;

    /// Waits for the next event; `None` when the warden is gone.
    fn next(&mut self) -> Option<Event> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).ok()?;
        let [kind, rest @ ..] = head;
        let word = |at: usize| u32::from_le_bytes([rest[at], rest[at + 1], rest[at + 2], rest[at + 3]]);
        let (index, length) = (word(0) as usize, word(4));
        match kind {
            0 if u64::from(length) <= FILE_BYTES_MAX => {
                let mut bytes = vec![0; length as usize];
                self.0.read_exact(&mut bytes).ok()?;
                Some(Event::File(index, bytes))
            }
            1 => Some(Event::Missing(index)),
            2 => Some(Event::Ended),
            _ => None,
        }
    }
}

fn tell(mut to: &UnixStream, event: &Event) -> io::Result<()> {
    let (kind, index, bytes): (u8, usize, &[u8]) = match event {
        Event::File(index, bytes) => (0, *index, bytes),
        Event::Missing(index) => (1, *index, &[]),
        Event::Ended => (2, 0, &[]),
    };
    let mut message = vec![kind];
    message.extend_from_slice(&(index as u32).to_le_bytes());
    message.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    message.extend_from_slice(bytes);
    to.write_all(&message)
}

/// What the warden knows while it serves.
struct Office {
    owned: Vec<(PathBuf, (u64, u64))>,
    sealed: bool,
    folders: Option<Vec<PathBuf>>,
    sockets: Vec<PathBuf>,
    /// Those that the file names now.
    connects: std::sync::Arc<Mutex<Vec<PathBuf>>>,
}

/// The second process: until the first is gone.
fn serve(charge: Charge, mut asked: UnixStream, telling: UnixStream) {
    let connects = std::sync::Arc::new(Mutex::new(Vec::new()));
    if let (Some(ending), Ok(telling)) = (charge.ending, telling.try_clone()) {
        std::thread::spawn(move || {
            // What cannot be watched ends with a signal only.
            if ending().is_ok() {
                let _ = tell(&telling, &Event::Ended);
            }
        });
    }
    let mut watch = Watch::new(charge.files);
    let named = std::sync::Arc::clone(&connects);
    let reader = charge.connects;
    std::thread::spawn(move || {
        let mut changed = watch.first();
        loop {
            for (index, bytes) in changed {
                if let (Some((_, read)), Some(bytes)) = (reader.filter(|(file, _)| *file == index), &bytes) {
                    let paths = read(&String::from_utf8_lossy(bytes));
                    *named.lock().unwrap_or_else(PoisonError::into_inner) = paths;
                }
                let event = bytes.map_or(Event::Missing(index), |bytes| Event::File(index, bytes));
                if tell(&telling, &event).is_err() {
                    return;
                }
            }
            changed = watch.next();
        }
    });
    let folders = charge.folders.map(|folders| folders.iter().map(|folder| absolute(folder)).collect());
    let (owned, sockets) = (Vec::new(), charge.sockets);
    let mut office = Office { owned, sealed: false, folders, sockets, connects };
    if let Ok(code) = Code::find() {
        code.release();
    }
    while office.take(&mut asked).is_ok() {}
    for (path, identity) in office.owned {
        // Another program may have made its own there since.
        if identity_of(&path) == Some(identity) {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn identity_of(path: &Path) -> Option<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path).ok()?;
    metadata.file_type().is_socket().then(|| (metadata.dev(), metadata.ino()))
}

impl Office {
    /// Takes one request; errs when there will be no more.
    fn take(&mut self, asked: &mut UnixStream) -> io::Result<()> {
        let mut head = [0; 2];
        asked.read_exact(&mut head)?;
        let mut path = vec![0; usize::from(head[1])];
        asked.read_exact(&mut path)?;
        let path = PathBuf::from(std::ffi::OsString::from_vec(path));
        match head[0] {
            ask if ask == Ask::Own as u8 => self.own(path),
            ask if ask == Ask::Seal as u8 => self.sealed = true,
            ask if ask == Ask::Bind as u8 => {
                let bound = self.bind(&path);
                reply(asked, bound.as_ref().map(AsFd::as_fd))?;
            }
            ask if ask == Ask::Remove as u8 => self.remove(&path),
            ask if ask == Ask::Connect as u8 => {
                let connected = self.connect(&path);
                reply(asked, connected.as_ref().map(AsFd::as_fd))?;
            }
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }
        Ok(())
    }

    fn own(&mut self, path: PathBuf) {
        if let Some(identity) = identity_of(&path).filter(|_| !self.sealed && self.owned.len() < OWNED_MAX) {
            self.owned.push((path, identity));
        }
    }

    /// The path without links, if sockets may be bound there.
    fn place(&self, path: &Path) -> io::Result<PathBuf> {
        let refused = || io::Error::from_raw_os_error(libc::EACCES);
        // Whether what is above a folder exists is not told either.
        if path.components().any(|part| part == std::path::Component::ParentDir) {
            return Err(refused());
        }
        let (folder, name) = path.parent().zip(path.file_name()).ok_or_else(refused)?;
        let may = |folder: &Path| {
            let Some(folders) = &self.folders else { return true };
            let within =
                |allowed: &PathBuf| allowed.canonicalize().is_ok_and(|allowed| folder.starts_with(allowed));
            folders.iter().any(within)
        };
        // What is not there is told only where it may be.
        let folder = folder.canonicalize().map_err(|error| if may(folder) { error } else { refused() })?;
        if may(&folder) { Ok(folder.join(name)) } else { Err(refused()) }
    }

    fn remove(&mut self, path: &Path) {
        let Ok(path) = self.place(path) else { return };
        if let Some(at) = self.owned.iter().position(|(owned, _)| *owned == path) {
            let (path, identity) = self.owned.swap_remove(at);
            if identity_of(&path) == Some(identity) {
                let _ = std::fs::remove_file(path);
            }
        }
    }

    fn bind(&mut self, path: &Path) -> io::Result<UnixListener> {
        let path = self.place(path)?;
        let is_dead = connect_now(&path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
        if is_dead && identity_of(&path).is_some() {
            std::fs::remove_file(&path)?;
        }
        let listener = UnixListener::bind(&path)?;
        self.owned.retain(|(_, identity)| identity_of(&path) != Some(*identity));
        if let Some(identity) = identity_of(&path).filter(|_| self.owned.len() < OWNED_MAX) {
            self.owned.push((path, identity));
        }
        Ok(listener)
    }

    fn connect(&self, path: &Path) -> io::Result<UnixStream> {
        let known = self.connects.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.sockets.iter().chain(known.iter()).any(|known| known == path) {
            return Err(io::Error::from_raw_os_error(libc::EACCES));
        }
        drop(known);
        connect_now(path)
    }
}

/// Connects to a Unix socket at once or not at all: who listens and accepts nothing, with a full queue, would hold up all
/// that is asked after it, and who asks. See connect(2), `EAGAIN`.
fn connect_now(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

fn reply(mut asked: &UnixStream, result: Result<BorrowedFd<'_>, &io::Error>) -> io::Result<()> {
    match result {
        Ok(fd) => pass::send(asked, fd),
        Err(error) => {
            let code = error.raw_os_error().unwrap_or(libc::EIO);
            asked.write_all(&[&[1][..], &code.to_le_bytes()].concat())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_accepts_nobody_holds_nobody_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener =
            net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        net::bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        net::listen(&listener, 1).unwrap();
        let mut waiting = Vec::new();
        let error = loop {
            match connect_now(&path) {
                Ok(stream) => waiting.push(stream),
                Err(error) => break error,
            }
        };
        assert_eq!((error.kind(), waiting.len()), (io::ErrorKind::WouldBlock, 2));
    }
}
