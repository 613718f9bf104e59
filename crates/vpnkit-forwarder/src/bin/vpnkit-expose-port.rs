//! `vpnkit-expose-port`: what Docker starts for each published port in place of its own proxy.
//!
//! Exposes the port at a `vpnkit --port`, says so on descriptor 3 (`0`, or `1` and why not, each with a line end after the
//! digit), and hides the port when it is ended. Flags are those of Docker's proxy, with one dash or two.

#![forbid(unsafe_code)]

use std::fs::OpenOptions;
use std::io::Write;
use std::net::IpAddr;
use std::process::ExitCode;

use p9p::connection::{ConnectOptions, Connection};
use p9p::filesystem::OpenFlags;
use p9p::message::{Dialect, Fid};

const USAGE: &str = "usage: vpnkit-expose-port -proto tcp|udp -host-ip IP -host-port PORT -container-ip IP \
    -container-port PORT [-port URL] [-debug]; URL is where `vpnkit --port` serves, and VPNKIT_PORT if not given";
/// Longest answer of `ctl`, in bytes.
const ANSWER_BYTES_MAX: usize = 4096;

struct Arguments {
    specification: String,
    port: String,
    debug: bool,
}

fn main() -> ExitCode {
    if std::env::args().skip(1).any(|word| matches!(word.as_str(), "-h" | "-help" | "--help")) {
        // Who closed stdout wants no help.
        let _ = writeln!(std::io::stdout(), "{USAGE}");
        return ExitCode::SUCCESS;
    }
    let arguments = match parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(message) => {
            eprintln!("vpnkit-expose-port: {message}; {USAGE}");
            return ExitCode::from(2);
        }
    };
    // Before the port is exposed: who is told that it is may end us at once.
    let signals = [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM];
    let signals = signal_hook::iterator::Signals::new(signals).map_err(|error| error.to_string());
    match signals.and_then(|signals| expose(&arguments).map(|held| (signals, held))) {
        Ok((mut signals, held)) => {
            tell(&arguments, "0\n");
            signals.forever().next();
            drop(held);
            ExitCode::SUCCESS
        }
        Err(why) => {
            tell(&arguments, &format!("1\n{why}"));
            eprintln!("vpnkit-expose-port: {why}");
            ExitCode::FAILURE
        }
    }
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let (mut protocol, mut port) = ("tcp".to_owned(), std::env::var("VPNKIT_PORT").unwrap_or_default());
    let (mut host_ip, mut host_port, mut guest_ip, mut guest_port) = (None, None, None, None);
    let mut debug = false;
    while let Some(word) = words.next() {
        let bare = word.strip_prefix("--").or_else(|| word.strip_prefix('-'));
        let bare = bare.ok_or_else(|| format!("`{word}` is no flag"))?;
        let (name, value) = bare.split_once('=').map_or((bare, None), |(name, value)| (name, Some(value)));
        if matches!(name, "debug" | "no-local-ip" | "use-listen-fd") {
            // The others are about sockets in the machine, of which we make none.
            debug |= name == "debug";
            continue;
        }
        let value = value.map(str::to_owned).or_else(|| words.next());
        let value = value.ok_or_else(|| format!("-{name} wants a value"))?;
        let ip = || value.parse::<IpAddr>().map_err(|_| format!("-{name}: `{value}` is no address"));
        let number = || value.parse::<u16>().map_err(|_| format!("-{name}: `{value}` is no port"));
        match name {
            "proto" if matches!(value.as_str(), "tcp" | "udp") => protocol = value,
            "proto" => return Err(format!("-proto: `{value}` is neither tcp nor udp")),
            "host-ip" => host_ip = Some(ip()?),
            "host-port" => host_port = Some(number()?),
            "container-ip" => guest_ip = Some(ip()?),
            "container-port" => guest_port = Some(number()?),
            "port" => port = value,
            "local-bind" => {}
            _ => return Err(format!("-{name} is not known")),
        }
    }
    let missing = |name: &str| format!("{name} is missing");
    if port.is_empty() {
        return Err(missing("-port"));
    }
    let host = (host_ip.ok_or_else(|| missing("-host-ip"))?, host_port.ok_or_else(|| missing("-host-port"))?);
    let guest = (
        guest_ip.ok_or_else(|| missing("-container-ip"))?,
        guest_port.ok_or_else(|| missing("-container-port"))?,
    );
    let (host, guest) = (std::net::SocketAddr::from(host), std::net::SocketAddr::from(guest));
    Ok(Arguments { specification: format!("{protocol}:{host}:{protocol}:{guest}"), port, debug })
}

/// Exposes the port; it is hidden when the connection is dropped.
fn expose(arguments: &Arguments) -> Result<(Connection, Fid), String> {
    let address = vpnkit_forwarder::address::parse(&arguments.port).map_err(|error| error.to_string())?;
    let failed = |error: &dyn std::error::Error| {
        let cause = error.source().map_or(String::new(), |cause| format!(": {cause}"));
        format!("{address}: {error}{cause}")
    };
    let options =
        ConnectOptions { dialects: vec![Dialect::Unix, Dialect::Plan9], ..ConnectOptions::default() };
    let connection = Connection::open(&address, &options).map_err(|error| failed(&error))?;
    let ask = || {
        let root = connection.attach(b"", u32::MAX, b"")?;
        let name = format!("{}:{}", arguments.specification, std::process::id());
        connection.make_directory(root, name.as_bytes(), 0o755, 0)?;
        let ctl = connection.walk_path(root, format!("{name}/ctl").as_bytes())?;
        connection.open_file(ctl, OpenFlags::RDWR)?;
        connection.write_all(ctl, 0, arguments.specification.as_bytes())?;
        let mut answer = vec![0; ANSWER_BYTES_MAX];
        let count = connection.read(ctl, 0, &mut answer)?;
        answer.truncate(count);
        Ok((ctl, String::from_utf8_lossy(&answer).into_owned()))
    };
    let (ctl, answer) = ask().map_err(|error: p9p::client::ClientError| failed(&error))?;
    match answer.trim_end().split_once(' ') {
        Some(("OK", _)) => Ok((connection, ctl)),
        Some(("ERROR", why)) => Err(why.to_owned()),
        _ => Err(format!("{address} answered `{}`", answer.trim_end())),
    }
}

/// Tells who started us. Without a descriptor 3 there is nobody who waits to be told.
fn tell(arguments: &Arguments, message: &str) {
    if arguments.debug {
        eprint!("vpnkit-expose-port: {message}");
    }
    if let Ok(mut parent) = OpenOptions::new().write(true).open("/proc/self/fd/3") {
        // A parent that is gone by now has its reasons.
        let _ = parent.write_all(message.as_bytes());
    }
}
