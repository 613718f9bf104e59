//! The API of gvproxy that machine managers speak: `/services/forwarder/…`, `/stats`, `/cam`.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use ::vpnkit::Forward;
use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};

use super::body::Body;
use super::{Api, Refusal};
use crate::paths::{Paths, Target};
use crate::spec::protocol;

/// A forward as clients write it: `local` is the host's, `remote` the machine's. No protocol is TCP; with `unix`, `local`
/// is a path and `remote` is `tcp://IP:PORT`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct WireForward {
    local: String,
    remote: String,
    protocol: String,
}

/// The protocol of sockets with a path.
const UNIX: &str = "unix";

fn paths(api: &Api) -> Result<&Arc<Paths>, Refusal> {
    api.paths.as_ref().ok_or_else(Refusal::no_paths)
}

pub fn router() -> Router<Api> {
    Router::new()
        .route("/services/forwarder/all", get(all))
        .route("/services/forwarder/expose", post(expose))
        .route("/services/forwarder/unexpose", post(unexpose))
        .route("/services/dhcp/leases", get(leases))
        .route("/leases", get(leases))
        .route("/stats", get(stats))
        .route("/cam", get(cam))
}

async fn all(State(api): State<Api>) -> Json<Vec<WireForward>> {
    let mut all: Vec<WireForward> = api
        .exposed
        .list()
        .iter()
        .map(|port| WireForward {
            local: port.local.to_string(),
            remote: port.asked.guest.to_string(),
            protocol: port.asked.protocol.to_string(),
        })
        .collect();
    let paths = api.paths.iter().flat_map(|paths| paths.list());
    all.extend(paths.map(|(path, target)| WireForward {
        local: path.display().to_string(),
        remote: match target {
            Target::Port(guest) => format!("tcp://{guest}"),
            Target::Path(path) => format!("unix://{}", path.display()),
        },
        protocol: UNIX.to_owned(),
    }));
    all.sort_by(|left, right| (&left.local, &left.protocol).cmp(&(&right.local, &right.protocol)));
    Json(all)
}

async fn expose(State(api): State<Api>, Body(wire): Body<WireForward>) -> Result<(), Refusal> {
    if wire.protocol == UNIX {
        let (paths, guest) = (paths(&api)?, wire.guest_of_path()?);
        return paths.expose(Path::new(&wire.local), Target::Port(guest)).map_err(Refusal::bad);
    }
    let guest: SocketAddr = wire
        .remote
        .parse()
        .map_err(|_| Refusal::bad(format!("remote `{}` is not of the form IP:PORT", wire.remote)))?;
    let forward = Forward { protocol: wire.protocol()?, bind: wire.local()?, guest };
    let exposed = if wire.is_everywhere() {
        api.exposed.expose_everywhere(forward)
    } else {
        api.exposed.expose(forward, "").map(|_| ())
    };
    exposed.map_err(|error| Refusal::of(&error))
}

/// Unlike the other API, this one says when there was nothing to hide.
async fn unexpose(State(api): State<Api>, Body(wire): Body<WireForward>) -> Result<(), Refusal> {
    if wire.protocol == UNIX {
        let found = paths(&api)?.unexpose(Path::new(&wire.local));
        return if found { Ok(()) } else { Err(Refusal::failed("proxy not found")) };
    }
    let (protocol, local) = (wire.protocol()?, wire.local()?);
    let mut found = api.exposed.unexpose(protocol, local).map_err(Refusal::failed)?;
    if wire.is_everywhere() {
        let local = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), local.port());
        found |= api.exposed.unexpose(protocol, local).map_err(Refusal::failed)?;
    }
    if found { Ok(()) } else { Err(Refusal::failed("proxy not found")) }
}

/// The hardware address of each address.
async fn leases(State(api): State<Api>) -> Json<BTreeMap<String, String>> {
    let leases = api.exposed.network().leases();
    Json(leases.into_iter().map(|(address, mac)| (address.to_string(), mac.to_string())).collect())
}

/// The port of the switch of each hardware address.
async fn cam(State(api): State<Api>) -> Json<BTreeMap<String, usize>> {
    let stations = api.switch.iter().flat_map(|switch| switch.stations());
    Json(stations.map(|(mac, port)| (mac.to_string(), port)).collect())
}

async fn stats(State(api): State<Api>) -> Json<serde_json::Value> {
    let counters = api.exposed.network().counters();
    Json(serde_json::json!({
        "BytesSent": counters.bytes_out,
        "BytesReceived": counters.bytes_in,
        "FramesSent": counters.frames_out,
        "FramesReceived": counters.frames_in,
    }))
}

impl WireForward {
    fn protocol(&self) -> Result<::vpnkit::Protocol, Refusal> {
        if self.protocol.is_empty() {
            return Ok(::vpnkit::Protocol::Tcp);
        }
        protocol(&self.protocol).map_err(Refusal::bad)
    }

    fn guest_of_path(&self) -> Result<SocketAddr, Refusal> {
        let guest =
            self.remote.strip_prefix("tcp://").and_then(|guest| guest.trim_end_matches('/').parse().ok());
        guest
            .ok_or_else(|| Refusal::bad(format!("remote `{}` is not of the form tcp://IP:PORT", self.remote)))
    }

    /// Whether `local` has no address: it is that port of every address, in both families.
    fn is_everywhere(&self) -> bool {
        self.local.starts_with(':') && !self.local.starts_with("::")
    }

    /// `:8080` is that port of every address.
    fn local(&self) -> Result<SocketAddr, Refusal> {
        let bare = self.local.strip_prefix(':').and_then(|port| port.parse().ok());
        bare.map(|port| SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port))
            .or_else(|| self.local.parse().ok())
            .ok_or_else(|| Refusal::bad(format!("local `{}` is not of the form IP:PORT", self.local)))
    }
}
