//! Where a request goes: a decision without I/O.

use crate::config::{ProxyConfig, Upstream};

/// A host and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Name or address, without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl Target {
    /// Reads `HOST[:PORT]`, IPv6 in brackets; `port` where it has none.
    pub fn parse(text: &str, port: u16) -> Option<Target> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, rest) = rest.split_once(']')?;
                match rest.strip_prefix(':') {
                    Some(port) => (host, port.parse().ok()?),
                    None if rest.is_empty() => (host, port),
                    None => return None,
                }
            }
            None => match text.rsplit_once(':') {
                Some((host, port)) if !host.contains(':') => (host, port.parse().ok()?),
                Some(_) => return None,
                None => (text, port),
            },
        };
        let good = |letter: char| letter.is_ascii_alphanumeric() || "-._:".contains(letter);
        let is_host = !host.is_empty() && host.len() <= 253 && host.chars().all(good);
        (is_host && port != 0).then(|| Target { host: host.to_owned(), port })
    }
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route<'a> {
    /// Connect to it.
    Straight(Target),
    /// Ask this proxy for it.
    Through(&'a Upstream),
    /// Say this, with 403.
    Refuse(String),
}

/// Decides. `upstream` is that of the kind of request.
pub fn route<'a>(config: &'a ProxyConfig, upstream: Option<&'a Upstream>, target: &Target) -> Route<'a> {
    let names_host = config.host_names.iter().any(|name| name.eq_ignore_ascii_case(&target.host));
    if names_host {
        return Route::Straight(Target { host: "127.0.0.1".into(), port: target.port });
    }
    if config.allow.as_ref().is_some_and(|allow| !allow.contains(&target.host)) {
        return Route::Refuse(config.allow_error.replace("%s", &target.host));
    }
    match upstream {
        Some(upstream) if !config.exclude.contains(&target.host) => Route::Through(upstream),
        _ => Route::Straight(target.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read_with_and_without_ports() {
        let target = |text: &str| Target::parse(text, 80).map(|target| target.to_string());
        assert_eq!(target("example.com").as_deref(), Some("example.com:80"));
        assert_eq!(target("example.com:81").as_deref(), Some("example.com:81"));
        assert_eq!(target("[::1]").as_deref(), Some("[::1]:80"));
        assert_eq!(target("[::1]:443").as_deref(), Some("[::1]:443"));
        for wrong in ["", ":80", "a b", "host:x", "host:0", "[::1", "[::1]x", "::1", "a/b"] {
            assert_eq!(target(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn routes_follow_the_settings() {
        let mut config = ProxyConfig::from_json(r#"{"http": "proxy:1", "exclude": "near"}"#).unwrap();
        config.host_names = vec!["host.internal".into()];
        let go = |config: &ProxyConfig, host: &str| {
            let target = Target { host: host.into(), port: 80 };
            match route(config, config.http.as_ref(), &target) {
                Route::Straight(target) => target.to_string(),
                Route::Through(upstream) => format!("via {}", upstream.host),
                Route::Refuse(why) => why,
            }
        };
        assert_eq!(go(&config, "far"), "via proxy");
        assert_eq!(go(&config, "a.near"), "a.near:80");
        assert_eq!(go(&config, "Host.internal"), "127.0.0.1:80");
        config.allow = Some(crate::rules::Hosts::parse("near"));
        config.allow_error = "no %s".into();
        assert_eq!(go(&config, "far"), "no far");
        assert_eq!(go(&config, "near"), "near:80");
    }
}
