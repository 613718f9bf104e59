//! The HTTP server: one thread, unix sockets or TCP.

mod body;
mod gvproxy;
mod listening;
mod observe;
mod proxy;
mod tunnel;
mod vpnkit;
mod zones;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::vpnkit::HubLink;
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use tokio::sync::oneshot;
use vpnkit_capture::Recorder;

use crate::exposed::{ExposeError, Exposed};
use crate::paths::Paths;

pub use listening::Listening;
pub(crate) use observe::{drops_of, flows_of, metrics_of};
pub use proxy::Settings;
pub use zones::Zones;

/// Largest body of a request, in bytes.
const BODY_BYTES_MAX: usize = 64 << 10;

/// Why no API is served.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message documents its variant")]
pub enum ServeError {
    #[error("the socket {} cannot be made", path.display())]
    Socket { path: PathBuf, source: io::Error },
    #[error("{} is in use by another program", path.display())]
    InUse { path: PathBuf },
    #[error("{address} cannot be listened at")]
    Address { address: SocketAddr, source: io::Error },
    #[error("starting the server failed")]
    Start(#[source] io::Error),
}

/// What the API serves.
#[derive(Debug, Clone)]
pub struct Api {
    /// Ports and the network behind them.
    pub exposed: Arc<Exposed>,
    /// Unix sockets that lead to guests, if there may be any.
    pub paths: Option<Arc<Paths>>,
    /// Captures.
    pub recorder: Arc<Recorder>,
    /// What `/status` says.
    pub status: Arc<serde_json::Value>,
    /// The HTTP proxy, if there is one.
    pub proxy: Option<Arc<dyn Settings>>,
    /// Zones of the name server.
    pub zones: Arc<Zones>,
    /// The switch, where machines are on sockets: a device alone needs none.
    pub switch: Option<Arc<HubLink>>,
}

impl Api {
    fn router(self) -> Router {
        Router::new()
            .merge(vpnkit::router())
            .merge(gvproxy::router())
            .merge(observe::router())
            .merge(proxy::router())
            .merge(zones::router())
            .route("/tunnel", post(no_tunnel))
            .fallback(unknown)
            .method_not_allowed_fallback(not_so)
            .layer(axum::middleware::from_fn(body::refuse_pages))
            .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
            .with_state(self)
    }
}

/// What [`tunnel`] leaves to HTTP leads to no guest.
async fn no_tunnel() -> Refusal {
    Refusal::bad("this leads to no guest: /tunnel?ip=IP&port=PORT, where the network has such an address")
}

async fn unknown(uri: Uri) -> Refusal {
    let message = format!("there is no {}: docs/guide/vpnkit.md has the paths", uri.path());
    Refusal { status: StatusCode::NOT_FOUND, message }
}

async fn not_so(method: Method, uri: Uri) -> Refusal {
    let message = format!("{} takes no {method}", uri.path());
    Refusal { status: StatusCode::METHOD_NOT_ALLOWED, message }
}

/// A running server. Dropping it ends it and removes its socket.
#[derive(Debug)]
pub struct Server {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
    path: Option<PathBuf>,
    address: Option<SocketAddr>,
}

impl Server {
    /// Serves on a unix socket. A socket that a program which is gone left there is replaced.
    ///
    /// # Errors
    /// When the path is in use or cannot be bound.
    pub fn unix(api: Api, path: &Path) -> Result<Self, ServeError> {
        Self::on(api, Listening::unix(path)?)
    }

    /// Serves on a TCP port. Anybody who can connect controls the network: bind loopback addresses only.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn tcp(api: Api, address: SocketAddr) -> Result<Self, ServeError> {
        Self::on(api, Listening::tcp(address)?)
    }

    /// Serves on a socket that is bound.
    ///
    /// # Errors
    /// When the system has no descriptor or thread left.
    pub fn on(api: Api, listening: Listening) -> Result<Self, ServeError> {
        let address = listening.address();
        match listening {
            Listening::Unix(listener, path) => {
                let mut server = Self::start(move |stop| async move {
                    let listener = tokio::net::UnixListener::from_std(listener)?;
                    let listener = tunnel::Sorted::new(listener, Arc::clone(api.exposed.network()));
                    axum::serve(listener, api.router()).with_graceful_shutdown(stopped(stop)).await
                })?;
                server.path = Some(path);
                Ok(server)
            }
            Listening::Tcp(listener) => {
                let mut server = Self::start(move |stop| async move {
                    let listener = tokio::net::TcpListener::from_std(listener)?;
                    let listener = tunnel::Sorted::new(listener, Arc::clone(api.exposed.network()));
                    axum::serve(listener, api.router()).with_graceful_shutdown(stopped(stop)).await
                })?;
                server.address = address;
                Ok(server)
            }
        }
    }

    /// Where it listens, on TCP.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    fn start<F>(serve: impl FnOnce(oneshot::Receiver<()>) -> F + Send + 'static) -> Result<Self, ServeError>
    where
        F: Future<Output = io::Result<()>>,
    {
        let (stop, ended) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(vpnkit_capture::recorder::SUBSCRIPTIONS_MAX)
            .build()
            .map_err(ServeError::Start)?;
        let thread = std::thread::Builder::new()
            .name("vpnkit-http".into())
            .spawn(move || {
                // It ends with an error only when the listener is lost; then nothing can be said to anybody.
                let _ = runtime.block_on(async {
                    let (finish, finished) = oneshot::channel();
                    let mut serving = std::pin::pin!(serve(finished));
                    tokio::select! {
                        result = &mut serving => result,
                        () = stopped(ended) => {
                            // Requests under way get a moment; streams without end would take for ever.
                            let _ = finish.send(());
                            tokio::time::timeout(GRACE, serving).await.unwrap_or(Ok(()))
                        }
                    }
                });
                runtime.shutdown_timeout(GRACE);
            })
            .map_err(ServeError::Start)?;
        Ok(Self { stop: Some(stop), thread: Some(thread), path: None, address: None })
    }
}

/// How long requests under way may take when the server ends.
const GRACE: std::time::Duration = std::time::Duration::from_millis(500);

async fn stopped(stop: oneshot::Receiver<()>) {
    // A sender that is gone says the same.
    let _ = stop.await;
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        if let Some(path) = &self.path {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// What a client did wrong, or what the host refused.
#[derive(Debug)]
pub(crate) struct Refusal {
    status: StatusCode,
    message: String,
}

impl Refusal {
    fn bad(message: impl ToString) -> Self {
        Self { status: StatusCode::BAD_REQUEST, message: message.to_string() }
    }

    fn failed(message: impl ToString) -> Self {
        Self { status: StatusCode::INTERNAL_SERVER_ERROR, message: message.to_string() }
    }

    fn no_paths() -> Self {
        Self::bad("sockets cannot be exposed: the network was started without --forward-sockets FOLDER")
    }

    fn of(error: &ExposeError) -> Self {
        Self::bad(error.shown())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status, axum::Json(serde_json::json!({ "message": self.message }))).into_response()
    }
}
