//! Zones of the name server, as gvproxy's clients add them: `/services/dns/{all,add}`.

use std::net::Ipv4Addr;
use std::sync::{Mutex, PoisonError};

use ::vpnkit::{Match, Record, Update, Zone};
use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};

use super::body::Body;
use super::{Api, Refusal};

/// Zones at once.
const ZONES_MAX: usize = 1024;
/// Records of one zone.
const RECORDS_MAX: usize = 16 << 10;
/// Bytes of the longest pattern.
const PATTERN_BYTES_MAX: usize = 256;

/// A zone as clients write it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct WireZone {
    name: String,
    records: Option<Vec<WireRecord>>,
    #[serde(rename = "DefaultIP")]
    default_ip: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct WireRecord {
    name: String,
    #[serde(rename = "IP")]
    ip: String,
    regexp: Option<String>,
}

/// The zones that there are.
#[derive(Debug, Default)]
pub struct Zones(Mutex<Vec<WireZone>>);

pub fn router() -> Router<Api> {
    Router::new().route("/services/dns/all", get(all)).route("/services/dns/add", post(add))
}

async fn all(State(api): State<Api>) -> Json<Vec<WireZone>> {
    Json(api.zones.0.lock().unwrap_or_else(PoisonError::into_inner).clone())
}

/// Adds a zone; if there is one of that name, its records come after those added.
async fn add(State(api): State<Api>, Body(zone): Body<WireZone>) -> Result<(), Refusal> {
    zone.parse().map_err(Refusal::bad)?;
    let mut zones = api.zones.0.lock().unwrap_or_else(PoisonError::into_inner);
    let full = zones.len() >= ZONES_MAX;
    match zones.iter_mut().find(|old| old.name == zone.name) {
        Some(old) => {
            let mut records = zone.records.unwrap_or_default();
            records.extend(old.records.take().unwrap_or_default());
            records.truncate(RECORDS_MAX);
            old.records = Some(records);
            old.default_ip = zone.default_ip;
        }
        None if full => {
            return Err(Refusal::bad(format!("there are {ZONES_MAX} zones already")));
        }
        None => zones.push(zone),
    }
    // Each was read when it was added.
    let all = zones.iter().filter_map(|zone| zone.parse().ok()).collect();
    api.exposed.network().update(Update::Zones(all));
    Ok(())
}

impl WireZone {
    fn parse(&self) -> Result<Zone, String> {
        let records = self.records.as_deref().unwrap_or_default();
        if records.len() > RECORDS_MAX {
            return Err(format!("a zone has at most {RECORDS_MAX} records"));
        }
        let default = match self.default_ip.as_str() {
            "" => None,
            text => Some(address(text)?),
        };
        let records = records.iter().map(WireRecord::parse).collect::<Result<_, _>>()?;
        Ok(Zone { name: self.name.trim_matches('.').to_ascii_lowercase(), records, default })
    }
}

impl WireRecord {
    fn parse(&self) -> Result<Record, String> {
        let of = match self.regexp.as_deref().filter(|pattern| !pattern.is_empty()) {
            None => Match::Name(self.name.to_ascii_lowercase()),
            Some(pattern) if pattern.len() > PATTERN_BYTES_MAX => {
                return Err(format!("a pattern has at most {PATTERN_BYTES_MAX} bytes"));
            }
            Some(pattern) => Match::pattern(pattern)?,
        };
        Ok(Record { of, address: address(&self.ip)? })
    }
}

fn address(text: &str) -> Result<Ipv4Addr, String> {
    text.parse().map_err(|_| format!("`{text}` is not an IPv4 address"))
}
