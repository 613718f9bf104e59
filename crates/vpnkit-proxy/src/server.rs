//! The proxy's sockets, on one thread.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, oneshot};

use crate::config::ProxyConfig;
use crate::relay::{self, Origin};

/// Connections of guests at once; more wait to be accepted.
const CONNECTIONS_MAX: usize = 4096;

/// Connections that were announced and did not come yet.
const ADOPTED_MAX: usize = 8192;

/// How long the head of a request may take.
const HEAD: Duration = Duration::from_secs(60);

/// Most bytes of a request's head.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// How long the process rests when it has no descriptors left.
const PAUSE: Duration = Duration::from_millis(100);

/// How a guest's connection was caught.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The guest knows of the proxy, and plain HTTP's upstream is used: VPNKit's port 3128.
    Explicit,
    /// The same with the upstream of tunnels: VPNKit's port 3129.
    ExplicitSecure,
    /// The guest thinks that it speaks HTTP with another host.
    TransparentHttp,
    /// The guest thinks that it speaks TLS with another host.
    TransparentHttps,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] =
        [Self::Explicit, Self::ExplicitSecure, Self::TransparentHttp, Self::TransparentHttps];
}

/// Why the proxy did not start.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message documents its variant")]
pub enum StartError {
    #[error("the proxy cannot listen on a loopback port")]
    Listen(#[source] io::Error),
    #[error("the proxy's thread cannot be started")]
    Thread(#[source] io::Error),
}

#[derive(Debug)]
struct Shared {
    config: Mutex<Arc<ProxyConfig>>,
    adopted: Mutex<HashMap<SocketAddr, SocketAddr>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A running proxy. Dropping it closes all its connections.
#[derive(Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
    addresses: HashMap<Kind, SocketAddr>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Starts a proxy; it listens when this returns.
    ///
    /// # Errors
    /// When the system has no ports, descriptors or threads left.
    pub fn start(config: ProxyConfig) -> Result<Self, StartError> {
        let shared =
            Arc::new(Shared { config: Mutex::new(Arc::new(config)), adopted: Mutex::new(HashMap::new()) });
        let mut addresses = HashMap::new();
        let mut listeners = Vec::new();
        for kind in Kind::ALL {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(StartError::Listen)?;
            listener.set_nonblocking(true).map_err(StartError::Listen)?;
            addresses.insert(kind, listener.local_addr().map_err(StartError::Listen)?);
            listeners.push((kind, listener));
        }
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(StartError::Thread)?;
        let (stop, stopped) = oneshot::channel();
        let served = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("vpnkit-proxy".into())
            .spawn(move || {
                runtime.block_on(async {
                    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
                    for (kind, listener) in listeners {
                        tokio::spawn(accept(kind, listener, Arc::clone(&served), Arc::clone(&room)));
                    }
                    // A sender that is gone says the same.
                    let _ = stopped.await;
                });
                runtime.shutdown_background();
            })
            .map_err(StartError::Thread)?;
        Ok(Self { shared, addresses, stop: Some(stop), thread: Some(thread) })
    }

    /// Where connections of a kind are to be made to: a loopback address of the host.
    pub fn address(&self, kind: Kind) -> SocketAddr {
        self.addresses[&kind]
    }

    /// Has requests from now on go by other settings.
    pub fn configure(&self, config: ProxyConfig) {
        *lock(&self.shared.config) = Arc::new(config);
    }

    /// Says that the connection which will come from `local` was caught on its way to `destination`. To be called before
    /// it is made; what does not come is forgotten in the end.
    pub fn adopt(&self, local: SocketAddr, destination: SocketAddr) {
        let mut adopted = lock(&self.shared.adopted);
        if adopted.len() >= ADOPTED_MAX {
            adopted.clear();
        }
        adopted.insert(local, destination);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept(kind: Kind, listener: TcpListener, shared: Arc<Shared>, room: Arc<Semaphore>) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, peer)) => {
                let destination = lock(&shared.adopted).remove(&peer);
                let shared = Arc::clone(&shared);
                tokio::spawn(async move {
                    serve(&shared, Origin { kind, destination }, stream).await;
                    drop(permit);
                });
            }
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

async fn serve(shared: &Shared, origin: Origin, stream: TcpStream) {
    // If it fails, segments are a little later.
    let _ = stream.set_nodelay(true);
    let current = || Arc::clone(&lock(&shared.config));
    if origin.kind == Kind::TransparentHttps {
        return relay::secure(&current(), &origin, stream).await;
    }
    let service = service_fn(|request| {
        let config = current();
        let origin = &origin;
        async move { Ok::<_, Infallible>(relay::answer(&config, origin, request).await) }
    });
    // It fails when the guest does something wrong, and was told so.
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
}
