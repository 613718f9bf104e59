//! A forward as VPNKit writes it: `tcp:127.0.0.1:8080:tcp:192.168.65.3:80`. IPv6 addresses of the host stand in brackets,
//! which the original could not say.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use vpnkit::{Forward, Protocol};

/// Why a specification was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each message documents its variant")]
pub enum SpecError {
    #[error("`{0}` is not of the form tcp:IP:PORT:tcp:IP:PORT or udp:IP:PORT:udp:IP:PORT")]
    Form(String),
    #[error("`{0}` is neither tcp nor udp")]
    Protocol(String),
    #[error("a port cannot go from {0} to {1}")]
    Mixed(Protocol, Protocol),
    #[error("`{0}` is not an address and port")]
    Address(String),
}

/// A forward, for people and machines to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spec(pub Forward);

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Forward { protocol, bind, guest } = self.0;
        write!(f, "{protocol}:{bind}:{protocol}:{guest}")
    }
}

impl FromStr for Spec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let form = || SpecError::Form(text.to_owned());
        let (from, rest) = text.split_once(':').ok_or_else(form)?;
        let from = protocol(from)?;
        // The second protocol ends the first address, whose colons (IPv6) it does not look like.
        let at = [":tcp:", ":udp:"].iter().filter_map(|mark| rest.find(mark)).min().ok_or_else(form)?;
        let (bind, rest) = (&rest[..at], &rest[at + 1..]);
        let (to, guest) = rest.split_once(':').ok_or_else(form)?;
        let to = protocol(to)?;
        if from != to {
            return Err(SpecError::Mixed(from, to));
        }
        let bind: SocketAddr = bind.parse().map_err(|_| SpecError::Address(bind.to_owned()))?;
        let guest: SocketAddr = guest.parse().map_err(|_| SpecError::Address(guest.to_owned()))?;
        Ok(Self(Forward { protocol: from, bind, guest }))
    }
}

/// The protocol of that name.
///
/// # Errors
/// When it is neither.
pub fn protocol(name: &str) -> Result<Protocol, SpecError> {
    match name {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        other => Err(SpecError::Protocol(other.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        for text in ["tcp:127.0.0.1:8080:tcp:192.168.65.3:80", "udp:[::1]:53:udp:[fd00::3]:5353"] {
            assert_eq!(text.parse::<Spec>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let refused = |text: &str| text.parse::<Spec>().unwrap_err().to_string();
        assert_eq!(refused("sctp:1.2.3.4:5:tcp:1.2.3.4:5"), "`sctp` is neither tcp nor udp");
        assert_eq!(refused("tcp:1.2.3.4:5:udp:1.2.3.4:5"), "a port cannot go from tcp to udp");
        assert_eq!(refused("tcp:1.2.3.4:tcp:1.2.3.4:5"), "`1.2.3.4` is not an address and port");
        assert_eq!(refused("tcp:1.2.3.4:5:tcp:1.2.3.4:99999"), "`1.2.3.4:99999` is not an address and port");
        assert!(refused("tcp").contains("not of the form"));
        assert!(refused("").contains("not of the form"));
    }
}
