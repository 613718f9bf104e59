//! Where the tree of ports is served, in VPNKit's words and in `p9p`'s.

use std::path::Path;
use std::str::FromStr;

use p9p::net::{Address, AddressError};

/// The context id of the host, by which a HyperKit names its socket.
const HOST_CID: u32 = 2;

/// Parses an address to serve at:
///
/// - `PATH`: a Unix socket;
/// - `fd:N`: a socket that this process inherited, bound already;
/// - `hyperkit://:PORT/DIRECTORY`: the Unix socket that a HyperKit connects to for the guest, in its folder of sockets;
/// - `tcp://…`, `unix://…`, `fd://N`, `vsock://…`: as `p9p` has them.
///
/// # Errors
/// When it is none of these.
pub fn parse(text: &str) -> Result<Address, AddressError> {
    if let Some(rest) = text.strip_prefix("hyperkit://:") {
        let (port, directory) =
            rest.split_once('/').ok_or_else(|| AddressError::Path { text: text.to_owned() })?;
        let number: u32 =
            port.parse().map_err(|_| AddressError::Port { text: text.to_owned(), part: port.to_owned() })?;
        return Ok(Address::Unix(Path::new(directory).join(format!("{HOST_CID:08x}.{number:08x}"))));
    }
    if let Some(number) = text.strip_prefix("fd:").filter(|rest| !rest.starts_with('/')) {
        return Address::from_str(&format!("fd://{number}"));
    }
    if text.contains("://") || text.is_empty() { text.parse() } else { Ok(Address::Unix(text.into())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_vpnkits_or_ours() {
        let check =
            |text: &str, expected: &str| assert_eq!(parse(text).unwrap().to_string(), expected, "{text}");
        check("vms/0/port.sock", "unix://vms/0/port.sock");
        check("fd:3", "fd://3");
        check("fd://3", "fd://3");
        check("hyperkit://:62373/./vms/0", "unix://./vms/0/00000002.0000f3a5");
        check("tcp://127.0.0.1:5640", "tcp://127.0.0.1:5640");
        for text in ["", "fd:x", "hyperkit://:62373", "hyperkit://:x/vms", "gopher://x"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
