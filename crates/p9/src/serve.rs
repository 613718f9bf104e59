//! `p9 serve`: a directory or memory, over any number of addresses, until it is told to end.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use p9p::auth::{Authenticator, PeerCredentials, SharedToken};
use p9p::memory::Quota;
use p9p::net::{Address, Server, ServerOptions};
use p9p::{Filesystem, HostDir, Memory, Ownership, SessionOptions};

use crate::failure::{Failure, chain};
use crate::target::read_token;

/// `p9 serve`.
#[derive(Args)]
pub struct Serve {
    /// The directory to serve
    #[arg(required_unless_present = "memory", conflicts_with = "memory")]
    directory: Option<PathBuf>,
    /// Serve an empty tree in memory, of up to this size (as 64M, 2G)
    #[arg(long, value_name = "SIZE", num_args = 0..=1, default_missing_value = "1G", value_parser = size)]
    memory: Option<u64>,
    /// Where to listen; again for more [default: tcp://127.0.0.1:5640]
    #[arg(long, value_name = "URL")]
    listen: Vec<Address>,
    /// Refuse every change
    #[arg(long, conflicts_with = "memory")]
    readonly: bool,
    /// Show the files' owners as they are, and do not map the user who runs this to the client's root
    #[arg(long, conflicts_with = "memory")]
    numeric_owners: bool,
    /// Who may attach: `peer` is this user, by unix sockets; `token=FILE` who knows the file's content [default: all]
    #[arg(long, value_name = "HOW", value_parser = auth)]
    auth: Option<Auth>,
    /// Longest message in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 20, value_parser = clap::value_parser!(u32).range(4096..=16 << 20))]
    msize: u32,
    /// Most files that one client may have walked to at a time
    #[arg(long, value_name = "N", default_value_t = p9p::FIDS_MAX)]
    fids: usize,
}

#[derive(Clone)]
enum Auth {
    Peer,
    Token(PathBuf),
}

fn auth(text: &str) -> Result<Auth, String> {
    match text.split_once('=') {
        None if text == "peer" => Ok(Auth::Peer),
        Some(("token", path)) if !path.is_empty() => Ok(Auth::Token(path.into())),
        _ => Err("`peer` and `token=FILE` are known".to_owned()),
    }
}

fn size(text: &str) -> Result<u64, String> {
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let shift = match unit {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        _ => return Err("a size is a number and K, M or G".to_owned()),
    };
    let number: Option<u64> = digits.parse().ok().filter(|number| *number > 0);
    let bytes = number.and_then(|number| number.checked_mul(1 << shift));
    bytes.ok_or_else(|| "a size is a number and K, M or G".to_owned())
}

impl Serve {
    /// Serves until a signal ends it; of inherited connections, until they end.
    pub fn run(&self) -> Result<(), Failure> {
        raise_open_files();
        let options = ServerOptions {
            session: SessionOptions {
                msize_max: self.msize,
                fids_max: self.fids,
                authenticator: self.authenticator()?,
                ..SessionOptions::default()
            },
            ..ServerOptions::default()
        };
        let server = Server::start(self.filesystem()?, options)
            .map_err(|error| Failure::of("the server cannot be started", &error))?;
        let default = [Address::Tcp { host: "127.0.0.1".into(), port: 5640 }];
        let addresses = if self.listen.is_empty() { &default[..] } else { &self.listen };
        for address in addresses {
            let bound = server.listen(address).map_err(|error| Failure::usage(chain(&error)))?;
            eprintln!("p9: serving on {bound}");
        }
        wait_for_the_end(&server, server.connection_count() > 0)
    }

    fn filesystem(&self) -> Result<Arc<dyn Filesystem>, Failure> {
        if let Some(bytes) = self.memory {
            return Ok(Arc::new(Memory::new(Quota { bytes, ..Quota::default() })));
        }
        let directory = self.directory.as_deref().unwrap_or(std::path::Path::new("."));
        let ownership = if self.numeric_owners { Ownership::Unmapped } else { Ownership::of_this_process() };
        let host = HostDir::with_ownership(directory, self.readonly, ownership)
            .map_err(|error| Failure::usage(error.to_string()))?;
        Ok(Arc::new(host))
    }

    fn authenticator(&self) -> Result<Option<Arc<dyn Authenticator>>, Failure> {
        match &self.auth {
            None => Ok(None),
            Some(Auth::Peer) => Ok(Some(Arc::new(PeerCredentials::of_this_user()))),
            Some(Auth::Token(path)) => {
                let token = SharedToken::new(&read_token(path)?);
                let token = token.map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?;
                Ok(Some(Arc::new(token)))
            }
        }
    }
}

/// SIGINT and SIGTERM end the server in order: connections are closed, unix sockets removed.
fn wait_for_the_end(server: &Server, only_inherited: bool) -> Result<(), Failure> {
    if only_inherited {
        server.wait_until_unused();
        return Ok(());
    }
    let signals = [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM];
    let mut signals = signal_hook::iterator::Signals::new(signals)
        .map_err(|error| Failure::of("signals cannot be waited for", &error))?;
    signals.forever().next();
    Ok(())
}

/// Lets the process have as many descriptors as it may: each file that is open takes one.
fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // If it fails, clients may open fewer files, and are told EMFILE beyond.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}
