//! The API of VPNKit's Go client: `/forwards/…`. A path of the host (`pipe`) leads to a port of the machine, or to a path in
//! it: for that there must be a way into it that Ethernet is not.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use ::vpnkit::Forward;
use axum::extract::State;
use axum::routing::{delete, get, put};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};

use super::body::Body;
use super::{Api, Refusal};
use crate::exposed::Port;
use crate::paths::Target;
use crate::spec::protocol;

/// A port as the client writes it. Absent and empty are the same.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct WirePort {
    proto: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    out_ip: String,
    #[serde(skip_serializing_if = "is_zero")]
    out_port: u16,
    #[serde(skip_serializing_if = "String::is_empty")]
    out_path: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    in_ip: String,
    #[serde(skip_serializing_if = "is_zero")]
    in_port: u16,
    #[serde(skip_serializing_if = "String::is_empty")]
    in_path: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    annotation: String,
}

fn is_zero(port: &u16) -> bool {
    *port == 0
}

pub fn router() -> Router<Api> {
    Router::new()
        .route("/forwards/expose/port", put(expose).post(expose))
        .route("/forwards/expose/pipe", put(expose_pipe).post(expose_pipe))
        .route("/forwards/unexpose/port", delete(unexpose).post(unexpose))
        .route("/forwards/unexpose/pipe", delete(unexpose_pipe).post(unexpose_pipe))
        .route("/forwards/list", get(list))
        .route("/forwards/dump", get(dump))
}

async fn expose(State(api): State<Api>, Body(port): Body<WirePort>) -> Result<Json<WirePort>, Refusal> {
    let forward = port.forward()?;
    let local = api.exposed.expose(forward, &port.annotation).map_err(|error| Refusal::of(&error))?;
    Ok(Json(WirePort { out_port: local.port(), ..port }))
}

async fn unexpose(State(api): State<Api>, Body(port): Body<WirePort>) -> Result<(), Refusal> {
    let local = SocketAddr::new(address(&port.out_ip)?, port.out_port);
    let protocol = protocol(&port.proto).map_err(Refusal::bad)?;
    api.exposed.unexpose(protocol, local).map_err(Refusal::failed)?;
    Ok(())
}

async fn expose_pipe(State(api): State<Api>, Body(port): Body<WirePort>) -> Result<Json<WirePort>, Refusal> {
    let paths = api.paths.as_ref().ok_or_else(Refusal::no_paths)?;
    paths.expose(Path::new(&port.out_path), port.target()?).map_err(Refusal::bad)?;
    Ok(Json(port))
}

async fn unexpose_pipe(State(api): State<Api>, Body(port): Body<WirePort>) -> Result<(), Refusal> {
    let paths = api.paths.as_ref().ok_or_else(Refusal::no_paths)?;
    paths.unexpose(Path::new(&port.out_path));
    Ok(())
}

async fn list(State(api): State<Api>) -> Json<Vec<WirePort>> {
    Json(all(&api))
}

/// The same with everything that is known, for people.
async fn dump(State(api): State<Api>) -> Json<serde_json::Value> {
    let ports = all(&api);
    let flows = super::observe::flows_of(&api.exposed.network().flows());
    Json(serde_json::json!({ "ports": ports, "flows": flows }))
}

fn all(api: &Api) -> Vec<WirePort> {
    let paths = api.paths.iter().flat_map(|paths| paths.list());
    let paths = paths.map(|(path, target)| {
        let out_path = path.display().to_string();
        let port = WirePort { proto: "unix".to_owned(), out_path, ..WirePort::default() };
        match target {
            Target::Port(guest) => WirePort { in_ip: guest.ip().to_string(), in_port: guest.port(), ..port },
            Target::Path(path) => WirePort { in_path: path.display().to_string(), ..port },
        }
    });
    api.exposed.list().iter().map(WirePort::of).chain(paths).collect()
}

impl WirePort {
    fn of(port: &Port) -> Self {
        let Forward { protocol, guest, .. } = port.asked;
        Self {
            proto: protocol.to_string(),
            out_ip: port.local.ip().to_string(),
            out_port: port.local.port(),
            in_ip: guest.ip().to_string(),
            in_port: guest.port(),
            annotation: port.annotation.clone(),
            ..Self::default()
        }
    }

    fn forward(&self) -> Result<Forward, Refusal> {
        if !self.out_path.is_empty() || !self.in_path.is_empty() {
            return Err(Refusal::bad("a port has no path"));
        }
        let protocol = protocol(&self.proto).map_err(Refusal::bad)?;
        let guest = self.guest()?;
        let bind = SocketAddr::new(address(&self.out_ip)?, self.out_port);
        Ok(Forward { protocol, bind, guest })
    }

    fn target(&self) -> Result<Target, Refusal> {
        if self.in_path.is_empty() {
            return self.guest().map(Target::Port);
        }
        if !self.in_ip.is_empty() || self.in_port != 0 {
            return Err(Refusal::bad("a pipe leads to in_path or to in_ip and in_port"));
        }
        Ok(Target::Path(self.in_path.clone().into()))
    }

    fn guest(&self) -> Result<SocketAddr, Refusal> {
        let guest: IpAddr = self
            .in_ip
            .parse()
            .map_err(|_| Refusal::bad(format!("in_ip `{}` is not an address", self.in_ip)))?;
        if self.in_port == 0 {
            return Err(Refusal::bad("in_port is missing"));
        }
        Ok(SocketAddr::new(guest, self.in_port))
    }
}

/// No address is every address.
fn address(text: &str) -> Result<IpAddr, Refusal> {
    if text.is_empty() {
        return Ok(Ipv4Addr::UNSPECIFIED.into());
    }
    text.parse().map_err(|_| Refusal::bad(format!("out_ip `{text}` is not an address")))
}
