//! `/metrics` and `/healthz`: the daemon's answers to Prometheus and to whoever asks whether it lives.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Router, response::Response};

use super::Daemon;
use super::serving::text;
use crate::metrics::{Format, render};

const PLAIN: &str = "text/plain; charset=utf-8";

/// The routes of the metrics' address.
pub(super) fn router(daemon: Arc<Daemon>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .fallback(async || text(StatusCode::NOT_FOUND, PLAIN, "there are /metrics and /healthz here\n"))
        .with_state(daemon)
}

async fn metrics(State(daemon): State<Arc<Daemon>>, headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let format = Format::accepted(accept);
    let (settings, reaped) = (daemon.settings.clone(), Arc::clone(&daemon.reaped));
    let principals = match daemon.read(|reader| reader.principals()).await {
        Ok(principals) => principals,
        Err(error) => return unavailable(&error),
    };
    let snapshot = match daemon.with(move |registry| registry.snapshot(&settings, &reaped, principals)).await {
        Ok(snapshot) => snapshot,
        Err(error) => return unavailable(&error),
    };
    let rendered = tokio::task::spawn_blocking(move || render(snapshot, format)).await;
    match rendered {
        Ok(Ok(body)) => text(StatusCode::OK, format.content_type(), body).into_response(),
        Ok(Err(error)) => unavailable(&error),
        Err(error) => unavailable(&error),
    }
}

/// 200 while the maps can be read, which is what enforcement and its control need.
async fn healthz(State(daemon): State<Arc<Daemon>>) -> Response {
    match daemon.with(|registry| registry.probe()).await {
        Ok(()) => text(StatusCode::OK, PLAIN, "ok\n").into_response(),
        Err(error) => unavailable(&error),
    }
}

fn unavailable(error: &dyn std::fmt::Display) -> Response {
    text(StatusCode::SERVICE_UNAVAILABLE, PLAIN, format!("{error}\n")).into_response()
}
