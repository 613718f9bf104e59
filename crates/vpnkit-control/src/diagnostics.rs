//! What a network is doing, as files: VPNKit's introspection tree, given as an archive to whoever connects, and frames as
//! they pass, as VPNKit's clients read them.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::Duration;

use vpnkit::{Flows, Forward};
use vpnkit_capture::{Format, Recorder, recorder};

use crate::http::Api;
use crate::spec::Spec;

/// How long a capture waits for frames before it looks whether its reader is still there.
const LOOK: Duration = Duration::from_millis(500);
/// How long a reader may leave what it is given.
const PATIENCE: Duration = Duration::from_secs(30);

/// Readers of one socket at once; further ones see the end.
const READERS_MAX: usize = 64;

/// What a socket gives to who connects.
#[derive(Debug, Clone)]
pub enum Offer {
    /// The tree as a tar archive; then the connection ends.
    Archive(Api),
    /// Frames as pcap, without end, of at most so many bytes each; 0 means all.
    Frames(Arc<Recorder>, u32),
}

/// The files by their paths, in order.
pub const FILES: [&str; 12] = [
    "connections",
    "flows",
    "drops",
    "endpoints",
    "ports",
    "metrics",
    "status",
    "capture/all.pcap",
    "capture/dns.pcap",
    "capture/ntp.pcap",
    "capture/icmp.pcap",
    "capture/http_proxy.pcap",
];

/// What a file says at this moment; `None` if there is no such file.
pub fn file(api: &Api, path: &str) -> Option<Vec<u8>> {
    let capture = |filter: &str| {
        let filter = filter.parse().expect("the filters below are in the language of filters");
        api.recorder.ring(&filter, Format::Pcap)
    };
    let network = api.exposed.network();
    Some(match path {
        "connections" => connections(&network.flows()).into_bytes(),
        "flows" => crate::http::flows_of(&network.flows()).to_string().into_bytes(),
        "drops" => crate::http::drops_of(&network.counters()).to_string().into_bytes(),
        "endpoints" => lines(network.leases().iter().map(|(address, mac)| format!("{address} {mac}"))),
        "ports" => {
            lines(api.exposed.list().iter().map(|port| Spec(Forward { bind: port.local, ..port.asked })))
        }
        "metrics" => crate::http::metrics_of(api).into_bytes(),
        "status" => api.status.to_string().into_bytes(),
        "capture/all.pcap" => capture(""),
        "capture/dns.pcap" => capture("port 53"),
        "capture/ntp.pcap" => capture("udp port 123"),
        "capture/icmp.pcap" => capture("icmp or icmp6"),
        "capture/http_proxy.pcap" => capture("tcp port 3128 or 3129"),
        _ => return None,
    })
}

fn lines(items: impl Iterator<Item = impl std::fmt::Display>) -> Vec<u8> {
    items.map(|item| format!("{item}\n")).collect::<String>().into_bytes()
}

fn connections(flows: &Flows) -> String {
    let mut connections = String::new();
    for flow in &flows.tcp {
        // Writing to a string does not fail.
        let _ = writeln!(connections, "tcp {} {} {}", flow.guest, flow.remote, flow.state);
    }
    for flow in &flows.udp {
        let _ = writeln!(connections, "udp {}", flow.guest);
    }
    connections
}

/// The tree as a tar archive.
///
/// # Errors
/// Never in practice: the archive is in memory.
pub fn archive(api: &Api) -> io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    for (path, content) in FILES.iter().filter_map(|path| Some((path, file(api, path)?))) {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o444);
        header.set_cksum();
        archive.append_data(&mut header, path, content.as_slice())?;
    }
    archive.into_inner()
}

/// Serves a listening socket for as long as the process lives, on a thread of its own, one more for each connection.
///
/// # Errors
/// When the system has no thread left.
pub fn serve(listener: UnixListener, offer: Offer) -> io::Result<()> {
    listener.set_nonblocking(false)?;
    std::thread::Builder::new().name("diagnostics".into()).spawn(move || {
        let readers = Arc::new(());
        for stream in listener.incoming() {
            let Ok(stream) = stream else { return };
            let (offer, reader) = (offer.clone(), Arc::clone(&readers));
            if Arc::strong_count(&readers) > READERS_MAX + 1 {
                continue;
            }
            // Without a thread the reader gets nothing, and sees the end.
            let _ = std::thread::Builder::new().name("diagnostics".into()).spawn(move || {
                // It fails when the reader is gone.
                let _ = give(&stream, &offer);
                drop(reader);
            });
        }
    })?;
    Ok(())
}

fn give(mut stream: &UnixStream, offer: &Offer) -> io::Result<()> {
    stream.set_write_timeout(Some(PATIENCE))?;
    match offer {
        Offer::Archive(api) => stream.write_all(&archive(api)?),
        Offer::Frames(recorder, snap_bytes) => {
            let wanted =
                recorder::Wanted { snap_bytes: *snap_bytes, format: Format::Pcap, ..Default::default() };
            let mut subscription = recorder.subscribe(wanted).ok_or(io::ErrorKind::ResourceBusy)?;
            let mut piece = Vec::new();
            while subscription.take(&mut piece, LOOK) {
                stream.write_all(&piece)?;
                if piece.is_empty() && is_gone(stream) {
                    break;
                }
                piece.clear();
            }
            Ok(())
        }
    }
}

/// Whether the reader has closed its end.
fn is_gone(mut stream: &UnixStream) -> bool {
    use std::io::Read;
    let quiet = stream.set_nonblocking(true).is_ok() && !matches!(stream.read(&mut [0; 64]), Ok(0));
    stream.set_nonblocking(false).is_err() || !quiet
}
