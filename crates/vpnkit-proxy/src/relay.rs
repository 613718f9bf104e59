//! One request, or one tunnel, from a guest's connection to where it goes.

use std::net::SocketAddr;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHORIZATION, UPGRADE};
use hyper::http::uri::PathAndQuery;
use hyper::{Method, Request, Response, StatusCode, Uri, Version};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;

use crate::config::{ProxyConfig, Upstream};
use crate::dial::{DialError, dial_target, dial_upstream, tunnel};
use crate::hello::{self, Hello};
use crate::page::{Body, empty, say};
use crate::route::{Route, Target, route};
use crate::server::Kind;

/// Headers of one hop, which are not passed on (RFC 9110 §7.6.1). Upgrade is, for who upgrades.
const HOP: [HeaderName; 4] = [
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("te"),
    HeaderName::from_static("trailer"),
];

/// What is known of the connection that a request came over.
pub struct Origin {
    /// How it was caught.
    pub kind: Kind,
    /// Where the guest thinks that it is connected, if it does not know of the proxy.
    pub destination: Option<SocketAddr>,
}

/// Answers one request.
pub async fn answer(config: &ProxyConfig, origin: &Origin, request: Request<Incoming>) -> Response<Body> {
    let done = if request.method() == Method::CONNECT {
        connect(config, origin, request).await
    } else {
        forward(config, origin, request).await
    };
    done.unwrap_or_else(|error| match error {
        Failed::Request(why) => say(StatusCode::BAD_REQUEST, why),
        Failed::NotAllowed(why) => say(StatusCode::FORBIDDEN, &why),
        Failed::Dial(error @ DialError::Own(_)) => say(StatusCode::FORBIDDEN, &error.to_string()),
        Failed::Dial(DialError::Refused { status, proxy, target }) => {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
            say(status, &format!("The proxy {proxy} does not connect to {target}."))
        }
        Failed::Dial(error) => say(StatusCode::BAD_GATEWAY, &error.to_string()),
        Failed::Server(error) => say(StatusCode::BAD_GATEWAY, &format!("The server failed: {error}")),
    })
}

/// Why a request is not answered by who should.
enum Failed {
    Request(&'static str),
    NotAllowed(String),
    Dial(DialError),
    Server(hyper::Error),
}

impl From<DialError> for Failed {
    fn from(error: DialError) -> Self {
        Self::Dial(error)
    }
}

impl From<hyper::Error> for Failed {
    fn from(error: hyper::Error) -> Self {
        Self::Server(error)
    }
}

/// The proxy for requests that were caught in this way.
fn upstream_of(config: &ProxyConfig, kind: Kind) -> Option<&Upstream> {
    match kind {
        Kind::Explicit | Kind::TransparentHttp => config.http.as_ref(),
        Kind::ExplicitSecure | Kind::TransparentHttps => config.https.as_ref(),
    }
}

/// Makes a tunnel for who asked for one.
async fn connect(
    config: &ProxyConfig,
    origin: &Origin,
    request: Request<Incoming>,
) -> Result<Response<Body>, Failed> {
    let authority = request.uri().authority().ok_or(Failed::Request("CONNECT names no host."))?;
    let target =
        Target::parse(authority.as_str(), 443).ok_or(Failed::Request("CONNECT names no host and port."))?;
    let server = open(config, upstream_of(config, origin.kind), &target).await?;
    tokio::spawn(async move {
        // A guest that went away meanwhile is no one's fault.
        if let Ok(guest) = hyper::upgrade::on(request).await {
            join(TokioIo::new(guest), server).await;
        }
    });
    Ok(Response::new(empty()))
}

/// A connection that goes to `target` in the end.
async fn open(
    config: &ProxyConfig,
    upstream: Option<&Upstream>,
    target: &Target,
) -> Result<TcpStream, Failed> {
    match route(config, upstream, target) {
        Route::Straight(to) => Ok(dial_target(config, target, &to).await?),
        Route::Through(upstream) => Ok(tunnel(config, upstream, target).await?),
        Route::Refuse(why) => Err(Failed::NotAllowed(why)),
    }
}

/// Copies both ways until both are done; each half ends by itself.
async fn join(mut left: impl AsyncRead + AsyncWrite + Unpin, mut right: impl AsyncRead + AsyncWrite + Unpin) {
    // It fails when either side does, and then both are closed: all that can be said.
    let _ = tokio::io::copy_bidirectional(&mut left, &mut right).await;
}

/// Passes a request on, and its answer back.
async fn forward(
    config: &ProxyConfig,
    origin: &Origin,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Failed> {
    let target = target_of(&request, origin).ok_or(Failed::Request("The request names no host."))?;
    let (stream, upstream) = match route(config, upstream_of(config, origin.kind), &target) {
        Route::Straight(to) => (dial_target(config, &target, &to).await?, None),
        Route::Through(upstream) => (dial_upstream(config, upstream).await?, Some(upstream)),
        Route::Refuse(why) => return Err(Failed::NotAllowed(why)),
    };
    rewrite(&mut request, &target, upstream)?;
    let upgrades = request.headers().contains_key(UPGRADE);
    let guest = upgrades.then(|| hyper::upgrade::on(&mut request));
    let (mut sender, connection) = http1::Builder::new().handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        // Its errors come out of `send_request` or of the body.
        let _ = connection.with_upgrades().await;
    });
    let mut response = sender.send_request(request).await?;
    if let Some(guest) = guest.filter(|_| response.status() == StatusCode::SWITCHING_PROTOCOLS) {
        let server = hyper::upgrade::on(&mut response);
        tokio::spawn(async move {
            if let (Ok(guest), Ok(server)) = (guest.await, server.await) {
                join(TokioIo::new(guest), TokioIo::new(server)).await;
            }
        });
    } else {
        strip(response.headers_mut());
    }
    Ok(response.map(BodyExt::boxed))
}

