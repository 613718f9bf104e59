//! Controls and observes a running network: ports are exposed and hidden, flows, counters and captures are looked at,
//! over HTTP as existing clients speak it.
//!
//! - [`network`]: what is needed of the engine; [`spec`]: forwards as text; [`exposed`]: which ports are forwarded, by
//!   whom they may be bound, idempotently;
//! - [`paths`]: Unix sockets that lead to guests;
//! - [`http`]: the API of VPNKit's Go client (`/forwards/…`), that of gvproxy (`/services/forwarder/…`), Prometheus
//!   metrics, flows as JSON, and pcapng without end;
//! - [`captured`]: the link that captures are made at; [`diagnostics`]: what VPNKit gave to who connects.

#![forbid(unsafe_code)]

pub mod captured;
pub mod diagnostics;
pub mod exposed;
pub mod http;
pub mod network;
pub mod paths;
pub mod spec;

pub use captured::CapturedLink;
pub use diagnostics::Offer;
pub use exposed::{ExposeError, Exposed};
pub use http::{Api, Listening, ServeError, Server, Settings, Zones};
pub use network::Network;
pub use paths::{Paths, Places, Target};
pub use spec::{Spec, SpecError};
