//! Where a server listens and a client connects: `tcp://host:port`, `unix://path`, `fd://N`, `vsock://cid:port`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// The port of 9P (IANA's `9pfs`), where an address names none.
pub const PORT_DEFAULT: u16 = 564;

/// The context id of vsock that stands for any: listen on all.
pub const CID_ANY: u32 = u32::MAX;
/// The context id of the machine that a virtual machine runs on.
pub const CID_HOST: u32 = 2;

/// An end point.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// A host's name or number, and a port; 0 is any free one, to listen on.
    Tcp {
        /// IPv6 numbers without their brackets.
        host: String,
        /// The port.
        port: u16,
    },
    /// A unix socket's path.
    Unix(PathBuf),
    /// A descriptor that this process inherited: a listening or a connected socket.
    Inherited(u32),
    /// A virtual machine's socket.
    Vsock {
        /// The machine: [`CID_HOST`], [`CID_ANY`], or a guest's number.
        cid: u32,
        /// The port.
        port: u32,
    },
}

/// Text that is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each message documents its variant")]
pub enum AddressError {
    #[error("`{text}` is not tcp://host:port, unix://path, fd://number or vsock://cid:port")]
    Scheme { text: String },
    #[error("`{text}`: `{part}` is not a port")]
    Port { text: String, part: String },
    #[error("`{text}` names no host")]
    Host { text: String },
    #[error("`{text}` names no path")]
    Path { text: String },
    #[error("`{text}`: `{part}` is not a descriptor's number")]
    Descriptor { text: String, part: String },
    #[error("`{text}`: `{part}` is not a context id: a number, `host` or `any`")]
    Cid { text: String, part: String },
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let whole = || text.to_owned();
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(AddressError::Scheme { text: whole() });
        };
        match scheme {
            "tcp" => tcp(text, rest.strip_suffix('/').unwrap_or(rest)),
            "unix" | "file" if rest.is_empty() || rest.contains('\0') => {
                Err(AddressError::Path { text: whole() })
            }
            "unix" | "file" => Ok(Self::Unix(rest.into())),
            "fd" => {
                let number: Option<u32> = rest.parse().ok().filter(|number| *number <= i32::MAX as u32);
                let refused = || AddressError::Descriptor { text: whole(), part: rest.into() };
                number.map(Self::Inherited).ok_or_else(refused)
            }
            "vsock" => vsock(text, rest),
            _ => Err(AddressError::Scheme { text: whole() }),
        }
    }
}

fn tcp(text: &str, rest: &str) -> Result<Address, AddressError> {
    let (host, port) = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, after)) => (host, after.strip_prefix(':')),
        None => rest.rsplit_once(':').map_or((rest, None), |(host, port)| (host, Some(port))),
    };
    if host.is_empty() {
        return Err(AddressError::Host { text: text.into() });
    }
    let refused = |part: &str| AddressError::Port { text: text.into(), part: part.into() };
    let port = port.map_or(Ok(PORT_DEFAULT), |part| part.parse().map_err(|_| refused(part)))?;
    Ok(Address::Tcp { host: host.into(), port })
}

fn vsock(text: &str, rest: &str) -> Result<Address, AddressError> {
    let (cid, port) = rest.split_once(':').unwrap_or((rest, ""));
    let number = match cid {
        "any" => Some(CID_ANY),
        "host" => Some(CID_HOST),
        number => number.parse().ok(),
    };
    let cid = number.ok_or_else(|| AddressError::Cid { text: text.into(), part: cid.into() })?;
    let port = match port {
        "" => u32::from(PORT_DEFAULT),
        part => part.parse().map_err(|_| AddressError::Port { text: text.into(), part: part.into() })?,
    };
    Ok(Address::Vsock { cid, port })
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "tcp://[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "tcp://{host}:{port}"),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Inherited(number) => write!(f, "fd://{number}"),
            Self::Vsock { cid: CID_ANY, port } => write!(f, "vsock://any:{port}"),
            Self::Vsock { cid, port } => write!(f, "vsock://{cid}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        for text in [
            "tcp://127.0.0.1:5640",
            "tcp://[::1]:564",
            "tcp://host.example:1",
            "unix:///run/9p.sock",
            "unix://relative",
            "fd://3",
            "vsock://any:564",
            "vsock://2:1024",
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        assert_eq!("tcp://host".parse(), Ok(Address::Tcp { host: "host".into(), port: 564 }));
        assert_eq!("vsock://host:9".parse(), Ok(Address::Vsock { cid: 2, port: 9 }));
        assert_eq!("file:///s".parse(), Ok(Address::Unix("/s".into())));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, said) in [
            ("localhost:564", "`localhost:564` is not tcp://host:port"),
            ("http://x", "`http://x` is not tcp://host:port"),
            ("tcp://:1", "names no host"),
            ("tcp://h:99999", "`99999` is not a port"),
            ("unix://", "names no path"),
            ("fd://x", "`x` is not a descriptor's number"),
            ("fd://4294967295", "is not a descriptor's number"),
            ("vsock://x:1", "`x` is not a context id"),
        ] {
            let error = text.parse::<Address>().unwrap_err().to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
