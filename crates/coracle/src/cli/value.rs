//! Values on the command line: sizes, durations, shares, ports, variables.

use std::ffi::{OsStr, OsString};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::Duration;

/// A size in bytes: a number with K, M, G or T (powers of 1024; a B or iB may follow); without a letter, MiB.
///
/// # Errors
/// A line that says what a size looks like.
pub fn size(text: &str) -> Result<u64, String> {
    let refused = || format!("`{text}` is not a size like 512M or 2G");
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| refused())?;
    let shift = match unit.to_ascii_uppercase().trim_end_matches('B').trim_end_matches('I') {
        "" if unit.is_empty() => 20,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err(refused()),
    };
    number.checked_mul(1 << shift).ok_or_else(refused)
}

/// A duration: a number with ms, s, m or h; without a unit, seconds. Fractions are fine.
///
/// # Errors
/// A line that says what a duration looks like.
pub fn duration(text: &str) -> Result<Duration, String> {
    let refused = || format!("`{text}` is not a duration like 500ms, 30s or 5m");
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let number: f64 = number.parse().map_err(|_| refused())?;
    let factor = match unit {
        "ms" => 1e-3,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(refused()),
    };
    let duration = Duration::try_from_secs_f64(number * factor).map_err(|_| refused())?;
    if duration.is_zero() { Err(format!("a duration of `{text}` leaves no time")) } else { Ok(duration) }
}

/// A raw disk image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The file.
    pub image: PathBuf,
    /// The guest may not write to it.
    pub read_only: bool,
}

/// `FILE[:ro]`.
///
/// # Errors
/// A line that says what a disk looks like.
pub fn disk(text: &str) -> Result<Disk, String> {
    let (image, read_only) = text.strip_suffix(":ro").map_or((text, false), |image| (image, true));
    if image.is_empty() {
        return Err(format!("`{text}` is not a disk like data.img or data.img:ro"));
    }
    Ok(Disk { image: PathBuf::from(image), read_only })
}

/// A host folder or file, or a 9P server's URL, and where it appears in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// On the host; relative to the working directory.
    pub host: PathBuf,
    /// In the guest; absolute.
    pub guest: PathBuf,
    /// Nothing in it may be changed.
    pub read_only: bool,
}

/// `HOST:GUEST[:ro|:rw]`. The last colon that is followed by an absolute path separates the two, so that a host
/// path may contain colons.
///
/// # Errors
/// A line that says what a share looks like.
pub fn share(text: &OsStr) -> Result<Share, String> {
    let shown = text.to_string_lossy();
    let refused = |why: &str| format!("`{shown}` is not a share like ./src:/src or ./src:/src:ro: {why}");
    let bytes = text.as_bytes();
    let (paths, read_only) = match bytes {
        [paths @ .., b':', b'r', b'o'] => (paths, true),
        [paths @ .., b':', b'r', b'w'] => (paths, false),
        paths => (paths, false),
    };
    let split = paths
        .windows(2)
        .rposition(|pair| pair == b":/")
        .ok_or_else(|| refused("the guest's path must be absolute"))?;
    let (host, guest) = (&paths[..split], &paths[split + 1..]);
    if host.is_empty() {
        return Err(refused("the host's path is empty"));
    }
    if guest == b"/" {
        return Err(refused("it would cover the guest's own root"));
    }
    let path = |bytes: &[u8]| PathBuf::from(OsString::from_vec(bytes.to_vec()));
    Ok(Share { host: path(host), guest: path(guest), read_only })
}

/// Transport protocol of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A port of the host that leads to a port of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Port {
    /// Where the host listens.
    pub bind: SocketAddr,
    /// The guest's port.
    pub guest: u16,
    /// TCP or UDP.
    pub protocol: Protocol,
}

