//! The proxy's settings: the JSON that VPNKit reads from `--http FILE` and from its `/http_proxy.json`.

use std::net::IpAddr;
use std::sync::Arc;

use serde::Deserialize;

use crate::rules::Hosts;

/// Why settings were refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It is not JSON of this shape.
    #[error("the proxy's settings are not understood")]
    Json(#[from] serde_json::Error),
    /// A proxy is named in a way that is not understood.
    #[error("`{field}` is `{value}`, which is not of the form HOST:PORT or http://USER:PASSWORD@HOST:PORT")]
    Upstream {
        /// Which of them.
        field: &'static str,
        /// What it says, without a password.
        value: String,
    },
}

/// A proxy further on.
#[derive(Clone, PartialEq, Eq)]
pub struct Upstream {
    /// Name or address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// `USER:PASSWORD`, as Basic authentication has it (RFC 7617).
    pub credentials: Option<String>,
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never the password.
        f.debug_struct("Upstream").field("host", &self.host).field("port", &self.port).finish_non_exhaustive()
    }
}

/// What the proxy does.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProxyConfig {
    /// Where plain HTTP goes; straight to its host if there is none.
    pub http: Option<Upstream>,
    /// Where tunnels go.
    pub https: Option<Upstream>,
    /// Hosts that are reached straight all the same.
    pub exclude: Hosts,
    /// Ports of other hosts whose connections are taken for HTTP.
    pub transparent_http_ports: Vec<u16>,
    /// The same for TLS.
    pub transparent_https_ports: Vec<u16>,
    /// The only hosts that may be reached, if that is limited.
    pub allow: Option<Hosts>,
    /// What is said about hosts that may not; `%s` is the host.
    pub allow_error: String,
    /// Names that stand for the host itself.
    pub host_names: Vec<String>,
    /// Who finds the addresses of names; the system, if nobody.
    pub resolver: Option<Resolver>,
}

/// Finds addresses of names.
pub trait Resolve: Send + Sync {
    /// Calls `answer` with what is found, which may be nothing; dropping it says the same.
    fn resolve(&self, name: &str, answer: Box<dyn FnOnce(Vec<IpAddr>) + Send>);
}

/// See [`ProxyConfig::resolver`].
#[derive(Clone)]
pub struct Resolver(pub Arc<dyn Resolve>);

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Resolver")
    }
}

impl PartialEq for Resolver {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Resolver {}

#[derive(Debug, Deserialize)]
#[serde(default)]
struct Wire {
    http: Option<String>,
    https: Option<String>,
    exclude: Option<String>,
    transparent_http_ports: Vec<u16>,
    transparent_https_ports: Vec<u16>,
    allow_enabled: bool,
    allow: Vec<String>,
    allow_error_msg: String,
}

impl Default for Wire {
    fn default() -> Self {
        Self {
            http: None,
            https: None,
            exclude: None,
            transparent_http_ports: vec![80],
            transparent_https_ports: vec![443],
            allow_enabled: false,
            allow: Vec::new(),
            allow_error_msg: "Connections to %s are not allowed.".to_owned(),
        }
    }
}

impl ProxyConfig {
    /// Reads settings. Fields that are not known are passed over, as VPNKit does.
    ///
    /// # Errors
    /// [`ConfigError`]; nothing of settings that are refused holds.
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        let wire: Wire = serde_json::from_str(text)?;
        Ok(Self {
            http: upstream("http", wire.http.as_deref())?,
            https: upstream("https", wire.https.as_deref())?,
            exclude: Hosts::parse(wire.exclude.as_deref().unwrap_or_default()),
            transparent_http_ports: wire.transparent_http_ports,
            transparent_https_ports: wire.transparent_https_ports,
            allow: wire.allow_enabled.then(|| Hosts::of(&wire.allow)),
            allow_error: wire.allow_error_msg,
            host_names: Vec::new(),
            resolver: None,
        })
    }
}

/// Empty is none.
fn upstream(field: &'static str, value: Option<&str>) -> Result<Option<Upstream>, ConfigError> {
    let Some(value) = value.map(str::trim).filter(|value| !value.is_empty()) else { return Ok(None) };
    let bare = value.split_once("://").map_or(value, |(_, rest)| rest).trim_end_matches('/');
    let (credentials, address) = match bare.rsplit_once('@') {
        Some((credentials, address)) => (Some(decoded(credentials)), address),
        None => (None, bare),
    };
    let refused = || ConfigError::Upstream { field, value: address.to_owned() };
    let (host, port) = address.rsplit_once(':').ok_or_else(refused)?;
    let port: u16 = port.parse().ok().filter(|port| *port != 0).ok_or_else(refused)?;
    if host.is_empty() || host.contains(['/', '@', ' ']) {
        return Err(refused());
    }
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    Ok(Some(Upstream { host, port, credentials }))
}

/// Resolves `%40` and the like (RFC 3986 §2.1); what is no such thing stays.
fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = bytes.get(at + 1..at + 3).and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()).filter(|_| bytes[at] == b'%') {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_as_vpnkit_has_them() {
        let config = ProxyConfig::from_json(
            r#"{"http": "proxy:3128", "https": "http://me%40home:p:w@[::1]:8080/", "exclude": "local, 10.0.0.0/8",
                "transparent_http_ports": [80, 8080], "allow_enabled": true, "allow": ["example.com"], "more": 1}"#,
        )
        .unwrap();
        let plain = Upstream { host: "proxy".into(), port: 3128, credentials: None };
        let secret = Upstream { host: "::1".into(), port: 8080, credentials: Some("me@home:p:w".into()) };
        assert_eq!((config.http, config.https), (Some(plain), Some(secret)));
        assert!(config.exclude.contains("a.local"));
        assert_eq!(config.transparent_http_ports, [80, 8080]);
        assert_eq!(config.transparent_https_ports, [443]);
        assert!(!config.allow.unwrap().contains("example.org"));
        assert_eq!(ProxyConfig::from_json("{}").unwrap().http, None);
    }

    #[test]
    fn what_is_wrong_is_named_without_the_password() {
        let refused = |json: &str| ProxyConfig::from_json(json).unwrap_err().to_string();
        let message = refused(r#"{"http": "http://me:secret@proxy"}"#);
        assert!(message.contains("`http` is `proxy`") && !message.contains("secret"), "{message}");
        assert!(refused(r#"{"https": "proxy:0"}"#).contains("`https` is `proxy:0`"));
        assert!(refused("[").contains("not understood"));
    }
}
