//! `GET /v1/exemptions`, `POST /v1/exemptions`, `DELETE /v1/exemptions`

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use jiff::Timestamp;

use super::body::Strict;
use super::{Answer, Shared, answer};
use crate::api::{AddExemption, Exemptions, PolicyApplied, RemoveExemption};
use crate::daemon::Daemon;

pub(super) fn routes() -> Router<Arc<Daemon>> {
    Router::new().route("/v1/exemptions", get(list).post(add).delete(remove))
}

async fn list(State(daemon): Shared) -> Answer<Exemptions> {
    let exemptions = daemon.with(move |registry| registry.exemptions(Timestamp::now())).await?;
    answer(Exemptions { exemptions })
}

async fn add(State(daemon): Shared, Strict(request): Strict<AddExemption>) -> Answer<PolicyApplied> {
    changed(daemon.with(move |registry| registry.add_exemption(&request, Timestamp::now())).await?)
}

async fn remove(State(daemon): Shared, Strict(request): Strict<RemoveExemption>) -> Answer<PolicyApplied> {
    changed(daemon.with(move |registry| registry.remove_exemption(&request, Timestamp::now())).await?)
}

fn changed(applied: PolicyApplied) -> Answer<PolicyApplied> {
    super::policy::log(&applied);
    answer(applied)
}