/// `[ADDR:]HOSTPORT:GUESTPORT[/tcp|/udp]`; an IPv6 address in brackets. Without an address the loopback one.
///
/// # Errors
/// A line that says what a port looks like.
pub fn port(text: &str) -> Result<Port, String> {
    let refused =
        |why: &str| format!("`{text}` is not a port like 8080:80, 127.0.0.1:8080:80 or 5353:53/udp: {why}");
    let (ports, protocol) = match text.rsplit_once('/') {
        None => (text, Protocol::Tcp),
        Some((ports, "tcp")) => (ports, Protocol::Tcp),
        Some((ports, "udp")) => (ports, Protocol::Udp),
        Some((_, other)) => return Err(refused(&format!("`{other}` is neither tcp nor udp"))),
    };
    let number =
        |text: &str| text.parse::<u16>().map_err(|_| refused(&format!("`{text}` is not a port number")));
    let (rest, guest) = ports.rsplit_once(':').ok_or_else(|| refused("the guest's port is missing"))?;
    let guest = number(guest)?;
    if guest == 0 {
        return Err(refused("the guest's port cannot be 0"));
    }
    let (address, host) = match rest.rsplit_once(':') {
        None => (IpAddr::V4(Ipv4Addr::LOCALHOST), rest),
        Some((address, host)) => {
            let bare = address.strip_prefix('[').and_then(|a| a.strip_suffix(']')).unwrap_or(address);
            (bare.parse().map_err(|_| refused(&format!("`{address}` is not an IP address")))?, host)
        }
    };
    Ok(Port { bind: SocketAddr::new(address, number(host)?), guest, protocol })
}

/// `KEY=VALUE`, or `KEY` for the value that it has on the host.
///
/// # Errors
/// A line that says what a variable looks like.
pub fn variable(text: &OsStr) -> Result<OsString, String> {
    let bytes = text.as_bytes();
    if bytes.is_empty() || bytes[0] == b'=' {
        return Err(format!("`{}` is not a variable like KEY=VALUE", text.to_string_lossy()));
    }
    if bytes.contains(&b'=') {
        return Ok(text.to_owned());
    }
    let mut pair = text.to_owned();
    pair.push("=");
    pair.push(std::env::var_os(text).unwrap_or_default());
    Ok(pair)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in
            [("512M", 512 << 20), ("2g", 2 << 30), ("1GiB", 1 << 30), ("64", 64 << 20), ("4096K", 4 << 20)]
        {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "M", "-1", "1X", "1.5G", "99999999999999T", "5MM"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations() {
        for (text, ms) in [("2", 2000), ("500ms", 500), ("1.5s", 1500), ("2m", 120_000), ("1h", 3_600_000)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "s", "0", "-1s", "1d", "1e3"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn shares() {
        let check = |text: &str, host: &str, guest: &str, read_only| {
            let want = Share { host: host.into(), guest: guest.into(), read_only };
            assert_eq!(share(OsStr::new(text)), Ok(want), "{text}");
        };
        check(".:/src", ".", "/src", false);
        check("/a:/b:ro", "/a", "/b", true);
        check("/a:b:/c:rw", "/a:b", "/c", false);
        check("tcp://127.0.0.1:5640:/git", "tcp://127.0.0.1:5640", "/git", false);
        check("unix:///run/9p.sock:/git", "unix:///run/9p.sock", "/git", false);
        for text in ["", ":", "/a", "/a:b", ":/b", "/a:/", "/a:/:ro"] {
            assert!(share(OsStr::new(text)).is_err(), "{text}");
        }
    }

    #[test]
    fn ports() {
        let check = |text: &str, bind: &str, guest, protocol| {
            assert_eq!(port(text), Ok(Port { bind: bind.parse().unwrap(), guest, protocol }), "{text}");
        };
        check("8080:80", "127.0.0.1:8080", 80, Protocol::Tcp);
        check("0.0.0.0:53:53/udp", "0.0.0.0:53", 53, Protocol::Udp);
        check("[::1]:0:1/tcp", "[::1]:0", 1, Protocol::Tcp);
        for text in ["", "80", "80:", "80:0", "80:99999", "x:80:80", "80:80/sctp"] {
            assert!(port(text).is_err(), "{text}");
        }
    }
}
