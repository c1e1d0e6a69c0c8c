//! `/v1/keys`: list, show, add, import, rotate, remove, disable, enable, limit, label.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post, put};
use axum::{Json, Router};
use jiff::Timestamp;

use super::body::Strict;
use super::{Answer, Failure, Shared, answer};
use crate::api::{
    AddKey, Envelope, ImportKeys, KeyAdded, KeyRotated, Keys, KeysChanged, KeysImported, KeysShown, Refusal, RotateKey,
    SetKeyLimit, SetLabel,
};
use crate::daemon::Daemon;
use crate::name::Selector;

pub(super) fn routes() -> Router<Arc<Daemon>> {
    Router::new()
        .route("/v1/keys", get(list).post(add))
        .route("/v1/keys/import", post(import))
        .route("/v1/keys/rotate", post(rotate))
        .route("/v1/keys/{name_or_id}", get(show).delete(remove))
        .route("/v1/keys/{name_or_id}/disable", post(disable))
        .route("/v1/keys/{name_or_id}/enable", post(enable))
        .route("/v1/keys/{name_or_id}/limit", put(set_limit))
        .route("/v1/keys/{name_or_id}/label", put(set_label))
}

fn selector(text: &str) -> Result<Selector, Failure> {
    Selector::parse(text).ok_or_else(|| {
        let refusal = Refusal::of("name-or-id", "this is neither a name nor an id", Selector::ACCEPTED);
        Failure::new(StatusCode::BAD_REQUEST, refusal)
    })
}

async fn list(State(daemon): Shared) -> Answer<Keys> {
    let tried = daemon.with(|registry| Ok(registry.tried())).await?;
    answer(daemon.read(move |reader| reader.keys(tried)).await?)
}

async fn show(State(daemon): Shared, Path(text): Path<String>) -> Answer<KeysShown> {
    let selector = selector(&text)?;
    answer(daemon.with(move |registry| registry.show_keys(&selector)).await?)
}

async fn add(
    State(daemon): Shared,
    Strict(request): Strict<AddKey>,
) -> Result<(StatusCode, Json<Envelope<KeyAdded>>), Failure> {
    let added = daemon.with(move |registry| registry.add_key(&request, Timestamp::now())).await?;
    tracing::info!("key {} added for `{}`, limit {}", added.id, added.name, added.limit);
    Ok((StatusCode::CREATED, Json(Envelope::new(added))))
}

async fn import(State(daemon): Shared, Strict(request): Strict<ImportKeys>) -> Answer<KeysImported> {
    let imported = daemon.with(move |registry| registry.import_keys(&request, Timestamp::now())).await?;
    tracing::info!("{} keys and {} new principals imported", imported.imported, imported.new_principals);
    answer(imported)
}

async fn rotate(State(daemon): Shared, Strict(request): Strict<RotateKey>) -> Answer<KeyRotated> {
    let rotated = daemon.with(move |registry| registry.rotate_key(&request, Timestamp::now())).await?;
    tracing::info!("key {} of `{}` takes over from {}", rotated.id, rotated.name, rotated.old);
    answer(rotated)
}

async fn remove(State(daemon): Shared, Path(text): Path<String>) -> Answer<KeysChanged> {
    let selector = selector(&text)?;
    answer(daemon.with(move |registry| registry.remove_keys(&selector)).await?)
}

async fn disable(daemon: Shared, text: Path<String>) -> Answer<KeysChanged> {
    set_disabled(daemon, text, true).await
}

async fn enable(daemon: Shared, text: Path<String>) -> Answer<KeysChanged> {
    set_disabled(daemon, text, false).await
}

async fn set_limit(
    State(daemon): Shared,
    Path(text): Path<String>,
    Strict(SetKeyLimit { limit }): Strict<SetKeyLimit>,
) -> Answer<KeysChanged> {
    let selector = selector(&text)?;
    let changed = daemon.with(move |registry| Ok((registry.set_key_limit(&selector, &limit)?, limit))).await?;
    let (changed, limit) = changed;
    for key in changed.keys.iter().filter(|key| key.changed) {
        tracing::info!("the own limit of key {} of `{}` is {limit}", key.id, key.name);
    }
    answer(changed)
}

async fn set_label(
    State(daemon): Shared,
    Path(text): Path<String>,
    Strict(SetLabel { label }): Strict<SetLabel>,
) -> Answer<KeysChanged> {
    let selector = selector(&text)?;
    answer(daemon.with(move |registry| registry.set_label(&selector, label.as_deref())).await?)
}

async fn set_disabled(State(daemon): Shared, Path(text): Path<String>, disabled: bool) -> Answer<KeysChanged> {
    let selector = selector(&text)?;
    answer(daemon.with(move |registry| registry.set_disabled(&selector, disabled)).await?)
}
