//! A repository served to this process alone, over a socket pair: commands with `--git` take the same way as others.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use datakit::{Logs, Service};
use datakit_client::{DataKit, Error};
use datakit_store::{Options, Store};
use p9p::net::{Server, ServerOptions, Socket};

use super::Failure;
use super::target::failed;

/// Serves the repository as long as the connection that it returns, and its clones, are there.
pub fn serve(git: &Path) -> Result<DataKit, Failure> {
    let store = Store::open(git, Options::default()).map_err(|error| Failure::usage(error.to_string()))?;
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
