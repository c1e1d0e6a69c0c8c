//! `GET /v1/status`

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::routing::get;

use super::{Answer, Shared, answer};
use crate::api::Status;
use crate::daemon::Daemon;

pub(super) fn routes() -> Router<Arc<Daemon>> {
    Router::new().route("/v1/status", get(show))
}

async fn show(State(daemon): Shared) -> Answer<Status> {
    let shared = Arc::clone(&daemon);
    let sizes = daemon.read(|reader| reader.sizes()).await?;
    let status =
        daemon.with(move |registry| registry.status(&shared.settings, shared.since, &shared.reaped, sizes)).await?;
    answer(status)
}
