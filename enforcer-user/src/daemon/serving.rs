//! Serves a router on a listener, within bounds: so many connections, so long for a request's head.
//!
//! Both ends of the daemon, the control socket and the metrics, are served by this one loop. It ends when `stop` says
//! so, and lets requests under way finish for [`GRACE`].

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::Extension;
use axum::serve::Listener;
use axum::{Router, http};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::sync::{Semaphore, watch};

/// Connections at once; more wait in the kernel's backlog.
const CONNECTIONS: usize = 64;
/// Time for a request's head, and for a connection to stay idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Time for requests under way once the daemon stops.
const GRACE: Duration = Duration::from_secs(5);

/// Serves `router` until `stop` changes; `identify` says who is at the other end, for the handlers.
pub(super) async fn serve<L, P>(
    mut listener: L,
    router: Router,
    identify: impl Fn(&L::Io) -> P,
    mut stop: watch::Receiver<bool>,
) where
    L: Listener,
    P: Clone + Send + Sync + 'static,
{
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await.0)
        };
        let (place, stream) = tokio::select! {
            accepted = accepted => accepted,
            _ = stop.wait_for(|stop| *stop) => break,
        };
        let router = router.clone().layer(Extension(identify(&stream)));
        let service = TowerToHyperService::new(router.into_service::<hyper::body::Incoming>());
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service);
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            let _place = place;
            if let Err(error) = connection.await {
                tracing::debug!("a connection ended early: {error}");
            }
        });
    }
    if tokio::time::timeout(GRACE, graceful.shutdown()).await.is_err() {
        tracing::debug!("requests under way were cut off");
    }
}

/// An answer of plain text.
pub(super) fn text(
    status: http::StatusCode,
    content_type: &'static str,
    body: impl Into<axum::body::Body>,
) -> Result<http::Response<axum::body::Body>, Infallible> {
    let mut response = http::Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    Ok(response)
}
