//! A repository served to this process alone, over a socket pair: commands with `--git` take the same way as others.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use anyhow::Context;
use datakit::{Logs, Service};
use datakit_client::{DataKit, Error};
use datakit_store::{Damage, Options, Store};
use p9p::net::{Server, ServerOptions, Socket};

use super::Failure;
use super::failure::chain;
use super::target::failed;

/// Of the repository that this process serves to itself, if any.
static DAMAGE: OnceLock<Arc<Damage>> = OnceLock::new();

/// Which objects of the repository that this process serves are damaged; the protocol has no words for that.
pub fn damage() -> Option<String> {
    let lines = DAMAGE.get()?.take();
    (!lines.is_empty()).then(|| lines.join("; "))
}

/// Serves the repository as long as the connection that it returns, and its clones, are there.
pub fn serve(git: &Path) -> Result<DataKit, Failure> {
    let store = Store::open(git, Options::default()).map_err(|error| Failure::usage(chain(&error)))?;
    let _ = DAMAGE.set(Arc::clone(store.damage()));
    let service = Arc::new(Service::new(store, Logs::none()));
    let server = Server::start(service, ServerOptions::default()).context("no server could be started")?;
    let dial = move || {
        let connect = || {
            let (ours, theirs) = UnixStream::pair()?;
            server.serve(Socket::from(theirs))?;
            Ok(Socket::from(ours))
        };
        connect().map_err(|error: std::io::Error| Error::Connection(error.into()))
    };
    DataKit::over(dial).map_err(failed)
}