/// The host that a request is for: of its URI, of its Host header, or where the guest was connected.
fn target_of(request: &Request<Incoming>, origin: &Origin) -> Option<Target> {
    let port = origin.destination.map_or(80, |destination| destination.port());
    if let Some(authority) = request.uri().authority() {
        return Target::parse(authority.as_str(), 80);
    }
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok());
    match host.filter(|host| !host.is_empty()) {
        Some(host) => Target::parse(host, port),
        None => origin.destination.map(|at| Target { host: at.ip().to_string(), port: at.port() }),
    }
}

/// Makes a request the proxy's own: absolute for a proxy further on, otherwise a path.
fn rewrite(
    request: &mut Request<Incoming>,
    target: &Target,
    upstream: Option<&Upstream>,
) -> Result<(), Failed> {
    let wrong = Failed::Request("The request's address is not understood.");
    let path = request.uri().path_and_query().map_or("/", PathAndQuery::as_str).to_owned();
    let host = if target.port == 80 && !target.host.contains(':') {
        target.host.clone()
    } else {
        target.to_string()
    };
    let uri = if upstream.is_some() { format!("http://{host}{path}") } else { path };
    let (Ok(uri), Ok(host)) = (uri.parse::<Uri>(), HeaderValue::from_str(&host)) else { return Err(wrong) };
    *request.uri_mut() = uri;
    *request.version_mut() = Version::HTTP_11;
    let headers = request.headers_mut();
    strip(headers);
    match upstream.map(Upstream::authorization) {
        None => {
            headers.remove(PROXY_AUTHORIZATION);
        }
        Some(Some(value)) => {
            let value = HeaderValue::from_str(&value).map_err(|_| wrong)?;
            headers.insert(PROXY_AUTHORIZATION, value);
        }
        // The guest may have credentials of its own.
        Some(None) => {}
    }
    headers.insert(HOST, host);
    Ok(())
}

/// Takes away what was for this hop, and what Connection names (RFC 9110 §7.6.1).
fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .filter(|name| *name != UPGRADE)
        .collect();
    for name in named.iter().chain(&HOP) {
        headers.remove(name);
    }
    if !headers.contains_key(UPGRADE) {
        headers.remove(CONNECTION);
    }
}

/// Passes TLS on, by the name in its hello.
pub async fn secure(config: &ProxyConfig, origin: &Origin, guest: TcpStream) {
    let mut guest = guest;
    let Ok((seen, name)) = read_hello(&mut guest).await else { return };
    let port = origin.destination.map_or(443, |destination| destination.port());
    let target = match (name, origin.destination) {
        (Some(host), _) => Target { host, port },
        (None, Some(at)) => Target { host: at.ip().to_string(), port },
        (None, None) => return,
    };
    // The guest thinks that this is the server: a connection that closes is all that it can be told.
    let Ok(mut server) = open(config, upstream_of(config, origin.kind), &target).await else { return };
    if tokio::io::AsyncWriteExt::write_all(&mut server, &seen).await.is_ok() {
        join(guest, server).await;
    }
}

/// Reads until the name is known, or that there is none; returns what was read too.
async fn read_hello(guest: &mut TcpStream) -> std::io::Result<(Vec<u8>, Option<String>)> {
    let mut seen = Vec::with_capacity(2048);
    loop {
        match hello::look(&seen) {
            Hello::Name(name) => return Ok((seen, Some(name))),
            Hello::Nameless => return Ok((seen, None)),
            Hello::Incomplete => {}
        }
        if guest.read_buf(&mut seen).await? == 0 {
            return Ok((seen, None));
        }
    }
}
