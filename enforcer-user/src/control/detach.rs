//! `POST /v1/detach`: ends enforcement, answers, and lets the daemon end.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::routing::post;

use super::{Answer, Shared, answer};
use crate::api::Detached;
use crate::daemon::Daemon;

pub(super) fn routes() -> Router<Arc<Daemon>> {
    Router::new().route("/v1/detach", post(detach))
}

async fn detach(State(daemon): Shared) -> Answer<Detached> {
    answer(Detached { interfaces: daemon.detach().await? })
}
