//! Port forwards as pasta's `-t` and `-u` say them: `[ADDRESS/]PORTS`, where PORTS is a list of `PORT[-PORT]`, each
//! with the guest's own ports after a colon if they differ.

use std::net::{IpAddr, Ipv4Addr};

/// Ports that one specification may have.
const PORTS_MAX: usize = 4096;

/// Ports of one address of the host, each with its port of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ports {
    /// Where the host listens.
    pub address: IpAddr,
    /// The host's port and the guest's.
    pub pairs: Vec<(u16, u16)>,
}

impl std::str::FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, list) = match text.split_once('/') {
            Some((address, list)) => {
                let bare = address.trim_start_matches('[').trim_end_matches(']');
                (bare.parse().map_err(|_| format!("`{address}` is no address"))?, list)
            }
            None => (IpAddr::V4(Ipv4Addr::UNSPECIFIED), text),
        };
        let mut pairs = Vec::new();
        for item in list.split(',').filter(|_| list != "none") {
            let (host, guest) = item.split_once(':').unwrap_or((item, item));
            let (host, guest) = (range(host)?, range(guest)?);
            if host.1 - host.0 != guest.1 - guest.0 {
                return Err(format!("`{item}` has two ranges of different length"));
            }
            if pairs.len() + usize::from(host.1 - host.0) >= PORTS_MAX {
                return Err(format!("more than {PORTS_MAX} ports"));
            }
            pairs.extend((host.0..=host.1).zip(guest.0..=guest.1));
        }
        Ok(Self { address, pairs })
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
