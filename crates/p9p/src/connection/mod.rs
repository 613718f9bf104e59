//! A client's connection: many requests in flight, from several threads, in any dialect.
//!
//! [`Connection`] is cheap to clone, and all clones are one session. Every operation can be called from any thread; each
//! sends its request at once and waits for its own reply only. [`Connection::start`] does not even wait: that is how
//! files are read ahead and written behind ([`Connection::read_file`], [`Connection::write_file`]).
//!
//! There is no thread behind it. Whoever waits for a reply reads the stream, and gives replies that are another's to
//! that one; so one caller alone never waits for a change of threads. A call that takes too long or is cancelled is
//! flushed, as flush(5) wants: its tag is not used again before the server said so.
//!
//! ```no_run
//! use p9p::connection::{ConnectOptions, Connection};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let connection = Connection::open(&"tcp://localhost:5640".parse()?, &ConnectOptions::default())?;
//! let root = connection.attach(b"user", 1000, b"")?;
//! let file = connection.walk_path(root, b"etc/motd")?;
//! connection.open_file(file, p9p::filesystem::OpenFlags::RDONLY)?;
//! connection.read_file(file, 0, &mut std::io::stdout())?;
//! # Ok(())
//! # }
//! ```

mod call;
mod classic;
mod listing;
mod operations;
mod reply;
mod transfer;

use std::io::{Read, Write};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::client::ClientError;
use crate::message::{Dialect, Fid, IO_HEADER_BYTES, Reply, Request, Tag};
use crate::net::{Address, Socket, SocketError};
use crate::server::MSIZE_MAX;
pub use call::Call;
use call::{Calls, Receiver};
pub use transfer::CopyError;

/// How a connection is made.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// Longest message in bytes; the server may want less.
    pub msize: u32,
    /// The dialects that will do, the best first.
    pub dialects: Vec<Dialect>,
    /// How long connecting may take, and every call unless it says another.
    pub timeout: Option<Duration>,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self { msize: 1 << 20, dialects: vec![Dialect::Linux, Dialect::Unix, Dialect::Plan9], timeout: None }
    }
}

/// How long connecting may take when nothing else is said.
const CONNECT_WAIT: Duration = Duration::from_secs(30);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// There is nobody at the address.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// There is somebody, who does not speak 9P with us.
    #[error("the server cannot be talked to")]
    Session(#[from] ClientError),
}

/// The two directions of a byte stream to a server.
pub struct Link {
    reader: Box<dyn Read + Send>,
    writer: Box<dyn Write + Send>,
    /// Where waiting can be limited in time.
    socket: Option<Socket>,
}

impl Link {
    /// Any two streams. Calls over them cannot time out while they wait for the server.
    pub fn new(reader: impl Read + Send + 'static, writer: impl Write + Send + 'static) -> Self {
        Self { reader: Box::new(reader), writer: Box::new(writer), socket: None }
    }
}

impl From<Socket> for Link {
    fn from(socket: Socket) -> Self {
        let (reader, writer) = (Box::new(socket.clone()), Box::new(socket.clone()));
        Self { reader, writer, socket: Some(socket) }
    }
}

/// A session with a server.
#[derive(Clone)]
pub struct Connection {
    inner: Arc<Inner>,
}

struct Inner {
    dialect: Dialect,
    msize: u32,
    timeout: Option<Duration>,
    calls: Mutex<Calls>,
    receiver: Mutex<Receiver>,
    writer: Mutex<Box<dyn Write + Send>>,
    /// Buffers as long as the longest message, for the next ones.
    buffers: Mutex<Vec<Vec<u8>>>,
    next_fid: AtomicU32,
    free_fids: Mutex<Vec<Fid>>,
    socket: Option<Socket>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What calls answer.
pub type Called<T> = Result<T, ClientError>;

impl Connection {
    /// Connects to a server.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub fn open(address: &Address, options: &ConnectOptions) -> Result<Self, ConnectError> {
        let socket = Socket::connect(address, options.timeout.unwrap_or(CONNECT_WAIT))?;
        Ok(Self::over(socket, options)?)
    }

    /// Begins a session over a stream.
    ///
    /// # Errors
    /// [`ClientError::Dialect`] when the server speaks none of the dialects, and what the stream fails with.
    pub fn over(link: impl Into<Link>, options: &ConnectOptions) -> Called<Self> {
        let Link { reader, writer, socket } = link.into();
        let msize = options.msize.clamp(IO_HEADER_BYTES + 1, MSIZE_MAX);
        let mut inner = Inner {
            dialect: Dialect::Linux,
            msize,
            timeout: options.timeout,
            calls: Mutex::default(),
            receiver: Mutex::new(Receiver::new(reader, socket.clone())),
            writer: Mutex::new(writer),
            buffers: Mutex::default(),
            next_fid: AtomicU32::new(0),
            free_fids: Mutex::default(),
            socket,
        };
        for dialect in &options.dialects {
            inner.dialect = *dialect;
            inner.msize = msize;
            let connection = Self { inner: Arc::new(inner) };
            let name = dialect.name().as_bytes();
            let reply =
                connection.start_with_tag(Tag::NONE, &Request::Version { msize, version: name })?.wait()?;
            let agreed = reply.expect(|reply| match reply {
                Reply::Version { msize, version } => Some((*msize, *version == name)),
                _ => None,
            })?;
            drop(reply);
            inner = Arc::into_inner(connection.inner).ok_or(ClientError::Dialect)?;
            match agreed {
                (agreed, true) if agreed <= msize && agreed > IO_HEADER_BYTES => {
                    inner.msize = agreed;
                    return Ok(Self { inner: Arc::new(inner) });
                }
                _ => {}
            }
        }
        Err(ClientError::Dialect)
    }

    /// What was agreed on, in bytes.
    pub fn msize(&self) -> u32 {
        self.inner.msize
    }

    /// What was agreed on.
    pub fn dialect(&self) -> Dialect {
        self.inner.dialect
    }

    /// Most bytes of one read or write.
    pub fn iounit(&self) -> u32 {
        self.inner.msize - IO_HEADER_BYTES
    }

    /// A fid number that is not in use.
    pub fn fresh_fid(&self) -> Fid {
        let free = lock(&self.inner.free_fids).pop();
        free.unwrap_or_else(|| Fid(self.inner.next_fid.fetch_add(1, Ordering::Relaxed)))
    }

    /// The server has forgotten this fid.
    fn release_fid(&self, fid: Fid) {
        lock(&self.inner.free_fids).push(fid);
    }

    /// Ends the connection: calls under way fail.
    pub fn hang_up(&self) {
        if let Some(socket) = &self.inner.socket {
            socket.hang_up();
        }
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("dialect", &self.inner.dialect)
            .field("msize", &self.inner.msize)
            .finish_non_exhaustive()
    }
}
