//! `GET /v1/limits`, `PUT /v1/limits/{name}`, `DELETE /v1/limits/{name}`

use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::routing::{get, put};
use jiff::Timestamp;
use serde::Deserialize;

use super::body::Strict;
use super::{Answer, Failure, Shared, answer};
use crate::api::{LimitChanged, Limits, Refusal, SetLimit};
use crate::daemon::Daemon;

pub(super) fn routes() -> Router<Arc<Daemon>> {
    Router::new().route("/v1/limits", get(list)).route("/v1/limits/{name}", put(set).delete(remove))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    name: Option<String>,
}

async fn list(State(daemon): Shared, wanted: Result<Query<Wanted>, QueryRejection>) -> Answer<Limits> {
    let Query(Wanted { name }) = wanted.map_err(|rejection| {
        Failure::new(StatusCode::BAD_REQUEST, Refusal::of("query", rejection.body_text(), "name=NAME"))
    })?;
    answer(daemon.with(move |registry| registry.limits(name.as_deref())).await?)
}

async fn set(
    State(daemon): Shared,
    Path(name): Path<String>,
    Strict(SetLimit { limit, until }): Strict<SetLimit>,
) -> Answer<LimitChanged> {
    let changed = daemon.with(move |registry| registry.set_limit(&name, &limit, until, Timestamp::now())).await?;
    tracing::info!("limit of `{}` is {}, was {}", changed.name, changed.limit, changed.previous);
    answer(changed)
}

async fn remove(State(daemon): Shared, Path(name): Path<String>) -> Answer<LimitChanged> {
    let changed = daemon.with(move |registry| registry.remove_limit(&name, Timestamp::now())).await?;
    tracing::info!("limit of `{}` is its plan's, {}, was {}", changed.name, changed.limit, changed.previous);
    answer(changed)
}
