//! Bodies of requests: JSON, whatever their type says. gvproxy's documentation has `curl -d` without one, and what it cannot
//! be read as is said in the form of all refusals.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;

use super::Refusal;

/// JSON, in a request.
#[derive(Debug)]
pub(super) struct Body<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        let bytes = Bytes::from_request(request, state)
            .await
            .map_err(|error| Refusal { status: error.status(), message: error.body_text() })?;
        // It says which field is wrong.
        let parsed = Json::from_bytes(&bytes).map_err(|error| Refusal::bad(error.body_text()))?;
        Ok(Self(parsed.0))
    }
}

/// Refuses what comes from a web page: one that somebody looks at on this host can send requests to its loopback, and a
/// browser says so. Spec: Fetch §3.2 (`Origin`).
pub(super) async fn refuse_pages(request: Request, next: Next) -> Response {
    if request.headers().contains_key(header::ORIGIN) {
        let message = "a web page may not ask this".to_owned();
        return Refusal { status: StatusCode::FORBIDDEN, message }.into_response();
    }
    next.run(request).await
}
