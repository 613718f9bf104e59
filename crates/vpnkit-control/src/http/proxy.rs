//! The settings of the HTTP proxy, as VPNKit's clients read and replace them: `/http_proxy.json`.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::{Api, Refusal};

/// Settings that can be looked at and replaced.
pub trait Settings: Send + Sync + std::fmt::Debug {
    /// Their JSON.
    fn get(&self) -> String;

    /// Replaces them.
    ///
    /// # Errors
    /// Says what is wrong with them; then those before hold.
    fn set(&self, json: &str) -> Result<(), String>;
}

pub fn router() -> Router<Api> {
    Router::new().route("/http_proxy.json", get(read).post(replace).put(replace))
}

fn settings(api: &Api) -> Result<&Arc<dyn Settings>, Refusal> {
    let missing =
        || Refusal { status: StatusCode::NOT_FOUND, message: "there is no proxy: see --http".into() };
    api.proxy.as_ref().ok_or_else(missing)
}

async fn read(State(api): State<Api>) -> Result<Response, Refusal> {
    let json = settings(&api)?.get();
    Ok(([(header::CONTENT_TYPE, "application/json")], json).into_response())
}

async fn replace(State(api): State<Api>, json: String) -> Result<(), Refusal> {
    settings(&api)?.set(&json).map_err(Refusal::bad)
}
