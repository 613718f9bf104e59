//! Ways to another repository: transports and credentials, with nobody there to be asked.

use std::any::Any;
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gix::bstr::ByteSlice;
use gix::credentials::{helper, protocol};
use gix::protocol::transport::Protocol;
use gix::protocol::transport::client::blocking_io::connect::{self, connect};
use gix::protocol::transport::client::blocking_io::{Transport, http};
use gix::protocol::transport::client::git::{ConnectMode, blocking_io::Connection};
use gix::remote::Direction;
use gix::url::Scheme;

use super::transfer::Transfer;

/// How long connecting to a git daemon may take.
const CONNECT_WITHIN: Duration = Duration::from_secs(20);
/// How long a web server may take for one answer; it has the whole pack to read and check before it answers a push.
const ANSWER_WITHIN: Duration = Duration::from_secs(3600);
/// Port of git's daemon.
const DAEMON_PORT: u16 = 9418;

/// A transport of any kind.
pub type AnyTransport = Box<dyn Transport + Send>;

/// `GIT_ASKPASS`, or `core.askPass`, if it is there.
fn askpass(repo: &gix::Repository) -> Option<PathBuf> {
    let from_environment = std::env::var_os("GIT_ASKPASS").map(PathBuf::from);
    let configured = || repo.config_snapshot().trusted_path("core.askPass").ok().flatten();
    let is_there = |program: &PathBuf| match program.components().count() {
        1 => std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
            .any(|folder| folder.join(program).is_file()),
        _ => program.is_file(),
    };
    from_environment.or_else(configured).filter(is_there)
}

/// Opens the repository once more, so that it has everything that is on disk.
pub fn open(git_dir: &Path) -> gix::Result<gix::Repository> {
    let mut repo = gix::open(git_dir)?;
    // A reflog wants somebody who did it.
    repo.committer_or_set_generic_fallback()?;
    Ok(repo)
}

/// Makes a transport to `remote`; most connect only at the handshake.
pub fn transport(
    repo: &gix::Repository,
    remote: &gix::Remote<'_>,
    direction: Direction,
    transfer: &Transfer,
) -> gix::Result<AnyTransport> {
    let (url, version) = remote.sanitized_url_and_version(direction)?;
    // Pushing has no second version.
    let version = if direction == Direction::Push { Protocol::V1 } else { version };
    if url.scheme == Scheme::Git {
        return daemon(&url, version, transfer).map_err(gix::Error::from_error);
    }
    let ssh = if url.scheme == Scheme::Ssh { repo.ssh_connect_options()? } else { Default::default() };
    let transport = connect(url, connect::Options { version, ssh, trace: false })?;
    Ok(transport)
}

/// Connects to a git daemon ourselves, so that cancelling can hang up.
fn daemon(url: &gix::Url, version: Protocol, transfer: &Transfer) -> std::io::Result<AnyTransport> {
    let host = url.host().unwrap_or_default();
    let mut refused = std::io::Error::new(std::io::ErrorKind::NotFound, "the host has no address");
    for address in (host, url.port.unwrap_or(DAEMON_PORT)).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECT_WITHIN) {
            Ok(stream) => {
                let (hang_up, write) = (stream.try_clone()?, stream.try_clone()?);
                transfer.on_cancel(move || {
                    // Already gone is as good.
                    let _ = hang_up.shutdown(Shutdown::Both);
                });
                let to = Some((host.to_owned(), url.port));
                let path = url.path.clone();
                let connection =
                    Connection::new(stream, write, version, path, to, ConnectMode::Daemon, false);
                return Ok(Box::new(connection));
            }
            Err(error) => refused = error,
        }
    }
    Err(refused)
}

/// What git's configuration says about talking to `url`, with time enough for large packs.
pub fn options(repo: &gix::Repository, url: &gix::Url) -> gix::Result<Option<Box<dyn Any>>> {
    let mut options = repo.transport_options(url.to_bstring().as_bstr(), None)?;
    if let Some(http) = options.as_mut().and_then(|options| options.downcast_mut::<http::Options>()) {
        let authorities = http.ssl_ca_info.as_deref().map(authorities).transpose()?;
        let verifies = http.ssl_verify;
        let backend = http::reqwest::Options {
            configure_client: Some(Box::new(move |client| {
                let client = client.timeout(ANSWER_WITHIN).tls_danger_accept_invalid_certs(!verifies);
                Ok(authorities.iter().cloned().fold(client, reqwest::blocking::ClientBuilder::tls_certs_only))
            })),
            configure_request: None,
        };
        http.backend = Some(Arc::new(Mutex::new(backend)));
    }
    Ok(options)
}

/// The certificates of a PEM file, which are trusted in place of the system's (`http.sslCAInfo`).
fn authorities(path: &Path) -> gix::Result<Vec<reqwest::Certificate>> {
    let failed = |error: &dyn std::fmt::Display| {
        let text = format!("http.sslCAInfo: {}: {error}", path.display());
        gix::Error::from_error(std::io::Error::other(text))
    };
    let pem = std::fs::read(path).map_err(|error| failed(&error))?;
    reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| failed(&error))
}

/// Asks git's credential helpers, and then the program for passwords that git is configured with, if it is. Nobody is
/// asked on a terminal, nor by ssh's program for passwords, which may open a window.
pub fn credentials(
    repo: &gix::Repository,
) -> impl FnMut(helper::Action) -> gix::Result<Option<protocol::Outcome>> + use<> {
    let repo = repo.clone();
    let mut asked = None;
    move |action| {
        if let helper::Action::Get(protocol::Context { url: Some(url), .. }) = &action {
            let url = gix::url::parse(url.as_bstr())?;
            let (cascade, _, mut prompt) = repo.config_snapshot().credential_helpers(url)?;
            prompt.askpass = askpass(&repo);
            // `Hidden` asks that program, and a terminal only where it cannot be run.
            let asks = prompt.askpass.is_some();
            prompt.mode = if asks { gix::prompt::Mode::Hidden } else { gix::prompt::Mode::Disable };
            asked = Some((cascade, prompt));
        }
        match &mut asked {
            Some((cascade, prompt)) => cascade.invoke(action, prompt.clone()),
            None => Ok(None),
        }
    }
}
