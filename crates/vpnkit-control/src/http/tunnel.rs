//! gvproxy's `POST /tunnel?ip=IP&port=PORT`: the connection itself, after the letters `OK` and no HTTP answer, becomes a
//! stream to a guest's port. What does not begin like that is left to the HTTP server untouched: the beginning is looked at
//! and not read.
//!
//! Spec: containers/gvisor-tap-vsock, `pkg/virtualnetwork/mux.go`, `pkg/transport/tunnel.go`.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use axum::serve::Listener;
use rustix::net::{RecvFlags, SendFlags};
use tokio::io::{AsyncRead, AsyncWrite, Interest};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::mpsc;

use crate::network::Network;

/// How a request for a tunnel begins.
const BEGIN: &[u8] = b"POST /tunnel?";
/// Bytes of a request for a tunnel at most.
const REQUEST_BYTES_MAX: usize = 4096;
/// How long the beginning may take to come.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long more of it is waited for before it is looked at again.
const LOOK: Duration = Duration::from_millis(5);
/// How long the listener rests when the process has no descriptors left.
const REST: Duration = Duration::from_millis(100);
/// Connections that wait for the HTTP server.
const WAITING_MAX: usize = 64;

/// What both kinds of streams can do.
pub trait Stream: AsyncRead + AsyncWrite + AsFd + Unpin + Send + Sync + 'static {
    /// Waits until something can be read.
    fn readable(&self) -> impl Future<Output = io::Result<()>> + Send;

    /// What `look` says when there is something to read.
    ///
    /// # Errors
    /// As `look`.
    fn try_look(&self, look: impl FnMut() -> io::Result<usize>) -> io::Result<usize>;

    /// The socket, out of the runtime's hands.
    ///
    /// # Errors
    /// When the runtime does not let it go.
    fn into_fd(self) -> io::Result<OwnedFd>;
}

