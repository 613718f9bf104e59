//! The files that are followed, and what a change of each does.

use std::path::PathBuf;

use serde::Deserialize;
use vpnkit::{Config, Engine, Resolvers, Update, resolv_conf};
use vpnkit_sandbox::{Event, Events};

use crate::cli::Cli;
use crate::failure::Failure;

/// Where the host's name servers are.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// What a file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Hosts,
    ResolvConf,
    Dhcp,
}

/// The files, each with its role.
#[derive(Debug)]
pub struct Watched {
    files: Vec<(Role, PathBuf)>,
    /// The domain of the command line, which no file changes.
    domain: Option<String>,
}

/// `{"searchDomains": [], "domainName": ""}`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Dhcp {
    search_domains: Vec<String>,
    domain_name: String,
}

impl Watched {
    /// Those that the command line names.
    pub fn of(cli: &Cli) -> Self {
        let mut files = vec![(Role::Hosts, cli.hosts.clone())];
        if cli.dns.is_empty() {
            files.push((Role::ResolvConf, RESOLV_CONF.into()));
        }
        if let Some(path) = &cli.classic.dhcp_path {
            files.push((Role::Dhcp, path.clone()));
        }
        let domain = Some(cli.domain.clone()).filter(|domain| !domain.is_empty());
        Self { files, domain }
    }

    /// Their paths, in order.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.files.iter().map(|(_, path)| path.clone()).collect()
    }

    /// What is in them at first; a file that is missing is empty.
    pub fn first(&self, events: &mut Events) -> Result<Vec<String>, Failure> {
        let gone = || Failure { message: "the process outside of the sandbox ended".into(), code: 1 };
        let mut texts: Vec<Option<String>> = vec![None; self.files.len()];
        while texts.iter().any(Option::is_none) {
            match events.next().ok_or_else(gone)? {
                Event::File(index, bytes) => {
                    texts[index] = Some(String::from_utf8_lossy(&bytes).into_owned())
                }
                Event::Missing(index) => texts[index] = Some(String::new()),
                Event::Ended => return Err(Failure::usage("what was to be served ended at once")),
            }
        }
        Ok(texts.into_iter().flatten().collect())
    }

    /// Errs for settings that are wrong from the start, which a person can correct; applies those that a network begins
    /// with.
    pub fn begin(&self, texts: &[String], config: &mut Config) -> Result<(), Failure> {
        for ((role, path), text) in self.files.iter().zip(texts) {
            let name = path.display();
            if text.is_empty() && !matches!(role, Role::Hosts | Role::ResolvConf) {
                return Err(Failure::usage(format!("{name} is missing, empty or larger than 16 MiB")));
            }
            match role {
                Role::Hosts => {}
                Role::ResolvConf => config.dns = Resolvers::Fixed(resolv_conf(text)),
                Role::Dhcp => {
                    let dhcp: Dhcp = serde_json::from_str(text).map_err(|error| {
                        Failure::usage(format!("{name} is not of VPNKit's form: {error}"))
                    })?;
                    config.network.search = dhcp.search_domains;
                    config.network.domain = self.domain.clone().unwrap_or(dhcp.domain_name);
                }
            }
        }
        Ok(())
    }

    /// Applies what a running network is told.
    pub fn apply_all(&self, texts: Vec<String>, engine: &Engine) {
        for (index, text) in texts.into_iter().enumerate() {
            self.apply(index, text, engine);
        }
    }

    fn apply(&self, index: usize, text: String, engine: &Engine) {
        let Some((role, path)) = self.files.get(index) else { return };
        match role {
            Role::Hosts => engine.update(Update::Hosts(text)),
            Role::ResolvConf => engine.update(Update::Resolvers(resolv_conf(&text))),
            Role::Dhcp => match serde_json::from_str::<Dhcp>(&text) {
                Ok(dhcp) => {
                    let domain = self.domain.clone().unwrap_or(dhcp.domain_name);
                    engine.update(Update::Domains { domain, search: dhcp.search_domains });
                }
                Err(error) => keep(path, &error),
            },
        }
    }

    /// Applies changes until what is served has ended.
    pub fn follow(&self, events: &mut Events, engine: &Engine) {
        loop {
            match events.next() {
                Some(Event::File(index, bytes)) => {
                    self.apply(index, String::from_utf8_lossy(&bytes).into_owned(), engine);
                }
                Some(Event::Missing(index)) => self.apply(index, String::new(), engine),
                Some(Event::Ended) | None => return,
            }
        }
    }
}

/// Says that a file was changed to something that is not understood.
fn keep(path: &std::path::Path, error: &dyn std::error::Error) {
    eprintln!("vpnkit: {} is not understood, so what it said before holds: {error}", path.display());
}
