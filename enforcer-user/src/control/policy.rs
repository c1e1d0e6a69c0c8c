//! `GET /v1/policy`, `POST /v1/policy`, `POST /v1/policy/confirm`, `POST /v1/policy/rollback`, `GET /v1/plan`

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::routing::{get, post};
use jiff::Timestamp;

use super::body::Strict;
use super::{Answer, Shared, answer};
use crate::api::{ApplyPolicy, Forecast, PolicyApplied, PolicyText, TrialEnded};
use crate::daemon::Daemon;

pub(super) fn routes() -> Router<Arc<Daemon>> {
    Router::new()
        .route("/v1/policy", get(export).post(apply))
        .route("/v1/policy/confirm", post(confirm))
        .route("/v1/policy/rollback", post(roll_back))
        .route("/v1/plan", get(forecast))
}

async fn export(State(daemon): Shared) -> Answer<PolicyText> {
    answer(daemon.with(move |registry| registry.export_policy(Timestamp::now())).await?)
}

async fn apply(State(daemon): Shared, Strict(request): Strict<ApplyPolicy>) -> Answer<PolicyApplied> {
    let applied = daemon.with(move |registry| registry.apply_policy(&request, Timestamp::now())).await?;
    log(&applied);
    answer(applied)
}

/// Says in the log what of the policy has changed.
pub(super) fn log(PolicyApplied { changes, applied, on_trial_until: _ }: &PolicyApplied) {
    for change in changes.iter().filter(|_| *applied) {
        tracing::info!("policy: {change}");
    }
}

async fn forecast(State(daemon): Shared) -> Answer<Forecast> {
    answer(daemon.with(move |registry| registry.forecast(Timestamp::now())).await?)
}

async fn confirm(State(daemon): Shared) -> Answer<TrialEnded> {
    daemon.with(move |registry| registry.confirm(Timestamp::now())).await?;
    answer(TrialEnded { kept: true })
}

async fn roll_back(State(daemon): Shared) -> Answer<TrialEnded> {
    daemon.with(move |registry| registry.roll_back()).await?;
    answer(TrialEnded { kept: false })
}
