//! `POST /v1/explain`: a question, which readers may ask unless it has a key in it.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Extension, Router};
use jiff::Timestamp;

use super::body::Strict;
use super::{Answer, Failure, Peer, Shared, answer};
use crate::api::{Explain, Explained, Refusal};
use crate::daemon::Daemon;

/// Where it is asked.
pub(super) const PATH: &str = "/v1/explain";

pub(super) fn routes() -> Router<Arc<Daemon>> {
    Router::new().route(PATH, post(explain))
}

async fn explain(
    State(daemon): Shared,
    Extension(peer): Extension<Option<Peer>>,
    Strict(question): Strict<Explain>,
) -> Answer<Explained> {
    if !may_ask(&question, peer) {
        let message = "only root and the daemon's own user may ask what a key is good for: name it by its id";
        return Err(Failure::new(StatusCode::FORBIDDEN, Refusal::new(message)));
    }
    let settings = daemon.settings.clone();
    answer(daemon.with(move |registry| registry.explain(&question, &settings, Timestamp::now())).await?)
}

/// Whether a reader may ask this: not with a key in it, else keys could be tried here that no limit counts.
fn may_ask(question: &Explain, peer: Option<Peer>) -> bool {
    question.key.is_none() || peer.is_some_and(|peer| peer.may_change())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_may_ask_by_a_name_but_not_try_keys() {
        let question = |key: Option<&str>| Explain {
            method: "GET".into(),
            target: "/".into(),
            source: std::net::Ipv4Addr::LOCALHOST.into(),
            forwarded_for: None,
            keyed: None,
            key: key.map(|key| key.to_owned().into()),
            client: None,
            port: None,
            host: None,
            service: None,
            fields: Vec::new(),
        };
        let peer = |uid| Some(Peer { uid, gid: 4_000_000_000, pid: 1 });
        let reader = 3_999_999_999;
        assert!(may_ask(&question(None), peer(reader)) && may_ask(&question(Some("a_key_of_mine")), peer(0)));
        assert!(!may_ask(&question(Some("a_key_of_mine")), peer(reader)));
        assert!(!may_ask(&question(Some("a_key_of_mine")), None));
    }
}
