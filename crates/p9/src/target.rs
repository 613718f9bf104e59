//! The server that a command works with: its address, and how to connect to it.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use p9p::connection::{ConnectOptions, Connection};
use p9p::message::Dialect;
use p9p::net::Address;

use crate::failure::Failure;

/// A server.
#[derive(Args)]
pub struct Target {
    /// The server: tcp://host:port, unix://path, fd://number or vsock://cid:port
    #[arg(value_name = "URL")]
    pub url: Address,
    #[command(flatten)]
    pub how: How,
}

/// How to connect.
#[derive(Args)]
pub struct How {
    /// The version of the protocol: 9P2000.L, 9P2000.u or 9P2000 [default: the best that the server has]
    #[arg(long, value_name = "NAME", value_parser = dialect)]
    pub dialect: Option<Dialect>,
    /// Longest message in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 20, value_parser = clap::value_parser!(u32).range(4096..=16 << 20))]
    pub msize: u32,
    /// The tree of the server to attach to (aname)
    #[arg(long, value_name = "NAME", default_value = "")]
    pub tree: String,
    /// The user to attach as [default: the one who runs this]
    #[arg(long, value_name = "UID")]
    pub uid: Option<u32>,
    /// A file with the token that the server wants
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Give up when the server does not answer for so long [default: wait]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    pub timeout: Option<u32>,
}

fn dialect(name: &str) -> Result<Dialect, String> {
    Dialect::from_name(name.as_bytes()).ok_or_else(|| "9P2000.L, 9P2000.u and 9P2000 are known".to_owned())
}

/// The content of a file with a token, without the line's end.
pub fn read_token(path: &std::path::Path) -> Result<Vec<u8>, Failure> {
    let token =
        std::fs::read(path).map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?;
    Ok(token.trim_ascii_end().to_vec())
}

impl How {
    /// The user's number.
    pub fn uid(&self) -> u32 {
        self.uid.unwrap_or_else(|| rustix::process::geteuid().as_raw())
    }

    /// The token, if there is one.
    pub fn token(&self) -> Result<Option<Vec<u8>>, Failure> {
        self.token_file.as_deref().map(read_token).transpose()
    }

    /// A connection, not attached yet.
    pub fn connect(&self, url: &Address) -> Result<Connection, Failure> {
        let mut options = ConnectOptions { msize: self.msize, ..ConnectOptions::default() };
        options.timeout = self.timeout.map(|seconds| Duration::from_secs(seconds.into()));
        if let Some(dialect) = self.dialect {
            options.dialects = vec![dialect];
        }
        Connection::open(url, &options).map_err(|error| match &error {
            p9p::connection::ConnectError::Socket(socket) => {
                let text =
                    std::error::Error::source(socket).map_or(String::new(), |cause| format!(": {cause}"));
                Failure::new(format!("{socket}{text}"))
            }
            p9p::connection::ConnectError::Session(session) => Failure::of(&url.to_string(), session),
        })
    }
}
