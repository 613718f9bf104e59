//! Port forwards as pasta's `-t` and `-u` say them: `[ADDRESS/]PORT[-PORT]`, each with the guest's own ports after a colon
//! if they differ, in a list. An address holds for what follows it, up to the next.

use std::net::IpAddr;

/// Ports that one specification may have.
const PORTS_MAX: usize = 4096;

/// A port of the host and the guest's that it leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair {
    /// Where the host listens; everywhere if there is none.
    pub address: Option<IpAddr>,
    /// The host's port.
    pub host: u16,
    /// The guest's.
    pub guest: u16,
}

/// A list of ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ports(pub Vec<Pair>);

impl std::str::FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (mut address, mut pairs) = (None, Vec::new());
        for item in text.split(',').filter(|_| text != "none") {
            let item = match item.split_once('/') {
                Some((of, item)) => {
                    let bare = of.trim_start_matches('[').trim_end_matches(']');
                    address = Some(bare.parse().map_err(|_| format!("`{of}` is no address"))?);
                    item
                }
                None => item,
            };
            let (host, guest) = item.split_once(':').unwrap_or((item, item));
            let (host, guest) = (range(host)?, range(guest)?);
            if host.1 - host.0 != guest.1 - guest.0 {
                return Err(format!("`{item}` has two ranges of different length"));
            }
            if pairs.len() + usize::from(host.1 - host.0) >= PORTS_MAX {
                return Err(format!("more than {PORTS_MAX} ports"));
            }
            let both = (host.0..=host.1).zip(guest.0..=guest.1);
            pairs.extend(both.map(|(host, guest)| Pair { address, host, guest }));
        }
        Ok(Self(pairs))
    }
}

fn range(text: &str) -> Result<(u16, u16), String> {
    let port = |text: &str| match text.parse::<u16>() {
        Ok(0) | Err(_) => Err(format!("`{text}` is no port: it is a number from 1 to 65535")),
        Ok(port) => Ok(port),
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (port(first)?, port(last)?);
    if last < first { Err(format!("`{text}` ends before it begins")) } else { Ok((first, last)) }
}
