//! Unix sockets of the host that lead to ports of guests, or to Unix sockets in them.
//!
//! As with ports, to expose what is exposed already is no error.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use vpnkit::ForwardError;

use crate::network::Network;

/// Sockets that may be exposed at once.
pub const PATHS_MAX: usize = 512;
/// How long a socket rests when the process has no descriptors left.
const REST: Duration = Duration::from_millis(100);

/// Makes and removes sockets: a confined process has it done for it.
pub trait Places: Send + Sync {
    /// Listens at a path.
    ///
    /// # Errors
    /// As bind(2), and when no socket may be there.
    fn bind(&self, path: &Path) -> io::Result<UnixListener>;

    /// Removes what [`Places::bind`] made there.
    fn remove(&self, path: &Path);
}

/// Why a socket was not exposed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message documents its variant")]
pub enum PathError {
    #[error("`{}` is not an absolute path", .0.display())]
    Relative(PathBuf),
    #[error("the socket {} cannot be made: {source}", path.display())]
    Bind { path: PathBuf, source: io::Error },
    #[error("{} leads to {target} already", path.display())]
    Taken { path: PathBuf, target: Target },
    #[error("{PATHS_MAX} sockets are exposed already")]
    TooMany,
    #[error(transparent)]
    Guest(#[from] ForwardError),
}

/// Where a socket leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// To a port of a guest.
    Port(SocketAddr),
    /// To a Unix socket in the machine.
    Path(PathBuf),
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Target::Port(guest) => write!(f, "{guest}"),
            Target::Path(path) => write!(f, "{}", path.display()),
        }
    }
}

struct Open {
    target: Target,
    /// Dropping it ends the listening.
    _stop: oneshot::Sender<()>,
}

/// The exposed sockets of a network.
pub struct Paths {
    network: Arc<dyn Network>,
    places: Box<dyn Places>,
    open: Mutex<BTreeMap<PathBuf, Open>>,
}

impl std::fmt::Debug for Paths {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Paths").field("open", &self.open().len()).finish_non_exhaustive()
    }
}

impl Paths {
    /// No sockets yet.
    pub fn new(network: Arc<dyn Network>, places: Box<dyn Places>) -> Self {
        Self { network, places, open: Mutex::default() }
    }

    /// Exposes a guest's port, or a socket in it, as the socket at `path`. To be called on the thread of a
    /// runtime, which then serves it.
    ///
    /// # Errors
    /// When no socket may be made there, or it leads elsewhere already; when the address is no guest's.
    pub(crate) fn expose(&self, path: &Path, target: Target) -> Result<(), PathError> {
        if !path.is_absolute() {
            return Err(PathError::Relative(path.to_owned()));
        }
        match &target {
            Target::Port(guest) => self.network.check_guest(*guest)?,
            Target::Path(inner) => self.network.check_path(inner)?,
        }
        let mut open = self.open();
        match open.get(path) {
            Some(other) if other.target == target => return Ok(()),
            Some(other) => {
                return Err(PathError::Taken { path: path.to_owned(), target: other.target.clone() });
            }
            None if open.len() >= PATHS_MAX => return Err(PathError::TooMany),
            None => {}
        }
        let failed = |source| PathError::Bind { path: path.to_owned(), source };
        let listener = self.places.bind(path).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let listener = tokio::net::UnixListener::from_std(listener).map_err(failed)?;
        let (stop, stopped) = oneshot::channel();
        tokio::spawn(accept(listener, Arc::clone(&self.network), target.clone(), stopped));
        open.insert(path.to_owned(), Open { target, _stop: stop });
        Ok(())
    }

    /// Hides the socket at `path`; returns whether there was one. Connections that were made go on.
    pub(crate) fn unexpose(&self, path: &Path) -> bool {
        let was_open = self.open().remove(path).is_some();
        if was_open {
            self.places.remove(path);
        }
        was_open
    }

    /// All of them, by path, with where they lead.
    pub fn list(&self) -> Vec<(PathBuf, Target)> {
        self.open().iter().map(|(path, open)| (path.clone(), open.target.clone())).collect()
    }

    fn open(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Leads who connects to where the socket leads, until it is stopped or the network has.
async fn accept(
    listener: tokio::net::UnixListener,
    network: Arc<dyn Network>,
    target: Target,
    mut stopped: oneshot::Receiver<()>,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = &mut stopped => return,
        };
        let led = accepted.and_then(|(stream, _)| stream.into_std()).map(|stream| match &target {
            Target::Port(guest) => network.lead(stream.into(), *guest),
            Target::Path(path) => network.lead_to_path(stream.into(), path),
        });
        match led {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return,
            Err(_) => tokio::time::sleep(REST).await,
        }
    }
}
