//! What happens: `/flows`, `/drops`, `/metrics`, `/status`, `/capture`, `/capture/ring`, `/healthz`.

use std::convert::Infallible;
use std::fmt::Write;
use std::time::Duration;

use ::vpnkit::{Counters, Flows};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http_body::Frame;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use vpnkit_capture::{Filter, Subscription, recorder};

use super::{Api, Refusal};

/// How long a capture waits for frames before it looks whether its reader is still there.
const LOOK: Duration = Duration::from_millis(250);

/// Pieces of a capture on their way to a reader.
const PIECES_MAX: usize = 4;

pub fn router() -> Router<Api> {
    Router::new()
        .route("/flows", get(flows))
        .route("/drops", get(drops))
        .route("/metrics", get(metrics))
        .route("/status", get(status))
        .route("/capture", get(capture))
        .route("/capture/ring", get(ring))
        .route("/healthz", get(|| async { "ok\n" }))
}

async fn flows(State(api): State<Api>) -> axum::Json<Value> {
    axum::Json(flows_of(&api.exposed.network().flows()))
}

async fn drops(State(api): State<Api>) -> axum::Json<Value> {
    axum::Json(drops_of(&api.exposed.network().counters()))
}

/// What was dropped or refused as JSON: how often for each reason, those that never happened left out.
pub fn drops_of(counters: &Counters) -> Value {
    let happened = counters.drops.iter().filter(|(_, count)| *count > 0);
    happened.map(|(reason, count)| (reason.name().to_owned(), Value::from(count))).collect()
}

/// What the process is: its version and its sandbox.
async fn status(State(api): State<Api>) -> axum::Json<Value> {
    axum::Json((*api.status).clone())
}

/// Flows as JSON: a list, TCP first.
pub fn flows_of(flows: &Flows) -> Value {
    let tcp = flows.tcp.iter().map(|flow| {
        json!({
            "protocol": "tcp",
            "guest": flow.guest.to_string(),
            "remote": flow.remote.to_string(),
            "state": flow.state,
            "bytes_up": flow.bytes_up,
            "bytes_down": flow.bytes_down,
            "buffer_bytes": flow.buffer_bytes,
        })
    });
    let udp = flows.udp.iter().map(|flow| {
        json!({
            "protocol": "udp",
            "guest": flow.guest.to_string(),
            "remote": flow.peer.map(|peer| peer.to_string()),
            "bytes_up": flow.bytes_up,
            "bytes_down": flow.bytes_down,
        })
    });
    tcp.chain(udp).collect()
}

async fn metrics(State(api): State<Api>) -> Response {
    let text = metrics_of(&api);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}

/// The metrics as text.
pub fn metrics_of(api: &Api) -> String {
    let network = api.exposed.network();
    prometheus(&network.counters(), &network.flows(), api.exposed.list().len())
}

/// The text exposition format 0.0.4.
fn prometheus(counters: &Counters, flows: &Flows, ports: usize) -> String {
    let counted = [
        ("frames_received", "Frames from machines", counters.frames_in),
        ("frames_sent", "Frames to machines", counters.frames_out),
        ("bytes_received", "Bytes of frames from machines", counters.bytes_in),
        ("bytes_sent", "Bytes of frames to machines", counters.bytes_out),
        (
            "tcp_straight_bytes",
            "TCP data that went from machines' frames straight to sockets",
            counters.straight_bytes,
        ),
        ("copied_bytes", "Bytes copied out of frames in machines' memory", counters.copied_bytes),
        ("tcp_retransmitted_segments", "TCP segments sent again", counters.retransmitted),
        ("tcp_retransmission_timeouts", "Retransmission timers of TCP that expired", counters.timeouts),
        ("tcp_tail_probes", "Probes of the tail of TCP that were sent", counters.tail_probes),
        ("flow_resets", "Flows that a machine or a time-out reset", counters.resets),
    ];
    let gauges = [
        ("tcp_flows", "TCP flows", flows.tcp.len()),
        ("udp_flows", "UDP flows", flows.udp.len()),
        ("exposed_ports", "Ports of the host that lead to machines", ports),
        ("tcp_buffer_bytes", "Memory of TCP buffers", flows.tcp.iter().map(|flow| flow.buffer_bytes).sum()),
    ];
    let mut text = String::new();
    for (name, help, value) in counted {
        // Writing to a string does not fail.
        let _ = write!(
            text,
            "# HELP vpnkit_{name}_total {help}.\n# TYPE vpnkit_{name}_total counter\nvpnkit_{name}_total {value}\n"
        );
    }
    text.push_str(
        "# HELP vpnkit_dropped_total What was dropped or refused, by reason.\n# TYPE vpnkit_dropped_total counter\n",
    );
    for (reason, value) in counters.drops.iter() {
        let _ = writeln!(text, "vpnkit_dropped_total{{reason=\"{}\"}} {value}", reason.name());
    }
    for (name, help, value) in gauges {
        let _ =
            write!(text, "# HELP vpnkit_{name} {help}.\n# TYPE vpnkit_{name} gauge\nvpnkit_{name} {value}\n");
    }
    text
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct CaptureQuery {
    filter: String,
    snaplen: u32,
}

impl CaptureQuery {
    fn filter(&self) -> Result<Filter, Refusal> {
        self.filter.parse().map_err(Refusal::bad)
    }
}

/// pcapng until the reader goes away.
async fn capture(State(api): State<Api>, Query(query): Query<CaptureQuery>) -> Result<Response, Refusal> {
    let wanted =
        recorder::Wanted { filter: query.filter()?, snap_bytes: query.snaplen, ..Default::default() };
    let subscription = api.recorder.subscribe(wanted).ok_or(Refusal {
        status: StatusCode::SERVICE_UNAVAILABLE,
        message: format!("{} captures are going on already", recorder::SUBSCRIPTIONS_MAX),
    })?;
    let (pieces, receiver) = mpsc::channel(PIECES_MAX);
    tokio::task::spawn_blocking(move || pump(subscription, &pieces));
    let body = Body::new(Pieces(receiver));
    Ok(([(header::CONTENT_TYPE, "application/x-pcapng")], body).into_response())
}

/// Carries a capture to its reader, until that is gone.
fn pump(mut subscription: Subscription, pieces: &mpsc::Sender<Bytes>) {
    loop {
        let mut piece = Vec::new();
        let live = subscription.take(&mut piece, LOOK);
        let sent = piece.is_empty() || pieces.blocking_send(piece.into()).is_ok();
        if !live || !sent || pieces.is_closed() {
            return;
        }
    }
}

/// The receiver as a body.
struct Pieces(mpsc::Receiver<Bytes>);

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
    }
}

async fn ring(State(api): State<Api>, Query(query): Query<CaptureQuery>) -> Result<Response, Refusal> {
    let file = api.recorder.ring_pcapng(&query.filter()?);
    Ok(([(header::CONTENT_TYPE, "application/x-pcapng")], file).into_response())
}
