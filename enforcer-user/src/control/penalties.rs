//! `GET /v1/penalties[?all=true]`, `DELETE /v1/penalties[/{address}[/{bits}]]`

use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::routing::{delete, get};
use serde::Deserialize;

use super::{Answer, Failure, Shared, answer};
use crate::api::{Penalties, PenaltiesEnded, Refusal};
use crate::daemon::Daemon;
use crate::daemon::registry::Registry;
use crate::prefix::Prefix;

pub(super) fn routes() -> Router<Arc<Daemon>> {
    Router::new()
        .route("/v1/penalties", get(list).delete(end_all))
        .route("/v1/penalties/{address}", delete(end_address))
        .route("/v1/penalties/{address}/{bits}", delete(end_prefix))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    #[serde(default)]
    all: bool,
}

async fn list(State(daemon): Shared, wanted: Result<Query<Wanted>, QueryRejection>) -> Answer<Penalties> {
    let Query(Wanted { all }) = wanted.map_err(|rejection| {
        Failure::new(StatusCode::BAD_REQUEST, Refusal::of("query", rejection.body_text(), "all=true"))
    })?;
    let settings = daemon.settings.clone();
    answer(daemon.with(move |registry| registry.penalties(&settings, all)).await?)
}

/// In which service a penalty ends; in all without.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Within {
    service: Option<String>,
}

type Place = Result<Query<Within>, QueryRejection>;

async fn end_all(daemon: Shared, place: Place) -> Answer<PenaltiesEnded> {
    end(daemon, place, None).await
}

async fn end_address(daemon: Shared, Path(address): Path<String>, place: Place) -> Answer<PenaltiesEnded> {
    end(daemon, place, Some(prefix(&address)?)).await
}

async fn end_prefix(
    daemon: Shared,
    Path((address, bits)): Path<(String, String)>,
    place: Place,
) -> Answer<PenaltiesEnded> {
    end(daemon, place, Some(prefix(&format!("{address}/{bits}"))?)).await
}

fn prefix(text: &str) -> Result<Prefix, Failure> {
    text.parse().map_err(|_| {
        let refusal = Refusal::of("source", "this is neither an address nor a prefix", Prefix::ACCEPTED);
        Failure::new(StatusCode::BAD_REQUEST, refusal)
    })
}

async fn end(State(daemon): Shared, place: Place, wanted: Option<Prefix>) -> Answer<PenaltiesEnded> {
    let Query(Within { service }) = place.map_err(|rejection| {
        Failure::new(StatusCode::BAD_REQUEST, Refusal::of("query", rejection.body_text(), "service=NAME"))
    })?;
    let settings = daemon.settings.clone();
    let end = move |registry: &mut Registry| registry.end_penalties(&settings, service.as_deref(), wanted);
    let ended = daemon.with(end).await?;
    let changed: Vec<&str> = ended.sources.iter().filter(|ended| ended.changed).map(|it| it.source.as_str()).collect();
    if !changed.is_empty() {
        tracing::info!("penalties ended: {}", changed.join(", "));
    }
    answer(ended)
}