/// What both kinds of listeners can do.
pub trait Listens: Send + Sync + 'static {
    /// What comes in.
    type Stream: Stream;
    /// Waits for the next one.
    fn next(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

macro_rules! streams {
    ($stream:ty, $listener:ty) => {
        impl Stream for $stream {
            async fn readable(&self) -> io::Result<()> {
                <$stream>::readable(self).await
            }
            fn try_look(&self, look: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
                self.try_io(Interest::READABLE, look)
            }
            fn into_fd(self) -> io::Result<OwnedFd> {
                self.into_std().map(OwnedFd::from)
            }
        }
        impl Listens for $listener {
            type Stream = $stream;
            async fn next(&self) -> io::Result<$stream> {
                self.accept().await.map(|(stream, _)| stream)
            }
        }
    };
}

streams!(UnixStream, UnixListener);
streams!(TcpStream, TcpListener);

/// The connections of a listener that are for HTTP; the others become tunnels.
pub struct Sorted<S>(mpsc::Receiver<S>);

impl<S: Stream> Sorted<S> {
    /// Takes the connections of `listener` from now on, on the runtime of this thread.
    pub fn new(listener: impl Listens<Stream = S>, network: Arc<dyn Network>) -> Self {
        let (for_http, sorted) = mpsc::channel(WAITING_MAX);
        tokio::spawn(async move {
            while !for_http.is_closed() {
                let Ok(stream) = listener.next().await else {
                    tokio::time::sleep(REST).await;
                    continue;
                };
                tokio::spawn(sort(stream, Arc::clone(&network), for_http.clone()));
            }
        });
        Self(sorted)
    }
}

impl<S: Stream> Listener for Sorted<S> {
    type Io = S;
    type Addr = ();

    async fn accept(&mut self) -> (S, ()) {
        match self.0.recv().await {
            Some(stream) => (stream, ()),
            // The runtime ends.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<()> {
        Ok(())
    }
}

async fn sort<S: Stream>(stream: S, network: Arc<dyn Network>, for_http: mpsc::Sender<S>) {
    match tokio::time::timeout(PATIENCE, request(&stream)).await {
        Ok(Ok(Some(head))) => match target(&head).filter(|guest| network.check_guest(*guest).is_ok()) {
            Some(guest) => {
                // Without an answer the client sees that nothing came of it.
                let _ = lead(stream, &head, guest, &*network);
            }
            // HTTP says that it leads nowhere.
            None => {
                let _ = for_http.send(stream).await;
            }
        },
        Ok(Ok(None)) | Err(_) => {
            // The server may have ended.
            let _ = for_http.send(stream).await;
        }
        Ok(Err(_)) => {}
    }
}

/// Waits for the head of a request for a tunnel and returns it, still unread; `None` for any other beginning.
async fn request<S: Stream>(stream: &S) -> io::Result<Option<Vec<u8>>> {
    let mut seen = vec![0; REQUEST_BYTES_MAX];
    loop {
        stream.readable().await?;
        let looked = stream.try_look(|| {
            let (_, count) = rustix::net::recv(stream.as_fd(), &mut seen[..], RecvFlags::PEEK)?;
            Ok(count)
        });
        let count = match looked {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            other => other?,
        };
        let begin = &seen[..count.min(BEGIN.len())];
        if count == 0 || *begin != BEGIN[..begin.len()] {
            return Ok(None);
        }
        if let Some(end) = seen[..count].windows(4).position(|window| window == b"\r\n\r\n") {
            seen.truncate(end + 4);
            return Ok(Some(seen));
        }
        if count == REQUEST_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Where the head of a request wants to go; nowhere if it is a web page's: see [`super::body::refuse_pages`].
fn target(head: &[u8]) -> Option<SocketAddr> {
    let mut lines = head.split(|byte| *byte == b'\n');
    if lines.any(|line| line.get(..7).is_some_and(|name| name.eq_ignore_ascii_case(b"origin:"))) {
        return None;
    }
    let line = std::str::from_utf8(head.strip_prefix(BEGIN)?).ok()?.lines().next()?;
    let (query, _) = line.split_once(' ')?;
    let field = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    // An IPv6 address may have its colons written as %3A.
    let ip: IpAddr = field("ip")?.replace("%3A", ":").replace("%3a", ":").parse().ok()?;
    Some(SocketAddr::new(ip, field("port")?.parse().ok()?))
}

/// Takes the head off the stream, says that all is well, and leads it to the guest.
fn lead<S: Stream>(stream: S, head: &[u8], guest: SocketAddr, network: &dyn Network) -> io::Result<()> {
    let fd = stream.into_fd()?;
    let mut rest = head.len();
    while rest > 0 {
        let mut taken = [0; 512];
        let most = rest.min(taken.len());
        let (_, count) = rustix::net::recv(&fd, &mut taken[..most], RecvFlags::empty())?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        rest -= count;
    }
    rustix::net::send(&fd, b"OK", SendFlags::NOSIGNAL)?;
    network.lead(fd, guest).map_err(|_| io::ErrorKind::InvalidInput.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_is_in_the_query() {
        let check = |line: &str, expected: Option<&str>| {
            let head = format!("{line}\r\nHost: x\r\n\r\n");
            assert_eq!(target(head.as_bytes()).map(|to| to.to_string()).as_deref(), expected, "{line}");
        };
        check("POST /tunnel?ip=192.168.65.3&port=22 HTTP/1.1", Some("192.168.65.3:22"));
        check("POST /tunnel?port=22&ip=fd00%3A%3A3 HTTP/1.1", Some("[fd00::3]:22"));
        check("POST /tunnel?ip=192.168.65.3 HTTP/1.1", None);
        check("POST /tunnel?ip=192.168.65.3&port=70000 HTTP/1.1", None);
        check("POST /tunnel?ip=x&port=1 HTTP/1.1", None);
        check("POST /tunnel?ip=192.168.65.3&port=22", None);
        check("POST /tunnel?ip=192.168.65.3&port=22 HTTP/1.1\r\norigin: http://page.example", None);
    }
}
