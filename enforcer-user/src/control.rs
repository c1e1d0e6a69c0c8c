//! The control API: HTTP and JSON on a Unix socket, for the command line and for scripts.
//!
//! Who is at the other end is asked of the kernel, not of the client: root and the daemon's own user may do all,
//! members of the group `enforcer` may read, others nothing. Bodies are bounded, and every refusal names the field that
//! is to blame and what it accepts. Each change is logged with the user and process that asked for it.
//!
//! # Layout
//! - `peer`: who asks
//! - `body`: a request's JSON, read strictly
//! - `keys`, `limits`, `policy`, `exemptions`, `penalties`, `explain`, `status`, `detach`: the routes, by noun

mod body;
mod detach;
mod exemptions;
mod explain;
mod keys;
mod limits;
mod peer;
mod penalties;
mod policy;
mod status;

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json, Router};
use serde::Serialize;

use crate::api::{Envelope, Failed, Refusal};
use crate::daemon::Daemon;
use crate::daemon::registry::Error;
use crate::kernel;

pub(crate) use peer::Peer;

/// All routes, behind the check of who asks.
pub(crate) fn router(daemon: Arc<Daemon>) -> Router {
    Router::new()
        .merge(status::routes())
        .merge(keys::routes())
        .merge(limits::routes())
        .merge(penalties::routes())
        .merge(policy::routes())
        .merge(exemptions::routes())
        .merge(explain::routes())
        .merge(detach::routes())
        .fallback(no_such_route)
        .method_not_allowed_fallback(no_such_method)
        .layer(middleware::from_fn(admit))
        .with_state(daemon)
}

/// A successful answer.
type Answer<T> = Result<Json<Envelope<T>>, Failure>;

fn answer<T: Serialize>(body: T) -> Answer<T> {
    Ok(Json(Envelope::new(body)))
}

/// An answer that is not a success.
#[derive(Debug)]
struct Failure {
    status: StatusCode,
    refusal: Refusal,
}

impl Failure {
    fn new(status: StatusCode, refusal: Refusal) -> Self {
        Self { status, refusal }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let Self { status, refusal } = self;
        (status, Json(Failed { error: refusal })).into_response()
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Invalid(refusal) => Self::new(StatusCode::BAD_REQUEST, refusal),
            Error::NotFound(refusal) => Self::new(StatusCode::NOT_FOUND, refusal),
            Error::Conflict(refusal) => Self::new(StatusCode::CONFLICT, refusal),
            Error::Kernel(error @ kernel::Error::Full { .. }) => {
                Self::new(StatusCode::CONFLICT, Refusal::new(error.to_string()))
            }
            error @ (Error::Stopping | Error::Store(_) | Error::Kernel(_) | Error::Random(_)) => {
                tracing::error!("a request failed: {error}");
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, Refusal::new(error.to_string()))
            }
        }
    }
}

/// Lets those through who may do what they ask, and logs each change.
async fn admit(Extension(peer): Extension<Option<Peer>>, request: Request, next: Next) -> Response {
    let reading = request.method() == Method::GET || request.uri().path() == explain::PATH;
    let Some(peer) = peer.filter(|peer| peer.may_change() || (reading && peer.may_read())) else {
        let message = match reading {
            true => "only root and members of the group `enforcer` may read over this socket",
            false => "only root and the daemon's own user may change anything over this socket",
        };
        return Failure::new(StatusCode::FORBIDDEN, Refusal::new(message)).into_response();
    };
    if reading {
        return next.run(request).await;
    }
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let response = next.run(request).await;
    let status = response.status();
    // What was refused may hold anything, such as a key that was taken for its id.
    let path = if status.is_success() { path.as_str() } else { route(&path) };
    tracing::info!(uid = peer.uid, pid = peer.pid, status = status.as_u16(), "{method} {path}");
    response
}

/// The route's first two segments, without what the client chose.
fn route(path: &str) -> &'static str {
    let is = |prefix: &str| path == prefix || path.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'));
    let routes =
        ["/v1/keys", "/v1/limits", "/v1/penalties", "/v1/policy", "/v1/exemptions", "/v1/status", "/v1/detach"];
    routes.into_iter().find(|prefix| is(prefix)).unwrap_or("elsewhere")
}

async fn no_such_route() -> Failure {
    Failure::new(
        StatusCode::NOT_FOUND,
        Refusal::new(
            "there is nothing at this path; see /v1/status, /v1/keys, /v1/limits, /v1/policy, /v1/exemptions, /v1/penalties, /v1/explain",
        ),
    )
}

async fn no_such_method() -> Failure {
    Failure::new(StatusCode::METHOD_NOT_ALLOWED, Refusal::new("this path is not for this method"))
}

/// What every handler is given.
type Shared = State<Arc<Daemon>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_refused_is_logged_without_what_the_client_chose() {
        assert_eq!(route("/v1/keys/correct-horse-battery"), "/v1/keys");
        assert_eq!(route("/v1/limits"), "/v1/limits");
        assert_eq!(route("/v1/keysandmore"), "elsewhere");
    }
}
