//! Connections to other hosts and to proxies further on.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use base64::Engine as _;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::config::{ProxyConfig, Upstream};
use crate::route::Target;

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(30);

/// Most bytes of a proxy's answer to CONNECT.
const ANSWER_BYTES_MAX: usize = 16 << 10;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("{target} cannot be reached: {source}")]
    Unreachable { target: String, source: io::Error },
    #[error("{0} is the host's own address, which is reached by its name only")]
    Own(String),
    #[error("the proxy {proxy} said {status} for {target}")]
    Refused { proxy: String, target: String, status: u16 },
}

impl Upstream {
    pub(crate) fn target(&self) -> Target {
        Target { host: self.host.clone(), port: self.port }
    }

    /// The value of Proxy-Authorization, if there are credentials: RFC 7617 §2.
    pub(crate) fn authorization(&self) -> Option<String> {
        let credentials = self.credentials.as_ref()?;
        Some(format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(credentials)))
    }
}

/// Connects to a proxy, which may be on the host itself.
pub async fn dial_upstream(config: &ProxyConfig, upstream: &Upstream) -> Result<TcpStream, DialError> {
    dial(config, &upstream.target(), |_| true).await
}

/// Connects to what a guest asked for. Addresses of the host itself are only reached by the host's names, for which
/// routes have 127.0.0.1: a guest that is kept from the host is not to get there through its proxy.
pub async fn dial_target(
    config: &ProxyConfig,
    asked: &Target,
    target: &Target,
) -> Result<TcpStream, DialError> {
    let by_name = config.host_names.iter().any(|name| name.eq_ignore_ascii_case(&asked.host));
    dial(config, target, |address| by_name || !is_own(address)).await
}

fn is_own(address: IpAddr) -> bool {
    let address = address.to_canonical();
    address.is_loopback() || address.is_unspecified()
}

/// The addresses of a target, by the resolver of the settings or the system's own.
async fn resolve(config: &ProxyConfig, target: &Target) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = target.host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, target.port)]);
    }
    let Some(resolver) = &config.resolver else {
        return Ok(tokio::net::lookup_host((target.host.as_str(), target.port)).await?.collect());
    };
    let (found, finding) = tokio::sync::oneshot::channel();
    resolver.0.resolve(&target.host, Box::new(move |addresses| drop(found.send(addresses))));
    // A resolver that is gone finds nothing.
    let found = finding.await.unwrap_or_default();
    Ok(found.into_iter().map(|address| SocketAddr::new(address, target.port)).collect())
}

async fn dial(
    config: &ProxyConfig,
    target: &Target,
    may: impl Fn(IpAddr) -> bool,
) -> Result<TcpStream, DialError> {
    let unreachable = |source| DialError::Unreachable { target: target.to_string(), source };
    let connect = async {
        let found = resolve(config, target).await.map_err(unreachable)?;
        if !found.is_empty() && !found.iter().any(|address| may(address.ip())) {
            return Err(DialError::Own(target.host.clone()));
        }
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for address in found.into_iter().filter(|address| may(address.ip())) {
            match TcpStream::connect(address).await {
                Ok(stream) => {
                    // If it fails, segments are a little later.
                    let _ = stream.set_nodelay(true);
                    return Ok(stream);
                }
                Err(error) => last = error,
            }
        }
        Err(unreachable(last))
    };
    tokio::time::timeout(CONNECT, connect)
        .await
        .unwrap_or_else(|_| Err(unreachable(io::ErrorKind::TimedOut.into())))
}

/// A tunnel to `target` through a proxy. Nothing of what comes through it has been read.
///
/// Spec: RFC 9110 §9.3.6.
pub async fn tunnel(
    config: &ProxyConfig,
    upstream: &Upstream,
    target: &Target,
) -> Result<TcpStream, DialError> {
    let proxy = upstream.target().to_string();
    let unreachable = |source| DialError::Unreachable { target: proxy.clone(), source };
    let mut stream = dial_upstream(config, upstream).await?;
    let authorization =
        upstream.authorization().map(|value| format!("Proxy-Authorization: {value}\r\n")).unwrap_or_default();
    let request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{authorization}\r\n");
    let ask = async {
        stream.write_all(request.as_bytes()).await?;
        read_status(&mut stream).await
    };
    let status = tokio::time::timeout(CONNECT, ask)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(unreachable)?;
    if (200..300).contains(&status) {
        return Ok(stream);
    }
    Err(DialError::Refused { proxy, target: target.to_string(), status })
}

/// Reads an answer up to its empty line, byte by byte: what follows is not the proxy's.
async fn read_status(stream: &mut TcpStream) -> io::Result<u16> {
    let malformed = || io::Error::from(io::ErrorKind::InvalidData);
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= ANSWER_BYTES_MAX {
            return Err(malformed());
        }
        head.push(stream.read_u8().await?);
    }
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let line = std::str::from_utf8(line).map_err(|_| malformed())?;
    let status = line.strip_prefix("HTTP/1.").and_then(|rest| rest.split(' ').nth(1));
    status.and_then(|status| status.parse().ok()).ok_or_else(malformed)
}
